"""What is measured on one frame: its versions brought to common sizes, and the figures of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..errors import FrameError
from .flicker import SIDE as LUMINANCE_SIDE
from .openings import Openings, parts_of

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

DETAIL_SIDE, WORK_SIDE, MOVED_SIDE, STRUCTURE_SIDE = 512, 256, 128, 64
"""Longer edges in pixels: for sharpness and likeness, for motion and colour, for movement between input and
output, and for the low frequencies that say who it is."""

LEAST_SEEN = 0.3
"""Share of a frame that must be found again in the next one; below it the scene was cut."""

CLIPS = ("in", "out", "ref")


@dataclass
class Sizes:
    """Common sizes of a clip's crops, as (width, height) in pixels; the first frame fixes them."""

    detail: tuple[int, int]
    work: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Sizes:
        """For output crops of `shape` (height, width, ...)."""
        return cls(_within(shape, DETAIL_SIDE), _within(shape, WORK_SIDE))


def _within(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    share = min(1.0, side / max(shape[:2]))
    return max(32, round(shape[1] * share)), max(32, round(shape[0] * share))


def fit(image: Image, size_wh: tuple[int, int]) -> Image:
    """A crop at a size: averaged where it shrinks, cubic where it grows."""
    import cv2

    if image.shape[1::-1] == size_wh:
        return image
    shrinks = size_wh[0] <= image.shape[1] and size_wh[1] <= image.shape[0]
    return np.asarray(
        cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8
    )


@dataclass
class Moment:
    """One frame's crops, ``in``, ``out`` and where there is one ``ref``, in the sizes that measures want.

    Attributes:
        detail: BGR uint8 by clip, `DETAIL_SIDE`.
        work: BGR uint8 by clip, `WORK_SIDE`.
        luminance: float32 by clip, grey levels, longer edge 128.
        openings: by clip.
    """

    detail: dict[str, Image]
    work: dict[str, Image]
    luminance: dict[str, Floats]
    openings: dict[str, Openings] = field(default_factory=dict)

    @classmethod
    def of(cls, crops: dict[str, Image], sizes: Sizes) -> Moment:
        """Bring crops of any sizes to `sizes`."""
        detail = {name: fit(crop, sizes.detail) for name, crop in crops.items()}
        work = {name: fit(crop, sizes.work) for name, crop in detail.items()}
        luminance = {
            name: metrics.shrunk(metrics.grey(crop), LUMINANCE_SIDE).astype(np.float32) for name, crop in work.items()
        }
        return cls(detail, work, luminance)

    def part(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """The part ``whole``, ``eyes`` or ``mouth`` of an array ``(H, W, ...)`` that shows the crop."""
        height, width = values.shape[:2]
        rows, columns = parts_of(self.openings["in"], (height, width))[name]
        return values[rows, columns]


def check_crop(image: Any, name: str) -> None:
    """Raises:
    FrameError: not BGR uint8 ``(H, W, 3)`` of 16 pixels or more on each side.
    """
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if dtype != np.uint8 or shape is None or len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < 16:
        actual = f"{name}: {type(image).__name__ if shape is None else f'{dtype} {tuple(shape)}'}"
        raise FrameError("shape", actual, "BGR uint8 (H, W, 3), 16 px at least on each side")


def still_figures(moment: Moment) -> dict[str, float]:
    """Sharpness, openings, colour and structure: all that one frame tells by itself."""
    values: dict[str, float] = {}
    for name, crop in moment.detail.items():
        values[f"sharpness_{name}"] = metrics.laplacian_energy(crop)
        values[f"gradient_{name}"] = metrics.gradient_energy(moment.work[name])
        values[f"mouth_{name}"] = moment.openings[name].mouth
        values[f"eyes_{name}"] = moment.openings[name].eyes
    return values | _colour(moment) | _structure(moment) | _moved(moment) | _likeness(moment)


def _colour(moment: Moment) -> dict[str, float]:
    before, after = moment.work["in"], moment.work["out"]
    means = after.mean(axis=(0, 1)) - before.mean(axis=(0, 1))
    values = {f"drift_{channel}": float(mean) for channel, mean in zip("bgr", means, strict=True)}
    values["colour"] = float(metrics.colour_change(before, after).mean())
    return values


def _structure(moment: Moment) -> dict[str, float]:
    before, after = moment.work["in"], moment.work["out"]
    narrow = metrics.SMALLEST_SIDE * max(before.shape[:2]) / min(before.shape[:2])  # of a strip more is looked at
    found = metrics.similarity_map(before, after, max(STRUCTURE_SIDE, ceil(narrow)))
    return {f"structure_{name}": float(moment.part(name, found).mean()) for name in ("whole", "eyes", "mouth")}


def _moved(moment: Moment) -> dict[str, float]:
    """How far things have moved between input and output, in 1/256 of the crop's longer edge."""
    small = [metrics.shrunk(moment.work[name], MOVED_SIDE) for name in ("in", "out")]
    motion = metrics.Motion.between(*small)
    unit = WORK_SIDE / max(small[0].shape[:2])
    speed = motion.speed * unit
    return {
        f"moved_{name}": float(np.percentile(moment.part(name, speed), 90)) for name in ("whole", "eyes", "mouth")
    }


def _likeness(moment: Moment) -> dict[str, float]:
    if "ref" not in moment.detail:
        return {}
    truth = moment.detail["ref"]
    values = {}
    for name in ("in", "out"):
        values[f"psnr_{name}"] = metrics.psnr(moment.detail[name], truth)
        values[f"ssim_{name}"] = metrics.similarity(moment.detail[name], truth)
    return values


def moving_figures(before: Moment, moment: Moment, motion: metrics.Motion) -> dict[str, float]:
    """Warping errors from the frame before to this one, by clip; `motion` is the input's."""
    return {
        f"warping_{name}": metrics.warping_error(before.work[name], crop, motion)
        for name, crop in moment.work.items()
        if name in before.work
    }


class ChangedRegion:
    """The region that the output changes, from a running mean of the differences, and the step at its edge."""

    _MEMORY = 0.9

    def __init__(self) -> None:
        self._mean: Floats | None = None
        self.region: NDArray[np.bool_] | None = None

    def figures(self, moment: Moment) -> dict[str, float]:
        """Share of the crop that is changed, and the step of brightness at the edge of that, grey levels."""
        before, after = moment.work["in"], moment.work["out"]
        difference = np.abs(after.astype(np.float32) - before).max(axis=2)
        if self._mean is None or self._mean.shape != difference.shape:
            self._mean = difference
        self._mean = np.asarray(self._MEMORY * self._mean + (1 - self._MEMORY) * difference, np.float32)
        levels = np.clip(np.rint(self._mean * 8), 0, 255).astype(np.uint8)
        self.region = metrics.changed_region(np.zeros_like(levels), levels, 8.0)
        return {"changed": float(self.region.mean()), "seam": metrics.seam_step(before, after, self.region)}
