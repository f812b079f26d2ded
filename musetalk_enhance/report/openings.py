"""Mouth, eyes and landmarks of the faces of one moment, by the embedded gauge or one of the caller's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

Gauge = Callable[[Any], Any]
"""Takes RGB float32 tensors ``(N, 3, H, W)``, 0..1; gives an object with ``landmarks`` (N, 5, 2) in pixels,
``mouth`` (N,), ``eyes`` (N, 2) and, where it has one, ``confidence`` (N,): `FaceMeter.measure`, or alike."""

LEAST_CONFIDENCE = 0.5
"""Below it a crop is taken for no face, and its openings for unknown."""


@dataclass(frozen=True)
class Openings:
    """What was measured on one crop.

    Attributes:
        landmarks: float32 (5, 2), shares of the crop's width and height: eyes, nose, corners of the mouth.
        mouth: opening as a share of the way from the eyes to the mouth; NaN for no face.
        eyes: opening as a share of an eye's width, mean of both; NaN for no face.
        is_face: whether the gauge takes the crop for a face.
    """

    landmarks: Floats
    mouth: float
    eyes: float
    is_face: bool


class Gauger:
    """Measures crops of one size together; loads the embedded gauge when it is first asked.

    Args:
        gauge: a callable of the caller's own; None takes `musetalk_enhance.faces.meter.FaceMeter`.
    """

    def __init__(self, gauge: Gauge | None = None) -> None:
        self._gauge = gauge

    def measure(self, faces_bgr: Sequence[Image]) -> list[Openings]:
        """Openings of BGR uint8 crops ``(H, W, 3)``, one for each, in order."""
        import torch

        rgb = np.ascontiguousarray(np.stack(faces_bgr)[..., ::-1].transpose(0, 3, 1, 2))
        found = self._loaded()(torch.from_numpy(rgb).float() / 255)
        size_wh = np.array(faces_bgr[0].shape[1::-1], np.float32)
        landmarks = np.asarray(found.landmarks.cpu(), np.float32) / size_wh
        mouths, eyes = np.asarray(found.mouth.cpu()), np.asarray(found.eyes.cpu()).mean(1)
        confidence = getattr(found, "confidence", None)
        sure = np.ones(len(faces_bgr)) if confidence is None else np.asarray(confidence.cpu())
        return [_openings(*values) for values in zip(landmarks, mouths, eyes, sure >= LEAST_CONFIDENCE, strict=True)]

    def _loaded(self) -> Gauge:
        if self._gauge is None:
            from ..faces.meter import FaceMeter

            self._gauge = FaceMeter().measure
        return self._gauge


def _openings(landmarks: Floats, mouth: float, eyes: float, is_face: bool) -> Openings:
    known = bool(is_face) and bool(np.isfinite(landmarks).all())
    nan = float("nan")
    return Openings(landmarks, float(mouth) if known else nan, float(eyes) if known else nan, known)


def parts_of(openings: Openings, shape: tuple[int, int]) -> dict[str, tuple[slice, slice]]:
    """Rows and columns of ``whole``, ``eyes`` and ``mouth`` in a picture of `shape` (height, width) of the crop.

    From the landmarks; where the crop is no face, from where they are in a host's crop.
    """
    boxes = {"eyes": (0.08, 0.2, 0.92, 0.48), "mouth": (0.25, 0.62, 0.75, 0.94)}
    if openings.is_face:
        left, right, _, *corners = openings.landmarks
        eyes, mouth = (left + right) / 2, (corners[0] + corners[1]) / 2
        reach, wide, down = float(right[0] - left[0]), float(corners[1][0] - corners[0][0]), float(mouth[1] - eyes[1])
        boxes = {
            "eyes": _around(eyes, (0.9 * reach, 0.9 * reach), (0.35 * down, 0.3 * down)),
            "mouth": _around(mouth, (0.7 * wide, 0.7 * wide), (0.3 * down, 0.4 * down)),
        }
    return {"whole": (slice(None), slice(None))} | {name: _slices(box, shape) for name, box in boxes.items()}


def _around(
    middle: Floats, across: tuple[float, float], along: tuple[float, float]
) -> tuple[float, float, float, float]:
    x, y = float(middle[0]), float(middle[1])
    return x - across[0], y - along[0], x + across[1], y + along[1]


def _slices(box: tuple[float, float, float, float], shape: tuple[int, int]) -> tuple[slice, slice]:
    """A box in shares as slices that lie within the picture and hold 4 pixels at least on each side."""

    def cut(low: float, high: float, size: int) -> slice:
        first = min(max(round(low * size), 0), size - 4)
        return slice(first, max(min(round(high * size), size), first + 4))

    return cut(box[1], box[3], shape[0]), cut(box[0], box[2], shape[1])
