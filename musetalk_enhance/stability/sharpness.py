"""Whether a face is sharp already, so that nothing needs to be added."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..imaging import pooled

if TYPE_CHECKING:
    import torch

SOFT, SHARP = 0.22, 0.3
"""Below the first the face is restored in full, above the second it is left alone. Faces enlarged from 96 to 192
pixels to 256 measure 0.10 to 0.20, most photographs of 300 pixels and more 0.3 to 0.8."""
FORGETTING = 0.8
"""Share of the measure that comes from the frames before, so that a face does not switch."""
_BLOCK = 8
_NARROW, _WIDE, _FLAT = 0.1, 0.3, 0.2


def detail_ratio(faces: torch.Tensor) -> torch.Tensor:
    """How much of the finest detail a face has, against what it has at half its size.

    The ratio of the squared Laplacian at full size to that at half size (the finest two steps of a Laplacian
    pyramid: Burt and Adelson, 1983), where the face has most structure, less what its flattest parts have, which is
    noise. It does not depend on contrast, light or what the face looks like. Of two ways to sum up, the smaller
    counts: the ratio of the means over the tenth with most structure, which noise hardly moves, and the median of the
    ratios over the third with most, which one hard line through a soft crop does not move.

    Args:
        faces: float32 (N, 3, H, W), 0..1, any order of channels.

    Returns:
        float32 (N,), 0 for a face without structure.
    """
    import torch

    grey = faces[:, 1:2]  # green, most of a picture's light in any order of channels
    if min(grey.shape[2:]) < 4 * _BLOCK:
        return grey.new_zeros(len(grey))
    height, width = grey.shape[2] // 2, grey.shape[3] // 2
    fine, coarse = _laplacian(grey), _laplacian(pooled(grey[..., : 2 * height, : 2 * width], (height, width)))
    blocks = (grey.shape[2] // (2 * _BLOCK), grey.shape[3] // (2 * _BLOCK))
    fine, coarse = (pooled(each.square(), blocks).flatten(1) for each in (fine, coarse))
    noise = fine.quantile(_FLAT, dim=1, keepdim=True)  # flat skin's: that of white noise is a quarter at half size
    most = coarse.topk(max(1, round(_WIDE * coarse.shape[1])), dim=1)  # the strongest first
    detail = (torch.gather(fine, 1, most.indices) - noise).clamp(min=0)
    structure = (most.values - noise / 4).clamp(min=0) + 1e-6
    few = max(1, round(_NARROW * coarse.shape[1]))
    together = detail[:, :few].sum(1) / structure[:, :few].sum(1)
    return torch.minimum(together, (detail / structure).median(1).values)


def needed(ratio: torch.Tensor) -> torch.Tensor:
    """How much restoring a face of that ratio needs: 1 soft, 0 sharp; (N,) to (N,)."""
    return (1 - (ratio - SOFT) / (SHARP - SOFT)).clamp(0, 1)


def _laplacian(grey: torch.Tensor) -> torch.Tensor:
    """With the border repeated, so that the size stays."""
    from torch.nn.functional import pad

    wide = pad(grey, (1, 1, 1, 1), mode="replicate")
    beside = wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:]  # plain sums: a convolution of one channel is slow on a CPU
    return wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1] + beside - 4 * grey
