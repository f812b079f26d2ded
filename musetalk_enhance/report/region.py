"""Where the face of a pair of clips is: where they differ, or where a detector says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import Floats, Mask, grey, largest_part

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; the ends are exclusive."""
Locate = Callable[[Image], Sequence[float] | None]
"""Takes a BGR frame, gives the box of its face as x1, y1, x2, y2 in pixels, or None where it finds none."""

SMALLEST_SIDE = 32
_LOOK_SIDE = 160  # longer edge that differences are looked for at
_LEAST_RATIO = 0.15  # of fine structure's energies, logarithm: less is a codec's
_LEAST_CHANGE = 1.0  # of the brightness, mean over the clip, grey levels: less is a codec's
_FLOOR = 4.0  # energy of fine structure, grey levels squared, that flat places are taken to have
_SHARE = 0.25  # of the strongest change, from which on a place belongs to the region
_FACE_SHAPE = 1.25  # height of a face box over its width, as hosts crop it
_FLAT = 0.95  # a region flatter than this, height over width, is the lower part of a face only
_MARGIN = 0.06  # of the box, kept around it on each side, to see the seam
_STEADY = 0.12  # of the box's size: a head that strays no further is seen through one box


def find_difference(pairs: Iterable[tuple[Image, Image]]) -> Box | None:
    """The box of the region in which two clips differ, over all `pairs` of frames (BGR uint8, one size).

    Two clips that were each packed differ a little everywhere. What restoring does stands out of that by two
    things that a codec leaves alone: the energy of fine structure (Laplacian, ratio by place over the clip), and
    the mean of the brightness. A place belongs to the region by either; the largest connected part counts.

    Returns:
        The box in pixels of the frames; None where nothing differs.
    """
    sums: dict[str, Floats] = {}
    count, shape = 0, (0, 0)
    for before, after in pairs:
        for name, found in _statistics(before, after).items():
            sums[name] = sums[name] + found if count else found
        count, shape = count + 1, before.shape[:2]
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


def _statistics(before: Image, after: Image) -> dict[str, Floats]:
    """Energies of fine structure and the difference of brightness, each averaged to `_LOOK_SIDE`."""
    import cv2

    levels: list[Floats] = [grey(frame).astype(np.float32) for frame in (before, after)]
    energy = [np.asarray(cv2.Laplacian(level, cv2.CV_32F), np.float32) ** 2 for level in levels]
    parts: dict[str, Any] = {"before": energy[0], "after": energy[1], "change": levels[1] - levels[0]}
    share = min(1.0, _LOOK_SIDE / max(before.shape[:2]))
    size = (max(1, round(before.shape[1] * share)), max(1, round(before.shape[0] * share)))
    return {
        name: np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA)).astype(np.float32)
        for name, part in parts.items()
    }


def _region(means: dict[str, Floats]) -> Mask:
    import cv2

    smooth = {name: cv2.blur(found, (5, 5)) for name, found in means.items()}
    ratio = np.abs(np.log((smooth["after"] + _FLOOR) / (smooth["before"] + _FLOOR)))
    change = np.abs(smooth["change"])
    mask = np.zeros(ratio.shape, bool)
    for found, least in ((ratio, _LEAST_RATIO), (change, _LEAST_CHANGE)):
        mask |= found > max(least, _SHARE * float(found.max()))
    return largest_part(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)))


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
