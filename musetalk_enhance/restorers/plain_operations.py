"""basicsr's CUDA extensions as plain torch operations, for two of GFPGAN's archs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def plain_operations(network: torch.nn.Module) -> torch.nn.Module:
    """Replace basicsr's CUDA extensions in a network of the gfpgan package by torch operations.

    Only this instance is changed, none of basicsr's modules; names and shapes of its tensors stay.

    Args:
        network: changed in place if it has such layers.

    Returns:
        `network`.
    """
    import torch

    for module in network.modules():
        kind = type(module).__name__
        if kind == "FusedLeakyReLU":
            module.forward = functools.partial(_leaky_relu, module)
        elif kind.startswith("UpFirDn"):
            module.register_buffer("plain_kernel", torch.as_tensor(module.kernel), persistent=False)
            factors = (_factor(module, "UpFirDnUpsample"), _factor(module, "UpFirDnDownsample"))
            module.forward = functools.partial(_filter, module, factors)
    return network


def _factor(module: Any, kind: str) -> int:
    return int(module.factor) if type(module).__name__ == kind else 1


def _leaky_relu(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Bias, leaky ReLU and gain, in this order: x is (N, C, ...), the bias (C,)."""
    from torch.nn.functional import leaky_relu

    bias = module.bias.view(1, -1, *[1] * (x.ndim - 2))
    return leaky_relu(x + bias, float(module.negative_slope)) * float(module.scale)


def _filter(module: Any, factors: tuple[int, int], x: torch.Tensor) -> torch.Tensor:
    """Run `upfirdn` with a module's own kernel and padding; `factors` are up and down."""
    return upfirdn(x, module.plain_kernel, *factors, module.pad)


def upfirdn(
    x: torch.Tensor, kernel: torch.Tensor, up: int, down: int, pad: tuple[int, int]
) -> torch.Tensor:
    """Insert up - 1 zeros after every sample, pad, filter, keep every down-th sample.

    The operation of Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR
    2020, appendix B, which scipy calls ``upfirdn``, on both axes.

    Args:
        x: (N, C, H, W).
        kernel: (kh, kw); convolved, that is flipped.
        up: upsampling factor.
        down: downsampling factor.
        pad: zeros before and after each axis; negative numbers crop.

    Returns:
        (N, C, (H * up + sum(pad) - kh) // down + 1, the same for W).
    """
    from torch.nn.functional import conv2d
    from torch.nn.functional import pad as padded

    count, channels, height, width = x.shape
    planes = x.reshape(-1, 1, height, width)
    if up > 1:
        sparse = planes.new_zeros(len(planes), 1, height * up, width * up)
        sparse[:, :, ::up, ::up] = planes
        planes = sparse
    planes = padded(planes, [*pad, *pad])
    out = conv2d(planes, kernel.flip(0, 1).to(x.dtype)[None, None], stride=down)
    return out.reshape(count, channels, *out.shape[2:])
