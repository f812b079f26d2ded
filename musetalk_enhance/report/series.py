"""Numbers per frame: compact, equally long, NaN where a frame has none."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAN = float("nan")


class Series:
    """Named curves over the frames of a clip; eight bytes a number."""

    def __init__(self) -> None:
        self._curves: dict[str, array[float]] = {}
        self.frames = 0

    def add(self, values: Mapping[str, float]) -> None:
        """The numbers of the next frame; a name that comes late is NaN before, one that is missing is NaN here."""
        for name in values:
            if name not in self._curves:
                self._curves[name] = array("d", [NAN] * self.frames)
        for name, curve in self._curves.items():
            curve.append(float(values.get(name, NAN)))
        self.frames += 1

    def __contains__(self, name: str) -> bool:
        return name in self._curves

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """A curve, float64 ``(frames,)``; all NaN for a name that never came."""
        if name not in self._curves:
            return np.full(self.frames, NAN)
        return np.array(self._curves[name], np.float64)

    def names(self) -> Iterable[str]:
        """Every name that came."""
        return self._curves.keys()

    def mean(self, name: str) -> float:
        """Mean over the frames that have the number; NaN where none has."""
        return mean(self[name])

    def percentile(self, name: str, share: float) -> float:
        """Percentile (0..100) over the frames that have the number; NaN where none has."""
        known = self[name][~np.isnan(self[name])]
        return float(np.percentile(known, share)) if known.size else NAN

    def as_dict(self) -> dict[str, list[float | None]]:
        """Every curve with five digits; None where there is no number."""
        return {name: [plain(value) for value in curve] for name, curve in self._curves.items()}


def mean(curve: NDArray[Any]) -> float:
    """Mean of what is not NaN; NaN where nothing is."""
    known = curve[~np.isnan(curve)]
    return float(known.mean()) if known.size else NAN


def jsonable(value: Any) -> Any:
    """What a caller handed over, as JSON can hold it: no NaN, no infinity, numbers of numpy's as numbers."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each) for each in value]
    value = simple(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)


def simple(value: Any) -> Any:
    """A scalar of numpy's or torch's as Python's own; everything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def plain(value: float, digits: int = 5) -> float | None:
    """A number for JSON: so many significant digits; None for NaN and infinity."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None
