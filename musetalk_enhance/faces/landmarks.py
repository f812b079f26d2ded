"""Smoothed landmarks of a stream's faces: the host's own, or detected where it gives none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..frames.hints import Hints
from .align import LandmarkTrack
from .meter import FaceMeter

if TYPE_CHECKING:
    import torch

MIN_CONFIDENCE = 0.5
"""The meter's confidence at or below which it has detected no face."""
UNITS = 256.0
"""Side to which landmarks are normalized for smoothing, so that a stream may change its size."""
_NO_FACE = np.full((5, 2), np.nan, np.float32)


class LandmarkFinder:
    """Fills in the landmarks that a host did not give, frame by frame in stream order."""

    def __init__(self, source: str) -> None:
        """Load the detector.

        Args:
            source: ``"embedded"``, the face meter; or ``"yunet"``, OpenCV's detector.

        Raises:
            MissingWeightError: YuNet's weight is not in the cache.
        """
        from .detect import make_detector

        self._detector = make_detector(source) if source != "embedded" else None
        self._meter = FaceMeter() if source == "embedded" else None

    def unload(self) -> None:
        """Move the meter to the CPU; `fill` moves it back."""
        if self._meter is not None:
            self._meter.to("cpu")

    def fill(
        self, faces: torch.Tensor, hints: Hints, track: LandmarkTrack
    ) -> list[NDArray[np.float32] | None]:
        """The landmarks of each face, smoothed; None where there is no face.

        Args:
            faces: frames of one stream that follow one another, float32 (N, 3, H, W), RGB, 0..1.
            hints: the host's hints for these faces.
            track: of the stream; updated.
        """
        height, width = faces.shape[2:]
        unit = np.array([width, height]) / UNITS
        landmarks = []
        raw = self._raw(faces, hints, track)
        for points, key, cut in zip(raw, hints.keys, hints.cuts, strict=True):
            if cut:
                track.reset(keep_cache=True)
            scaled = None if points is None else points / unit
            smoothed = track.update(landmarks=scaled, key=key)
            landmarks.append(None if smoothed is None else (smoothed * unit).astype(np.float32))
        return landmarks

    def _raw(
        self, faces: torch.Tensor, hints: Hints, track: LandmarkTrack
    ) -> list[NDArray[np.float32] | None]:
        """The host's own landmarks, detected ones where it gave none; None for cached keys."""
        landmarks = list(hints.landmarks)
        missing = [
            index
            for index, (points, key) in enumerate(zip(landmarks, hints.keys, strict=True))
            if points is None and not track.is_cached(key)
        ]
        if missing:
            detect = self._detect if self._meter is None else self._measure
            for index, points in zip(missing, detect(faces[missing]), strict=True):
                landmarks[index] = points
        return landmarks

    def _measure(self, faces: torch.Tensor) -> list[NDArray[np.float32]]:
        assert self._meter is not None
        if self._meter.device != faces.device:
            self._meter.to(faces.device)
        measurement = self._meter.measure(faces)
        pairs = zip(
            measurement.landmarks.cpu().numpy(), measurement.confidence.tolist(), strict=True
        )
        return [points if score > MIN_CONFIDENCE else _NO_FACE for points, score in pairs]

    def _detect(self, faces: torch.Tensor) -> list[NDArray[np.float32]]:
        assert self._detector is not None
        pixels = faces.flip(1).mul(255).round().byte().permute(0, 2, 3, 1).contiguous()
        detections = [self._detector.detect(image_bgr) for image_bgr in pixels.cpu().numpy()]
        return [each[0].landmarks if each else _NO_FACE for each in detections]
