"""Smoothing over time that waits for no later frame: the One-Euro filter."""

from __future__ import annotations

from math import isfinite, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FrameError


class OneEuroFilter:
    """The One-Euro filter of arrays: takes jitter off what stands still, and lags little behind what moves fast.

    Casiez, Roussel and Vogel, "1€ Filter: A Simple Speed-based Low-pass Filter for Noisy Input in Interactive
    Systems", CHI 2012. Every element is filtered by itself: a low-pass whose cutoff grows with its speed ::

        alpha(fc) = 1 / (1 + fps / (2 pi fc))
        v  <- v + alpha(d_cutoff) ((x - x_previous) fps - v)
        y  <- y + alpha(min_cutoff + beta |v|) (x - y)

    where ``x_previous`` is the input before, as in the authors' own later code. A constant input comes out exactly as
    it came in. Nothing is kept but the last input, output and speed.

    Args:
        fps: values per second; whatever has a float value (a fraction too).
        min_cutoff: cutoff at rest, in Hz: lower takes more jitter off.
        beta: growth of the cutoff with speed, in Hz per (unit of the values per second): higher lags less.
        d_cutoff: cutoff of the speed itself, in Hz.

    Raises:
        ConfigError: an option is not a finite number, or not positive (`beta` may be 0).
    """

    def __init__(self, fps: Any, min_cutoff: float = 1.0, beta: float = 0.0, d_cutoff: float = 1.0) -> None:
        self.fps = _number("fps", fps)
        self.min_cutoff = _number("min_cutoff", min_cutoff)
        self.beta = _number("beta", beta, zero=True)
        self.d_cutoff = _number("d_cutoff", d_cutoff)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next value comes out as it came in."""
        self._last: NDArray[np.float64] | None = None
        self._smooth: NDArray[np.float64] | None = None
        self._speed: NDArray[np.float64] | None = None

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The smoothed value of this frame, from this and earlier frames only.

        Args:
            values: finite numbers of any shape, the same in every call, e.g. (5, 2).

        Returns:
            float64 of that shape, the caller's own.

        Raises:
            FrameError: NaN or infinite values, or another shape than before; the filter stays as it was.
        """
        now = np.array(values, np.float64)
        if not np.isfinite(now).all():
            raise FrameError("nonfinite", "NaN or infinite values", "finite values")
        if self._last is None or self._smooth is None or self._speed is None:
            self._last, self._smooth, self._speed = now, now, np.zeros_like(now)
            return np.array(now)
        if now.shape != self._last.shape:
            raise FrameError("shape", f"shape {now.shape}", f"shape {self._last.shape} as before, or a reset()")
        self._speed = self._speed + self._alpha(self.d_cutoff) * ((now - self._last) * self.fps - self._speed)
        self._smooth = self._smooth + self._alpha(self.min_cutoff + self.beta * np.abs(self._speed)) * (
            now - self._smooth
        )
        self._last = now
        return np.array(self._smooth)

    def _alpha(self, cutoff: Any) -> Any:
        return 1 / (1 + self.fps / (2 * pi * cutoff))


def _number(key: str, value: Any, zero: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        number = float("nan")
    if not isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ConfigError(key, value, "a finite number, 0 or more" if zero else "a finite number above 0")
    return number
