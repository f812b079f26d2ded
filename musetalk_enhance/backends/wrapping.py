"""Modules that answer with one tensor, which is all that a backend takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class FirstOutput(nn.Module):
    """A network whose ``forward`` takes options or returns several things; the first one is the picture.

    Args:
        network: the module that is called.
        options: what it is called with, besides the faces.
    """

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__()
        self.network, self.options = network.eval().requires_grad_(False), options

    def forward(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Faces (N, C, H, W) to the first thing that the network returns."""
        restored: torch.Tensor = self.network(faces_rgb, **self.options)[0]
        return restored
