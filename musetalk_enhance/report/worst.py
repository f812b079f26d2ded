"""The worst frames of each kind of trouble, kept as small pictures while the clip goes by."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..metrics import shrunk
from .flicker import FlickerWindows

Image = NDArray[np.uint8]
Panels = Sequence[tuple[str, Image]]
"""Captions and pictures (BGR uint8) that stand side by side."""

SIDE, QUALITY = 320, 88
"""Longer edge of a picture in pixels, and its JPEG quality."""
GAIN = 4
"""What differences are multiplied with, to be seen."""


@dataclass(frozen=True)
class Shot:
    """A frame worth looking at.

    Attributes:
        index: number of the frame.
        score: how bad it is, in the unit of its kind.
        panels: captions and JPEG files, side by side.
    """

    index: int
    score: float
    panels: tuple[tuple[str, bytes], ...]


class WorstFrames:
    """Keeps the `most` worst frames of a kind that are `apart` frames or more from each other."""

    def __init__(self, apart: int, most: int = 2) -> None:
        self._apart, self._most = apart, most
        self._kept: dict[str, list[Shot]] = {}

    def offer(self, kind: str, index: int, score: float, panels: Callable[[], Panels]) -> None:
        """A frame; `panels` is called only if it is kept, and what it gives is packed at once."""
        if not score > 0:
            return
        kept = self._kept.setdefault(kind, [])
        near = [shot for shot in kept if abs(shot.index - index) < self._apart]
        rivals = near or (kept if len(kept) >= self._most else [])
        if rivals:
            weakest = min(rivals, key=lambda shot: shot.score)
            if weakest.score >= score or any(shot.score >= score for shot in near):
                return
            kept[:] = [shot for shot in kept if shot is not weakest and shot not in near]
        packed = tuple((caption, jpeg(picture)) for caption, picture in panels())
        kept.append(Shot(index, score, packed))
        kept.sort(key=lambda shot: -shot.score)

    def of(self, kind: str) -> list[Shot]:
        """Worst first."""
        return list(self._kept.get(kind, ()))

    def kinds(self) -> list[str]:
        """Every kind that has a frame."""
        return list(self._kept)


def difference(a: Image, b: Image) -> Image:
    """``b - a``, `GAIN` times, around mid-grey: what is grey has not changed."""
    import cv2

    return np.asarray(cv2.addWeighted(b, GAIN, a, -GAIN, 128), np.uint8)


def heat_maps(flicker: FlickerWindows) -> list[tuple[str, bytes]]:
    """Captions and pictures of where each clip flickers in still regions: dark is 0, yellow 3 grey levels (RMS)."""
    import cv2

    names = {"in": "in", "out": "out", "ref": "reference"}
    found = []
    for name, total in flicker.maps.items():
        levels = np.sqrt(total / len(flicker.windows))
        heat = cv2.applyColorMap(np.clip(levels * 85, 0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
        larger = cv2.resize(heat, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        found.append((f"{names.get(name, name)}: changes over 5 Hz", jpeg(np.asarray(larger, np.uint8))))
    return found


def jpeg(image_bgr: Image) -> bytes:
    """A picture of `SIDE` pixels at most as a JPEG file."""
    import cv2

    small = np.ascontiguousarray(shrunk(image_bgr, SIDE))
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


def inline(picture: bytes) -> str:
    """A JPEG file as the address of an ``<img>``."""
    return "data:image/jpeg;base64," + b64encode(picture).decode()
