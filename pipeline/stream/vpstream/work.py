"""What runs on a worker for one segment: fetch, check, ffmpeg, store. Also where intermediate results lie."""

import hashlib
import os
import tempfile
import time
import traceback

from . import media, mp4
from .errors import BadVideo, Fenced, Interrupted
from .plan import read
from .scheduler import NEAR
from .segments import in_key

MAX_OUTPUT_BYTES = 2 * 1024**3


def scratch(prefix):
    """A folder for one task's files, gone when the task ends. On an executor it lies where Spark removes it with the application, also when this process was killed."""
    return tempfile.TemporaryDirectory(prefix=prefix, dir=os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or None)
SEGMENT_TIMEOUT_S = 1800


def out_key(job, segment, name):
    return f"work/{job}/out/{segment}/{name}"


def missing(plan, keys):
    """Segments that still lack an output, in order. `keys`: what is there below `work/JOB/out/`."""
    return [
        part.name for part in plan.parts if any(out_key(plan.job, part.name, output.name) not in keys for output in plan.outputs)
    ]


def attempt(work, *arguments):
    """Runs work and returns ("done", value), ("failed", sentence), ("again", cause), ("fenced", cause) or ("broken", cause): never a failed Spark task."""
    try:
        return "done", work(*arguments)
    except BadVideo as error:
        return "failed", str(error)
    except Fenced as error:
        return "fenced", str(error)
    except Interrupted as error:
        return "again", str(error)
    except OSError as error:  # no space, no memory, a folder gone: the machine, not the video
        return "again", repr(error)
    except Exception as error:  # a defect of ours: it will most likely come again, so it is not tried for ever
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "broken", f"{error!r} in {os.path.basename(where.filename)}:{where.lineno}"


def process_segment(store, raw_plan, job, segment):
    """Makes all missing outputs of one segment. Returns {"ffmpeg_s", "total_s"}."""
    begun = time.monotonic()
    plan = read(raw_plan, job)
    part = plan.parts[int(segment)]
    wanted = [output for output in plan.outputs if not store.exists(out_key(job, segment, output.name))]
    spent = 0.0
    if wanted:
        with scratch("vp-segment-") as folder:
            source = os.path.join(folder, "in.nut")
            fetch(store, in_key(job, segment), source, part.sha256)
            targets = []
            for number, output in enumerate(wanted):
                path = os.path.join(folder, f"out{number}")
                if output.kind == "contact_sheet" and not media.tiles_in(plan, part, output.spec):
                    open(path, "wb").close()
                else:
                    targets.append((output, path))
            if targets:
                started = time.monotonic()
                nice = media.NICE_NEAR if len(plan.parts) <= NEAR else media.NICE
                media.run(media.segment_command(plan, part, source, targets), SEGMENT_TIMEOUT_S, MAX_OUTPUT_BYTES, nice=nice)
                spent = time.monotonic() - started
            for number, output in enumerate(wanted):
                path = os.path.join(folder, f"out{number}")
                check(plan, part, output, path)
                with open(path, "rb") as body:
                    store.put_if_absent(out_key(job, segment, output.name), body)
    return {"ffmpeg_s": spent, "total_s": time.monotonic() - begun}


def fetch(store, key, path, sha256):
    """An object into a file, its hash checked. Absent is Interrupted: it may be on its way."""
    if not store.download(key, path):
        raise Interrupted(f"{key} is not there yet")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise BadVideo("A part of the video differs from what was announced.")


def check(plan, part, output, path):
    """A segment's result must have just the pictures and the time span that the plan names."""
    if output.kind == "contact_sheet":
        wide, tall = media.tile_size(plan, output.spec)
        expected = len(media.tiles_in(plan, part, output.spec)) * (wide * tall * 3 // 2)
        if os.path.getsize(path) != expected:
            raise BadVideo(f"Some pictures of part {part.name} of the video cannot be decoded.")
        return
    track = mp4.read(path)
    if len(track.sizes) != part.frames:
        raise BadVideo(f"Only {len(track.sizes)} of {part.frames} pictures of part {part.name} of the video can be decoded.")
    if max(track.pts) != (part.last_pts - part.first_pts) * plan.time_base.numerator:
        raise BadVideo(f"The time stamps of part {part.name} of the video do not fit.")
