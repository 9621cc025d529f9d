"""Decodes records of the topic `video-segments`; everything in them is untrusted.

Leaves out: putting parts together (`segments.py`).
"""

import json
import re
from dataclasses import dataclass

MAX_VALUE_BYTES = 1_000_000
MAX_SEGMENT_BYTES = 256 * 1024 * 1024
MAX_PARTS = 4096
JOB = re.compile(r"[0-9a-f]{20}")
SEGMENT = re.compile(r"[0-9]{5}|audio")
SHA256 = re.compile(r"[0-9a-f]{64}")
NUMBER = re.compile(r"0|[1-9][0-9]{0,11}")


class Malformed(ValueError):
    """A record that is not as contracts.md §6 says; it is counted and skipped."""


@dataclass(frozen=True)
class Piece:
    """One part of one segment; `total` and `sha256` are those of the whole segment."""

    job: str
    segment: str
    part: int
    parts: int
    total: int
    sha256: str
    value: bytes


@dataclass(frozen=True)
class Reference:
    """A segment too large for records: an object of its own."""

    job: str
    segment: str
    bucket: str
    key: str


@dataclass(frozen=True)
class End:
    """All records of a job were acknowledged and its plan is written."""

    job: str


def decode(key, value, headers):
    """Returns a Piece, Reference or End; raises Malformed. `headers` is a list of (name, bytes)."""
    names = {}
    for name, raw in headers or ():
        try:
            names[name] = bytes(raw or b"").decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("a header is not UTF-8") from None
    if names.get("version") != "1":
        raise Malformed("version is not 1")
    job = _match(JOB, names.get("job"), "job")
    kind = names.get("kind")
    value = bytes(value or b"")
    if len(value) > MAX_VALUE_BYTES:
        raise Malformed("value is too large")
    if kind == "end":
        _expect_key(key, f"{job}/end")
        if _object(value).get("job") != job:
            raise Malformed("end names another job")
        return End(job)
    segment = _match(SEGMENT, names.get("segment"), "segment")
    _expect_key(key, f"{job}/{segment}")
    if kind == "reference":
        body = _object(value)
        bucket, name = body.get("bucket"), body.get("key")
        if not isinstance(bucket, str) or not isinstance(name, str) or not name:
            raise Malformed("reference without bucket and key")
        return Reference(job, segment, bucket, name)
    if kind not in ("video", "audio") or (kind == "audio") != (segment == "audio"):
        raise Malformed("kind is unknown or does not fit the segment")
    part = int(_match(NUMBER, names.get("part"), "part"))
    parts = int(_match(NUMBER, names.get("parts"), "parts"))
    total = int(_match(NUMBER, names.get("bytes"), "bytes"))
    if not 0 <= part < parts <= MAX_PARTS or not len(value) <= total <= MAX_SEGMENT_BYTES or not value:
        raise Malformed("part, parts or bytes out of range")
    return Piece(job, segment, part, parts, total, _match(SHA256, names.get("sha256"), "sha256"), value)


def _match(pattern, text, what):
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise Malformed(f"{what} is missing or malformed")
    return text


def _expect_key(key, wanted):
    if bytes(key or b"") != wanted.encode():
        raise Malformed("key does not fit the headers")


def _object(value):
    try:
        body = json.loads(value)
    except (ValueError, RecursionError):
        raise Malformed("value is not JSON") from None
    if not isinstance(body, dict):
        raise Malformed("value is not a JSON object")
    return body
