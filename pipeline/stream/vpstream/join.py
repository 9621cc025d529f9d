"""Joins a job's segment outputs into its results, verifies them, and puts them under `results/JOB/`: one task on a worker."""

import hashlib
import json
import os

from . import fence, media, mp4
from .errors import BadVideo, Interrupted
from .plan import content_type, read
from .segments import in_key
from .work import MAX_OUTPUT_BYTES, fetch, out_key, scratch

JOIN_TIMEOUT_S = 3600


def _run(command, output=None):
    """One program of a join, at the priority of what ends a job."""
    return media.run(command, JOIN_TIMEOUT_S, MAX_OUTPUT_BYTES, output, nice=media.NICE_NEAR)


def join_job(store, raw_plan, job, generation):
    """Publishes every output. Returns what result.json says: outputs, video, audio."""
    plan = read(raw_plan, job)
    outputs, sound = [], None
    with scratch("vp-join-") as folder:
        for number, output in enumerate(plan.outputs):
            path = os.path.join(folder, f"{number}-result")
            if output.kind == "transcode":
                audio_s = _film(store, plan, output, folder, path)
                sound = audio_s if sound is None else sound
            else:
                _sheet(store, plan, output, folder, path)
            key = f"results/{job}/{output.name}"
            fence.check(store, generation)
            with open(path, "rb") as body:
                digest = hashlib.file_digest(body, "sha256").hexdigest()
                body.seek(0)
                store.put_if_absent(key, body, content_type(output))
            entry = {"name": output.name, "key": key, "bytes": os.path.getsize(path), "sha256": digest}
            outputs.append({**entry, "content_type": content_type(output)})
            for name in os.listdir(folder):
                os.remove(os.path.join(folder, name))
    return {
        "outputs": outputs,
        "video": {"frames": plan.frames, "duration_s": round(plan.duration_s, 6)},
        "audio": None if sound is None else {"duration_s": round(sound, 6)},
    }


def _film(store, plan, output, folder, target):
    """One MP4; returns the audio's duration in seconds, or None without audio."""
    tracks = []
    for part in plan.parts:
        path = os.path.join(folder, part.name)
        _download(store, out_key(plan.job, part.name, output.name), path)
        tracks.append(mp4.read(path))
    video = os.path.join(folder, "video.mp4")
    last = plan.parts[-1]
    starts = [part.first_pts - plan.start_pts for part in plan.parts]
    stamps = mp4.join(tracks, starts, max(1, last.end_pts - last.last_pts), plan.time_base.numerator, video)
    sound = None
    if plan.audio and output.spec["audio_kbps"]:
        source, sound = os.path.join(folder, "audio.nut"), os.path.join(folder, "audio.mp4")
        fetch(store, in_key(plan.job, "audio"), source, plan.audio["sha256"])
        _run(media.audio_command(plan, source, sound, output.spec["audio_kbps"]))
    _run(media.mux_command(video, sound, plan.time_base.denominator, target))
    return verify(plan, stamps, target, sound is not None)


def verify(plan, stamps, path, with_audio):
    """Reads the finished file back with ffprobe: every picture at its time, audio as long as the source's, within a frame."""
    seen = json.loads(_run(media.probe_command(path), output=True))
    streams = {stream["codec_type"]: stream for stream in seen["streams"]}
    found = sorted(packet["pts"] for packet in seen["packets"] if packet["codec_type"] == "video")
    if len(found) != plan.frames:
        raise BadVideo(f"The result has {len(found)} pictures, the video has {plan.frames}.")
    if [stamp - found[0] for stamp in found] != stamps or found[0] != 0:
        raise BadVideo("The result's pictures are not at their times.")
    if not with_audio:
        return None
    frame_s = max(float(1 / plan.rate), 1024 / plan.audio["sample_rate"], 0.0214)
    wanted = plan.audio["start_s"] - plan.video_start_s + plan.audio["duration_s"]
    length = float(streams["audio"].get("duration") or 0)
    if abs(length - wanted) > frame_s + 0.001:
        raise BadVideo(f"The result's sound ends at {length:.3f} s, the video's at {wanted:.3f} s.")
    return length


def _sheet(store, plan, output, folder, target):
    tiles = os.path.join(folder, "tiles.yuv")
    count = len(media.tile_frames(plan.frames, output.spec))
    size = media.tile_size(plan, output.spec)
    with open(tiles, "wb") as out:
        for part in plan.parts:
            if media.tiles_in(plan, part, output.spec):
                path = os.path.join(folder, part.name)
                _download(store, out_key(plan.job, part.name, output.name), path)
                with open(path, "rb") as body:
                    out.write(body.read())
    _run(media.sheet_command(tiles, size, count, output.spec, target))


def _download(store, key, path):
    if not store.download(key, path):
        raise Interrupted(f"{key} is not there")
