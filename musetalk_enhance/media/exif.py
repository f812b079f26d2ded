"""EXIF blocks of image files: reading them, their orientation, and what a copy may keep."""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Image

if TYPE_CHECKING:
    from PIL.Image import Exif
    from PIL.ImageFile import ImageFile

HEADER = b"Exif\0\0"
"""The first bytes of a block in a JPEG."""
ORIENTATION = 0x0112
"""The tag of the orientation, 1 (upright) to 8."""

# IFD0 of EXIF 2.3, table 4, without the tags that describe how pixels are stored; ratings; titles
# as Windows writes them.
_DESCRIPTIVE = {0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C}
_DESCRIPTIVE |= {0x8298, 0x8769, 0x8825, 0x4746, 0x4749, *range(0x9C9B, 0x9CA0)}
_WARNINGS = Lock()  # the list of warning filters belongs to the process, not to a thread


@contextlib.contextmanager
def ignored_warnings() -> Iterator[None]:
    """Ignore warnings, in one thread at a time: two could leave the filters changed for good."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_exif(image: ImageFile) -> bytes | None:
    """The EXIF block as the file has it; of a TIFF, whose tags are its EXIF, the descriptive tags.

    Args:
        image: opened by Pillow.

    Returns:
        The block, None without one or where a TIFF's tags cannot be parsed.
    """
    if image.format == "TIFF":
        with contextlib.suppress(Exception):  # Pillow's parsers raise exceptions of any class
            tags = remove_storage_tags(image.getexif())
            return tags.tobytes() if len(tags) else None
        return None
    block = image.info.get("exif")
    # ImageMagick's text chunk in a PNG: three lines of header, then hexadecimal digits.
    text = image.info.get("Raw profile type exif")
    if block is None and isinstance(text, str):
        with contextlib.suppress(ValueError):
            block = bytes.fromhex("".join(text.split("\n")[3:]))
    return block


def read_late_exif(stream: Any) -> bytes | None:
    """The chunk ``eXIf`` of a PNG, which may come after the pixels.

    Args:
        stream: the file, seekable.
    """
    stream.seek(8)
    while len(header := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"eXIf":
            return bytes(stream.read(length))
        stream.seek(length + 4, 1)
    return None


def remove_storage_tags(exif: Exif) -> Exif:
    """Remove the tags that describe stored pixels (sizes, strips, orientation): a TIFF has its own.

    Args:
        exif: changed in place.

    Returns:
        `exif`.
    """
    for tag in list(exif):
        if tag not in _DESCRIPTIVE:
            del exif[tag]
    return exif


def reset_orientation(block: bytes | None) -> tuple[bytes | None, int]:
    """Set the orientation of an EXIF block to 1 (upright), changing only these two bytes.

    A block that is encoded again would lose everything that its offsets point to: maker notes,
    previews. (TIFF 6.0, section 2.)

    Returns:
        The block with `HEADER`, None where it cannot be parsed; and its orientation, 1 to 8.
    """
    if not block:
        return None, 1
    body, orientation = bytearray(block.removeprefix(HEADER)), 1
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(body[:4]))
    if order is None:
        return None, 1
    try:
        (start,) = struct.unpack_from(order + "I", body, 4)
        (count,) = struct.unpack_from(order + "H", body, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", body, entry)
            if tag == ORIENTATION:
                number = order + ("I" if kind == 4 else "H")  # a LONG instead of a SHORT
                (orientation,) = struct.unpack_from(number, body, entry + 8)
                struct.pack_into(number, body, entry + 8, 1)
    except struct.error:
        return None, 1
    return HEADER + bytes(body), orientation if 1 <= orientation <= 8 else 1


def rotate_upright(pixels: Image, orientation: int) -> Image:
    """Rotate and flip pixels upright, by the eight orientations of EXIF 2.3, section 4.6.4 A.

    Args:
        pixels: uint8 ``(H, W)`` or ``(H, W, C)``.
        orientation: 1 to 8.

    Returns:
        C-contiguous; height and width are swapped from orientation 5 on.
    """
    import cv2

    rotated = cv2.transpose(pixels) if orientation >= 5 else pixels
    # Then flipped from left to right (1), upside down (0) or both (-1).
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return np.ascontiguousarray(rotated if flip is None else cv2.flip(rotated, flip), np.uint8)
