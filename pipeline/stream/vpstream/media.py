"""ffmpeg's command lines (pure builders) and the runner with limits of time and output.

Bytes must not depend on the machine: thread counts come from the recipe, bitexact flags everywhere, no metadata. Frame
rate and level are given to x264 for the whole video, so that every segment gets the same parameter sets.
"""

import ctypes
import os
import resource
import signal
import subprocess
from fractions import Fraction

from .errors import BadVideo, Interrupted

FFMPEG = ("ffmpeg", "-nostdin", "-hide_banner", "-v", "error", "-y")
NICE = 15
# Of short jobs, and of what ends a job: three times the share of a processor (sched(7): 110 to 36).
NICE_NEAR = 10
_libc = ctypes.CDLL(None)


def even(value):
    return max(2, int(value / 2 + 0.5) * 2)


def fitted(width, height, wanted_height):
    """Even (width, height) of a picture made `wanted_height` high (None: as it is), never larger than it is."""
    tall = max(2, min(wanted_height or height, height) // 2 * 2)
    return even(width * tall / height), tall


def tile_size(plan, spec):
    """Even (width, height) of one tile of a contact sheet."""
    wide = even(spec["tile_width"])
    return wide, even(min(plan.height * wide / plan.width, 4 * wide))


def tile_frames(frames, spec):
    """Indices of the frames on a contact sheet: as many as fit, evenly spaced, each the middle of its share."""
    count = min(frames, spec["columns"] * spec["rows"])
    return [(2 * index + 1) * frames // (2 * count) for index in range(count)]


def tiles_in(plan, part, spec):
    """Those frames that lie in one segment, counted from its start."""
    return [index - part.first for index in tile_frames(plan.frames, spec) if part.first <= index < part.first + part.frames]


def turn(rotation):
    """Filters that apply a rotation given in degrees clockwise."""
    return {0: [], 90: ["transpose=clock"], 180: ["hflip", "vflip"], 270: ["transpose=cclock"]}[rotation]


def segment_command(plan, part, source, targets):
    """One decode, all missing outputs. `targets`: [(output, path)]; tiles are raw yuv420p frames, transcodes MP4.

    `-copyts` with `-noautorotate` keeps what the plan says; `setpts` counts from the segment's first frame in the
    source's own time base, and passthrough drops or repeats nothing (variable frame rates stay variable).
    """
    base = plan.time_base
    stamps = f"settb={base.numerator}/{base.denominator},setpts=PTS-{part.first_pts}"
    exact = ["-fps_mode", "passthrough", "-an", "-sn", "-dn", "-map_metadata", "-1", "-map_chapters", "-1"]
    exact += ["-flags", "+bitexact", "-fflags", "+bitexact"]
    command = [*FFMPEG, "-threads", "1", "-filter_threads", "1", "-copyts", "-noautorotate", "-i", source]
    for output, path in targets:
        spec = output.spec
        filters = [stamps, *turn(plan.rotation)]
        if output.kind == "transcode":
            wide, tall = fitted(plan.width, plan.height, spec["height"])
            filters += [f"scale={wide}:{tall}:flags=bicubic+accurate_rnd+full_chroma_int+bitexact", "setsar=r=sar:max=64", "format=yuv420p"]
            if spec["effect"] == "grayscale":
                filters.append("lutyuv=u=128:v=128")
            command += ["-map", "0:v:0", "-vf", ",".join(filters), *exact]
            command += ["-enc_time_base", f"{base.numerator}:{base.denominator}"]
            command += ["-c:v", "libx264", "-preset", spec["preset"], "-crf", str(spec["crf"]), "-threads", str(spec["threads"])]
            command += ["-x264-params", f"fps={plan.rate.numerator}/{plan.rate.denominator}:open-gop=0"]
            command += ["-video_track_timescale", str(base.denominator), "-write_btrt", "0", "-f", "mp4", path]
        else:
            wide, tall = tile_size(plan, spec)
            chosen = "+".join(f"eq(n\\,{index})" for index in tiles_in(plan, part, spec))
            filters = [f"select='{chosen}'", *filters[1:], f"scale={wide}:{tall}:flags=bicubic+accurate_rnd+bitexact", "format=yuv420p"]
            command += ["-map", "0:v:0", "-vf", ",".join(filters), *exact, "-c:v", "rawvideo", "-threads", "1", "-f", "rawvideo", path]
    return command


def audio_command(plan, source, target, kbps):
    """The whole audio, encoded once. Its start relative to the video is kept: silence before, or cut when it begins earlier."""
    video_start = Fraction(plan.start_pts) * plan.time_base
    begin = video_start + plan.audio["shift_s"]
    shift = f"asetpts=PTS-({begin.numerator}/{begin.denominator})/TB"
    heard = plan.audio["start_s"] - float(video_start)
    length = max(0.0, heard + plan.audio["duration_s"])
    channels = "mono" if plan.audio["channels"] == 1 else "stereo"
    rate = plan.audio["sample_rate"] if plan.audio["sample_rate"] in (32000, 44100, 48000) else 48000
    # What lies before the first heard sample is the source encoder's priming.
    filters = f"{shift},atrim=start={max(0.0, heard):.6f},aresample={rate}:async=1:first_pts=0,atrim=end={length:.6f},aformat=sample_fmts=fltp:channel_layouts={channels}"
    return [
        *FFMPEG, "-threads", "1", "-filter_threads", "1", "-copyts", "-i", source, "-map", "0:a:0", "-af", filters,
        "-vn", "-map_metadata", "-1", "-c:a", "aac", "-b:a", f"{kbps}k", "-threads", "1", "-flags", "+bitexact", "-fflags", "+bitexact",
        "-f", "mp4", target,
    ]  # fmt: skip


def mux_command(video, audio, timescale, target):
    """Video and audio as they are into one MP4 with its index in front. `timescale` is the video's own: unsaid, ffmpeg multiplies one below 10,000 a second."""
    sounds = ["-i", audio, "-map", "0:v:0", "-map", "1:a:0"] if audio else ["-map", "0:v:0"]
    return [
        *FFMPEG, "-i", video, *sounds, "-c", "copy", "-map_metadata", "-1", "-flags", "+bitexact", "-fflags", "+bitexact",
        "-video_track_timescale", str(timescale), "-movflags", "+faststart", "-f", "mp4", target,
    ]  # fmt: skip


def sheet_command(tiles, size, count, spec, target):
    """Raw tiles side by side into a JPEG."""
    rows = -(-count // spec["columns"])
    columns = min(spec["columns"], count)
    return [
        *FFMPEG, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-video_size", f"{size[0]}x{size[1]}", "-i", tiles,
        "-vf", f"tile={columns}x{rows}:padding=4:margin=4,scale=out_range=full:flags=bicubic+accurate_rnd+bitexact,format=yuvj420p", "-frames:v", "1",
        "-c:v", "mjpeg", "-q:v", "3", "-threads", "1", "-flags", "+bitexact", "-fflags", "+bitexact", "-f", "image2", "-update", "1", target,
    ]  # fmt: skip


def probe_command(path):
    """Streams and the pictures' time stamps of a file, as JSON."""
    return ["ffprobe", "-v", "error", "-show_entries", "stream=codec_type,time_base,duration,start_time,nb_frames:packet=codec_type,pts", "-of", "json", path]


def run(command, timeout_s, limit_bytes, output=None, nice=NICE):
    """Runs one program at a priority no higher than our own. Returns its stdout when `output`.

    Raises BadVideo when it says no, Interrupted when it was killed or the machine is to blame.
    """

    def child():
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed task leaves no ffmpeg behind

    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, preexec_fn=child, check=False)
    except subprocess.TimeoutExpired as error:
        raise BadVideo(f"Processing took longer than {timeout_s} s.") from error
    except OSError as error:
        raise Interrupted(f"{command[0]} cannot be run: {error}") from error
    said = done.stderr[-2000:].decode("utf-8", "replace").strip()
    if done.returncode == -signal.SIGXFSZ or "File too large" in said:
        raise BadVideo("The result would be larger than is allowed.")
    if done.returncode < 0 or any(words in said for words in ("No space left", "Cannot allocate memory", "Input/output error")):
        raise Interrupted(f"{command[0]} was ended ({done.returncode}): {said}")
    if done.returncode:
        raise BadVideo("The video cannot be decoded: " + (said.splitlines() or ["no reason given"])[-1])
    return done.stdout if output else b""
