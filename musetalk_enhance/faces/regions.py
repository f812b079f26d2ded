"""Which part of a face may change, as feathered masks. Made once for a size and a place, then looked up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import hypot
from typing import TYPE_CHECKING, Any

from ..frames.resize import lower_weights

if TYPE_CHECKING:
    import torch

Landmarks = tuple[tuple[float, float], ...]
"""Left eye, right eye, nose, left and right corner of the mouth, as shares of width and height."""

USUAL: Landmarks = ((0.30, 0.36), (0.70, 0.36), (0.50, 0.58), (0.34, 0.77), (0.66, 0.77))
"""Where they are in MuseTalk's boxes, from forehead to chin."""
DROP, ACROSS, ALONG = 0.20, 0.72, 0.60
"""The mouth's region as an ellipse, in units of the distance from the eyes to the mouth: how far its middle lies
below the mouth, and half its width and height. An open mouth, its lips and their corners lie in the even part."""
CORNERS = 1.75
"""Half the ellipse's width is at least this multiple of half the mouth's: a wide mouth in a squashed crop."""
EVEN = 0.72
"""Share of the ellipse within which everything may change; from there to its rim the mask falls to 0."""
LEAST_LENGTH = 0.1
"""Shares of a side from the eyes to the mouth, under which landmarks have collapsed: nobody's face is so flat."""
_STEPS = 128
"""Landmarks are rounded to this part of a side: a mask is made once for each place."""


def region_mask(
    region: str, size_hw: tuple[int, int], landmarks: Sequence[Any] | None = None, device: torch.device | None = None
) -> torch.Tensor | None:
    """How much of the restored face each pixel gets.

    Args:
        region: ``"full"``, ``"lower"`` or ``"mouth"``.
        size_hw: height and width of the faces, in pixels.
        landmarks: of each face, (N, 5, 2), x and y as shares of width and height, or None for a face whose
            landmarks are not known. Only ``"mouth"`` looks at them. Eyes and mouth in one place are no landmarks.
        device: where the mask is wanted.

    Returns:
        float32 (1 or N, 1, H, W), 0..1, exactly 0 outside, the caller's own; None where it is 1 everywhere.
    """
    import torch

    if region == "full":
        return None
    if region == "lower":
        return _lower(size_hw).to(device, copy=True)
    places = [USUAL if points is None else _rounded(points) for points in landmarks or [None]]
    return torch.cat([_mouth(size_hw, place) for place in places]).to(device)


def _rounded(points: Any) -> Landmarks:
    place = tuple((round(float(x) * _STEPS) / _STEPS, round(float(y) * _STEPS) / _STEPS) for x, y in points)
    eyes, mouth = (place[0], place[1]), (place[3], place[4])
    across, down = (sum(p[i] for p in mouth) / 2 - sum(p[i] for p in eyes) / 2 for i in (0, 1))
    return place if hypot(across, down) >= LEAST_LENGTH else USUAL


@lru_cache(maxsize=16)
def _lower(size_hw: tuple[int, int]) -> torch.Tensor:
    import torch

    height, width = size_hw
    rows = torch.tensor(lower_weights(height), dtype=torch.float32)
    return rows.view(1, 1, height, 1).expand(1, 1, height, width).contiguous()


@lru_cache(maxsize=512)
def _mouth(size_hw: tuple[int, int], place: Landmarks) -> torch.Tensor:
    """The ellipse around the mouth, upright to the line of the eyes, within the lower half."""
    import torch

    height, width = size_hw
    points = torch.tensor(place, dtype=torch.float32) * torch.tensor([width, height], dtype=torch.float32)
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    down = mouth - eyes
    length = float(down.norm().clamp(min=1.0))
    down = down / length
    across = torch.stack([down[1], -down[0]])
    middle = mouth + DROP * length * down
    rows, columns = (torch.arange(side, dtype=torch.float32) + 0.5 for side in size_hw)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    offset = torch.stack([x, y], dim=-1) - middle
    width_half = max(ACROSS * length, CORNERS / 2 * abs(float((points[4] - points[3]) @ across)))
    radius = torch.hypot(offset @ across / width_half, offset @ down / (ALONG * length))
    edge = ((1 - radius) / (1 - EVEN)).clamp(0, 1)
    mask = (edge * edge * (3 - 2 * edge))[None, None]
    return mask * _lower(size_hw)
