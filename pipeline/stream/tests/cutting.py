"""A test fixture that stands in for ingest: cuts a clip at key frames by stream copy, as contracts.md §§5–6 say."""

import hashlib
import itertools
import json
import os
import subprocess

RECIPE = {
    "outputs": [
        {
            "name": "360p.mp4",
            "kind": "transcode",
            "height": 360,
            "video": {"codec": "h264", "preset": "veryfast", "crf": 23, "threads": 1},
            "audio": {"codec": "aac", "bitrate_kbps": 96},
        },
        {"name": "contact-sheet.jpg", "kind": "contact_sheet", "columns": 4, "rows": 4, "tile_width": 160},
    ]
}


def call(*command):
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def ffmpeg(*arguments):
    call("ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments))


def probe(path, *entries):
    return json.loads(call("ffprobe", "-v", "error", "-of", "json", *entries, path))


def described(body):
    return {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body), "parts": -(-len(body) // 900_000)}


def heard(clip):
    """When the sound ends, in seconds: Matroska does not say how long a stream is."""
    last = probe(clip, "-select_streams", "a:0", "-show_packets")["packets"][-1]
    return float(last["pts_time"]) + float(last["duration_time"])


def cut(clip, folder, name="clip.mp4", recipe=None):
    """Returns (plan, {segment: bytes})."""
    os.makedirs(folder, exist_ok=True)
    seen = probe(clip, "-show_streams", "-show_packets")
    video = next(stream for stream in seen["streams"] if stream["codec_type"] == "video")
    sound = next((stream for stream in seen["streams"] if stream["codec_type"] == "audio"), None)
    packets = [packet for packet in seen["packets"] if packet["stream_index"] == video["index"]]
    keys = [index for index, packet in enumerate(packets) if "K" in packet["flags"]] or [0]
    keys[0] = 0
    closed = [index for index in keys[1:] if min(packet["pts"] for packet in packets[index:]) == packets[index]["pts"]]
    keys = [0, *closed]
    frames = ",".join(str(index) for index in keys[1:])
    pattern = os.path.join(folder, "%05d.nut")
    split = ["-f", "segment", "-segment_format", "nut", "-segment_frames", frames] if frames else ["-f", "nut"]
    ffmpeg("-copyts", "-noautorotate", "-i", clip, "-map", "0:v:0", "-c", "copy", *split, pattern if frames else pattern % 0)
    data, segments = {}, []
    bounds = [*keys, len(packets)]
    groups = [sorted(packets[a:b], key=lambda packet: packet["pts"]) for a, b in itertools.pairwise(bounds)]
    for index, group in enumerate(groups):
        with open(pattern % index, "rb") as file:
            body = file.read()
        data[f"{index:05d}"] = body
        end = groups[index + 1][0]["pts"] if index + 1 < len(groups) else group[-1]["pts"] + group[-1].get("duration", 1)
        pts = {"first_pts": group[0]["pts"], "last_pts": group[-1]["pts"], "end_pts": end}
        segments.append({"index": index, **described(body), "frames": len(group), **pts})
    audio = None
    if sound:
        path = os.path.join(folder, "audio.nut")
        ffmpeg("-copyts", "-i", clip, "-map", "0:a:0", "-c", "copy", "-f", "nut", path)
        with open(path, "rb") as file:
            data["audio"] = file.read()
        audio = {
            "codec": sound["codec_name"],
            "sample_rate": int(sound["sample_rate"]),
            "channels": sound["channels"],
            "duration_s": float(sound["duration"]) if "duration" in sound else heard(clip) - float(sound["start_time"]),
            "start_s": float(sound["start_time"]),
            "segment": described(data["audio"]),
        }
    rotation = next((int(side["rotation"]) for side in video.get("side_data_list", ()) if "rotation" in side), 0)
    with open(clip, "rb") as file:
        etag = hashlib.md5(file.read()).hexdigest()
    job = hashlib.sha256("\0".join(("uploads", name, etag, "default")).encode()).hexdigest()[:20]
    start = min(packet["pts"] for packet in packets)
    end = segments[-1]["end_pts"]
    top, bottom = map(int, video["time_base"].split("/"))
    shape = {"codec": video["codec_name"], "width": video["width"], "height": video["height"], "rotation": -rotation % 360, "pixel_format": video["pix_fmt"]}
    shape |= {"frames": len(packets), "time_base": video["time_base"], "start_pts": start, "duration_s": (end - start) * top / bottom}
    shape |= {"average_frame_rate": video["avg_frame_rate"], "variable": video["avg_frame_rate"] != video["r_frame_rate"]}
    plan = {"version": 1, "job": job, "bucket": "uploads", "key": name, "etag": etag, "recipe": recipe or RECIPE, "video": shape, "audio": audio, "segments": segments}
    return plan, data
