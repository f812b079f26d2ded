"""The boxes of an .mp4 or .mov file: ISO/IEC 14496-12, sections 4.2, 8.4.3 (hdlr), 8.6.1.2 (stts)
and 8.7.3 (stsz, stz2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

Span = tuple[int, int]
"""Where the body of a box begins and ends in its file."""

_HANDLER_OFFSET = 8  # bytes of an hdlr box's body before the four letters
_TABLES = (b"mdia", b"minf", b"stbl")


def boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, Span]]:
    """Names and bodies of the boxes from `begin` to `end`."""
    while begin + 8 <= end:
        file.seek(begin)
        size, name = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            size, header = int.from_bytes(file.read(8), "big"), 16
        stop = min(begin + size, end) if size >= header else end
        yield name, (begin + header, stop)
        begin = stop


def find_box(
    file: BinaryIO, names: Sequence[bytes], begin: int = 0, end: int | None = None
) -> Span:
    """The body of a box, given the path of names that leads to it; (0, 0) without it."""
    span = (begin, file.seek(0, 2) if end is None else end)
    for box_name in names:
        span = next((body for name, body in boxes(file, *span) if name == box_name), (0, 0))
    return span


def read_box(file: BinaryIO, span: Span, names: Sequence[bytes]) -> bytes:
    """The body of a box inside another one; empty without it."""
    begin, end = find_box(file, names, *span)
    file.seek(begin)
    return file.read(end - begin)


def video_tracks(file: BinaryIO) -> Iterator[Span]:
    """The bodies of the video tracks."""
    for name, track in boxes(file, *find_box(file, [b"moov"])):
        handler = read_box(file, track, [b"mdia", b"hdlr"])[_HANDLER_OFFSET:]
        if name == b"trak" and handler[:4] == b"vide":
            yield track


def unlisted_frames(file: BinaryIO) -> int:
    """Number of frames without an entry in their track's table of times, in the worst track.

    Not to be told from the number of packets: a fragmented file lists the frames of its first
    fragment only, and edits may show frames twice.
    """
    numbers = [0]
    for track in video_tracks(file):
        tables = {name: read_box(file, track, [*_TABLES, name]) for name in (b"stsz", b"stz2")}
        sizes, times = (
            tables[b"stsz"] or tables[b"stz2"],
            read_box(file, track, [*_TABLES, b"stts"]),
        )
        frames = int.from_bytes(sizes[8:12], "big")
        listed = np.frombuffer(times[8 : len(times) // 8 * 8], ">u4")[::2].sum(dtype=np.int64)
        numbers.append(frames - int(listed))
    return max(numbers)
