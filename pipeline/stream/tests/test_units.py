"""What decides without I/O: decoding, choosing, fencing, seeding, reassembly. Seconds."""

import hashlib
import json
import random

import pytest
from botocore.exceptions import NoCredentialsError

from vpstream import fence, objects, processor, progress, scheduler, segments, settings
from vpstream.errors import Fenced, Interrupted
from vpstream.records import End, Malformed, Piece, Reference, decode

JOB = "0123456789abcdef0123"
SHA = "a" * 64


class MemoryStore:
    """Objects in a dictionary, with ETags: conditional writes as S3 has them."""

    results = "results"

    def __init__(self, objects=None):
        self.objects = dict(objects or {})
        self.before_swap = None

    def get(self, key, bucket=None):
        return self.objects.get(key)

    def exists(self, key):
        return key in self.objects

    def get_json(self, key, bucket=None):
        if key not in self.objects:
            return None, None
        body = self.objects[key]
        try:
            return json.loads(body), hashlib.md5(body).hexdigest()
        except ValueError:
            return None, hashlib.md5(body).hexdigest()

    def put_if_absent(self, key, body, content_type=""):
        if key in self.objects:
            return False
        self.objects[key] = body
        return True

    def swap(self, key, value, etag):
        if self.before_swap:
            act, self.before_swap = self.before_swap, None
            act()
        if self.get_json(key)[1] != etag:
            return None
        self.objects[key] = json.dumps(value).encode()
        return self.get_json(key)[1]

    def delete(self, key):
        self.objects.pop(key, None)

    def keys(self, prefix):
        return {key: len(body) for key, body in self.objects.items() if key.startswith(prefix)}

    def folders(self, prefix):
        return {key[len(prefix) :].split("/")[0] for key in self.objects if key.startswith(prefix) and "/" in key[len(prefix) :]}


def rows(job, segment, body, size):
    """A segment's records in order."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    sha = hashlib.sha256(body).hexdigest()
    for part, piece in enumerate(pieces):
        fields = {"version": 1, "kind": "video", "job": job, "segment": segment, "part": part, "parts": len(pieces), "bytes": len(body), "sha256": sha}
        yield f"{job}/{segment}".encode(), piece, [(name, str(value).encode()) for name, value in fields.items()]


def headers(**changes):
    fields = {"version": "1", "kind": "video", "job": JOB, "segment": "00000", "part": "0", "parts": "1", "bytes": "3", "sha256": SHA}
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in {**fields, **changes}.items() if value is not None]


def test_a_good_record_is_decoded():
    assert decode(f"{JOB}/00000".encode(), b"abc", headers()) == Piece(JOB, "00000", 0, 1, 3, SHA, b"abc")
    assert decode(f"{JOB}/end".encode(), json.dumps({"job": JOB}).encode(), headers(kind="end")) == End(JOB)
    body = {"bucket": "results", "key": "k", "offset": 0, "length": 2, "sha256": SHA}
    assert decode(f"{JOB}/00000".encode(), json.dumps(body).encode(), headers(kind="reference")) == Reference(JOB, "00000", "results", "k")


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "2"}, {"version": None}, {"kind": "x"}, {"kind": "audio"}, {"segment": "../x"}, {"segment": "audio"}, {"job": "../../etc"}, {"job": None},
        {"part": "1"}, {"part": "-1"}, {"part": "x"}, {"parts": "0"}, {"parts": "99999"}, {"bytes": "1"}, {"bytes": "999999999999"}, {"sha256": "A" * 64},
        {"job": b"\xff"}, {"segment": "00001"}, {"job": JOB + "\n"}, {"part": "٣"},
    ],
)  # fmt: skip
def test_a_malformed_record_is_refused(changes):
    with pytest.raises(Malformed):
        decode(f"{JOB}/00000".encode(), b"abc", headers(**changes))


@pytest.mark.parametrize("value", [b"", b"[]", b"{}", b"\xff", b"[" * 5000, json.dumps({"job": "other"}).encode()])
def test_a_malformed_end_is_refused(value):
    with pytest.raises(Malformed):
        decode(f"{JOB}/end".encode(), value, headers(kind="end"))


def test_no_bytes_whatever_break_the_decoder():
    rng = random.Random(5)
    for _ in range(3000):
        junk = [(rng.choice(["version", "kind", "job", "segment", "part", "x"]), rng.randbytes(rng.randint(0, 6))) for _ in range(6)]
        with pytest.raises(Malformed):
            decode(rng.randbytes(5), rng.randbytes(20), junk)


@pytest.mark.parametrize("seed", range(8))
def test_segments_split_over_batches_in_any_order_come_together(seed):
    rng, store, wanted, records = random.Random(seed), MemoryStore(), {}, []
    for index in range(6):
        body = rng.randbytes(rng.randint(1, 5000))
        wanted[f"work/{JOB}/in/{index:05d}"] = body
        records += rows(JOB, f"{index:05d}", body, rng.randint(1, 900) + 200)
    records += rng.sample(records, len(records) // 3)  # delivered twice
    rng.shuffle(records)
    while records:
        size = rng.randint(1, 9)
        batch, records = records[:size], records[size:]
        _, counts = segments.take(store, batch)
        assert counts["malformed"] == 0
        if rng.random() < 0.3:
            segments.take(store, batch)  # a batch done again
    assert {key: body for key, body in store.objects.items() if "/in/" in key} == wanted


def test_a_segment_whose_hash_lies_never_becomes_whole():
    key, value, fields = next(rows(JOB, "00000", b"honest", 100))
    store = MemoryStore()
    assert segments.take(store, [(key, b"forged", fields)])[1]["malformed"] == 1
    two = list(rows(JOB, "00001", b"honestly", 4))
    assert segments.take(store, [two[0]])[1]["malformed"] == 0
    assert segments.take(store, [(two[1][0], b"xxxx", two[1][2])])[1]["malformed"] == 1
    assert store.objects == {}, "and what was kept of it is gone, so that a redelivery can complete it"
    segments.take(store, two)
    assert store.objects == {f"work/{JOB}/in/00001": b"honestly"}


def test_a_reference_is_to_the_jobs_own_segment_which_lies_there_and_to_nothing_else():
    own = f"work/{JOB}/in/00000"
    store = MemoryStore({own: b"SEGMENT", "film": b"xx"})

    def counted(**other):
        body = {"bucket": "results", "key": own, "offset": 0, "length": 7, "sha256": SHA, **other}
        return segments.take(store, [(f"{JOB}/00000".encode(), json.dumps(body).encode(), headers(kind="reference"))])[1]

    assert counted() == {"records": 1, "malformed": 0, "segments": 1, "parts": 0}
    assert counted(bucket="secret")["malformed"] == 1
    assert counted(key="film")["malformed"] == 1
    del store.objects[own]
    assert counted()["malformed"] == 1, "gone"


def test_a_short_clip_does_not_wait_behind_a_long_film():
    waiting = {"long": list(range(100)), "short": [0, 1, 2, 3]}
    # Near its end it weighs three: three quarters are its own as long as it lasts, and no more.
    assert scheduler.choose(waiting, {}, {}, 4) == [("short", 0), ("short", 1), ("long", 0), ("short", 2)]
    assert scheduler.choose(waiting, {"long": 4}, {}, 2) == [("short", 0), ("short", 1)]
    assert scheduler.choose(waiting, {"long": 1, "short": 6}, {}, 1) == [("long", 0)]


@pytest.mark.parametrize(("cores", "clips"), [(1, 1), (1, 3), (2, 2), (4, 4), (4, 9), (8, 2)])
def test_a_long_film_does_not_wait_behind_short_clips_that_never_end(cores, clips):
    running, last, picks, turn = [], {}, 0, 0
    for _ in range(1000):
        waiting = {"film": list(range(100)), **{f"clip {number}": [0, 1, 2] for number in range(clips)}}
        counts = {job: running.count(job) for job in waiting}
        for job, _task in scheduler.choose(waiting, counts, last, cores - len(running)):
            turn += 1
            last[job] = turn
            running.append(job)
            picks += job == "film"
        running.pop(0)
    assert picks / turn >= 1 / scheduler.FAR_EVERY - 0.01


def test_a_core_is_left_to_the_intake_where_there_are_several():
    assert [processor.room(cores) for cores in (0, 1, 3, 4, 16)] == [0, 1, 3, 3, 15]


def test_jobs_far_from_their_end_share_alike():
    waiting = {"one": list(range(100)), "other": [0, 1]}
    left = {"one": 100, "other": 50}
    assert scheduler.choose(waiting, {}, {}, 4, left) == [("one", 0), ("other", 0), ("one", 1), ("other", 1)]
    assert scheduler.choose(waiting, {"one": 2}, {}, 2, left) == [("other", 0), ("other", 1)]


def test_one_core_goes_round_and_starves_nobody():
    waiting, last, turns = {"a": list(range(50)), "b": list(range(50)), "c": list(range(50))}, {}, []
    for turn in range(30):
        ((job, task),) = scheduler.choose(waiting, {}, last, 1)
        waiting[job].remove(task)
        last[job] = turn
        turns.append(job)
    assert all(sorted(turns[at : at + 3]) == ["a", "b", "c"] for at in range(0, 30, 3))


def test_choosing_never_exceeds_what_is_free_or_waits():
    assert scheduler.choose({}, {}, {}, 5) == []
    assert scheduler.choose({"a": [1]}, {}, {}, 0) == []
    assert scheduler.choose({"a": [1, 2]}, {}, {}, 9) == [("a", 1), ("a", 2)]


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        ({"generation": 4, "state": "processing"}, "claim"), ({"generation": 5, "state": "processing"}, "mine"), ({"generation": 6, "state": "processing"}, "higher"),
        ({"generation": 6, "state": "done"}, "higher"), ({"generation": 4, "state": "done"}, "over"), ({"generation": 0, "state": "failed"}, "over"), ("junk", "claim"),
    ],
)  # fmt: skip
def test_who_may_touch_a_job(record, verdict):
    assert fence.decide(record, 5, True) == verdict
    assert fence.decide(None, 5, False) == "claim"


def test_a_claim_lost_to_a_higher_generation_is_seen():
    store = MemoryStore()
    store.before_swap = lambda: fence.claim(store, JOB, 7)
    with pytest.raises(Fenced):
        fence.claim(store, JOB, 6)


def test_an_old_claim_publishes_nothing():
    store = MemoryStore()
    old = fence.claim(store, JOB, 6)
    new = fence.claim(store, JOB, 7)
    with pytest.raises(Fenced):
        fence.publish(store, JOB, old, {"job": JOB, "state": "done", "generation": 6})
    assert store.get_json(f"jobs/{JOB}/result.json")[0]["state"] == "processing"
    fence.publish(store, JOB, new, {"job": JOB, "state": "done", "generation": 7})
    assert fence.claim(store, JOB, 8) is None


def test_a_new_generation_is_seeded_from_the_newest_committed_lower_one():
    below = "stream/checkpoints/"
    store = MemoryStore({f"{below}3/q/offsets/0": b"3", f"{below}3/q/commits/0": b"3", f"{below}3/q/metadata": b"m3"})
    for name in ("q/offsets/0", "q/offsets/1", "q/offsets/2", "q/commits/0", "q/commits/1", "q/metadata", "q/sources/0/0"):
        store.objects[f"{below}5/{name}"] = name.encode()
    store.objects[f"{below}6/owner.json"] = b"{}"  # took its place and died before a batch
    fence.take_folder(store, 8, "i-1")
    got = {key[len(f"{below}8/") :] for key in store.keys(f"{below}8/")}
    assert got == {"owner.json", "seeded.json", "q/offsets/0", "q/offsets/1", "q/commits/0", "q/commits/1", "q/metadata", "q/sources/0/0"}
    before = dict(store.objects)
    fence.take_folder(store, 8, "i-1")
    assert store.objects == before, "a restart in the same generation seeds nothing again"
    with pytest.raises(Fenced):
        fence.take_folder(store, 7, "i-2")
    with pytest.raises(Fenced):
        fence.check(store, 7)
    fence.check(store, 8)


def test_progress_is_what_the_probe_expects(tmp_path):
    path = tmp_path / "progress.json"
    progress.write(str(path), 41, 7, 2)
    assert '"generation": 41,' in path.read_text()
    assert json.loads(path.read_text())["batch"] == 7


def test_settings_name_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        settings.parse([], {})
    assert ended.value.code == 2 and "--generation" in capsys.readouterr().err


def test_a_client_made_while_there_were_no_credentials_is_made_anew(monkeypatch):
    made = []

    class Client:
        def __init__(self, found):
            self.found = found

        def head_object(self, **_):
            if not self.found:
                raise NoCredentialsError()
            return {}

    class Session:
        def client(self, *_, **__):
            made.append(Client(found=len(made) > 0))
            return made[-1]

    monkeypatch.setattr(objects, "_clients", {})
    monkeypatch.setattr(objects.boto3.session, "Session", Session)
    store = objects.Store("http://nowhere", "r", "results", "cluster")
    with pytest.raises(Interrupted):
        store.exists("key")
    assert store.exists("key") and len(made) == 2
