"""Puts segments together from pieces that may arrive split over micro-batches; what is unfinished waits on S3, never in memory.

    pieces of a batch ──> whole? ──yes──> hash ──> work/JOB/in/SEGMENT
                            └─no──> work/JOB/parts/SEGMENT/… ──all there?──> the same

All pieces of a segment share a key, hence a Kafka partition and a task: no two tasks of a batch work on one segment.
Memory is bounded by `maxOffsetsPerTrigger` values plus one segment.
"""

import hashlib

from .records import End, Malformed, Piece, decode


def part_key(piece, part=None):
    """`work/JOB/parts/SEGMENT/PART-SHA16-of-PARTS`: the hash keeps parts of a differing segment apart."""
    number = piece.part if part is None else part
    return f"work/{piece.job}/parts/{piece.segment}/{number:05d}-{piece.sha256[:16]}-of-{piece.parts:05d}"


def in_key(job, segment):
    return f"work/{job}/in/{segment}"


def take(store, rows):
    """Stores what a task's rows carry. Rows are (key, value, headers). Returns (jobs that ended, counts)."""
    counts = {"records": 0, "malformed": 0, "segments": 0, "parts": 0}
    ended, open_pieces = set(), {}
    for key, value, headers in rows:
        counts["records"] += 1
        try:
            record = decode(key, value, headers)
            if isinstance(record, End):
                ended.add(record.job)
            elif isinstance(record, Piece):
                group = open_pieces.setdefault((record.job, record.segment, record.sha256, record.parts, record.total), {})
                group[record.part] = record
                if len(group) == record.parts:
                    del open_pieces[(record.job, record.segment, record.sha256, record.parts, record.total)]
                    _whole(store, record, b"".join(group[part].value for part in range(record.parts)))
                    counts["segments"] += 1
            else:
                _refer(store, record)
                counts["segments"] += 1
        except Malformed:
            counts["malformed"] += 1
    for group in open_pieces.values():
        try:
            counts["segments"] += _keep(store, group)
            counts["parts"] += len(group)
        except Malformed:
            counts["malformed"] += 1
    return sorted(ended), counts


def _whole(store, piece, data):
    if len(data) != piece.total or hashlib.sha256(data).hexdigest() != piece.sha256:
        raise Malformed("the segment's hash does not fit")
    store.put_if_absent(in_key(piece.job, piece.segment), data)


def _keep(store, group):
    """Writes a batch's pieces of one segment; completes the segment when the last is there. Returns segments completed."""
    some = next(iter(group.values()))
    if store.exists(in_key(some.job, some.segment)):
        return 0
    for piece in group.values():
        store.put_if_absent(part_key(piece), piece.value)
    there = store.keys(f"work/{some.job}/parts/{some.segment}/")
    wanted = [part_key(some, part) for part in range(some.parts)]
    if not all(key in there for key in wanted):
        return 0
    if sum(there[key] for key in wanted) != some.total:
        data = b""  # parts that lie about their size are not read into memory
    else:
        data = b"".join(store.get(key) or b"" for key in wanted)
    try:
        _whole(store, some, data)
    finally:
        for key in wanted:
            store.delete(key)
    return 1


def _refer(store, reference):
    """A large segment that ingest has put where whole segments lie; its hash is checked by whoever fetches it."""
    key = in_key(reference.job, reference.segment)
    if (reference.bucket, reference.key) != (store.results, key):
        raise Malformed("a reference to something else than the job's own segment")
    if not store.exists(key):
        raise Malformed("the referenced segment is gone")
