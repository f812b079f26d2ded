"""The embedded model over `Ops`, for every backend, with the rows that are needed only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..backends.ops import TORCH, Conv, Modulated, Ops

PADDING = 4
"""Copies of the outermost pixels around the input; 256 px stay a multiple of 8."""
MARGIN = 48
"""Rows above the first one needed that are read. The network reaches 68 px in theory, but what lies
beyond this margin changes no pixel by more than 0.2 of 255."""
LUMA = (0.299, 0.587, 0.114)
"""Rec. 601."""
BAND_SIZE = 9
"""Side of the filter of `detail_band`."""
GAIN_LIMITS = -0.3, 1.7
"""Of how often fine detail is added. The faces of the validation split get up to 1.6; without a
limit what is unlike them, such as blocks of an enlargement, would get 4."""
FLOOR = 0.3
"""Added to the energies of bands: 0.4 of 255, what rounding to 8 bits leaves."""
_GRID = 8


def detail_band() -> torch.Tensor:
    """Filter of the fine detail of a 512 px face, float32 (1, 1, 9, 9), of sum 0.

    The negative Laplacian of a Gaussian of 0.8 px: waves of about 4 px.
    """
    squares = np.square(np.arange(BAND_SIZE) - BAND_SIZE // 2)
    gaussian = np.exp(-(squares[:, None] + squares[None]) / (2 * 0.8**2))
    padded = np.pad(gaussian / gaussian.sum(), 1)
    inner = padded[1:-1, 1:-1]
    beside = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    band = 4 * inner - beside
    return torch.from_numpy((band - band.mean()).astype(np.float32))[None, None]


def in_cells(band: torch.Tensor) -> torch.Tensor:
    """A filter of one channel, up to 9x9, as weights of a 3x3 convolution of cells of 4x4 pixels.

    A convolution of one channel at 512 px takes several times as long as this one of 16 at 128. The
    channels of a cell are in the order of two pixel-unshuffles.
    """
    impulses = torch.eye(12 * 12).view(-1, 1, 12, 12)
    answers = to_cells(functional.conv2d(impulses, band, padding="same"))
    return torch.einsum("no,nchw->ochw", answers[:, :, 1, 1], to_cells(impulses)).contiguous()


def to_cells(x: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) to (N, 16, H / 4, W / 4): the pixels of each cell of 4x4 as channels."""
    return functional.pixel_unshuffle(functional.pixel_unshuffle(x, 2), 2)


class LiteNetwork(nn.Module):
    """A residual over a bicubic enlargement.

    A body of residual blocks at a quarter of the input's resolution (two unshuffles) with one
    branch at an eighth; a skip and two layers at half. A look at the whole face, as a vector,
    scales the channels inside each block: what a decoder left wants another answer than a resize.
    It is made of means of features, and of the logarithms of the energies of 15 bands of detail:
    their differences tell how soft a face is, whatever the contrast of its skin.

    Last, the fine detail of the result's luma (`detail_band`) is added to it, times a gain that two
    layers compute from these energies: one number for a face, within `GAIN_LIMITS`.

    Args:
        state: fused weights and biases by name, float32, as ``scripts/lite_gain.py`` exports them.
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
        self.luma = Conv(torch.tensor(LUMA).view(1, 3, 1, 1))
        low, high = GAIN_LIMITS
        bias = state["gain.1.bias"]
        # how far the gain is above each limit, or 0: their difference is the gain within both
        above = Conv(
            state["gain.1.weight"][:, :, None, None].repeat(2, 1, 1, 1),
            torch.cat([bias - low, bias - high]),
            slopes=torch.zeros(2),
        )
        self.gain: Any = nn.ModuleList([_conv(state, "gain.0", leaky=True), above])
        self.detail = Modulated(
            in_cells(detail_band()),
            torch.tensor([[1.0, -1.0]]).repeat(16, 1),
            torch.full((16,), low),
            torch.zeros(16),
        )
        self.gray = Conv(torch.ones(3, 1, 1, 1))
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
        look, energies = self._looked(ops, faces_rgb)
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
        sharp = ops.add(sharp, self._sharpening(ops, sharp, energies))
        return ops.rows_below(sharp, 2 * self.first, 2 * self.keep)

    def _sharpening(self, ops: Ops, sharp: Any, energies: Any) -> Any:
        """What is added to a result."""
        luma = ops.pad_edge(ops.conv(sharp, self.luma), 4, 4, 4, 4)
        gain = ops.flatten(ops.conv(ops.conv(energies, self.gain[0]), self.gain[1]))
        detail = ops.modulated(ops.unshuffle2(ops.unshuffle2(luma)), gain, self.detail)
        detail = ops.shuffle2(ops.shuffle2(ops.cut(detail, 1, 1, 1, 1)))
        return ops.conv(detail, self.gray)

    def _looked(self, ops: Ops, faces_rgb: Any) -> tuple[Any, Any]:
        """The look, and the energies it takes."""
        blocks = ops.unshuffle2(ops.unshuffle2(faces_rgb))
        x = ops.conv(ops.unshuffle2(ops.conv(blocks, self.look[0])), self.look[1])
        x = _mean(ops, ops.conv(x, self.look[2]), 5)
        energies = ops.log(_mean(ops, ops.conv(blocks, self.filters), 6), FLOOR)
        look = ops.conv(ops.add(x, ops.conv(energies, self.bands)), self.look[3])
        return ops.flatten(look), energies


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
