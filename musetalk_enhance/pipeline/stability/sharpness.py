"""How sharp a face is, so that one that needs nothing is left alone.

A small embedded network estimates which share of the finest detail is true. A ratio of energies
cannot: a latent decoder smears teeth and pores and leaves edges and a texture of its own, so that
energy *rises* with that softness. ``assets/sharpness.md`` says how well the network does on
resizing, blur, decoders and compression.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...frames.resize import pooled
from ...runtime.precision import as_if_alone

if TYPE_CHECKING:
    from collections.abc import Iterator

ASSET = Path(__file__).with_name("assets") / "sharpness.safetensors"
"""The embedded weights."""
SOFT, SHARP = 0.70, 0.80
"""Below the first a face is restored in full, above the second it is left alone."""
FORGETTING = 0.8
"""Share of the measure that comes from the frames before, so that a face does not switch."""
CELL = 8
"""Pixels, each way, that one answer of the network stands for."""
_LEAST_SIDE = 32


class SharpnessNetwork(nn.Module):
    """Gray faces (N, 1, H, W), 0..1, sides multiples of `CELL`, to logits (N, 1, H/8, W/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_layers())

    def forward(self, gray: Tensor) -> Tensor:
        centered = gray - gray.mean((2, 3), keepdim=True)
        spread = (centered.square().mean((2, 3), keepdim=True) + 4e-4).sqrt()
        logits: Tensor = self.body(functional.pixel_unshuffle(centered / spread, 2))
        return logits


def _layers() -> Iterator[nn.Module]:
    widths, strides = (4, 24, 24, 32, 40, 48, 48), (1, 1, 2, 1, 2, 1)
    for channels_in, channels_out, stride in zip(widths, widths[1:], strides, strict=False):
        yield nn.Conv2d(channels_in, channels_out, 3, stride, 1)
        yield nn.LeakyReLU(0.1)
    yield nn.Conv2d(48, 1, 1)


class SharpnessMeter:
    """The embedded meter on one device.

    Args:
        device: where it computes; the CPU by default.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        from safetensors.torch import load_file

        self.device = torch.device(device or "cpu")
        with as_if_alone():
            self.network = SharpnessNetwork()
        weights = {name: tensor.float() for name, tensor in load_file(ASSET).items()}
        self.network.load_state_dict(weights)
        self.network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def measure(self, faces: Tensor) -> Tensor:
        """Share of the finest detail that is true, each face by itself.

        Args:
            faces: float32 (N, 3, H, W), 0..1, any order of channels.

        Returns:
            float32 (N,), 0 (soft) to 1 (sharp); 0 for a face without structure or smaller than 32
            pixels.
        """
        height, width = (int(side) // CELL * CELL for side in faces.shape[2:])
        if min(height, width) < _LEAST_SIDE:
            return faces.new_zeros(len(faces))
        top, left = (faces.shape[2] - height) // 2, (faces.shape[3] - width) // 2
        gray = faces[:, :, top : top + height, left : left + width].mean(1, keepdim=True)
        weights = cell_weights(gray)
        cells = self.network(gray).sigmoid()
        shares: Tensor = (cells * weights).sum((1, 2, 3)) / (weights.sum((1, 2, 3)) + 1e-4)
        return shares


def cell_weights(gray: Tensor) -> Tensor:
    """Structure of a cell that softness leaves alone, (N, 1, H, W) to (N, 1, H/8, W/8).

    The root mean square of the Laplacian at a quarter of the size.
    """
    height, width = gray.shape[2] // CELL, gray.shape[3] // CELL
    coarse = _laplacian(pooled(gray, (2 * height, 2 * width)))
    return pooled(coarse.square(), (height, width)).sqrt()


def needed(sharpness: Tensor) -> Tensor:
    """How much restoring a face of that sharpness needs: 1 soft, 0 sharp; (N,) to (N,)."""
    return (1 - (sharpness - SOFT) / (SHARP - SOFT)).clamp(0, 1)


def _laplacian(gray: Tensor) -> Tensor:
    """With the border repeated, so that the size stays."""
    wide = functional.pad(gray, (1, 1, 1, 1), mode="replicate")
    # plain sums: a convolution of one channel is slow on a CPU
    beside = wide[..., 1:-1, :-2] + wide[..., 1:-1, 2:]
    return wide[..., :-2, 1:-1] + wide[..., 2:, 1:-1] + beside - 4 * gray
