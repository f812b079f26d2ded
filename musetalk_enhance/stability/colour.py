"""Colour and light of a face are the host's: a restorer adds detail, not a tint."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ..imaging import resize

if TYPE_CHECKING:
    import torch

CELLS = 32
"""Cells across a face on which its low frequencies are looked at."""
SPREAD = 2.0
"""Standard deviation of the blur, in cells: what is wider than a sixth of the face is locked."""


def without_tint(residual: torch.Tensor, support: torch.Tensor | None) -> torch.Tensor:
    """What a restorer adds, without its low frequencies.

    Args:
        residual: restored minus given, float32 (N, 3, S, S).
        support: (N or 1, 1, S, S), 0..1, where the face may change; what lies outside has no say. None: everywhere.

    Returns:
        float32 (N, 3, S, S), whose Gaussian blur is nearly 0 everywhere inside.
    """
    size = (residual.shape[2], residual.shape[3])
    return residual - resize(blurred(residual, support), size, enlarge="bilinear")


def blurred(picture: torch.Tensor, support: torch.Tensor | None = None) -> torch.Tensor:
    """The low frequencies of a picture (N, C, H, W) on a grid of `CELLS` squared, weighted by `support`.

    Normalised convolution: Knutsson and Westin, CVPR 1993.
    """
    import torch

    weights = torch.ones_like(picture[:1, :1]) if support is None else support
    grid = (min(CELLS, picture.shape[2]), min(CELLS, picture.shape[3]))
    values, there = resize(picture * weights, grid), resize(weights, grid).clamp(0, 1)
    return _gauss(values) / _gauss(there).clamp(min=1e-3)


def _gauss(cells: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import conv2d, pad

    taps = cells.new_tensor(_taps())
    reach = len(_taps()) // 2
    flat = cells.reshape(-1, 1, *cells.shape[2:])
    flat = conv2d(pad(flat, (reach, reach, 0, 0)), taps.view(1, 1, 1, -1))
    flat = conv2d(pad(flat, (0, 0, reach, reach)), taps.view(1, 1, -1, 1))
    return flat.view(cells.shape)


@lru_cache(maxsize=1)
def _taps() -> tuple[float, ...]:
    from math import exp

    reach = round(3 * SPREAD)
    taps = [exp(-0.5 * (step / SPREAD) ** 2) for step in range(-reach, reach + 1)]
    return tuple(tap / sum(taps) for tap in taps)
