"""Color and light of a face are the host's: a restorer adds detail, not a tint."""

from __future__ import annotations

from functools import lru_cache
from math import exp
from typing import TYPE_CHECKING

from ...frames.resize import empty, resize

if TYPE_CHECKING:
    import torch

CELLS = 32
"""Cells across a face on which its low frequencies are taken."""
SPREAD = 2.0
"""Standard deviation of the blur, in cells: what is wider than a sixth of the face is locked."""


def without_tint(residual: torch.Tensor, support: torch.Tensor | None) -> torch.Tensor:
    """Take the low frequencies off what a restorer adds.

    Args:
        residual: restored minus given, in the rows that may change, float32 (N, 3, R, W); changed
            in place.
        support: (N or 1, 1, R, W), 0..1, where the face may change; what lies outside has no
            influence. None: everywhere.

    Returns:
        `residual`, whose Gaussian blur is nearly 0 everywhere inside.
    """
    size = (residual.shape[2], residual.shape[3])
    return residual.sub_(resize(low_frequencies(residual, support), size, enlarge="bilinear"))


def low_frequencies(
    values: torch.Tensor, support: torch.Tensor | None = None, prior: float = 0.0
) -> torch.Tensor:
    """The low frequencies of (N, C, H, W) on a grid of about `CELLS` across, weighted by `support`.

    Where there is little support they go to 0, the more the greater `prior` is, which is added to
    the support of each cell. Normalized convolution: Knutsson and Westin, CVPR 1993.
    """
    import torch

    height, width = values.shape[2:]
    columns = min(CELLS, width)
    grid = (min(height, max(1, round(columns * height / width))), columns)
    if support is None:
        weights = torch.ones((1, 1, *grid), dtype=values.dtype, device=values.device)
        weighted = resize(values, grid)
    else:
        product = torch.mul(values, support, out=empty(tuple(values.shape), values.device))
        weights, weighted = resize(support, grid).clamp(0, 1), resize(product, grid)
    return _blurred(weighted) / _blurred(weights).add_(prior).clamp_(min=1e-3)


def _blurred(cells: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import conv2d

    taps = _taps(cells.device)
    reach = len(taps) // 2
    flat = cells.reshape(-1, 1, *cells.shape[2:])
    flat = conv2d(flat, taps.view(1, 1, 1, -1), padding=(0, reach))
    flat = conv2d(flat, taps.view(1, 1, -1, 1), padding=(reach, 0))
    return flat.view(cells.shape)


@lru_cache(maxsize=4)
def _taps(device: torch.device) -> torch.Tensor:
    import torch

    reach = round(3 * SPREAD)
    taps = [exp(-0.5 * (step / SPREAD) ** 2) for step in range(-reach, reach + 1)]
    return torch.tensor([tap / sum(taps) for tap in taps], dtype=torch.float32, device=device)
