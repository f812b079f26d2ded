"""The display matrix of a video: how a player rotates and flips its frames.

It is read from decoded frames. In an .mp4 or .mov file it is overwritten in place, because PyAV
before 18 cannot write it. Layout: ISO/IEC 14496-12, section 8.3.2 (tkhd).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MediaError
from .mp4_boxes import find_box, video_tracks

_MATRIX_OFFSET = {0: 40, 1: 52}  # bytes of a tkhd box's body before the matrix, by its version


def side_data_of(frame: Any) -> Any:
    """The side data of a decoded frame by the names of its types; None where PyAV cannot list it.

    PyAV knows the types of the FFmpeg that it was written for, and refuses the whole list where a
    newer one is in it (EXIF in the frames of a camera). Not through ``frame.side_data``: it makes
    frame and side data refer to each other, and the image stays in memory until Python's cycle
    collector runs, hundreds of frames later.
    """
    try:
        from av.sidedata.sidedata import SideDataContainer

        return SideDataContainer(frame)  # type: ignore[call-arg]
    except ValueError:
        return None
    except (ImportError, TypeError):  # its module is not documented
        return frame.side_data


def read_display_matrix(frame: Any) -> tuple[int, ...] | None:
    """The nine numbers of a decoded frame's display matrix, as in the file; None without one."""
    side_data = side_data_of(frame)
    if side_data is None:
        return _rotation_matrix(getattr(frame, "rotation", 0))
    matrix = side_data.get("DISPLAYMATRIX")
    return None if matrix is None else tuple(map(int, np.frombuffer(bytes(matrix), np.int32)))


def _rotation_matrix(degrees: int) -> tuple[int, ...] | None:
    """The display matrix of a rotation counterclockwise; None for an upright frame."""
    quarter_turns = round(degrees / 90) % 4
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns]
    a, b = cosine << 16, sine << 16
    return (a, -b, 0, b, a, 0, 0, 0, 1 << 30) if quarter_turns else None


def orientation(frame: Any) -> tuple[int, bool]:
    """The rotation and flip that bring a decoded frame upright, from its display matrix.

    A flipped frame is flipped from left to right first, then rotated. The angle is that of FFmpeg's
    ``av_display_rotation_get``; PyAV's own ``rotation`` is missing before 14.1.

    Returns:
        (quarter turns counterclockwise, whether it is flipped).
    """
    matrix = read_display_matrix(frame)
    if matrix is None:
        return 0, False
    a, b, _, c, d = map(float, matrix[:5])
    flipped = a * d - b * c < 0
    angle = np.degrees(np.arctan2(-b, -a) if flipped else np.arctan2(b, a))
    return round(-float(angle) / 90) % 4, flipped


def rotates_or_flips(matrix: Sequence[int]) -> bool:
    """Whether a display matrix does more than scale and shift, by over half a degree.

    A scale is in the pixel aspect ratio, too, and a shift has no meaning for a single video.
    """
    a, b, _, c, d = matrix[:5]
    return a < 0 or d < 0 or max(abs(b), abs(c)) > 0.01 * max(abs(a), abs(d))


def write_display_matrix(path: Path, matrix: Sequence[int]) -> None:
    """Overwrite the matrix of a file's video track, in place.

    Args:
        path: an .mp4 or .mov file.
        matrix: nine integers in the file's order: a b u, c d v, x y w; u, v, w have 30 fractional
            bits, the others 16.

    Raises:
        MediaError: the file has no video track.
    """
    with path.open("r+b") as file:
        for track in video_tracks(file):
            begin, _ = find_box(file, [b"tkhd"], *track)
            file.seek(begin)
            file.seek(begin + _MATRIX_OFFSET[file.read(1)[0]])
            file.write(struct.pack(">9i", *matrix))
            return
    raise MediaError(path, "has no video track")
