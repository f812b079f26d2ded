"""The embedded model over `Ops`, for every backend, with the rows that are needed only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..backends.ops import TORCH, Conv, Modulated, Ops

PADDING = 4
"""Copies of the outermost pixels around the input; 256 px stay a multiple of 8."""
MARGIN = 48
"""Rows above the first one needed that are read. The network reaches 68 px in theory, but what lies
beyond this margin changes no pixel by more than 0.2 of 255."""
FLOOR = 0.3
"""Added to the energies of bands: 0.4 of 255, what rounding to 8 bits leaves."""
_GRID = 8


class LiteNetwork(nn.Module):
    """A residual over a bicubic enlargement.

    A body of residual blocks at a quarter of the input's resolution (two unshuffles) with one
    branch at an eighth; a skip and two layers at half. A look at the whole face, as a vector,
    scales the channels inside each block: what a decoder left wants another answer than a resize.
    It is made of means of features, and of the logarithms of the energies of 15 bands of detail:
    their differences tell how soft a face is, whatever the contrast of its skin.

    Args:
        state: fused weights and biases by name, float32, as ``scripts/train_lite.py`` exports them.
        keep: first row of the 256 that is needed; rows above it are copies of it. 0 computes the
            whole face.

    Attributes:
        width: channels of the body.
        blocks: residual blocks in it.
        first: first row of the input that is read.

    Raises:
        KeyError: a weight is missing.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], keep: int = 0) -> None:
        super().__init__()
        self.blocks = sum(name.startswith("first.") for name in state) // 2
        numbers = range(self.blocks)
        self.head = _conv(state, "head", leaky=True)
        self.first_convs: Any = nn.ModuleList(_conv(state, f"first.{n}", True) for n in numbers)
        self.second_convs: Any = nn.ModuleList(_styled(state, n) for n in numbers)
        self.look: Any = nn.ModuleList(_conv(state, f"look.layers.{n}", True) for n in range(4))
        filters = state["look.filters"]
        self.filters = Conv(filters, slopes=torch.full((len(filters),), -1.0))  # magnitudes
        self.bands = _conv(state, "look.bands")
        context = range(4 if "context.0.weight" in state else 0)
        self.context: Any = nn.ModuleList(
            _conv(state, f"context.{n}", leaky=n in (1, 2)) for n in context
        )
        self.skip = _conv(state, "skip", leaky=True)
        self.mix = _conv(state, "mix", leaky=True)
        self.tail = _conv(state, "tail")
        self.width = int(self.head.weight.shape[0])
        self.keep = keep
        # what is read, with the padding below it, is a multiple of 8 rows
        self.first = max(0, (keep - MARGIN - PADDING) // _GRID * _GRID + PADDING) if keep else 0
        self.eval().requires_grad_(False)

    def forward(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Sharpen float (N, 3, 256, 256), RGB, 0..1, to (N, 3, 512, 512), not clamped."""
        sharp: torch.Tensor = self.compute(TORCH, faces_rgb)
        return sharp

    def compute(self, ops: Ops, faces_rgb: Any) -> Any:
        """The whole network, in terms of `ops`."""
        look = self._looked(ops, faces_rgb)
        faces = ops.crop(faces_rgb, self.first)
        top = 0 if self.first else PADDING
        half = ops.unshuffle2(ops.pad_edge(faces, top, PADDING, PADDING, PADDING))
        x = ops.conv(ops.unshuffle2(half), self.head)
        for number, (first, second) in enumerate(
            zip(self.first_convs, self.second_convs, strict=True)
        ):
            x = ops.add(x, ops.modulated(ops.conv(x, first), look, second))
            if number == 0 and len(self.context):
                wide = ops.unshuffle2(x)
                for layer in self.context:
                    wide = ops.conv(wide, layer)
                x = ops.add(x, ops.shuffle2(wide))
        x = ops.add(ops.shuffle2(x), ops.conv(half, self.skip))
        x = ops.conv(ops.conv(x, self.mix), self.tail)
        rim = 2 * PADDING
        detail = ops.cut(ops.shuffle2(ops.shuffle2(x)), 2 * top, rim, rim, rim)
        sharp = ops.add(ops.bicubic2(faces), detail)
        return ops.rows_below(sharp, 2 * self.first, 2 * self.keep)

    def _looked(self, ops: Ops, faces_rgb: Any) -> Any:
        blocks = ops.unshuffle2(ops.unshuffle2(faces_rgb))
        x = ops.conv(ops.unshuffle2(ops.conv(blocks, self.look[0])), self.look[1])
        x = _mean(ops, ops.conv(x, self.look[2]), 5)
        energies = ops.log(_mean(ops, ops.conv(blocks, self.filters), 6), FLOOR)
        return ops.flatten(ops.conv(ops.add(x, ops.conv(energies, self.bands)), self.look[3]))


def _mean(ops: Ops, x: Any, halvings: int) -> Any:
    for _ in range(halvings):
        x = ops.down2(x)
    return x


def _styled(state: Mapping[str, torch.Tensor], number: int) -> Modulated:
    style, second = f"styles.{number}", f"second.{number}"
    return Modulated(
        state[f"{second}.weight"],
        state[f"{style}.weight"],
        state[f"{style}.bias"],
        state[f"{second}.bias"],
    )


def _conv(state: Mapping[str, torch.Tensor], name: str, leaky: bool = False) -> Conv:
    return Conv(state[f"{name}.weight"], state[f"{name}.bias"], leaky)
