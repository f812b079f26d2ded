"""Values per frame: compact, of equal length, NaN where a frame has none."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAN = float("nan")


class Series:
    """Named curves over the frames of a clip; eight bytes per value."""

    def __init__(self) -> None:
        self._curves: dict[str, array[float]] = {}
        self.frames = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of the next frame; missing values of a curve are NaN."""
        for name in values:
            if name not in self._curves:
                self._curves[name] = array("d", [NAN] * self.frames)
        for name, curve in self._curves.items():
            curve.append(float(values.get(name, NAN)))
        self.frames += 1

    def __contains__(self, name: str) -> bool:
        return name in self._curves

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """A curve, float64 ``(frames,)``; all NaN for an unknown name."""
        if name not in self._curves:
            return np.full(self.frames, NAN)
        return np.array(self._curves[name], np.float64)

    def names(self) -> Iterable[str]:
        """The name of every curve."""
        return self._curves.keys()

    def mean(self, name: str) -> float:
        """Mean over the frames that have a value; NaN if none has."""
        return mean(self[name])

    def percentile(self, name: str, share: float) -> float:
        """Percentile (0..100) over the frames that have a value; NaN if none has."""
        values = self[name][~np.isnan(self[name])]
        return float(np.percentile(values, share)) if values.size else NAN

    def as_dict(self) -> dict[str, list[float | None]]:
        """Every curve with five significant digits; None where a frame has no value."""
        return {name: [plain(value) for value in curve] for name, curve in self._curves.items()}


def mean(curve: NDArray[Any]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    values = curve[~np.isnan(curve)]
    return float(values.mean()) if values.size else NAN


def jsonable(value: Any) -> Any:
    """A caller's value as JSON can hold it: no NaN, no infinity, numpy scalars as numbers."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    value = simple(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)


def simple(value: Any) -> Any:
    """A numpy or torch scalar as a Python number; other values unchanged."""
    is_scalar = getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if is_scalar else value


def plain(value: float, digits: int = 5) -> float | None:
    """A number for JSON, rounded to `digits` significant digits; None for NaN and infinity."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
