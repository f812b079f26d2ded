"""The worst frames of each kind of problem, stored as small images while the clip is processed."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..media.arrays import Image
from .flicker import FlickerWindows
from .measurements import CAPTIONS
from .metrics import shrunk

Panels = Sequence[tuple[str, Image]]
"""Captions and images (BGR uint8) that are shown side by side."""

SIDE, QUALITY = 320, 88
"""Longer edge of an image in pixels, and its JPEG quality."""
GAIN = 4
"""Factor that makes differences visible."""


@dataclass(frozen=True)
class FrameImages:
    """Images of one frame.

    Attributes:
        index: frame number.
        score: how bad it is, in the unit of its kind.
        panels: captions and JPEG files, side by side.
    """

    index: int
    score: float
    panels: tuple[tuple[str, bytes], ...]

    @classmethod
    def of(cls, index: int, score: float, panels: Panels, side: int = SIDE) -> FrameImages:
        """Encode `panels`, each at most `side` pixels on its longer edge."""
        encoded = tuple((caption, jpeg(image, side)) for caption, image in panels)
        return cls(index, score, encoded)


class WorstFrames:
    """Stores the worst frames of each kind.

    Args:
        min_distance: smallest number of frames between two stored frames of one kind.
        max_per_kind: number of frames that are stored for each kind.
    """

    def __init__(self, min_distance: int, max_per_kind: int = 2) -> None:
        self._min_distance, self._max_per_kind = min_distance, max_per_kind
        self._by_kind: dict[str, list[FrameImages]] = {}

    def offer(self, kind: str, index: int, score: float, panels: Callable[[], Panels]) -> None:
        """Offer a frame; `panels` is called and its images encoded only if it is stored."""
        if not score > 0:
            return
        stored = self._by_kind.setdefault(kind, [])
        neighbors = [frame for frame in stored if abs(frame.index - index) < self._min_distance]
        rivals = neighbors or (stored if len(stored) >= self._max_per_kind else [])
        if rivals:
            weakest = min(rivals, key=lambda frame: frame.score)
            if weakest.score >= score or any(frame.score >= score for frame in neighbors):
                return
            stored[:] = [
                frame for frame in stored if frame is not weakest and frame not in neighbors
            ]
        stored.append(FrameImages.of(index, score, panels()))
        stored.sort(key=lambda frame: -frame.score)

    def of(self, kind: str) -> list[FrameImages]:
        """The stored frames of a kind, worst first."""
        return list(self._by_kind.get(kind, ()))

    def kinds(self) -> list[str]:
        """Every kind that has a frame."""
        return list(self._by_kind)


def difference(a: Image, b: Image) -> Image:
    """``b - a`` times `GAIN`, around mid-gray: gray means unchanged."""
    import cv2

    return np.asarray(cv2.addWeighted(b, GAIN, a, -GAIN, 128), np.uint8)


def heat_maps(flicker: FlickerWindows) -> list[tuple[str, bytes]]:
    """Captions and heat maps of flicker in still regions: dark is 0, yellow 3 gray levels (RMS)."""
    import cv2

    maps = []
    for name, total in flicker.maps.items():
        levels = np.sqrt(total / len(flicker.windows))
        heat = cv2.applyColorMap(
            np.clip(levels * 85, 0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO
        )
        larger = cv2.resize(heat, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        caption = f"{CAPTIONS.get(name, name)}: changes over 5 Hz"
        maps.append((caption, jpeg(np.asarray(larger, np.uint8))))
    return maps


def jpeg(image_bgr: Image, side: int = SIDE) -> bytes:
    """An image, at most `side` pixels on its longer edge, as JPEG bytes."""
    import cv2

    small = np.ascontiguousarray(shrunk(image_bgr, side))
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


def inline(image_jpeg: bytes) -> str:
    """JPEG bytes as the ``src`` of an ``<img>``."""
    return "data:image/jpeg;base64," + b64encode(image_jpeg).decode()
