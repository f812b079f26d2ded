"""A GFPGAN of few channels, and a network that any backend runs in a moment."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from musetalk_enhance.backends import NetworkSpec
from musetalk_enhance.backends.ops import TORCH, Conv

CPU = torch.device("cpu")


class TinyNetwork(nn.Module):
    """Two convolutions over `Ops`, enlarging twofold."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        first, second = (
            torch.randn(*shape, generator=generator) * 0.2 for shape in ((8, 3, 3, 3), (3, 8, 1, 1))
        )
        self.first = Conv(first * gain, torch.linspace(-0.1, 0.1, 8), leaky=True)
        self.second = Conv(second / gain, torch.tensor([0.1, 0.2, 0.3]))

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return self.compute(TORCH, faces)

    def compute(self, ops, faces):
        return ops.conv(ops.up2(ops.conv(faces, self.first)), self.second)


def spec_of(module: nn.Module, side: int = 16) -> NetworkSpec:
    """`module` as a spec; with a recording if it has a ``compute``."""
    record = partial(_record, module) if hasattr(module, "compute") else None
    shape, name = (3, side, side), type(module).__name__
    return NetworkSpec(
        "tiny", module, shape, (-1.0, 1.0), f"tiny {side}", symbolic=record, identity=name
    )


def _record(module, ops):
    return module.compute(ops, ops.input)


@pytest.fixture
def tiny() -> NetworkSpec:
    return spec_of(TinyNetwork())


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
