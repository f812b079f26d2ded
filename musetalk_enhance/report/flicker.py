"""Flicker in still regions over a whole clip, window by window, with one window in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..metrics import FEWEST_MOMENTS, flicker_energy

Floats = NDArray[np.float32]

SIDE = 128
"""Longer edge of the luminance that is looked at, pixels."""
SECONDS = 0.64
"""Length of a window; the next one begins half of it later."""
OVER_HZ = 5.0
LEAST_STILL = 0.01
"""Share of a picture that must be still for a window to count."""


def stillness(fps: float) -> float:
    """Speed under which a pixel is still, in pixels of the luminance a frame: ``2 * OVER_HZ / fps``.

    The finest pattern that pixels hold repeats every two of them; moving so slowly it cannot pass any of them
    more often than `OVER_HZ` times a second, so what changes faster is no motion.
    """
    return 2 * OVER_HZ / fps


@dataclass(frozen=True)
class Window:
    """Energies of one window.

    Attributes:
        first: index of its first frame.
        last: index of its last frame.
        still: share of the picture that is still.
        energy: name of the clip to mean energy over `OVER_HZ` there, grey levels squared.
    """

    first: int
    last: int
    still: float
    energy: dict[str, float]


class FlickerWindows:
    """Takes the luminance of every frame, keeps one window, and judges it when it is full.

    Args:
        fps: frames per second; at twice `OVER_HZ` or less nothing can be measured.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.length = max(FEWEST_MOMENTS, round(SECONDS * fps))
        self.windows: list[Window] = []
        self.maps: dict[str, Floats] = {}
        """Name of the clip to the sum over windows of energy by pixel, 0 where not still."""
        self.reason = "" if fps / 2 > OVER_HZ else f"{fps:g} frames per second do not hold changes of {OVER_HZ:g} Hz"
        self._held: list[dict[str, Floats]] = []
        self._speeds: list[Floats] = []
        self._first = 0

    def add(self, index: int, luminance: Mapping[str, Floats], speed: Floats | None) -> None:
        """One frame.

        Args:
            index: its number.
            luminance: clip to float32 ``(H, W)``, 0..255, longer edge `SIDE`.
            speed: how fast its pixels came here from the frame before, in its pixels a frame, ``(H, W)``; None
                at the first frame and after a cut.
        """
        if self.reason:
            return
        if speed is None or (self._held and self._held[0].keys() != luminance.keys()):
            self.close()
            self._held, self._speeds = [], []
        if not self._held:
            self._first = index
        elif speed is not None:
            self._speeds.append(speed)
        self._held.append(dict(luminance))
        if len(self._held) == self.length:
            self._judge()
            half = self.length // 2
            self._held, self._speeds, self._first = self._held[half:], self._speeds[half:], self._first + half

    def close(self) -> None:
        """Judge what is held if no window of this scene was judged: a short clip, or a short scene."""
        judged = bool(self.windows) and self.windows[-1].last >= self._first
        if not judged and len(self._held) >= FEWEST_MOMENTS:
            self._judge()

    def _judge(self) -> None:
        still = np.max(self._speeds, axis=0) < stillness(self.fps)
        share = float(still.mean())
        if share < LEAST_STILL:
            return
        energy = {}
        for name in self._held[0]:
            found = flicker_energy(np.stack([one[name] for one in self._held]), self.fps, OVER_HZ)
            energy[name] = float(found[still].mean())
            self.maps[name] = self.maps.get(name, np.zeros_like(found)) + np.where(still, found, 0)
        self.windows.append(Window(self._first, self._first + len(self._held) - 1, share, energy))

    def mean(self, name: str) -> float:
        """Mean energy of a clip, windows weighted by how much of them is still; NaN where none was judged."""
        weights = [window.still for window in self.windows]
        if not weights:
            return float("nan")
        return float(np.average([window.energy[name] for window in self.windows], weights=weights))
