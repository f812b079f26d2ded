"""What a backend is: something that executes a network on a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Backend(ABC):
    """Executes one network. A restorer holds one and knows nothing of what is behind it."""

    @abstractmethod
    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the network: float32 (N, C, H, W) in its own value range in, float32 (N, C', H', W') out."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the network to `device`."""

    def close(self) -> None:  # noqa: B027 - optional for a backend
        """Give back what the backend holds; it is not used afterwards."""
