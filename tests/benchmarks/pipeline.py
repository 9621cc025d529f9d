"""The pipeline beside one plain ffmpeg: the same video, size, codec, preset, quality, threads and audio, by turns."""

import dataclasses
import json
import os
import pathlib
import re
import resource
import subprocess
import time

import machine

RECIPE = "360p"
# The settings of pipeline/recipes/360p.yaml, as a person would type them.
SETTINGS = ["-vf", "scale=-2:360", "-c:v", "libx264", "-preset", "veryfast", "-crf", "23", "-threads", "1", "-c:a", "aac", "-b:a", "96k", "-movflags", "+faststart"]
# The workers' ffmpeg runs at this nice value; the plain one as well, so that other load on the machine is no handicap for one of both.
NICE = 15


@dataclasses.dataclass
class Run:
    wall_s: float
    cpu_s: float
    # CPU seconds of what belongs to neither side, as a share of the machine during the run.
    foreign: float
    bytes: int = 0
    ssim: float = 0.0


def probe(path):
    answer = subprocess.check_output(["ffprobe", "-v", "error", "-show_entries", "stream=codec_type,width,height,nb_frames:format=duration,size", "-of", "json", path])
    return json.loads(answer)


def longer(clip, at_least_s, target):
    """The clip several times in a row, not encoded again."""
    times = -(-at_least_s // int(float(probe(clip)["format"]["duration"])))
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", "-stream_loop", str(times - 1), "-i", clip, "-c", "copy", target], check=True)
    return target


def ssim(result, source):
    """Of all planes of the result against the source scaled to its size."""
    size = next(s for s in probe(result)["streams"] if s["codec_type"] == "video")
    graph = f"[0:v]setpts=N/TB/25[a];[1:v]scale={size['width']}:{size['height']}:flags=bicubic+accurate_rnd,format=yuv420p,setpts=N/TB/25[b];[a][b]ssim"
    answer = subprocess.run(["ffmpeg", "-nostdin", "-hide_banner", "-i", result, "-i", source, "-lavfi", graph, "-f", "null", "-"], check=True, text=True, capture_output=True)
    return float(re.findall(r"All:([\d.]+)", answer.stderr)[-1])


def timed(work, own_cpu_s, cores):
    begin, busy, own = time.monotonic(), machine.busy_s(), own_cpu_s()
    work()
    wall, cpu = time.monotonic() - begin, own_cpu_s() - own
    return Run(wall, cpu, max(0.0, machine.busy_s() - busy - cpu) / (wall * cores))


def by_ffmpeg(clip, target):
    def children():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    command = ["nice", "-n", str(NICE), "ffmpeg", "-nostdin", "-v", "error", "-y", "-i", clip, *SETTINGS, target]
    run = timed(lambda: subprocess.run(command, check=True), children, os.cpu_count())
    run.bytes = os.path.getsize(target)
    return run


def by_pipeline(region, clip, folder):
    run = timed(lambda: region.call("submit", str(clip), "--recipe", RECIPE, "--wait", "--output", str(folder)), region.account.cpu_s, os.cpu_count())
    (target,) = pathlib.Path(folder).rglob("360p.mp4")
    run.bytes = target.stat().st_size
    return run, target


def compare(region, clip, repeats, until, work, say):
    """Yields (ffmpeg's Run, the pipeline's Run) of one clip, turn by turn; after the first none begins past `until`."""
    quality = {}
    for turn in range(repeats):
        if turn and time.monotonic() > until:
            say(f"{pathlib.Path(clip).name}: no time for more than {turn} of {repeats} turns")
            return
        plain = work / "plain.mp4"
        theirs = by_ffmpeg(clip, plain)
        folder = work / f"{pathlib.Path(clip).stem}-{turn}"
        ours, target = by_pipeline(region, clip, folder)
        # Each side's bytes are the same in every turn; a turn in which they are not is measured again.
        for side, one, path in (("ffmpeg", theirs, plain), ("pipeline", ours, target)):
            if (side, one.bytes) not in quality:
                quality[side, one.bytes] = ssim(path, clip)
            one.ssim = quality[side, one.bytes]
        say(f"{pathlib.Path(clip).name} turn {turn + 1}: ffmpeg {theirs.wall_s:.1f} s, pipeline {ours.wall_s:.1f} s; others used {ours.foreign:.0%} of the machine")
        yield theirs, ours
