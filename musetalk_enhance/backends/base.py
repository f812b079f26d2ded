"""The interface of a backend, which executes a network, and what describes that network to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..config.settings import EnhancerSettings
    from ..weights.onnx_models import GraphFile


@dataclass(frozen=True)
class NetworkSpec:
    """A network, ready for any backend to execute.

    Attributes:
        name: of the model, for messages and files.
        module: maps float32 (N, C, H, W) to float32 (N, C', H', W') for every N; eval mode, frozen,
            on the CPU, deterministic, without custom operators, so that it can be exported. None
            for a network that is a graph in a file.
        input_shape: (C, H, W) of one face, in the network's own value range.
        value_range: lowest and highest value of the input.
        key: everything that its speed depends on (architecture, width, omitted rows), for stored
            measurements; not the values of its weights.
        channels_last: whether channels-last order suits the module (see `TorchBackend`).
        symbolic: records the same computation for a runtime that has no importer for torch modules;
            see `musetalk_enhance.backends.ncnn_backend`. None where there is no such recording.
        identity: everything that its results depend on (the weight's sha256 and each constant in
            the module), for graphs that are stored between runs. None stores none.
        graph: the file, for a network without a module.
    """

    name: str
    module: torch.nn.Module | None
    input_shape: tuple[int, int, int]
    value_range: tuple[float, float]
    key: str
    channels_last: bool = True
    symbolic: Callable[[Any], Any] | None = field(default=None, compare=False)
    identity: str | None = None
    graph: GraphFile | None = None

    @property
    def weight_bytes(self) -> int:
        """Size of its weights."""
        if self.module is None:
            file = self.graph.graph if self.graph else b""
            return len(file) if isinstance(file, bytes) else file.stat().st_size
        tensors = (*self.module.parameters(), *self.module.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class BackendOptions:
    """The options that decide how a network is executed; see the settings of the same names.

    Attributes:
        backend: ``"auto"``, ``"torch"``, ``"onnx"``, ``"openvino"`` or ``"ncnn"``.
        dtype: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        provider: of the backend onnx: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        allow_cpu: run on the CPU, with a warning, where the device or provider is unavailable.
        mode: ``"batch"``, or ``"memory"``, which uses no CUDA graphs and measures single faces.
    """

    backend: str = "auto"
    dtype: str = "auto"
    provider: str = "auto"
    allow_cpu: bool = False
    mode: str = "batch"

    @classmethod
    def of(cls, settings: EnhancerSettings) -> BackendOptions:
        """Those of `settings`."""
        return cls(
            backend=settings.backend,
            dtype=settings.dtype,
            provider=settings.provider,
            allow_cpu=settings.allow_cpu,
            mode=settings.mode,
        )


class Backend(ABC):
    """Executes one network. A restorer owns one and does not depend on which it is.

    Attributes:
        name: as the option `backend` calls it.
        dtype: arithmetic it works in: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
    """

    name: str = "backend"
    dtype: str = "fp32"

    @abstractmethod
    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Args:
            batch: float32 (N, C, H, W) in the network's own value range; not modified.

        Returns:
            float32 (N, C', H', W') on the device of `batch`; the caller may modify it.
        """

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the network to `device`.

        Raises:
            RestorerError: this backend cannot run there.
        """

    def close(self) -> None:  # noqa: B027 - optional for a backend
        """Release the backend's resources; it is not used afterwards."""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}"
