"""The processor's decisions, with tasks that run in place of Spark jobs; Spark itself is in test_end_to_end.py."""

import json
import time

import pytest

from cutting import RECIPE
from test_units import JOB, MemoryStore
from vpstream import processor
from vpstream.errors import Fenced, Interrupted
from vpstream.work import out_key


class InPlace:
    """What the processor uses of a SparkContext, run at once in the calling thread."""

    def setLocalProperty(self, *_):
        pass

    def setJobDescription(self, *_):
        pass

    def parallelize(self, values, _):
        self = InPlace()
        self.values = values
        return self

    def map(self, work):
        self.work = work
        return self

    def collect(self):
        return [self.work(value) for value in self.values]


def plan_of(segments, job=JOB):
    parts = [{"index": i, "sha256": "x", "bytes": 1, "parts": 1, "frames": 10, "first_pts": 10 * i, "last_pts": 10 * i + 9, "end_pts": 10 * i + 10} for i in range(segments)]
    video = {"width": 64, "height": 64, "rotation": 0, "frames": 10 * segments, "time_base": "1/10", "start_pts": 0, "average_frame_rate": "10/1"}
    return {"version": 1, "job": job, "bucket": "b", "key": "k", "etag": "e", "recipe": RECIPE, "video": video, "audio": None, "segments": parts}


@pytest.fixture
def scene(monkeypatch):
    """A store with one job of three segments, all there, and a processor whose tasks write their outputs."""
    store = MemoryStore({f"jobs/{JOB}/plan.json": json.dumps(plan_of(3)).encode()})
    for index in range(3):
        store.objects[f"work/{JOB}/in/{index:05d}"] = b"x"

    def segment(store, raw, job, name):
        for output in raw["recipe"]["outputs"]:
            store.put_if_absent(out_key(job, name, output["name"]), b"out")
        return {"ffmpeg_s": 0.0, "total_s": 0.0}

    monkeypatch.setattr(processor, "process_segment", segment)
    monkeypatch.setattr(processor, "join_job", lambda store, raw, job, generation: {"outputs": [{"name": "360p.mp4"}]})
    lines = []
    made = processor.Processor(InPlace(), store, 5, lambda: 2, lambda message, **fields: lines.append((message, fields)))
    made.lines = lines
    return made, store


def turn(made, until, rounds=400):
    now = 0.0
    for _ in range(rounds):
        now += 1
        made.step(now)
        if until():
            return
        made.wake.wait(0.05)
        made.wake.clear()
    raise AssertionError(f"never: {made.lines}")


def result(store):
    return store.get_json(f"jobs/{JOB}/result.json")[0] or {}


def test_a_job_goes_from_plan_to_result(scene):
    made, store = scene
    turn(made, lambda: result(store).get("state") == "done")
    assert result(store)["generation"] == 5 and result(store)["outputs"]
    assert [line for line, _ in made.lines].count("segment done") == 3 and made.jobs == {}


def test_a_segment_that_is_not_whole_yet_is_waited_for_without_a_task(scene):
    made, store = scene
    kept = store.objects.pop(f"work/{JOB}/in/00001")
    turn(made, lambda: [line for line, _ in made.lines].count("segment done") == 2)
    for now in range(100, 110):
        made.step(float(now))
    assert result(store)["state"] == "processing" and not any(line == "task is tried again" for line, _ in made.lines)
    store.objects[f"work/{JOB}/in/00001"] = kept
    made.hint([])
    turn(made, lambda: result(store).get("state") == "done")


def test_s3_away_while_publishing_loses_nothing(scene, monkeypatch):
    made, store = scene
    real, failures = processor.fence.publish, []

    def publish(*arguments):
        if len(failures) < 3:
            failures.append(1)
            raise Interrupted("away")
        return real(*arguments)

    monkeypatch.setattr(processor.fence, "publish", publish)
    deadline = time.monotonic() + 20
    now = 0.0
    while result(store).get("state") != "done":
        assert time.monotonic() < deadline
        now += 1
        try:
            made.step(now)
        except Interrupted:
            pass
        made.wake.wait(0.02)
        made.wake.clear()
    assert len(failures) == 3


def test_a_bad_video_fails_its_job_with_the_sentence(scene, monkeypatch):
    made, store = scene

    def bad(*_):
        raise processor.BadVideo("The video cannot be decoded: no.")

    monkeypatch.setattr(processor, "process_segment", bad)
    turn(made, lambda: result(store).get("state") == "failed")
    assert result(store)["reason"] == "The video cannot be decoded: no."


@pytest.mark.parametrize("task", ["process_segment", "join_job"])
def test_a_defect_of_ours_is_tried_again_and_then_fails_the_job_with_where_it_is(scene, monkeypatch, task):
    made, store = scene
    real, calls = getattr(processor, task), []

    def defect(*arguments):
        calls.append(arguments)
        if len(calls) > 60:
            return real(*arguments)
        return {}["no such key"]

    monkeypatch.setattr(processor, task, defect)
    turn(made, lambda: result(store).get("state") in ("failed", "done"))
    assert result(store)["state"] == "failed"
    assert "please report it: KeyError('no such key') in test_processor.py:" in result(store)["reason"]
    assert 3 <= len(calls) <= 9, "three tries of one task; the others may have been under way"


def test_a_cancelled_job_ends(scene):
    made, store = scene
    store.objects[f"jobs/{JOB}/cancel.json"] = b"{}"
    turn(made, lambda: result(store).get("state") == "cancelled")
    assert not any(key.startswith(f"work/{JOB}/out") for key in store.objects)


def test_a_broken_plan_ends_as_a_failed_job_and_closed_jobs_are_left_alone(scene):
    made, store = scene
    store.objects[f"jobs/{JOB}/plan.json"] = b'{"version": 9}'
    store.objects["jobs/closed/plan.json"] = b"{}"
    store.objects["jobs/closed/closed.json"] = b"{}"
    turn(made, lambda: result(store).get("state") == "failed")
    assert "jobs/closed/result.json" not in store.objects


def test_a_higher_generation_stops_the_processor(scene):
    made, store = scene
    store.objects[f"jobs/{JOB}/result.json"] = json.dumps({"generation": 6, "state": "processing"}).encode()
    with pytest.raises(Fenced):
        made.step(1.0)
    assert not any("/out/" in key for key in store.objects)
