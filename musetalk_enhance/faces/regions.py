"""Which part of a face may change, as feathered masks, cached by size and landmarks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from math import hypot
from typing import TYPE_CHECKING, Any

from ..frames.resize import lower_weights

if TYPE_CHECKING:
    import torch

_Part = tuple[slice, slice, "torch.Tensor"]
Landmarks = tuple[tuple[float, float], ...]
"""Left eye, right eye, nose, left and right corner of the mouth, as shares of width and height."""

TYPICAL: Landmarks = ((0.30, 0.36), (0.70, 0.36), (0.50, 0.58), (0.34, 0.77), (0.66, 0.77))
"""Where they are in MuseTalk's boxes, from forehead to chin."""
DROP, ACROSS, ALONG = 0.20, 0.72, 0.60
"""The mouth's region as an ellipse, in units of the distance from the eyes to the mouth: how far
its center lies below the mouth, and half its width and height. An open mouth, its lips and their
corners lie within the full-weight part."""
CORNERS = 1.75
"""Least half width of the ellipse in half widths of the mouth: for a mouth in a squashed crop."""
PLATEAU = 0.72
"""Share of the ellipse with weight 1; from there to its rim the mask falls to 0."""
MIN_LENGTH = 0.1
"""Least distance from eyes to mouth as a share of a side; below it landmarks have collapsed."""
CACHE_BYTES = 64 * 2**20
"""Of the masks of mouths that are kept: some 200 of 512 px, of which only the part around the mouth
is stored, a quarter to a third."""
_STEPS = 128
"""Landmarks are rounded to 1/128 of a side, so that masks can be cached by landmarks."""


def region_mask(
    region: str,
    size_hw: tuple[int, int],
    landmarks: Sequence[Any] | None = None,
    device: torch.device | None = None,
) -> torch.Tensor | None:
    """How much of the restored face each pixel gets.

    Args:
        region: ``"full"``, ``"lower"`` or ``"mouth"``.
        size_hw: height and width of the faces, in pixels.
        landmarks: of each face, (N, 5, 2), x and y as shares of width and height, or None for a
            face without landmarks, which gets `TYPICAL`, as do collapsed ones (eyes and mouth at
            the same point). Used by ``"mouth"`` only.
        device: device of the result.

    Returns:
        float32 (1 or N, 1, H, W), 0..1, exactly 0 outside the region, a copy that the caller owns;
        None where it is 1 everywhere.
    """
    import torch

    if region == "full":
        return None
    if region == "lower":
        return _lower(size_hw).to(device, copy=True)
    rounded = [TYPICAL if points is None else _rounded(points) for points in landmarks or [None]]
    masks = torch.zeros((len(rounded), 1, *size_hw), dtype=torch.float32, device="cpu")
    for mask, points in zip(masks, rounded, strict=True):
        rows, columns, part = _mouths.part(size_hw, points)
        mask[:, rows, columns] = part
    return masks.to(device)


def _rounded(points: Any) -> Landmarks:
    rounded = tuple(
        (round(float(x) * _STEPS) / _STEPS, round(float(y) * _STEPS) / _STEPS) for x, y in points
    )
    eyes, mouth = (rounded[0], rounded[1]), (rounded[3], rounded[4])
    across, down = (sum(p[i] for p in mouth) / 2 - sum(p[i] for p in eyes) / 2 for i in (0, 1))
    return rounded if hypot(across, down) >= MIN_LENGTH else TYPICAL


@lru_cache(maxsize=16)
def _lower(size_hw: tuple[int, int]) -> torch.Tensor:
    import torch

    height, width = size_hw
    rows = torch.tensor(lower_weights(height), dtype=torch.float32, device="cpu")
    return rows.view(1, 1, height, 1).expand(1, 1, height, width).contiguous()


class MouthMasks:
    """The masks of mouths that were used last, each without the zeros around it.

    Args:
        capacity: greatest number of bytes that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity, self._bytes = capacity, 0
        self._parts: OrderedDict[tuple[tuple[int, int], Landmarks], _Part] = OrderedDict()
        self._lock = threading.Lock()

    def part(self, size_hw: tuple[int, int], landmarks: Landmarks) -> _Part:
        """Rows, columns and values (rows, columns) where the mask is not 0."""
        key = size_hw, landmarks
        with self._lock:
            part = self._parts.get(key)
            if part is not None:
                self._parts.move_to_end(key)
                return part
        part = _without_zeros(_mouth(size_hw, landmarks)[0, 0])
        with self._lock:
            if key not in self._parts:  # nor from another thread meanwhile
                self._parts[key] = part
                self._bytes += _bytes(part[2])
            while self._bytes > self._capacity:
                self._bytes -= _bytes(self._parts.popitem(last=False)[1][2])
        return part


_mouths = MouthMasks(CACHE_BYTES)


def _without_zeros(mask: torch.Tensor) -> _Part:
    rows, columns = (
        slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
        for places in (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    )
    return rows, columns, mask[rows, columns].clone()


def _bytes(values: torch.Tensor) -> int:
    return values.numel() * values.element_size()


def _mouth(size_hw: tuple[int, int], landmarks: Landmarks) -> torch.Tensor:
    """The ellipse around the mouth, perpendicular to the eye line, within the lower half."""
    import torch

    height, width = size_hw
    kind: Any = {"dtype": torch.float32, "device": "cpu"}
    points = torch.tensor(landmarks, **kind) * torch.tensor([width, height], **kind)
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    down = mouth - eyes
    length = float(down.norm().clamp(min=1.0))
    down = down / length
    across = torch.stack([down[1], -down[0]])
    center = mouth + DROP * length * down
    rows, columns = (torch.arange(side, **kind) + 0.5 for side in size_hw)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    offset = torch.stack([x, y], dim=-1) - center
    mouth_width = abs(float((points[4] - points[3]) @ across))
    half_width = max(ACROSS * length, CORNERS / 2 * mouth_width)
    radius = torch.hypot(offset @ across / half_width, offset @ down / (ALONG * length))
    edge = ((1 - radius) / (1 - PLATEAU)).clamp(0, 1)
    mask = (edge * edge * (3 - 2 * edge))[None, None]
    return mask * _lower(size_hw)
