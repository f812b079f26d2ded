"""ONNX Runtime: a traced graph or a user's own, on the CPU, with CUDA, or with TensorRT."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, RestorerError
from ..runtime.onnx_session import open_session, provider_of, usable_provider
from ..weights.onnx_models import GraphFile
from .base import Backend, NetworkSpec
from .onnx_export import graph_file, translated

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

PROVIDERS = ("cpu", "cuda", "tensorrt")
"""Values of `provider`, besides ``"auto"``."""


class OnnxBackend(Backend):
    """Runs a graph in ONNX Runtime, see `open_session`. One thread at a time.

    Args:
        spec: the network.
        device: where faces come from. With ``provider="auto"`` also where the graph runs.
        dtype: ``"fp32"``.
        provider: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        allow_cpu: run on the CPU, with a warning, where the provider cannot run.
        graph: run this graph instead of tracing `spec`, which then only names it.

    Attributes:
        provider: the one that runs: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.

    Raises:
        ConfigError: `dtype` or `provider` is none of those.
        MissingDependencyError: onnxruntime or onnx is not installed.
        RestorerError: the provider cannot run here, or the graph cannot be made or loaded.
    """

    name = "onnx"

    def __init__(
        self,
        spec: NetworkSpec,
        device: torch.device,
        *,
        dtype: str = "fp32",
        provider: str = "auto",
        allow_cpu: bool = False,
        graph: GraphFile | None = None,
    ) -> None:
        if dtype != "fp32":
            raise ConfigError("dtype", dtype, "auto | fp32 with backend: onnx")
        if provider not in ("auto", *PROVIDERS):
            raise ConfigError("provider", provider, f"auto | {' | '.join(PROVIDERS)}")
        self._asked, self._allow_cpu, self._spec_name = provider, allow_cpu, spec.name
        self._session: Any = None
        self._device = device
        self._shape: tuple[int, ...] | None = None  # of one restored face; set by the first run
        self.provider = self._usable(device)  # fails before tracing, which takes seconds
        self._graph: GraphFile | None = graph or graph_file(spec)
        self._names = self._graph
        if self.provider == "cpu":  # with another provider the graph is needed to move to the CPU
            session_graph, self._graph = self._graph, None
            self._names = _without_content(session_graph)
            self._open_session(session_graph, "cpu")
        else:
            self._open(device)

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`."""
        import torch

        faces = batch.detach().to(torch.float32).contiguous()
        with translated(f"{self._spec_name} in ONNX Runtime"):
            on_gpu = faces.is_cuda and self.provider != "cpu"
            if on_gpu and faces.device.index == (self._device.index or 0) and self._shape:
                return self._bound(faces, self._shape)
            restored = self._names.run(faces.cpu().numpy(), self._run_session)
            self._shape = restored.shape[1:]
        return torch.from_numpy(restored).to(batch.device)

    def _run_session(self, inputs: dict[str, Any]) -> Any:
        return self._session.run([self._names.output], inputs)[0]

    def _bound(self, faces: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Run on the GPU, from torch's memory into torch's memory."""
        import torch

        names, dtype = self._names, getattr(torch, self._names.dtype)
        outputs = []
        for part, count in names.parts(faces.to(dtype)):
            output = torch.empty((len(part), *shape), dtype=dtype, device=faces.device)
            self._run_bound(part.contiguous(), output)
            outputs.append(output[:count].float())
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _run_bound(self, part: torch.Tensor, output: torch.Tensor) -> None:
        import numpy as np
        import torch

        names, index = self._names, part.device.index or 0
        binding, dtype = self._session.io_binding(), np.dtype(names.dtype).type
        binding.bind_input(names.image, "cuda", index, dtype, tuple(part.shape), part.data_ptr())
        for name, value in names.constants.items():
            binding.bind_cpu_input(name, value)
        size = tuple(output.shape)
        binding.bind_output(names.output, "cuda", index, dtype, size, output.data_ptr())
        torch.cuda.current_stream(part.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def to(self, device: torch.device) -> None:
        """See `Backend.to`; a graph that was opened on the CPU stays there."""
        if device == self._device:
            return
        if self._graph is None:
            if self._usable(device) != self.provider:
                text = f"{self._spec_name} was opened on the CPU and cannot move to {device}"
                raise RestorerError(text)
            self._device = device
            return
        if device.type == "cpu" and self._asked != "auto" and self.provider != "cpu":
            problem = f"{self._spec_name} runs with provider: {self._asked}"
            if not self._allow_cpu:
                advice = "set allow_cpu: true to fall back to the CPU"
                raise RestorerError(f"{problem}; {advice}")
            logger.warning("%s: falling back to the CPU", problem)
            self._device, self._shape, self._session = device, None, None
            self._open_session(self._graph, "cpu")
            return
        self._session = None
        self._open(device)

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = self._graph = None

    def _usable(self, device: torch.device) -> str:
        """The provider for faces on `device`."""
        provider = self._asked
        if provider == "auto":
            provider = "cpu" if device.type == "cpu" else "cuda"
        return usable_provider(provider, allow_cpu=self._allow_cpu)

    def _open(self, device: torch.device) -> None:
        assert self._graph is not None
        self._device, self._shape = device, None
        self._open_session(self._graph, self._usable(device))

    def _open_session(self, graph: GraphFile, provider: str) -> None:
        index = self._device.index or 0
        what = f"loading {self._spec_name} into ONNX Runtime with provider {provider}"
        with translated(what):
            try:
                self._session = open_session(
                    graph.graph, provider, allow_cpu=self._allow_cpu, device_id=index
                )
            except CheckpointError as error:
                raise RestorerError(f"{what} failed: {error}") from error
        self.provider = provider_of(self._session)


def _without_content(graph: GraphFile) -> GraphFile:
    """The names alone: the content of a traced GFPGAN is 0.3 GB."""
    return replace(graph, graph=b"")
