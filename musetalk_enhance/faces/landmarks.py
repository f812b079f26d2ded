"""Where the landmarks of a stream's faces are: told by the host, or found here, and steady over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..frames.hints import Hints
from .align import LandmarkTrack
from .gauge import FaceGauge

if TYPE_CHECKING:
    import torch

SURE = 0.5
"""The gauge's confidence under which it has seen no face."""
UNITS = 256.0
"""Sides of a face, however large, where landmarks are smoothed: frames of two sizes are one stream."""
_NOWHERE = np.full((5, 2), np.nan, np.float32)


class LandmarkFinder:
    """Fills in the landmarks that a host did not give, frame by frame in the order of the stream."""

    def __init__(self, source: str) -> None:
        """Args:
            source: ``"embedded"``, the gauge; or ``"yunet"``, OpenCV's detector.

        Raises:
            MissingWeightError: YuNet's weight is not in the cache.
        """
        from .detect import make_detector

        self._detector = make_detector(source) if source != "embedded" else None
        self._gauge = FaceGauge() if source == "embedded" else None

    def unload(self) -> None:
        """Take the gauge off a GPU; `fill` brings it back."""
        if self._gauge is not None:
            self._gauge.to("cpu")

    def fill(
        self, faces: torch.Tensor, hints: Hints, track: LandmarkTrack
    ) -> list[NDArray[np.float32] | None]:
        """The landmarks of each face, smoothed; None where there is no face.

        Args:
            faces: frames of one stream that follow one another, float32 (N, 3, H, W), RGB, 0..1.
            hints: of these faces.
            track: of the stream; it goes on.
        """
        height, width = faces.shape[2:]
        unit = np.array([width, height]) / UNITS
        steady = []
        for points, key, cut in zip(self._measured(faces, hints, track), hints.keys, hints.cuts, strict=True):
            if cut:
                track.reset(keep_cache=True)
            here = track.update(landmarks=None if points is None else points / unit, key=key)
            steady.append(None if here is None else (here * unit).astype(np.float32))
        return steady

    def _measured(
        self, faces: torch.Tensor, hints: Hints, track: LandmarkTrack
    ) -> list[NDArray[np.float32] | None]:
        """The host's own landmarks, and where there are none those found here; None for keys that are known."""
        found = list(hints.landmarks)
        lacking = [
            index
            for index, (points, key) in enumerate(zip(found, hints.keys, strict=True))
            if points is None and not track.knows(key)
        ]
        if lacking:
            seen = self._gauged(faces[lacking]) if self._gauge is not None else self._detected(faces[lacking])
            for index, points in zip(lacking, seen, strict=True):
                found[index] = points
        return found

    def _gauged(self, faces: torch.Tensor) -> list[NDArray[np.float32]]:
        assert self._gauge is not None
        if self._gauge.device != faces.device:
            self._gauge.to(faces.device)
        seen = self._gauge.measure(faces)
        pairs = zip(seen.landmarks.cpu().numpy(), seen.confidence.tolist(), strict=True)
        return [points if sure > SURE else _NOWHERE for points, sure in pairs]

    def _detected(self, faces: torch.Tensor) -> list[NDArray[np.float32]]:
        assert self._detector is not None
        pictures = faces.flip(1).mul(255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        found = [self._detector.detect(picture_bgr) for picture_bgr in pictures]
        return [each[0].landmarks if each else _NOWHERE for each in found]
