"""ONNX Runtime: the exported graph, on the CPU, with CUDA, or with TensorRT."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, RestorerError
from .base import Backend, NetworkSpec
from .onnx_export import INPUT, OUTPUT, Graph, runtime, stored_graph, translated

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's names for the values of `provider`."""
_QUIET = 4  # of onnxruntime's levels: fatal only; errors come as exceptions


class OnnxBackend(Backend):
    """Runs the exported graph in ONNX Runtime. One thread at a time.

    TensorRT builds its engine in the first run, and again for a batch larger than any before. In
    fp32, the GPU's TF32 arithmetic is used where torch would use it
    (``torch.backends.cudnn.allow_tf32``); TensorRT always uses it.

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
        graph: Graph | None = None,
    ) -> None:
        if dtype != "fp32":
            raise ConfigError("dtype", dtype, "auto | fp32 with backend: onnx")
        if provider not in ("auto", *PROVIDERS):
            raise ConfigError("provider", provider, f"auto | {' | '.join(PROVIDERS)}")
        self._runtime: Any = runtime("onnxruntime", "backend: onnx")
        self._asked, self._allow_cpu, self._spec_name = provider, allow_cpu, spec.name
        self._session: Any = None
        self._device = device
        self._shape: tuple[int, ...] | None = None  # of one restored face; set by the first run
        self.provider = self._available(device)  # fails before tracing, which takes seconds
        self._graph: Graph | None = stored_graph(spec) if graph is None else graph
        self._open(device)
        if self.provider == "cpu":  # with another provider it is needed for a move to the CPU
            self._graph = None

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`."""
        import torch

        faces = batch.detach().to(torch.float32).contiguous()
        with translated(f"{self._spec_name} in ONNX Runtime"):
            on_gpu = faces.is_cuda and self.provider != "cpu"
            if on_gpu and faces.device.index == (self._device.index or 0) and self._shape:
                return self._bound(faces, (len(faces), *self._shape))
            restored = self._session.run([OUTPUT], {INPUT: faces.cpu().numpy()})[0]
            self._shape = restored.shape[1:]
        return torch.from_numpy(restored).to(batch.device)

    def _bound(self, faces: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Run on the GPU, from torch's memory into torch's memory."""
        import numpy as np
        import torch

        index = faces.device.index or 0
        restored = torch.empty(shape, dtype=torch.float32, device=faces.device)
        binding = self._session.io_binding()
        size = tuple(faces.shape)
        binding.bind_input(INPUT, "cuda", index, np.float32, size, faces.data_ptr())
        binding.bind_output(OUTPUT, "cuda", index, np.float32, shape, restored.data_ptr())
        torch.cuda.current_stream(faces.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return restored

    def to(self, device: torch.device) -> None:
        """See `Backend.to`; a graph that was opened on the CPU stays there."""
        if device == self._device:
            return
        if device.type == "cpu" and self._asked != "auto" and self.provider != "cpu":
            asked = f"{self._spec_name} runs with provider: {self._asked}"
            self.provider = self._cpu_instead(asked)
            self._device, self._shape, self._session = device, None, None
            self._session = self._create_session("cpu")
            return
        if self._graph is None:
            if self._available(device) != self.provider:
                text = f"{self._spec_name} was opened on the CPU and cannot move to {device}"
                raise RestorerError(text)
            self._device = device
            return
        self._session = None
        self._open(device)

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = self._graph = None

    def _available(self, device: torch.device) -> str:
        """The provider that runs for faces on `device`."""
        provider = self._asked
        if provider == "auto":
            provider = "cpu" if device.type == "cpu" else "cuda"
        installed = self._runtime.get_available_providers()
        if PROVIDERS[provider] in installed:
            return provider
        return self._cpu_instead(
            f"provider {provider} is not part of the installed onnxruntime "
            f"{self._runtime.__version__} (it has {', '.join(installed)}). "
            "`pip install onnxruntime-gpu` in place of onnxruntime installs cuda"
        )

    def _cpu_instead(self, problem: str) -> str:
        if not self._allow_cpu:
            raise RestorerError(f"{problem}; set allow_cpu: true to fall back to the CPU")
        logger.warning("%s: falling back to the CPU", problem)
        return "cpu"

    def _open(self, device: torch.device) -> None:
        self._device, self._shape = device, None
        self.provider = self._available(device)
        try:
            self._session = self._create_session(self.provider)
        except RestorerError as error:
            if self.provider == "cpu" or not self._allow_cpu:
                raise
            self.provider = self._cpu_instead(str(error))
            self._session = self._create_session("cpu")

    def _create_session(self, provider: str) -> Any:
        import torch

        self._runtime.disable_telemetry_events()
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = _QUIET
        graph = str(self._graph) if isinstance(self._graph, Path) else self._graph
        providers = self._provider_options(provider)
        with translated(f"loading {self._spec_name} into ONNX Runtime with provider {provider}"):
            session = self._runtime.InferenceSession(graph, options, providers, enable_fallback=0)
            # onnxruntime leaves out a provider that does not start, without an error
            running = session.get_providers()[0]
        if running != PROVIDERS[provider]:
            raise RestorerError(
                f"provider {provider} does not start, onnxruntime would run {running}: the drivers "
                f"or libraries of {provider} do not fit; set allow_cpu: true to fall back to the "
                "CPU"
            )
        return session

    def _provider_options(self, provider: str) -> list[str | tuple[str, dict[str, str]]]:
        """`provider` and those it falls back to for single operators, each with its options."""
        import torch

        if provider == "cpu":
            return [PROVIDERS["cpu"]]
        place = {"device_id": str(self._device.index or 0)}
        cuda = {
            **place,
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        if _version(self._runtime.__version__) >= (1, 18):
            cuda["use_tf32"] = str(int(torch.backends.cudnn.allow_tf32))
        chain: list[str | tuple[str, dict[str, str]]] = [(PROVIDERS["cuda"], cuda)]
        if provider == "tensorrt":  # its fp16 returns a flat color with GFPGAN
            chain.insert(0, (PROVIDERS["tensorrt"], {**place, "trt_fp16_enable": "0"}))
        return [*chain, PROVIDERS["cpu"]]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
