"""torch as it comes: one module, inference mode."""

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
        channels_last: whether it runs in channels-last order, which convolutions like; a network that reshapes
            with ``view`` inside, or has weights of five dimensions, needs plain NCHW.
        call: how the module is called, for networks whose ``forward`` takes or returns more than one tensor.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        device: torch.device,
        call: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor] | None = None,
        channels_last: bool = True,
    ) -> None:
        import torch

        self._order = torch.channels_last if channels_last else torch.contiguous_format
        self.module = module.eval().requires_grad_(False).to(device)
        if channels_last:
            self.module.to(memory_format=self._order)
        self._call = call or (lambda network, batch: network(batch))

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the module under inference mode; see `Backend.run`."""
        import torch

        with torch.inference_mode():
            return self._call(self.module, batch.contiguous(memory_format=self._order))

    def to(self, device: torch.device) -> None:
        """Move the module."""
        self.module.to(device)
