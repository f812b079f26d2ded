"""The embedded model over `Ops`, for every backend, with the rows that are needed only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ..backends.ops import TORCH, Conv, Modulated, Ops

PADDING = 4
"""Copies of the outermost pixels around the input; 256 px stay a multiple of 8."""
MARGIN = 48
"""Rows above the first one needed that are read. The network reaches 68 px in theory, but what lies
beyond this margin changes no pixel by more than 0.2 of 255."""
LUMA = (0.299, 0.587, 0.114)
"""Rec. 601."""
BAND_SIZE = 9
"""Side of the filters of `detail_bands`."""
FLOOR = 0.3
"""Added to the energies of bands: 0.4 of 255, what rounding to 8 bits leaves."""
_GRID = 8


def detail_bands() -> torch.Tensor:
    """Filters of two bands of detail of a 512 px face, float32 (2, 1, 9, 9), each of sum 0.

    The negative Laplacian of a Gaussian of 0.8 px, and the difference of Gaussians of 1.2 and 2.2:
    waves of about 4 and 9 px.
    """
    steps = np.arange(BAND_SIZE) - BAND_SIZE // 2
    squares = (steps**2)[:, None] + (steps**2)[None]

    def gaussian(sigma: float) -> Any:
        values = np.exp(-squares / (2 * sigma**2))
        return values / values.sum()

    fine = gaussian(0.8)
    padded = np.pad(fine, 1)
    beside = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    bands = np.stack([4 * fine - beside, gaussian(1.2) - gaussian(2.2)])
    bands -= bands.mean((1, 2), keepdims=True)
    return torch.from_numpy(bands.astype(np.float32))[:, None]


class LiteNetwork(nn.Module):
    """A residual over a bicubic enlargement.

    A body of residual blocks at a quarter of the input's resolution (two unshuffles) with one
    branch at an eighth; a skip and two layers at half. A look at the whole face, as a vector,
    scales the channels inside each block: what a decoder left wants another answer than a resize.
    It is made of means of features, and of the logarithms of the energies of 15 bands of detail:
    their differences tell how soft a face is, whatever the contrast of its skin.

    Weights with ``gains`` sharpen the result: two fixed bands of its luma (`detail_bands`) are
    added to it, each as often as the body says of each place.

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
        self.gains: Any = nn.ModuleList(
            _conv(state, f"gains.{n}", leaky=n == 0)
            for n in range(2 if "gains.0.weight" in state else 0)
        )
        self.luma = Conv(torch.tensor(LUMA).view(1, 3, 1, 1))
        self.detail = Conv(detail_bands())
        self.sum = Conv(torch.ones(3, 2, 1, 1))
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
        rim = 2 * PADDING
        gains = self._gains(ops, x)
        x = ops.add(ops.shuffle2(x), ops.conv(half, self.skip))
        x = ops.conv(ops.conv(x, self.mix), self.tail)
        detail = ops.cut(ops.shuffle2(ops.shuffle2(x)), 2 * top, rim, rim, rim)
        sharp = ops.add(ops.bicubic2(faces), detail)
        if gains is not None:
            gains = ops.cut(gains, 2 * top, rim, rim, rim)
            sharp = ops.add(sharp, self._sharpening(ops, sharp, gains))
        return ops.rows_below(sharp, 2 * self.first, 2 * self.keep)

    def _gains(self, ops: Ops, x: Any) -> Any:
        """Of both bands at every pixel of the result and its rim; None without such weights."""
        if not len(self.gains):
            return None
        for layer in self.gains:
            x = ops.conv(x, layer)
        for _ in range(3):
            x = ops.up2(x)
        return x

    def _sharpening(self, ops: Ops, sharp: Any, gains: Any) -> Any:
        """What is added to a result."""
        margin = BAND_SIZE // 2
        luma = ops.pad_edge(ops.conv(sharp, self.luma), margin, margin, margin, margin)
        bands = ops.cut(ops.conv(luma, self.detail), margin, margin, margin, margin)
        return ops.conv(ops.multiply(gains, bands), self.sum)

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
