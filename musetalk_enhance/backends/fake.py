"""A backend without a network, for tests of this library and of those who use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .base import Backend

if TYPE_CHECKING:
    import torch


class FakeBackend(Backend):
    """Runs a plain function instead of a network and records the batches.

    Args:
        function: batch to batch; None returns the batch unchanged.

    Attributes:
        shapes: shape of every batch that was run.
        closed: whether `close` was called.
        devices: devices it was moved to.
    """

    name = "fake"

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        self.function = function or (lambda batch: batch)
        self.shapes: list[tuple[int, ...]] = []
        self.devices: list[torch.device] = []
        self.closed = False

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the function; see `Backend.run`."""
        self.shapes.append(tuple(batch.shape))
        return self.function(batch)

    def to(self, device: torch.device) -> None:
        """Record `device`."""
        self.devices.append(device)

    def close(self) -> None:
        """Record the call."""
        self.closed = True
