"""torch as it comes: one module, inference mode, channels-last."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .base import Backend

if TYPE_CHECKING:
    import torch


class TorchBackend(Backend):
    """Runs a `torch.nn.Module`.

    Args:
        module: the network; it is put into eval mode, frozen and moved to `device`.
        device: where it runs.
        call: how the module is called, for networks whose ``forward`` takes or returns more than one tensor.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        call: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        import torch

        self.module = module.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self._call = call or (lambda network, batch: network(batch))

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the module under inference mode; see `Backend.run`."""
        import torch

        with torch.inference_mode():
            return self._call(self.module, batch.contiguous(memory_format=torch.channels_last))

    def to(self, device: torch.device) -> None:
        """Move the module."""
        self.module.to(device)
