"""The embedded model over `Ops`: `lite.operator` without the copy that is added and subtracted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..backends.ops import TORCH, Conv, Ops
from .lite import PADDING


class LiteNetwork(nn.Module):
    """lite, for inference.

    Args:
        source: spandrel's Compact network, 12 channels in and out, scale 2.
        keep: first row of the 256 that is needed; rows above it are copies of it. 0 computes the
            whole face.

    Attributes:
        width: channels of the hidden layers.
        first: first row of the input that is read.
    """

    def __init__(self, source: Any, keep: int = 0) -> None:
        super().__init__()
        layers = list(source.body)
        self.body: Any = nn.ModuleList(
            _conv(layer, activation)
            for layer, activation in zip(layers[::2], [*layers[1::2], None], strict=True)
        )
        self.width = int(layers[0].weight.shape[0])
        self.keep = keep
        # each 3x3 convolution reaches one pixel of the unshuffled picture, two of the input;
        # bicubic reaches two
        self.first = max(0, (keep - 2 * len(self.body) - 2) // 2 * 2)
        self.eval().requires_grad_(False)

    def forward(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Sharpen float (N, 3, 256, 256), RGB, 0..1, to (N, 3, 512, 512), not clamped."""
        sharp: torch.Tensor = self.compute(TORCH, faces_rgb)
        return sharp

    def compute(self, ops: Ops, faces_rgb: Any) -> Any:
        """The whole network, in terms of `ops`."""
        faces = ops.crop(faces_rgb, self.first)
        top = 0 if self.first else PADDING
        x = ops.unshuffle2(ops.pad_edge(faces, top, PADDING, PADDING, PADDING))
        for layer in self.body:
            x = ops.conv(x, layer)
        rim = 2 * PADDING
        detail = ops.cut(ops.shuffle2(ops.shuffle2(x)), 2 * top, rim, rim, rim)
        sharp = ops.add(ops.bicubic2(faces), detail)
        return ops.rows_below(sharp, 2 * self.first, 2 * self.keep)


def _conv(layer: Any, activation: Any) -> Conv:
    slopes = None if activation is None else activation.weight.detach()
    return Conv(layer.weight.detach(), layer.bias.detach(), slopes=slopes)
