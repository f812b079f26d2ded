"""Networks that return several tensors, wrapped for a backend, which takes one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class FirstOutput(nn.Module):
    """Calls a network with fixed options and returns its first output, the image.

    Args:
        network: the module to call.
        options: its arguments besides the faces.
    """

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__()
        self.network, self.options = network.eval().requires_grad_(False), options

    def forward(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Faces (N, C, H, W) to the network's first output."""
        restored: torch.Tensor = self.network(faces_rgb, **self.options)[0]
        return restored
