"""A fast PNG encoder."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from .arrays import Image
from .exif import HEADER


def encode_png(
    pixels: Image,
    icc: bytes | None = None,
    exif: bytes | None = None,
    others: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Encode a PNG whose rows are all differences to the row above (filter 2 of the specification).

    A 512x512 photograph: 9 ms and 295 kB; Pillow's level 1 takes 23 ms for 295 kB, OpenCV 10 ms for
    377 kB.

    Args:
        pixels: uint8 ``(H, W)`` gray, ``(H, W, 2)`` gray and alpha, ``(H, W, 3)`` RGB or
            ``(H, W, 4)`` RGBA.
        icc: a color profile.
        exif: an EXIF block, with or without its header.
        others: further chunks, kind and body, before the pixels.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    lines = np.empty((height, 1 + rows.shape[1]), np.uint8)
    lines[:, 0] = 2
    lines[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[rows.shape[1] // width]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(HEADER)))
    chunks += others
    chunks += [(b"IDAT", zlib.compress(lines.data, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
        for kind, body in chunks
    )
