"""The real path: Kafka → Spark Structured Streaming → ffmpeg on a worker → S3, with drivers killed, frozen and replaced."""

import hashlib
import json
import os
import shutil
import signal
import time

import pytest

from cutting import cut
from region import Region, until

CLIPS = os.path.join(os.environ.get("VP_COMPONENTS", ""), "samples")


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    if not os.path.exists(os.path.join(CLIPS, "clip-10s.mp4")):
        lacking = "VP_COMPONENTS does not name the fetched components (make setup)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    root = os.environ.get("VP_TEST_STATE") or str(tmp_path_factory.mktemp("region"))
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    region = Region(root)
    try:
        region.start()
        yield region
    finally:
        region.stop()


def over(region, job):
    result = region.result(job)
    return result if result and result["state"] != "processing" else None


def same_bytes(region, result):
    for output in result["outputs"]:
        assert hashlib.sha256(region.object(output["key"])).hexdigest() == output["sha256"]


def test_a_driver_is_killed_frozen_and_replaced_and_the_bytes_stay(region, tmp_path):
    recipe = json.loads(json.dumps(__import__("cutting").RECIPE))
    first = region.driver(1)
    until(lambda: first.poll() is not None or (region.progress(1) or {}).get("state") == "running", 180, "first driver")
    assert first.poll() is None
    plan, data = cut(os.path.join(CLIPS, "clip-10s.mp4"), str(tmp_path / "a"), "a.mp4", recipe)
    # Malformed records come first: they are counted and skipped.
    bad = [(b"x", b"x", []), (None, b"\xff", [("version", b"1"), ("job", b"../../etc")]), (b"y", b"", [("version", b"\xff")])]
    region.produce(bad)
    began = time.monotonic()
    region.submit(plan, data)
    done = until(lambda: over(region, plan["job"]), 240, "first job")
    print("10 s clip", round(time.monotonic() - began, 2), "s")
    assert done["state"] == "done", done["reason"]
    assert done["video"]["frames"] == plan["video"]["frames"] and done["generation"] == 1
    same_bytes(region, done)
    assert sum(line.get("count", 0) for line in region.log("driver-1") if line["message"] == "malformed records skipped") == 3

    # A second job, and the driver is frozen between 20 % and 60 %; its successor finishes; the frozen one wakes and publishes nothing.
    long_plan, long_data = cut(os.path.join(CLIPS, "clip-90s.mp4"), str(tmp_path / "b"), "b.mp4", recipe)
    region.submit(long_plan, long_data)
    job, wanted = long_plan["job"], len(long_plan["segments"])

    def made():
        return sum(line.get("job") == job and line["message"] == "segment done" for line in region.log("driver-1"))

    until(lambda: made() >= max(1, wanted // 5), 300, "a fifth of the segments")
    region.signal("driver-1", signal.SIGSTOP)
    assert made() <= 0.6 * wanted
    # A short one arrives meanwhile: the new driver must not let it wait behind the long one.
    short_plan, short_data = cut(os.path.join(CLIPS, "clip-10s.mp4"), str(tmp_path / "c"), "c.mp4", recipe)
    region.submit(short_plan, short_data)
    second = region.driver(2)
    short = until(lambda: over(region, short_plan["job"]), 300, "short job")
    assert region.result(job) is None or region.result(job)["state"] == "processing", "the short clip waited behind the long one"
    before = region.result(job)
    region.signal("driver-1", signal.SIGCONT)
    assert first.wait(120) == 3
    ended = until(lambda: over(region, job), 600, "long job")
    assert ended["state"] == "done", ended["reason"]
    assert ended["generation"] == 2 and (before is None or before["generation"] == 2)
    same_bytes(region, ended)
    assert [o["sha256"] for o in short["outputs"]] == [o["sha256"] for o in done["outputs"]], "same clip, another generation, other bytes"
    assert second.poll() is None
    seeded = json.loads(region.object("stream/checkpoints/2/seeded.json"))
    assert seeded == {"from": 1}
    spent = [line for line in region.log("driver-2") if line["message"] == "segment done"]
    extra = sorted(line["all_s"] - line["ffmpeg_s"] for line in spent)
    task = sorted(line["task_s"] - line["ffmpeg_s"] for line in spent)
    print("overhead per segment, median s", round(extra[len(extra) // 2], 3), "of which task", round(task[len(task) // 2], 3))
    # Killed outright, and a third generation takes over: its checkpoint is seeded from the second's.
    region.signal("driver-2", signal.SIGKILL)
    second.wait()
    third = region.driver(3)
    again, again_data = cut(os.path.join(CLIPS, "bikes.mp4"), str(tmp_path / "d"), "d.mp4", recipe)
    region.submit(again, again_data)
    assert until(lambda: over(region, again["job"]), 300, "job after a kill")["state"] == "done"
    assert json.loads(region.object("stream/checkpoints/3/seeded.json")) == {"from": 2}
    assert third.poll() is None
    region.signal("driver-3", signal.SIGTERM)
    assert third.wait(60) == 0
