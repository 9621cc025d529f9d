"""Joins the MP4 segments of one encoder setting into one video track without touching a picture or a time stamp.

Why not ffmpeg's concat: it places segments by their durations in microseconds, so exact source time stamps are lost, and it
repairs decode times where B-frames make segments overlap. Here the presentation times are known exactly, and decode times
follow from them: with a reorder depth of d, decode time i is presentation time i-d of all, sorted. Audio is not handled.

Reads only files our own ffmpeg wrote (one video track, one sample description).
"""

import itertools
import struct
from dataclasses import dataclass

from .errors import BadVideo

CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}


@dataclass(frozen=True)
class Track:
    """Sample tables of one file: presentation times from 0, in decode order."""

    path: str
    timescale: int
    description: bytes
    header: bytes
    sizes: list
    runs: list
    pts: list
    sync: list


def boxes(data):
    """The boxes of a moov by path, e.g. `trak/mdia/mdhd` → payload."""
    found = {}

    def walk(begin, end, path):
        while begin + 8 <= end:
            size, kind = struct.unpack_from(">I4s", data, begin)
            head = 8
            if size == 1:
                size, head = struct.unpack_from(">Q", data, begin + 8)[0], 16
            if size < head or begin + size > end:
                raise BadVideo("A segment's result is damaged.")
            name = path + kind.decode("latin-1")
            found.setdefault(name, data[begin + head : begin + size])
            if kind in CONTAINERS:
                walk(begin + head, begin + size, name + "/")
            begin += size

    walk(0, len(data), "")
    return found


def moov_of(path):
    """The payload of a file's moov box."""
    with open(path, "rb") as file:
        while True:
            head = file.read(8)
            if len(head) < 8:
                raise BadVideo("A segment's result is incomplete.")
            size, kind = struct.unpack(">I4s", head)
            used = 8
            if size == 1:
                size, used = struct.unpack(">Q", file.read(8))[0], 16
            if kind == b"moov":
                return file.read(size - used)
            file.seek(size - used, 1)


def read(path):
    """The track of a segment's file."""
    found = boxes(moov_of(path))
    table = "trak/mdia/minf/stbl/"
    mdhd = found["trak/mdia/mdhd"]
    timescale = struct.unpack_from(">I", mdhd, 20 if mdhd[0] == 1 else 12)[0]
    stsz = found[table + "stsz"]
    fixed, count = struct.unpack_from(">II", stsz, 4)
    sizes = [fixed] * count if fixed else list(struct.unpack_from(f">{count}I", stsz, 12))
    times, now = [], 0
    for number, step in _pairs(found[table + "stts"], "II"):
        for _ in range(number):
            times.append(now)
            now += step
    if table + "ctts" in found:
        shifts = [shift for number, shift in _pairs(found[table + "ctts"], "Ii") for _ in range(number)]
        times = [time + shift for time, shift in zip(times, shifts, strict=True)]
    first = min(times)
    sync = [n - 1 for (n,) in struct.iter_unpack(">I", found[table + "stss"][8:])] if table + "stss" in found else list(range(count))
    if table + "co64" in found:
        offsets = [o for (o,) in struct.iter_unpack(">Q", found[table + "co64"][8:])]
    else:
        offsets = [o for (o,) in struct.iter_unpack(">I", found[table + "stco"][8:])]
    per_chunk = list(struct.iter_unpack(">III", found[table + "stsc"][8:]))
    runs, sample = [], 0
    for chunk, offset in enumerate(offsets, 1):
        samples = next(n for begin, n, _ in reversed(per_chunk) if begin <= chunk)
        runs.append((offset, sum(sizes[sample : sample + samples])))
        sample += samples
    if len(times) != count or sample != count:
        raise BadVideo("A segment's result is inconsistent.")
    return Track(path, timescale, found[table + "stsd"], found["trak/tkhd"], sizes, runs, [t - first for t in times], sync)


def _pairs(payload, form):
    return struct.iter_unpack(">" + form, payload[8:])


def decode_times(pts):
    """(decode times, delay): times from 0, strictly rising, none later than its picture's pts + delay."""
    ordered = sorted(pts)
    rank = {time: index for index, time in enumerate(ordered)}
    if len(rank) != len(pts):
        raise BadVideo("Two pictures have the same time stamp.")
    depth = max(index - rank[time] for index, time in enumerate(pts))
    if depth <= 0:
        return [time - ordered[0] for time in pts], 0
    delay = max(depth, ordered[min(depth, len(pts) - 1)] - ordered[0])
    head = [index * delay // depth for index in range(depth)]
    return head + [time - ordered[0] + delay for time in ordered[: len(pts) - depth]], delay


def join(tracks, starts, last_duration, unit, target):
    """Writes one MP4. `starts`: each segment's first presentation time from the video's start, in time base units;
    `last_duration`: of the last picture; `unit`: the time base's numerator (ticks of the track = units × numerator)."""
    some = tracks[0]
    for track in tracks:
        if track.description != some.description or track.timescale != some.timescale:
            raise BadVideo("The segments were encoded differently and cannot be joined.")
    pts, sizes, sync = [], [], []
    for track, start in zip(tracks, starts, strict=True):
        sync += [len(pts) + index for index in track.sync]
        pts += [start * unit + time for time in track.pts]
        sizes += track.sizes
    times, delay = decode_times(pts)
    first = min(pts)
    length = max(pts) - first + last_duration * unit
    steps = [after - before for before, after in itertools.pairwise(times)] + [max(1, last_duration * unit)]
    shifts = [time - first + delay - decode for time, decode in zip(pts, times, strict=True)]
    ftyp = _box(b"ftyp", b"isom" + struct.pack(">I", 512) + b"isomiso2avc1mp41")
    data = sum(sizes)
    begin = len(ftyp) + 16
    offsets = []
    for track in tracks:
        offsets.append(begin)
        begin += sum(track.sizes)
    header = bytearray(some.header)
    chunks = b"".join(struct.pack(">III", n, len(track.sizes), 1) for n, track in enumerate(tracks, 1))
    table = _box(
        b"stbl",
        _box(b"stsd", some.description),
        _full(b"stts", struct.pack(">I", len(_runs(steps))) + b"".join(struct.pack(">II", n, v) for v, n in _runs(steps))),
        _full(b"ctts", struct.pack(">I", len(_runs(shifts))) + b"".join(struct.pack(">II", n, v) for v, n in _runs(shifts))),
        _full(b"stss", struct.pack(f">I{len(sync)}I", len(sync), *(index + 1 for index in sync))),
        _full(b"stsc", struct.pack(">I", len(tracks)) + chunks),
        _full(b"stsz", struct.pack(f">II{len(sizes)}I", 0, len(sizes), *sizes)),
        _full(b"co64", struct.pack(f">I{len(offsets)}Q", len(offsets), *offsets)),
    )
    minf = _box(
        b"minf",
        _full(b"vmhd", bytes(8), flags=1),
        _box(b"dinf", _full(b"dref", struct.pack(">I", 1) + _full(b"url ", b"", flags=1))),
        table,
    )
    scale = some.timescale
    mdia = _box(
        b"mdia",
        _full(b"mdhd", struct.pack(">QQIQHH", 0, 0, scale, sum(steps), 0x55C4, 0), version=1),
        _full(b"hdlr", bytes(4) + b"vide" + bytes(12) + b"VideoHandler\0"),
        minf,
    )
    # The movie's timescale is the track's, so that the edit (which hides the decode delay) is exact.
    edit = _full(b"elst", struct.pack(">IQqHH", 1, length, delay, 1, 0), version=1)
    size_w, size_h = header[-8:-4], header[-4:]
    matrix = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    tkhd = _full(b"tkhd", struct.pack(">QQIIQ8xhhhh", 0, 0, 1, 0, length, 0, 0, 0, 0) + matrix + size_w + size_h, version=1, flags=3)
    mvhd = _full(b"mvhd", struct.pack(">QQIQIhH8x", 0, 0, scale, length, 0x10000, 0x100, 0) + matrix + bytes(24) + struct.pack(">I", 2), version=1)
    with open(target, "wb") as out:
        out.write(ftyp + struct.pack(">I4sQ", 1, b"mdat", data + 16))
        for track in tracks:
            with open(track.path, "rb") as source:
                for offset, size in track.runs:
                    source.seek(offset)
                    left = size
                    while left:
                        piece = source.read(min(left, 1 << 20))
                        if not piece:
                            raise BadVideo("A segment's result is incomplete.")
                        out.write(piece)
                        left -= len(piece)
        out.write(_box(b"moov", mvhd, _box(b"trak", tkhd, _box(b"edts", edit), mdia)))
    return [time - first for time in sorted(pts)]


def _runs(values):
    """Run lengths: [(value, count)]."""
    runs = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def _box(kind, *payloads):
    body = b"".join(payloads)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def _full(kind, body, version=0, flags=0):
    return _box(kind, struct.pack(">I", version << 24 | flags) + body)
