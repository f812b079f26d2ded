"""Where the face of a pair of clips is: where they differ, or where a detector says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..metrics import largest_part, shrunk

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the ends are exclusive."""
Locate = Callable[[Image], Sequence[float] | None]
"""Takes a BGR frame, gives the box of its face as x1, y1, x2, y2 in pixels, or None where it finds none."""

SMALLEST_SIDE = 32
_LOOK_SIDE = 160  # longer edge that differences are looked for at
_LEAST = 1.0  # grey levels of difference, mean over the clip, that are no noise of a codec
_SHARE = 0.25  # of the strongest differences, from which on a place belongs to the region
_FACE_SHAPE = 1.25  # height of a face box over its width, as hosts crop it
_FLAT = 0.95  # a region flatter than this, height over width, is the lower part of a face only
_MARGIN = 0.06  # of the box, kept around it on each side, to see the seam
_STEADY = 0.12  # of the box's size: a head that strays no further is seen through one box


def find_difference(pairs: Iterable[tuple[Image, Image]]) -> Box | None:
    """The box of the region in which two clips differ, over all `pairs` of frames.

    Differences are averaged at a small size and over the clip; what stands out of the codec's noise and of a
    quarter of the strongest is the region, of which the largest connected part counts.

    Returns:
        The box in pixels of the frames; None where nothing differs.
    """
    total: NDArray[np.float64] | None = None
    count, shape = 0, (0, 0)
    for before, after in pairs:
        small = [shrunk(frame, _LOOK_SIDE).astype(np.float32) for frame in (before, after)]
        difference = np.abs(small[0] - small[1]).max(axis=2)
        total = difference.astype(np.float64) if total is None else total + difference
        count, shape = count + 1, before.shape[:2]
    if total is None:
        return None
    mean = total / count
    mask = _region(mean)
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask)
    steps = shape[1] / mean.shape[1], shape[0] / mean.shape[0]
    return (
        int(columns.min() * steps[0]),
        int(rows.min() * steps[1]),
        int(np.ceil((columns.max() + 1) * steps[0])),
        int(np.ceil((rows.max() + 1) * steps[1])),
    )


def _region(mean: NDArray[np.float64]) -> NDArray[np.bool_]:
    import cv2

    smooth = cv2.blur(mean.astype(np.float32), (3, 3))
    mask = (smooth > max(_LEAST * 0.5, _SHARE * float(np.percentile(smooth, 99.5)))).astype(np.uint8)
    if not mask.any():
        mask = (mean > _LEAST * 0.5).astype(np.uint8)
    return largest_part(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)))


def grow_to_face(box: Box, frame_wh: tuple[int, int]) -> Box:
    """A face's box from the region that was restored.

    A region that is flatter than a face is its lower part, all that MuseTalk keeps: it grows upward until it is
    as high as a face is for its width. Then a margin is added on every side, cut off at the frame's edges.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if height < _FLAT * width:
        top = bottom - round(_FACE_SHAPE * width)
    return with_margin((left, top, right, bottom), frame_wh)


def with_margin(box: Sequence[float], frame_wh: tuple[int, int], margin: float = _MARGIN) -> Box:
    """A box with `margin` of its size more on every side, whole pixels, inside the frame, not too small."""
    across, along = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    return inside((box[0] - across, box[1] - along, box[2] + across, box[3] + along), frame_wh)


def inside(box: Sequence[float], frame_wh: tuple[int, int]) -> Box:
    """A box in whole pixels inside the frame, `SMALLEST_SIDE` at least on each side where the frame has them."""

    def cut(low: float, high: float, size: int) -> tuple[int, int]:
        first, last = max(0, round(low)), min(size, round(high))
        lacking = min(SMALLEST_SIDE, size) - (last - first)
        if lacking > 0:
            first = min(max(0, first - lacking // 2), size - min(SMALLEST_SIDE, size))
            last = first + min(SMALLEST_SIDE, size)
        return first, last

    (left, right), (top, bottom) = cut(box[0], box[2], frame_wh[0]), cut(box[1], box[3], frame_wh[1])
    return left, top, right, bottom


@dataclass(frozen=True)
class Track:
    """A face's box over a clip: of one size, standing still, or following a head that moves about.

    Attributes:
        size_wh: of the box, pixels.
        frames: numbers of the frames at which the face was looked for.
        centres: float64 (N, 2), the box's middle there, x and y, smoothed.
    """

    size_wh: tuple[float, float]
    frames: NDArray[np.float64]
    centres: NDArray[np.float64]

    @classmethod
    def standing(cls, box: Box) -> Track:
        """The same box in every frame."""
        centre = np.array([[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]])
        return cls((box[2] - box[0], box[3] - box[1]), np.zeros(1), centre)

    def at(self, index: int, frame_wh: tuple[int, int]) -> Box:
        """The box in a frame, whole pixels; pushed inside the frame, so that its size stays the same."""
        width, height = (min(round(size), most) for size, most in zip(self.size_wh, frame_wh, strict=True))
        x, y = (np.interp(index, self.frames, self.centres[:, axis]) for axis in (0, 1))
        left = min(max(0, round(float(x) - width / 2)), frame_wh[0] - width)
        top = min(max(0, round(float(y) - height / 2)), frame_wh[1] - height)
        return left, top, left + width, top + height


def follow(found: Sequence[tuple[int, Sequence[float]]]) -> Track:
    """A track from the boxes that a detector found in some frames, ``(frame, box_xyxy)``, one at least.

    The size is the median one with the margin. A head that hardly strays gets one box that stands still, because
    a box that trembles would be taken for motion; otherwise the middle is smoothed over five boxes and drawn
    straight between them.
    """
    boxes = np.array([box for _, box in found], np.float64)
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    width, height = np.median(boxes[:, 2:] - boxes[:, :2], axis=0) * (1 + 2 * _MARGIN)
    median = np.median(middles, axis=0)
    if np.percentile(np.abs(middles - median), 95, axis=0).max() <= _STEADY * min(width, height):
        return Track((width, height), np.zeros(1), median[None])
    padded = np.pad(middles, ((2, 2), (0, 0)), mode="edge")
    smooth = sum(padded[k : k + len(middles)] for k in range(5)) / 5
    return Track((width, height), np.array([frame for frame, _ in found], np.float64), np.asarray(smooth))
