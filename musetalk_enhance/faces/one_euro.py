"""The One-Euro filter: smoothing over time that uses no later frame."""

from __future__ import annotations

from math import isfinite, pi
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FrameError


class OneEuroFilter:
    """The One-Euro filter for arrays: removes jitter at rest and lags little in fast motion.

    Casiez, Roussel and Vogel, "1€ Filter: A Simple Speed-based Low-pass Filter for Noisy Input in
    Interactive Systems", CHI 2012. Each element is filtered independently, by a low-pass whose
    cutoff grows with the element's speed ::

        alpha(fc) = 1 / (1 + fps / (2 pi fc))
        v  <- v + alpha(d_cutoff) ((x - x_previous) fps - v)
        y  <- y + alpha(min_cutoff + beta |v|) (x - y)

    where ``x_previous`` is the previous input, as in the authors' later code. A constant input is
    returned unchanged. The filter stores the last input, output and speed only.

    Args:
        fps: values per second; anything that converts to float, such as a fraction.
        min_cutoff: cutoff at rest, in Hz; a lower value removes more jitter.
        beta: growth of the cutoff with speed, in Hz per (unit of the values per second); a higher
            value lags less.
        d_cutoff: cutoff of the speed estimate, in Hz.

    Raises:
        ConfigError: an option is not a finite number, or not positive (`beta` may be 0).
    """

    def __init__(
        self, fps: Any, min_cutoff: float = 1.0, beta: float = 0.0, d_cutoff: float = 1.0
    ) -> None:
        self.fps = _number("fps", fps)
        self.min_cutoff = _number("min_cutoff", min_cutoff)
        self.beta = _number("beta", beta, zero=True)
        self.d_cutoff = _number("d_cutoff", d_cutoff)
        self.reset()

    def reset(self) -> None:
        """Clear the state: the next value is returned unchanged."""
        self._last: NDArray[np.float64] | None = None
        self._smooth: NDArray[np.float64] | None = None
        self._speed: NDArray[np.float64] | None = None

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the smoothed value of this frame, computed from this and earlier frames only.

        Args:
            values: finite numbers of any shape, the same in every call, e.g. (5, 2).

        Returns:
            float64 of that shape, a copy that the caller owns.

        Raises:
            FrameError: NaN or infinite values, or a different shape than in the previous call;
                the state of the filter does not change.
        """
        now = np.array(values, np.float64)
        if not np.isfinite(now).all():
            raise FrameError("nonfinite", "NaN or infinite values", "finite values")
        if self._last is None or self._smooth is None or self._speed is None:
            self._last, self._smooth, self._speed = now, now, np.zeros_like(now)
            return np.array(now)
        if now.shape != self._last.shape:
            expected = f"shape {self._last.shape} as in the previous call, or a reset()"
            raise FrameError("shape", f"shape {now.shape}", expected)
        speed = (now - self._last) * self.fps
        self._speed = self._speed + self._alpha(self.d_cutoff) * (speed - self._speed)
        alpha = self._alpha(self.min_cutoff + self.beta * np.abs(self._speed))
        self._smooth = self._smooth + alpha * (now - self._smooth)
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
        allowed = "a finite number, 0 or more" if zero else "a finite number above 0"
        raise ConfigError(key, value, allowed)
    return number
