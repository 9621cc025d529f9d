"""Reads a job's plan.json into values that the rest may trust; a plan that does not fit ends the job with a sentence."""

from dataclasses import dataclass
from fractions import Fraction

from .errors import BadVideo

X264_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


@dataclass(frozen=True)
class Output:
    """One output of the recipe. `spec` holds its checked numbers."""

    name: str
    kind: str
    spec: dict


@dataclass(frozen=True)
class Part:
    """One video segment: pts in units of the plan's time base, `first` frame's index in the whole video."""

    name: str
    sha256: str
    frames: int
    first_pts: int
    last_pts: int
    end_pts: int
    first: int


@dataclass(frozen=True)
class Plan:
    """`width` and `height` are as shown, after rotation (degrees clockwise); `rate` is the average frame rate."""

    job: str
    bucket: str
    key: str
    etag: str
    recipe: dict
    outputs: tuple
    width: int
    height: int
    rotation: int
    time_base: Fraction
    start_pts: int
    frames: int
    rate: Fraction
    parts: tuple
    audio: dict | None

    @property
    def video_start_s(self):
        return float(self.start_pts * self.time_base)

    @property
    def end_pts(self):
        return max(part.end_pts for part in self.parts)

    @property
    def duration_s(self):
        return float((self.end_pts - self.start_pts) * self.time_base)


def read(raw, job):
    """Checks and translates; raises BadVideo."""
    try:
        return _read(raw, job)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise BadVideo(f"The job's plan cannot be used: {error!r}.") from error


def _number(value, low, high, what):
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}")
    return value


def _read(raw, job):
    if raw["version"] != 1 or raw["job"] != job:
        raise ValueError("version or job does not fit")
    video = raw["video"]
    rotation = int(video.get("rotation") or 0) % 360
    if rotation % 90:
        raise ValueError("rotation must be a multiple of 90")
    width = _number(video["width"], 1, 16384, "width")
    height = _number(video["height"], 1, 16384, "height")
    if rotation in (90, 270):
        width, height = height, width
    time_base = Fraction(video["time_base"])
    rate = Fraction(video["average_frame_rate"])
    if time_base <= 0:
        raise ValueError("time base must be above 0")
    if not 0 < rate <= 1000:
        rate = Fraction(25)
    parts, first = [], 0
    for index, segment in enumerate(raw["segments"]):
        if segment["index"] != index:
            raise ValueError("segments are not in order")
        frames = _number(segment["frames"], 1, 10**7, "frames")
        stamps = [int(segment[name]) for name in ("first_pts", "last_pts", "end_pts")]
        parts.append(Part(f"{index:05d}", str(segment["sha256"]), frames, *stamps, first))
        first += frames
    if not parts or first != video["frames"]:
        raise ValueError("frames of the segments do not add up")
    outputs = tuple(_output(entry) for entry in raw["recipe"]["outputs"])
    if not outputs or len({output.name for output in outputs}) != len(outputs):
        raise ValueError("outputs must be there and differ in name")
    audio = raw.get("audio")
    if audio is not None:
        audio = {
            "start_s": float(audio["start_s"]),
            "duration_s": float(audio["duration_s"]),
            "sample_rate": _number(audio["sample_rate"], 1, 768_000, "sample_rate"),
            "channels": _number(audio["channels"], 1, 64, "channels"),
            "shift_s": _number(audio.get("shift_s", 0), 0, 10**6, "shift_s"),
            "sha256": str(audio["segment"]["sha256"]),
        }
    return Plan(
        job, raw["bucket"], raw["key"], raw["etag"], raw["recipe"], outputs, width, height, rotation,
        time_base, parts[0].first_pts if video.get("start_pts") is None else int(video["start_pts"]), first, rate, tuple(parts), audio,
    )  # fmt: skip


def _output(entry):
    name, kind = entry["name"], entry["kind"]
    if not isinstance(name, str) or not name or "/" in name or name.startswith(".") or not name.isascii() or not name.isprintable():
        raise ValueError("an output's name must be a plain file name")
    if kind == "transcode":
        video, audio = entry["video"], entry.get("audio")
        if video.get("codec") != "h264" or video.get("preset") not in X264_PRESETS or (audio and audio.get("codec") != "aac"):
            raise ValueError("codec or preset is not known")
        if entry.get("effect") not in (None, "none", "grayscale"):
            raise ValueError("effect is not known")
        spec = {
            "height": None if entry.get("height") is None else _number(entry["height"], 2, 4320, "height"),
            "effect": entry.get("effect") or "none",
            "preset": video["preset"],
            "crf": _number(video["crf"], 0, 51, "crf"),
            "threads": _number(video.get("threads", 1), 1, 16, "threads"),
            "audio_kbps": _number(audio["bitrate_kbps"], 8, 512, "bitrate_kbps") if audio else None,
        }
    elif kind == "contact_sheet":
        spec = {
            "columns": _number(entry["columns"], 1, 20, "columns"),
            "rows": _number(entry["rows"], 1, 20, "rows"),
            "tile_width": _number(entry["tile_width"], 2, 1920, "tile_width"),
        }
    else:
        raise ValueError(f"kind {kind!r} is not known")
    return Output(name, kind, spec)


def content_type(output):
    return {"transcode": "video/mp4", "contact_sheet": "image/jpeg"}[output.kind]
