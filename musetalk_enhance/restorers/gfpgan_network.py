"""GFPGAN's arithmetic rearranged for speed: the weights of spandrel's network, the same sums.

It differs from the published code as follows; the result is the same:

- A modulated convolution (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN",
  CVPR 2020, section 2.2) multiplies the weights by a style for every face. Scaling the input and
  the output instead, ``conv(x * s, W) * rsqrt(s**2 @ sum(W**2) + eps)``, gives the same number with
  one set of weights for the whole batch, and it exports.
- The style sums ``sum(W**2)``, noise times its strength and the factor sqrt(2) are computed once,
  when the network is loaded.
- With `first_row`, rows of the decoder that cannot influence the required rows are not computed, at
  any of its resolutions. The encoder and the style code need the whole face and are not cropped.

The computation is written once, over `Ops`: torch runs it, and other runtimes record it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..backends.ops import TORCH, Conv, Linear, Modulated, Ops

if TYPE_CHECKING:
    from collections.abc import Sequence

EPSILON = 1e-8
LOWEST, HIGHEST = 3, 9
"""Base-2 logarithms of the first and last resolution with conditions: 8 and 512 pixels."""
_MARGIN = 8
"""Rows above the required ones that a crop's edge influences: two 3x3 convolutions, upsampling."""


def first_rows(keep: int, side: int = 2**HIGHEST) -> dict[int, int]:
    """The first computed row at every resolution, so that rows from `keep` on are exact.

    A crop's edge makes rows below it inexact: one row for each 3x3 convolution, one for a bilinear
    upsampling. From the last resolution backwards that is at most seven rows a resolution, rounded
    up to an even number.

    Args:
        keep: first required row of the output, in pixels; 0 computes everything.
        side: side of the output, in pixels.

    Returns:
        Resolution to its first row, an even number, 0 where the whole image is needed.
    """
    rows: dict[int, int] = {}
    while side >= 4:
        rows[side] = max(0, (keep - _MARGIN + 1) // 2 * 2) if side > 4 else 0
        keep, side = rows[side] // 2, side // 2
    return rows


class GFPGANNetwork(nn.Module):
    """GFPGAN of arch ``clean``, for inference.

    Args:
        source: spandrel's ``GFPGANv1Clean`` with its weights; its tensors are shared, not copied.
        keep: first required row of the 512; rows above it are copies of it. 0 computes the whole
            face.

    Attributes:
        first_row: resolution to its first computed row (see `first_rows`).
    """

    constant: torch.Tensor

    def __init__(self, source: Any, keep: int = 0) -> None:
        super().__init__()
        decoder = source.stylegan_decoder
        self.keep = keep
        self.first_row = first_rows(keep)
        self.first = Conv.of(source.conv_body_first, leaky=True)
        self.down: Any = nn.ModuleList(_Residual(block) for block in source.conv_body_down)
        self.last = Conv.of(source.final_conv, leaky=True)
        self.style = Linear.of(source.final_linear)
        self.up: Any = nn.ModuleList(_Residual(block) for block in source.conv_body_up)
        self.scales: Any = nn.ModuleList(_Condition(pair) for pair in source.condition_scale)
        self.shifts: Any = nn.ModuleList(_Condition(pair) for pair in source.condition_shift)
        self.register_buffer("constant", decoder.constant_input.weight.detach())
        self.features = int(source.num_style_feat)
        noises = [getattr(decoder.noises, f"noise{index}") for index in range(decoder.num_layers)]
        convs = [decoder.style_conv1, *decoder.style_convs]
        self.convs: Any = nn.ModuleList(
            _modulated(conv, noise[..., self.first_row[noise.shape[-1]] :, :])
            for conv, noise in zip(convs, noises, strict=True)
        )
        self.rgbs: Any = nn.ModuleList(
            _to_rgb(layer) for layer in [decoder.to_rgb1, *decoder.to_rgbs]
        )
        self.eval().requires_grad_(False)

    def forward(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Restore float (N, 3, 512, 512), RGB, -1..1; rows above `keep` are copies of it."""
        image: torch.Tensor = self.compute(TORCH, faces_rgb)
        return image

    def compute(self, ops: Ops, faces_rgb: Any) -> Any:
        """The whole network, in terms of `ops`."""
        feature = ops.conv(faces_rgb, self.first)
        skips = []
        for block in self.down:
            feature = block.compute(ops, feature, ops.down2)
            skips.append(feature)
        feature = ops.conv(feature, self.last)
        latents = ops.split(ops.linear(ops.flatten(feature), self.style), self.features)
        out = ops.modulated(ops.constant(self.constant, faces_rgb), latents[0], self.convs[0])
        image = ops.modulated(out, latents[1], self.rgbs[0])
        for index in range(HIGHEST - LOWEST + 1):
            side = 2 ** (LOWEST + index)
            first = self.first_row[side]
            skip_first = first // 2 - self.first_row[side // 2]
            skip = ops.crop(skips.pop(), first // 2)
            feature = ops.add(ops.crop(feature, skip_first), skip)
            feature = self.up[index].compute(ops, feature, ops.up2)
            scale = self.scales[index].compute(ops, feature)
            shift = self.shifts[index].compute(ops, feature)
            styles = latents[2 * index + 1 : 2 * index + 4]
            out = ops.crop(out, skip_first)
            out = ops.modulated(out, styles[0], self.convs[2 * index + 1], enlarge=True)
            out = ops.half_affine(out, scale, shift)
            out = ops.modulated(out, styles[1], self.convs[2 * index + 2])
            rgb = ops.modulated(out, styles[2], self.rgbs[index + 1])
            image = ops.add(rgb, ops.up2(ops.crop(image, skip_first)))
        return ops.rows_below(image, self.first_row[side], self.keep)


class _Residual(nn.Module):
    """A residual block of the U-Net: convolve, resize, convolve; its skip is a 1x1 convolution."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1 = Conv.of(block.conv1, leaky=True)
        self.conv2 = Conv.of(block.conv2, leaky=True)
        self.skip = Conv.of(block.skip)

    def compute(self, ops: Ops, x: Any, resize: Any) -> Any:
        """A 1x1 convolution and a bilinear resize commute: the smaller feature map is convolved."""
        out = ops.conv(resize(ops.conv(x, self.conv1)), self.conv2)
        enlarges = resize == ops.up2
        skip = resize(ops.conv(x, self.skip)) if enlarges else ops.conv(resize(x), self.skip)
        return ops.add(out, skip)


class _Condition(nn.Module):
    """Two convolutions that compute a spatial scale or shift."""

    def __init__(self, pair: Sequence[Any]) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv.of(pair[0], leaky=True), Conv.of(pair[2])

    def compute(self, ops: Ops, x: Any) -> Any:
        """(N, C, h, w) to (N, C', h, w)."""
        return ops.conv(ops.conv(x, self.conv1), self.conv2)


def _modulated(layer: Any, noise: torch.Tensor) -> Modulated:
    """A `StyleConv`; its sqrt(2), between demodulation and noise, becomes part of the former."""
    conv = layer.modulated_conv
    weight = conv.weight.detach()[0]
    return Modulated(
        weight,
        conv.modulation.weight.detach(),
        conv.modulation.bias.detach(),
        bias=layer.bias.detach().flatten(),
        squares=weight.square().sum((2, 3)) / 2,
        epsilon=EPSILON / 2,
        noise=noise.detach() * layer.weight.detach(),
        leaky=True,
    )


def _to_rgb(layer: Any) -> Modulated:
    conv = layer.modulated_conv
    return Modulated(
        conv.weight.detach()[0],
        conv.modulation.weight.detach(),
        conv.modulation.bias.detach(),
        bias=layer.bias.detach().flatten(),
    )
