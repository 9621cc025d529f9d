//! Identities: a job is its content and recipe, a segment its place in the video.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A text is not an id of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: {allowed}")]
pub struct InvalidId {
    kind: &'static str,
    text: String,
    allowed: &'static str,
}

/// A job: the first 20 hex digits of SHA-256 over bucket, key, entity tag and recipe name.
///
/// The same bytes under the same key with the same recipe are the same job, however often the event is delivered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// The job of an object; `etag` with or without quotes.
    pub fn of(bucket: &str, key: &str, etag: &str, recipe: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update([bucket, key, etag.trim_matches('"'), recipe].join("\0"));
        let mut digits = hex::encode(hash.finalize());
        digits.truncate(20);
        Self(digits)
    }

    /// The 20 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for JobId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId { kind: "job id", text: text.to_owned(), allowed: "20 hex digits in lower case" })
        }
    }
}

impl TryFrom<String> for JobId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

/// A segment of a job: a numbered piece of the video, or its whole audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SegmentId {
    /// Video segment, counted from 0.
    Video(u32),
    /// The audio of the whole video.
    Audio,
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Video(index) => write!(f, "{index:05}"),
            Self::Audio => f.write_str("audio"),
        }
    }
}

impl FromStr for SegmentId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        if text == "audio" {
            return Ok(Self::Audio);
        }
        let digits = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(index) if digits => Ok(Self::Video(index)),
            _ => Err(InvalidId { kind: "segment", text: text.to_owned(), allowed: "five digits, or `audio`" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_is_the_same_for_the_same_object_and_recipe_and_differs_otherwise() {
        let id = JobId::of("up", "a.mp4", "abc", "default");
        // python: hashlib.sha256(b"up\0a.mp4\0abc\0default").hexdigest()[:20]
        assert_eq!(id.as_str(), "2656fe45f6c897d66411");
        assert_eq!(id, JobId::of("up", "a.mp4", "\"abc\"", "default"));
        assert_ne!(id, JobId::of("up", "a.mp4", "abd", "default"));
        assert_ne!(id, JobId::of("up", "a.mp4", "abc", "360p"));
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
    }

    #[test]
    fn a_job_id_from_outside_is_twenty_hex_digits_and_nothing_else() {
        for text in ["", "../../etc/passwd", "2656FE45F6C897D66411", "2656fe45f6c897d6641", "2656fe45f6c897d66411/"] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_segment_id_is_five_digits_or_audio() {
        for id in [SegmentId::Video(0), SegmentId::Video(99_999), SegmentId::Audio] {
            assert_eq!(id.to_string().parse::<SegmentId>().unwrap(), id);
        }
        for text in ["1", "000001", "+0001", "Audio", "../00", ""] {
            assert!(text.parse::<SegmentId>().is_err(), "{text}");
        }
    }
}
