"""Locate the face in a pair of clips: by their difference, or by a detector's boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..media.arrays import Image
from .metrics import Floats, Mask, gray, largest_part

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the ends are exclusive."""
Locate = Callable[[Image], Sequence[float] | None]
"""Takes a BGR frame and returns its face's box (x1, y1, x2, y2) in pixels, or None."""

SMALLEST_SIDE = 32
_DETECTION_SIDE = 160  # longer edge at which differences are detected, pixels
_MIN_LOG_RATIO = 0.15  # of the fine detail's energies; a codec stays below it
_MIN_CHANGE = 1.0  # of the brightness, mean over the clip, gray levels; a codec stays below it
_FLOOR = 4.0  # energy of fine detail that flat areas are assumed to have, gray levels squared
_SHARE = 0.25  # of the strongest change that a pixel of the region has at least
_FACE_ASPECT = 1.25  # height of a face box over its width, as hosts crop it
_MIN_FACE_ASPECT = 0.95  # a region flatter than this, height over width, is a face's lower part
_MARGIN = 0.06  # of the box's size, added on each side so that the seam is visible
_STEADY = 0.12  # of the box's size: a head that moves no further gets one fixed box


def find_difference(pairs: Iterable[tuple[Image, Image]]) -> Box | None:
    """The box of the region in which two clips differ.

    Two encodes of a clip differ slightly everywhere. Restoration stands out by two statistics that
    a codec preserves: the energy of fine detail (Laplacian, ratio per pixel over the clip) and the
    mean brightness. A pixel belongs to the region by either; the largest connected part counts.

    Args:
        pairs: frames of both clips, BGR uint8, one size.

    Returns:
        The box in pixels of the frames; None if nothing differs.
    """
    sums: dict[str, Floats] = {}
    count, shape = 0, (0, 0)
    for frame_in, frame_out in pairs:
        for name, values in _statistics(frame_in, frame_out).items():
            sums[name] = sums[name] + values if count else values
        count, shape = count + 1, frame_in.shape[:2]
    if not count:
        return None
    mask = _region({name: np.asarray(total / count, np.float32) for name, total in sums.items()})
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask)
    across, down = shape[1] / mask.shape[1], shape[0] / mask.shape[0]
    return (
        int(columns.min() * across),
        int(rows.min() * down),
        int(np.ceil((columns.max() + 1) * across)),
        int(np.ceil((rows.max() + 1) * down)),
    )


def _statistics(frame_in: Image, frame_out: Image) -> dict[str, Floats]:
    """Energies of fine detail and the difference in brightness, averaged to `_DETECTION_SIDE`."""
    import cv2

    levels: list[Floats] = [gray(frame).astype(np.float32) for frame in (frame_in, frame_out)]
    energy = [np.asarray(cv2.Laplacian(level, cv2.CV_32F), np.float32) ** 2 for level in levels]
    change = levels[1] - levels[0]
    parts: dict[str, Any] = {"in": energy[0], "out": energy[1], "change": change}
    height, width = frame_in.shape[:2]
    scale = min(1.0, _DETECTION_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return {
        name: np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA)).astype(np.float32)
        for name, part in parts.items()
    }


def _region(means: dict[str, Floats]) -> Mask:
    import cv2

    smooth = {name: cv2.blur(values, (5, 5)) for name, values in means.items()}
    ratio = np.abs(np.log((smooth["out"] + _FLOOR) / (smooth["in"] + _FLOOR)))
    change = np.abs(smooth["change"])
    mask = np.zeros(ratio.shape, bool)
    for values, minimum in ((ratio, _MIN_LOG_RATIO), (change, _MIN_CHANGE)):
        mask |= values > max(minimum, _SHARE * float(values.max()))
    kernel = np.ones((9, 9), np.uint8)
    return largest_part(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel))


def grow_to_face(box: Box, frame_wh: tuple[int, int]) -> Box:
    """The face's box from the box of the restored region.

    A region that is flatter than a face is its lower part, all that MuseTalk replaces: it grows
    upward to a face's aspect ratio. Then a margin is added on every side, clipped to the frame.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if height < _MIN_FACE_ASPECT * width:
        top = bottom - round(_FACE_ASPECT * width)
    return with_margin((left, top, right, bottom), frame_wh)


def with_margin(box: Sequence[float], frame_wh: tuple[int, int], margin: float = _MARGIN) -> Box:
    """A box enlarged on every side by `margin` of its size, then clipped by `inside`."""
    across, along = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    return inside((box[0] - across, box[1] - along, box[2] + across, box[3] + along), frame_wh)


def inside(box: Sequence[float], frame_wh: tuple[int, int]) -> Box:
    """A box in whole pixels inside the frame, each side at least `SMALLEST_SIDE` if it fits."""

    def span(low: float, high: float, size: int) -> tuple[int, int]:
        first, last = max(0, round(low)), min(size, round(high))
        missing = min(SMALLEST_SIDE, size) - (last - first)
        if missing > 0:
            first = min(max(0, first - missing // 2), size - min(SMALLEST_SIDE, size))
            last = first + min(SMALLEST_SIDE, size)
        return first, last

    left, right = span(box[0], box[2], frame_wh[0])
    top, bottom = span(box[1], box[3], frame_wh[1])
    return left, top, right, bottom


@dataclass(frozen=True)
class Track:
    """A face's box over a clip: of one size, fixed or following a moving head.

    Attributes:
        size_wh: size of the box, pixels.
        frames: frame numbers of the detections.
        centers: float64 (N, 2), the box's center there, x and y, smoothed.
    """

    size_wh: tuple[float, float]
    frames: NDArray[np.float64]
    centers: NDArray[np.float64]

    @classmethod
    def fixed(cls, box: Box) -> Track:
        """The same box in every frame."""
        center = np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]])
        return cls((box[2] - box[0], box[3] - box[1]), np.zeros(1), center)

    def at(self, index: int, frame_wh: tuple[int, int]) -> Box:
        """The box in a frame, whole pixels; moved inside the frame without changing its size."""
        width = min(round(self.size_wh[0]), frame_wh[0])
        height = min(round(self.size_wh[1]), frame_wh[1])
        x, y = (np.interp(index, self.frames, self.centers[:, axis]) for axis in (0, 1))
        left = min(max(0, round(float(x) - width / 2)), frame_wh[0] - width)
        top = min(max(0, round(float(y) - height / 2)), frame_wh[1] - height)
        return left, top, left + width, top + height


def follow(detections: Sequence[tuple[int, Sequence[float]]]) -> Track:
    """A track from a detector's boxes.

    The size is the median size plus the margin. A head that hardly moves gets one fixed box,
    because a jittering box would count as motion; otherwise the center is smoothed over five
    boxes and interpolated linearly between them.

    Args:
        detections: ``(frame, box_xyxy)`` of some frames, at least one.
    """
    boxes = np.array([box for _, box in detections], np.float64)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    width, height = np.median(boxes[:, 2:] - boxes[:, :2], axis=0) * (1 + 2 * _MARGIN)
    median = np.median(centers, axis=0)
    if np.percentile(np.abs(centers - median), 95, axis=0).max() <= _STEADY * min(width, height):
        return Track((width, height), np.zeros(1), median[None])
    padded = np.pad(centers, ((2, 2), (0, 0)), mode="edge")
    smooth = sum(padded[k : k + len(centers)] for k in range(5)) / 5
    frames = np.array([frame for frame, _ in detections], np.float64)
    return Track((width, height), frames, np.asarray(smooth))
