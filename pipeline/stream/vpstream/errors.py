"""The two ways work can go wrong: the video is to blame (told to a person), or something outside is (tried again)."""


class BadVideo(Exception):
    """The content cannot be processed; the text is the sentence a person reads."""


class Interrupted(Exception):
    """Something outside the video failed (S3, a killed child, a full disk): the same work is worth another try."""


class Fenced(Exception):
    """A higher generation of the driver exists: this one must publish nothing more."""
