"""The measurements of one frame: crops resized to common sizes, and the metrics of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError
from ..media.arrays import Image, resize_image
from . import metrics
from .flicker import SIDE as LUMINANCE_SIDE
from .metrics import Floats
from .openings import Openings, parts_of

DETAIL_SIDE, WORK_SIDE, MOVED_SIDE, STRUCTURE_SIDE = 512, 256, 128, 64
"""Longer edges in pixels: for sharpness and similarity, for motion and color, for movement between
input and output, and for the low frequencies that carry identity."""

MIN_TRACKED_SHARE = 0.3
"""Share of a frame that motion must find in the next one; below it, the scene is cut."""

CLIPS = ("in", "out", "ref")
CAPTIONS = {"in": "before", "out": "after", "ref": "reference"}
"""The clips in words."""
PARTS = ("whole", "eyes", "mouth")


@dataclass
class Sizes:
    """Common sizes of a clip's crops, (width, height) in pixels; set by the first frame."""

    detail: tuple[int, int]
    work: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Sizes:
        """Sizes for output crops of `shape` (height, width, ...)."""
        return cls(_within(shape, DETAIL_SIDE), _within(shape, WORK_SIDE))


def _within(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    share = min(1.0, side / max(shape[:2]))
    return max(32, round(shape[1] * share)), max(32, round(shape[0] * share))


@dataclass
class FrameCrops:
    """One frame's crops ``in``, ``out`` and optionally ``ref``, in the sizes that metrics use.

    Attributes:
        detail: BGR uint8 by clip, `DETAIL_SIDE`.
        work: BGR uint8 by clip, `WORK_SIDE`.
        luminance: float32 by clip, gray levels, longer edge 128.
        openings: by clip.
    """

    detail: dict[str, Image]
    work: dict[str, Image]
    luminance: dict[str, Floats]
    openings: dict[str, Openings] = field(default_factory=dict)

    @classmethod
    def of(cls, crops: dict[str, Image], sizes: Sizes) -> FrameCrops:
        """Resize crops of any sizes to `sizes`."""
        detail = {name: resize_image(crop, sizes.detail) for name, crop in crops.items()}
        work = {name: resize_image(crop, sizes.work) for name, crop in detail.items()}
        luminance = {
            name: metrics.shrunk(metrics.gray(crop), LUMINANCE_SIDE).astype(np.float32)
            for name, crop in work.items()
        }
        return cls(detail, work, luminance)

    def part(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """The part ``whole``, ``eyes`` or ``mouth`` of an array ``(H, W, ...)`` over the crop."""
        height, width = values.shape[:2]
        rows, columns = parts_of(self.openings["in"], (height, width))[name]
        return values[rows, columns]


def check_crop(image: Any, name: str) -> None:
    """Check that a crop can be measured.

    Raises:
        FrameError: not BGR uint8 ``(H, W, 3)`` of 16 pixels or more on each side.
    """
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if (
        dtype != np.uint8
        or shape is None
        or len(shape) != 3
        or shape[2] != 3
        or min(shape[:2]) < 16
    ):
        actual = f"{name}: {type(image).__name__ if shape is None else f'{dtype} {tuple(shape)}'}"
        raise FrameError("shape", actual, "BGR uint8 (H, W, 3), at least 16 px on each side")


def frame_metrics(crops: FrameCrops) -> dict[str, float]:
    """Sharpness, openings, color and structure: the metrics that need one frame only."""
    values: dict[str, float] = {}
    for name, crop in crops.detail.items():
        values[f"sharpness_{name}"] = metrics.fine_detail_energy(crop)
        values[f"gradient_{name}"] = metrics.gradient_energy(crops.work[name])
        values[f"mouth_{name}"] = crops.openings[name].mouth
        values[f"eyes_{name}"] = crops.openings[name].eyes
    return values | _color(crops) | _structure(crops) | _movement(crops) | _similarity(crops)


def _color(crops: FrameCrops) -> dict[str, float]:
    face_in, face_out = crops.work["in"], crops.work["out"]
    means = face_out.mean(axis=(0, 1)) - face_in.mean(axis=(0, 1))
    values = {f"drift_{channel}": float(mean) for channel, mean in zip("bgr", means, strict=True)}
    values["colour"] = float(metrics.color_change(face_in, face_out).mean())
    return values


def _structure(crops: FrameCrops) -> dict[str, float]:
    face_in, face_out = crops.work["in"], crops.work["out"]
    aspect = max(face_in.shape[:2]) / min(face_in.shape[:2])
    side = max(STRUCTURE_SIDE, ceil(metrics.SMALLEST_SIDE * aspect))  # a narrow strip needs more
    similarity = metrics.similarity_map(face_in, face_out, side)
    return {f"structure_{name}": float(crops.part(name, similarity).mean()) for name in PARTS}


def _movement(crops: FrameCrops) -> dict[str, float]:
    """Displacement between input and output, in 1/256 of the crop's longer edge."""
    small = [metrics.shrunk(crops.work[name], MOVED_SIDE) for name in ("in", "out")]
    motion = metrics.Motion.between(*small)
    unit = WORK_SIDE / max(small[0].shape[:2])
    speed = motion.speed * unit
    return {f"moved_{name}": float(np.percentile(crops.part(name, speed), 90)) for name in PARTS}


def _similarity(crops: FrameCrops) -> dict[str, float]:
    if "ref" not in crops.detail:
        return {}
    truth = crops.detail["ref"]
    values = {}
    for name in ("in", "out"):
        values[f"psnr_{name}"] = metrics.psnr(crops.detail[name], truth)
        values[f"ssim_{name}"] = metrics.similarity(crops.detail[name], truth)
    return values


def motion_metrics(
    previous: FrameCrops, crops: FrameCrops, motion: metrics.Motion
) -> dict[str, float]:
    """Warping errors from the previous frame to this one, by clip; `motion` is the input's."""
    return {
        f"warping_{name}": metrics.warping_error(previous.work[name], crop, motion)
        for name, crop in crops.work.items()
        if name in previous.work
    }


class ChangedRegion:
    """The region that the output changes, from a running mean, and the step at its edge."""

    _MEMORY = 0.9

    def __init__(self) -> None:
        self._mean: Floats | None = None
        self.region: NDArray[np.bool_] | None = None

    def update(self, crops: FrameCrops) -> dict[str, float]:
        """The changed share of the crop, and the brightness step at its edge in gray levels."""
        face_in, face_out = crops.work["in"], crops.work["out"]
        difference = np.abs(face_out.astype(np.float32) - face_in).max(axis=2)
        if self._mean is None or self._mean.shape != difference.shape:
            self._mean = difference
        mean = self._MEMORY * self._mean + (1 - self._MEMORY) * difference
        self._mean = np.asarray(mean, np.float32)
        levels = np.clip(np.rint(self._mean * 8), 0, 255).astype(np.uint8)
        self.region = metrics.changed_region(np.zeros_like(levels), levels, 8.0)
        seam = metrics.seam_step(face_in, face_out, self.region)
        return {"changed": float(self.region.mean()), "seam": seam}
