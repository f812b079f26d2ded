"""Flicker in still regions over a whole clip, window by window, with one window in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .metrics import FEWEST_MOMENTS, Floats, flicker_energy

SIDE = 128
"""Longer edge of the luminance image that is measured, pixels."""
SECONDS = 0.64
"""Length of a window; windows overlap by half."""
OVER_HZ = 5.0
MIN_STILL_SHARE = 0.01
"""Share of the image that must be still for a window to count."""


def stillness(fps: float) -> float:
    """Speed below which a pixel is still, in luminance pixels per frame: ``2 * OVER_HZ / fps``.

    The finest pattern that pixels can hold repeats every two pixels. At this speed it passes a
    pixel at most `OVER_HZ` times per second, so faster changes are not motion.
    """
    return 2 * OVER_HZ / fps


@dataclass(frozen=True)
class Window:
    """Energies of one window.

    Attributes:
        first: index of its first frame.
        last: index of its last frame.
        still: share of the image that is still.
        energy: clip name to the mean energy above `OVER_HZ` there, gray levels squared.
    """

    first: int
    last: int
    still: float
    energy: dict[str, float]


class FlickerWindows:
    """Buffers the luminance of one window of frames, and measures it when it is full.

    Args:
        fps: frames per second; at twice `OVER_HZ` or less, flicker cannot be measured.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.length = max(FEWEST_MOMENTS, round(SECONDS * fps))
        self.windows: list[Window] = []
        self.maps: dict[str, Floats] = {}
        """Clip name to the energy per pixel, summed over windows, 0 where not still."""
        self.reason = ""
        if not fps / 2 > OVER_HZ:
            self.reason = (
                f"changes of {OVER_HZ:g} Hz cannot be measured at {fps:g} frames per second"
            )
        self._frames: list[dict[str, Floats]] = []
        self._speeds: list[Floats] = []
        self._first = 0

    def add(self, index: int, luminance: Mapping[str, Floats], speed: Floats | None) -> None:
        """Add one frame.

        Args:
            index: frame number.
            luminance: clip to float32 ``(H, W)``, 0..255, longer edge `SIDE`.
            speed: of its pixels since the previous frame, in luminance pixels per frame,
                ``(H, W)``; None at the first frame and after a cut.
        """
        if self.reason:
            return
        if speed is None or (self._frames and self._frames[0].keys() != luminance.keys()):
            self.close()
            self._frames, self._speeds = [], []
        if not self._frames:
            self._first = index
        elif speed is not None:
            self._speeds.append(speed)
        self._frames.append(dict(luminance))
        if len(self._frames) == self.length:
            self._measure()
            half = self.length // 2
            self._frames, self._speeds, self._first = (
                self._frames[half:],
                self._speeds[half:],
                self._first + half,
            )

    def close(self) -> None:
        """Measure the buffered frames if their scene is shorter than a window."""
        measured = bool(self.windows) and self.windows[-1].last >= self._first
        if not measured and len(self._frames) >= FEWEST_MOMENTS:
            self._measure()

    def _measure(self) -> None:
        still = np.max(self._speeds, axis=0) < stillness(self.fps)
        share = float(still.mean())
        if share < MIN_STILL_SHARE:
            return
        energy = {}
        for name in self._frames[0]:
            luminance = np.stack([frame[name] for frame in self._frames])
            energy_map = flicker_energy(luminance, self.fps, OVER_HZ)
            energy[name] = float(energy_map[still].mean())
            total = self.maps.get(name, np.zeros_like(energy_map))
            self.maps[name] = total + np.where(still, energy_map, 0)
        self.windows.append(Window(self._first, self._first + len(self._frames) - 1, share, energy))

    def mean(self, name: str) -> float:
        """Mean energy of a clip, weighted by the windows' still share; NaN without a window."""
        weights = [window.still for window in self.windows]
        if not weights:
            return float("nan")
        return float(np.average([window.energy[name] for window in self.windows], weights=weights))
