"""Real ffmpeg on the clips that break toys: each is done right or refused with a sentence, and its bytes repeat."""

import hashlib
import os
import random
import shutil
from fractions import Fraction

import pytest

from cutting import cut, ffmpeg, probe
from vpstream import join, media, mp4, plan, work
from vpstream.errors import BadVideo, Interrupted
from vpstream.segments import in_key


class FolderStore:
    """Objects as files: the same calls, so that media tests need no server (the end-to-end test uses the real one)."""

    results = "results"

    def __init__(self, root):
        self.root = str(root)

    def _path(self, key):
        return os.path.join(self.root, key)

    def exists(self, key):
        return os.path.exists(self._path(key))

    def download(self, key, path):
        return bool(self.exists(key) and shutil.copy(self._path(key), path))

    def put_if_absent(self, key, body, content_type=""):
        if self.exists(key):
            return False
        os.makedirs(os.path.dirname(self._path(key)), exist_ok=True)
        with open(self._path(key), "wb") as out:
            out.write(body if isinstance(body, bytes) else body.read())
        return True

    def get(self, key):
        with open(self._path(key), "rb") as file:
            return file.read()

    def folders(self, prefix):
        return set()


PICTURES = ["-f", "lavfi", "-i"]
X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "24"]
AAC = ["-c:a", "aac", "-shortest"]
VFR = "setpts='(N*512+mod(N*N,7)*60)/15360/TB',settb=1/15360"
VARIABLE = ["-fps_mode", "passthrough", "-enc_time_base", "1:15360", "-video_track_timescale", "15360"]
CLIPS = {
    "plain": [*PICTURES, "testsrc2=s=640x360:r=24:d=4", *PICTURES, "sine=d=4", *X264, *AAC],
    "ntsc": [*PICTURES, "testsrc2=s=640x480:r=30000/1001:d=3", *X264],
    "odd": [*PICTURES, "testsrc=s=853x481:r=25:d=2", *X264, "-pix_fmt", "yuv444p"],
    "tenbit": [*PICTURES, "testsrc2=s=640x360:r=25:d=2", *X264, "-pix_fmt", "yuv420p10le"],
    "one": [*PICTURES, "testsrc2=s=640x360:r=25", "-frames:v", "1", *X264],
    "variable": [*PICTURES, "testsrc2=s=640x360:r=30:d=4", *PICTURES, "sine=d=4", "-vf", VFR, *VARIABLE, *X264, "-c:a", "aac"],
    "short_audio": [*PICTURES, "testsrc2=s=320x180:r=24:d=4", *PICTURES, "sine=d=1.5", *X264, "-c:a", "aac"],
    "long_audio": [*PICTURES, "testsrc2=s=320x180:r=24:d=2", *PICTURES, "sine=d=5", *X264, "-c:a", "aac"],
    "late_audio": [*PICTURES, "testsrc2=s=320x180:r=24:d=4", "-itsoffset", "0.7", *PICTURES, "sine=d=2", *X264, "-c:a", "aac"],
    "one_key": [*PICTURES, "testsrc2=s=320x180:r=24:d=4", "-c:v", "libx264", "-g", "9999", "-sc_threshold", "0"],
    "mpeg4": [*PICTURES, "testsrc2=s=320x180:r=25:d=2", "-c:v", "mpeg4", "-bf", "2"],
    # Time bases that MP4 has no room for at less than 10,000 a second, unless it is told: 1/1000, 1/25, 1/100.
    "plain.mkv": [*PICTURES, "testsrc2=s=320x180:r=30000/1001:d=2", *PICTURES, "sine=d=2", *X264, *AAC],
    "vp9.webm": [*PICTURES, "testsrc2=s=320x180:r=25:d=1", "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"],
    "mpeg4.avi": [*PICTURES, "testsrc2=s=320x180:r=25:d=2", "-c:v", "mpeg4"],
    "moving.gif": [*PICTURES, "testsrc2=s=160x90:r=10:d=2"],
    "thousand": [*PICTURES, "testsrc2=s=320x180:r=24:d=2", *X264, "-video_track_timescale", "1000"],
    "stream.ts": [*PICTURES, "testsrc2=s=320x180:r=25:d=2", *PICTURES, "sine=d=2", *X264, *AAC],
    "tall": [*PICTURES, "testsrc2=s=100x700:r=25:d=1", *X264],
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")

    def make(name):
        path = str(folder / (name if "." in name else f"{name}.mp4"))
        if not os.path.exists(path):
            ffmpeg(*CLIPS[name], path)
        return path

    return make


def carry_out(clip, root, order=None, recipe=None):
    """The whole job without Spark; segments in a given order. Returns (store, plan, result)."""
    raw, data = cut(clip, str(root / "cut"), recipe=recipe)
    store = FolderStore(root / "s3")
    for segment, body in data.items():
        store.put_if_absent(in_key(raw["job"], segment), body)
    segments = [f"{entry['index']:05d}" for entry in raw["segments"]]
    if order is not None:
        order(segments)
    for segment in segments:
        work.process_segment(store, raw, raw["job"], segment)
    return store, raw, join.join_job(store, raw, raw["job"], 1)


@pytest.mark.parametrize("name", CLIPS)
def test_every_picture_comes_out_at_its_time(clips, tmp_path, name):
    store, raw, result = carry_out(clips(name), tmp_path)
    film = os.path.join(store.root, f"results/{raw['job']}/360p.mp4")
    seen = probe(film, "-count_frames", "-show_streams", "-show_frames")
    video = next(stream for stream in seen["streams"] if stream["codec_type"] == "video")
    assert int(video["nb_read_frames"]) == raw["video"]["frames"] == result["video"]["frames"]
    assert video["pix_fmt"] == "yuv420p" and video["width"] % 2 == 0 and video["height"] % 2 == 0 and video["height"] <= 360
    source = probe(clips(name), "-select_streams", "v:0", "-show_frames")
    times = [float(frame["pts_time"]) for frame in source["frames"]]
    got = [float(frame["pts_time"]) for frame in seen["frames"] if frame["media_type"] == "video"]
    assert got == pytest.approx([time - times[0] for time in times], abs=2e-6)
    audio = next((stream for stream in seen["streams"] if stream["codec_type"] == "audio"), None)
    assert (audio is not None) == (raw["audio"] is not None)
    if audio:
        begin = raw["video"]["start_pts"] * Fraction(raw["video"]["time_base"])
        wanted = raw["audio"]["start_s"] - float(begin) + raw["audio"]["duration_s"]
        assert float(audio["duration"]) == pytest.approx(wanted, abs=1 / 24)
    sheet = probe(os.path.join(store.root, f"results/{raw['job']}/contact-sheet.jpg"), "-show_streams")
    assert sheet["streams"][0]["codec_name"] == "mjpeg"


def test_the_index_stands_in_front(clips, tmp_path):
    store, raw, _ = carry_out(clips("plain"), tmp_path)
    data = store.get(f"results/{raw['job']}/360p.mp4")
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_bytes_repeat_whatever_the_order(clips, tmp_path):
    _, _, first = carry_out(clips("variable"), tmp_path / "a")
    _, _, second = carry_out(clips("variable"), tmp_path / "b", order=random.Random(7).shuffle)
    _, _, third = carry_out(clips("variable"), tmp_path / "c", order=list.reverse)
    assert first["outputs"] == second["outputs"] == third["outputs"]


def test_bytes_repeat_on_a_machine_with_one_core(clips, tmp_path):
    cores = os.sched_getaffinity(0)
    assert len(cores) > 1, "with one core there is nothing to compare with"
    _, _, many = carry_out(clips("variable"), tmp_path / "a")
    os.sched_setaffinity(0, {min(cores)})
    try:
        _, _, one = carry_out(clips("variable"), tmp_path / "b")
    finally:
        os.sched_setaffinity(0, cores)
    assert one["outputs"] == many["outputs"]


def test_programs_run_at_a_lower_priority_than_agents_and_brokers():
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert media.run(["nice"], 5, 1000, output=True) == b"%d\n" % max(15, own)
    assert media.run(["nice"], 5, 1000, output=True, nice=media.NICE_NEAR) == b"%d\n" % max(10, own)


def test_sound_that_starts_late_stays_late(clips, tmp_path):
    store, raw, _ = carry_out(clips("late_audio"), tmp_path)
    film = os.path.join(store.root, f"results/{raw['job']}/360p.mp4")
    ffmpeg("-i", film, "-map", "0:a", "-f", "s16le", "-ac", "1", "-ar", "8000", tmp_path / "pcm")
    pcm = (tmp_path / "pcm").read_bytes()
    samples = [int.from_bytes(pcm[i : i + 2], "little", signed=True) for i in range(0, len(pcm), 2)]
    begins = next(index for index, value in enumerate(samples) if abs(value) > 1000) / 8000
    assert begins == pytest.approx(raw["audio"]["start_s"], abs=0.042)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_clip_stands_upright(tmp_path, degrees):
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    ffmpeg(*PICTURES, "color=red:s=320x180:r=24:d=1,drawbox=0:0:40:40:blue:fill", *X264, plain)
    ffmpeg("-i", plain, "-c", "copy", "-metadata:s:v", f"rotate={degrees}", turned)
    store, raw, _ = carry_out(str(turned), tmp_path / "job")
    assert raw["video"]["rotation"] in (degrees, 360 - degrees)
    film = os.path.join(store.root, f"results/{raw['job']}/360p.mp4")
    frames = []
    for path in (turned, film):
        ffmpeg("-i", path, "-frames:v", "1", "-vf", "scale=20:20", "-f", "rawvideo", "-pix_fmt", "rgb24", tmp_path / "rgb")
        frames.append((tmp_path / "rgb").read_bytes())
    assert sum(abs(a - b) for a, b in zip(*frames, strict=True)) / len(frames[0]) < 8


def test_a_damaged_segment_is_the_videos_fault(clips, tmp_path):
    raw, data = cut(clips("plain"), str(tmp_path / "cut"))
    body = data["00001"][:900] + bytes(len(data["00001"]) - 900)
    raw["segments"][1]["sha256"] = hashlib.sha256(body).hexdigest()
    store = FolderStore(tmp_path / "s3")
    store.put_if_absent(in_key(raw["job"], "00001"), body)
    state, sentence = work.attempt(work.process_segment, store, raw, raw["job"], "00001")
    assert state == "failed" and sentence.endswith("."), sentence


def test_a_segment_that_differs_from_the_plan_is_refused(clips, tmp_path):
    raw, data = cut(clips("plain"), str(tmp_path / "cut"))
    store = FolderStore(tmp_path / "s3")
    # Pictures of this very video, as many as announced: only the hash tells.
    store.put_if_absent(in_key(raw["job"], "00000"), data["00001"])
    assert work.attempt(work.process_segment, store, raw, raw["job"], "00000") == ("failed", "A part of the video differs from what was announced.")
    assert work.attempt(work.process_segment, store, raw, raw["job"], "00001")[0] == "again"


def test_limits_of_time_and_size_hold(tmp_path):
    with pytest.raises(BadVideo, match="longer"):
        media.run(["sleep", "30"], 0.2, 1000)
    with pytest.raises(BadVideo, match="larger"):
        media.run(["dd", "if=/dev/zero", f"of={tmp_path}/x", "bs=1000", "count=50"], 10, 10_000)
    with pytest.raises(Interrupted):
        media.run(["sh", "-c", "kill -9 $$"], 10, 1000)


def test_decode_times_rise_and_never_pass_their_picture():
    rng = random.Random(1)
    for _ in range(200):
        shown = sorted(rng.sample(range(10_000), rng.randint(1, 40)))
        coded = []
        for at in range(0, len(shown), 4):
            group = shown[at : at + 4]
            coded += [group[-1], *group[:-1]]
        times, delay = mp4.decode_times(coded)
        assert times == sorted(set(times)) and times[0] == 0
        assert all(time <= pts - shown[0] + delay for time, pts in zip(times, coded, strict=True))


def test_plans_that_lie_are_refused(clips, tmp_path):
    raw, _ = cut(clips("plain"), str(tmp_path / "cut"))
    for change in ({"version": 2}, {"segments": []}, {"video": {**raw["video"], "frames": 1}}, {"video": None}):
        with pytest.raises(BadVideo):
            plan.read({**raw, **change}, raw["job"])
    evil = {"outputs": [{**raw["recipe"]["outputs"][1], "name": "../x"}]}
    with pytest.raises(BadVideo):
        plan.read({**raw, "recipe": evil}, raw["job"])


def test_grayscale_at_its_own_size(clips, tmp_path):
    video, audio = {"codec": "h264", "preset": "veryfast", "crf": 23, "threads": 1}, {"codec": "aac", "bitrate_kbps": 96}
    entry = {"name": "g.mp4", "kind": "transcode", "height": None, "effect": "grayscale", "video": video, "audio": audio}
    store, raw, _ = carry_out(clips("odd"), tmp_path, recipe={"outputs": [entry]})
    film = os.path.join(store.root, f"results/{raw['job']}/g.mp4")
    assert probe(film, "-show_streams")["streams"][0]["height"] == 480
    ffmpeg("-i", film, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "yuv420p", tmp_path / "yuv")
    picture = (tmp_path / "yuv").read_bytes()
    colours = picture[len(picture) * 2 // 3 :]
    assert max(abs(value - 128) for value in colours) <= 2


def test_a_shifted_audio_segment_is_shifted_back(clips, tmp_path):
    raw, data = cut(clips("late_audio"), str(tmp_path / "cut"))
    ffmpeg("-copyts", "-i", clips("late_audio"), "-map", "0:a:0", "-c", "copy", "-output_ts_offset", "1", "-f", "nut", tmp_path / "shifted.nut")
    lengths = []
    for shift, path in ((0, tmp_path / "cut" / "audio.nut"), (1, tmp_path / "shifted.nut")):
        raw["audio"]["shift_s"] = shift
        target = str(tmp_path / f"{shift}.mp4")
        media.run(media.audio_command(plan.read(raw, raw["job"]), str(path), target, 96), 60, 10**8)
        with open(target, "rb") as file:
            lengths.append(hashlib.sha256(file.read()).hexdigest())
    assert lengths[0] == lengths[1]
