"""What a backend is: something that executes a network on a batch. And what a network is to a backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NetworkSpec:
    """A network, ready for any backend to execute.

    Attributes:
        name: of the model, for messages and files.
        module: maps float32 (N, C, H, W) to float32 (N, C', H', W') for every N; eval mode, frozen, on the CPU,
            deterministic, free of custom operators, so that it can be exported.
        input_shape: (C, H, W) of one face, in the network's own value range.
        value_range: lowest and highest value of the input.
        key: everything that its speed depends on (architecture, width, rows left out), for what is remembered
            between runs; not the values of its weights.
        channels_last: whether channels-last order suits the module (see `TorchBackend`).
        symbolic: records the same computation for a runtime that has no importer for torch modules;
            see `musetalk_enhance.backends.ncnn_backend`. None where there is no such recording.
    """

    name: str
    module: torch.nn.Module
    input_shape: tuple[int, int, int]
    value_range: tuple[float, float]
    key: str
    channels_last: bool = True
    symbolic: Callable[[Any], Any] | None = field(default=None, compare=False)


class Backend(ABC):
    """Executes one network. A restorer holds one and knows nothing of what is behind it.

    Attributes:
        name: as the option `backend` calls it.
        dtype: arithmetic it works in: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
    """

    name: str = "backend"
    dtype: str = "fp32"

    @abstractmethod
    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the network: float32 (N, C, H, W) in its own value range in, float32 (N, C', H', W') out.

        The answer is on the device of `batch` and is the caller's to change.
        """

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the network to `device`.

        Raises:
            RestorerError: this backend cannot run there.
        """

    @property
    def forms(self) -> tuple[str, ...]:
        """Forms of torch's modulated convolutions in order, for the same bits again; else none."""
        return ()

    def close(self) -> None:  # noqa: B027 - optional for a backend
        """Give back what the backend holds; it is not used afterwards."""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}"
