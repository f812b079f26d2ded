"""Mouth and eye openings and landmarks of face crops, by the embedded or a custom meter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..media.arrays import Image
from .metrics import Floats

Meter = Callable[[Any], Any]
"""Takes RGB float32 tensors ``(N, 3, H, W)``, 0..1, and returns an object with ``landmarks``
(N, 5, 2) in pixels, ``mouth`` (N,), ``eyes`` (N, 2) and optionally ``confidence`` (N,), as
`FaceMeter.measure` does."""

MIN_CONFIDENCE = 0.5
"""Below it, a crop counts as no face and its openings are NaN."""


@dataclass(frozen=True)
class Openings:
    """The measurements of one crop.

    Attributes:
        landmarks: float32 (5, 2), shares of the crop's width and height: eyes, nose, mouth
            corners.
        mouth: opening as a share of the distance between eyes and mouth; NaN for no face.
        eyes: opening as a share of an eye's width, mean of both; NaN for no face.
        is_face: whether the meter takes the crop for a face.
    """

    landmarks: Floats
    mouth: float
    eyes: float
    is_face: bool


class OpeningMeter:
    """Measures crops of one size as a batch; the embedded meter is loaded on first use.

    Args:
        meter: a custom meter; None uses `musetalk_enhance.faces.meter.FaceMeter`.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter

    def measure(self, faces_bgr: Sequence[Image]) -> list[Openings]:
        """The openings of each BGR uint8 crop ``(H, W, 3)``, in order."""
        import torch

        rgb = np.ascontiguousarray(np.stack(faces_bgr)[..., ::-1].transpose(0, 3, 1, 2))
        measurement = self._load()(torch.from_numpy(rgb).float() / 255)
        size_wh = np.array(faces_bgr[0].shape[1::-1], np.float32)
        landmarks = np.asarray(measurement.landmarks.cpu(), np.float32) / size_wh
        mouths, eyes = (
            np.asarray(measurement.mouth.cpu()),
            np.asarray(measurement.eyes.cpu()).mean(1),
        )
        confidence = getattr(measurement, "confidence", None)
        if confidence is None:
            is_face = np.ones(len(faces_bgr), bool)
        else:
            is_face = np.asarray(confidence.cpu()) >= MIN_CONFIDENCE
        columns = zip(landmarks, mouths, eyes, is_face, strict=True)
        return [_openings(*values) for values in columns]

    def _load(self) -> Meter:
        if self._meter is None:
            from ..faces.meter import FaceMeter

            self._meter = FaceMeter().measure
        return self._meter


def _openings(landmarks: Floats, mouth: float, eyes: float, is_face: bool) -> Openings:
    if not is_face or not np.isfinite(landmarks).all():
        return Openings(landmarks, float("nan"), float("nan"), False)
    return Openings(landmarks, float(mouth), float(eyes), True)


def parts_of(openings: Openings, shape: tuple[int, int]) -> dict[str, tuple[slice, slice]]:
    """Rows and columns of ``whole``, ``eyes`` and ``mouth`` in an image of the crop.

    They come from the landmarks; without a face, from their usual position in a host's crop.

    Args:
        openings: the crop's measurements.
        shape: height and width of the image.
    """
    boxes = {"eyes": (0.08, 0.2, 0.92, 0.48), "mouth": (0.25, 0.62, 0.75, 0.94)}
    if openings.is_face:
        left, right, _, *corners = openings.landmarks
        eyes, mouth = (left + right) / 2, (corners[0] + corners[1]) / 2
        reach, wide = float(right[0] - left[0]), float(corners[1][0] - corners[0][0])
        down = float(mouth[1] - eyes[1])
        boxes = {
            "eyes": _around(eyes, (0.9 * reach, 0.9 * reach), (0.35 * down, 0.3 * down)),
            "mouth": _around(mouth, (0.7 * wide, 0.7 * wide), (0.3 * down, 0.4 * down)),
        }
    return {"whole": (slice(None), slice(None))} | {
        name: _slices(box, shape) for name, box in boxes.items()
    }


def _around(
    middle: Floats, across: tuple[float, float], along: tuple[float, float]
) -> tuple[float, float, float, float]:
    x, y = float(middle[0]), float(middle[1])
    return x - across[0], y - along[0], x + across[1], y + along[1]


def _slices(box: tuple[float, float, float, float], shape: tuple[int, int]) -> tuple[slice, slice]:
    """A relative box as slices inside the image, at least 4 pixels on each side."""

    def span(low: float, high: float, size: int) -> slice:
        first = min(max(round(low * size), 0), size - 4)
        return slice(first, max(min(round(high * size), size), first + 4))

    return span(box[1], box[3], shape[0]), span(box[0], box[2], shape[1])
