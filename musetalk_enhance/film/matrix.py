"""The display matrix of an .mp4 or .mov file: PyAV before 18 cannot write it, so it is put in afterwards.

Layout: ISO/IEC 14496-12, sections 8.3.2 (tkhd) and 8.4.3 (hdlr).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import MediaError

_BEFORE_MATRIX = {0: 40, 1: 52}  # bytes of a tkhd box's body before the matrix, by its version
_BEFORE_HANDLER = 8  # bytes of an hdlr box's body before the four letters


def write_display_matrix(path: Path, matrix: Sequence[int]) -> None:
    """Overwrite the matrix of a file's picture track, in place.

    Args:
        path: an .mp4 or .mov file.
        matrix: nine integers in the file's order: a b u, c d v, x y w; u, v, w have 30 bits after the point,
            the others 16.

    Raises:
        MediaError: the file has no picture track.
    """
    with path.open("r+b") as file:
        for name, track in _boxes(file, *_inside(file, [b"moov"])):
            if name != b"trak" or _body(file, track, [b"mdia", b"hdlr"])[_BEFORE_HANDLER:][:4] != b"vide":
                continue
            begin, _ = _inside(file, [b"tkhd"], *track)
            file.seek(begin)
            file.seek(begin + _BEFORE_MATRIX[file.read(1)[0]])
            file.write(struct.pack(">9i", *matrix))
            return
    raise MediaError(path, "has no picture track")


def _boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """The boxes from `begin` to `end`: each one's name and where its body begins and ends."""
    while begin + 8 <= end:
        file.seek(begin)
        size, name = struct.unpack(">I4s", file.read(8))
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", file.read(8))[0], 16
        after = begin + size if size >= header else end
        yield name, (begin + header, after)
        begin = after


def _inside(file: BinaryIO, names: Sequence[bytes], begin: int = 0, end: int | None = None) -> tuple[int, int]:
    """Where the body of a box is, given the names on the way to it."""
    span = (begin, file.seek(0, 2) if end is None else end)
    for wanted in names:
        span = next((where for name, where in _boxes(file, *span) if name == wanted), (0, 0))
    return span


def _body(file: BinaryIO, span: tuple[int, int], names: Sequence[bytes]) -> bytes:
    begin, end = _inside(file, names, *span)
    file.seek(begin)
    return file.read(end - begin)
