"""ONNX Runtime: the exported graph, on the CPU, with CUDA, or with TensorRT."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, RestorerError
from .base import Backend, NetworkSpec
from .exporting import INPUT, OUTPUT, runtime, translated, write

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""What the option `provider` calls them, and what ONNX Runtime does."""
_QUIET = 4  # of onnxruntime's levels: fatal only; what matters comes as an exception


class OnnxBackend(Backend):
    """Runs the exported graph in ONNX Runtime. One thread at a time.

    TensorRT builds its engine in the first run, and again for a batch larger than any before. In fp32, the GPU's
    TF32 arithmetic is used where torch would use it (``torch.backends.cudnn.allow_tf32``); TensorRT always does.

    Args:
        spec: the network; it is exported to a private file, or, with `path`, only says what the file takes.
        device: where faces come from. With ``provider="auto"`` also where the graph runs.
        dtype: ``"fp32"``.
        provider: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        allow_cpu: run on the CPU, with a warning, where the provider cannot run.
        path: a file that `exporting.write` wrote.

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
        path: Path | None = None,
    ) -> None:
        if dtype != "fp32":
            raise ConfigError("dtype", dtype, "auto | fp32 with backend: onnx")
        if provider not in ("auto", *PROVIDERS):
            raise ConfigError("provider", provider, f"auto | {' | '.join(PROVIDERS)}")
        self._runtime: Any = runtime("onnxruntime", "backend: onnx")
        self._asked, self._allow_cpu, self._spec_name = provider, allow_cpu, spec.name
        self._session: Any = None
        self._device = device
        self._shape: tuple[int, ...] | None = None  # of one restored face; known after the first run
        self.provider = self._possible(device)  # said before the export, which takes seconds
        folder = Path(tempfile.mkdtemp(prefix="musetalk_enhance-"))
        self._clean = weakref.finalize(self, shutil.rmtree, folder, True)
        self._path = path or folder / "network.onnx"
        try:
            if path is None:
                write(spec, self._path)
            self._open(device)
        except BaseException:
            self._clean()
            raise
        if self.provider == "cpu":  # read whole; with another provider it stays for a move to the CPU
            self._clean()

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`."""
        import torch

        faces = batch.detach().to(torch.float32).contiguous()
        with translated(f"{self._spec_name} in ONNX Runtime"):
            here = faces.is_cuda and self.provider != "cpu" and faces.device.index == (self._device.index or 0)
            if here and self._shape is not None:
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
        binding.bind_input(INPUT, "cuda", index, np.float32, tuple(faces.shape), faces.data_ptr())
        binding.bind_output(OUTPUT, "cuda", index, np.float32, shape, restored.data_ptr())
        torch.cuda.current_stream(faces.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return restored

    def to(self, device: torch.device) -> None:
        """See `Backend.to`; a graph that was opened on the CPU stays there."""
        if device == self._device:
            return
        if device.type == "cpu" and self._asked != "auto" and self.provider != "cpu":  # a move off the GPU
            asked = f"{self._spec_name} runs with provider {self._asked}, which was asked for"
            self.provider = self._cpu_instead(asked)
            self._device, self._shape, self._session = device, None, None
            self._session = self._made("cpu")
            return
        if not self._path.exists():
            if self._possible(device) != self.provider:
                raise RestorerError(f"{self._spec_name} was opened on the CPU and cannot move to {device}")
            self._device = device
            return
        self._session = None
        self._open(device)

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None
        self._clean()

    def _possible(self, device: torch.device) -> str:
        """The provider that runs for faces on `device`."""
        wanted = self._asked
        if wanted == "auto":
            wanted = "cpu" if device.type == "cpu" else "cuda"
        there = self._runtime.get_available_providers()
        if PROVIDERS[wanted] in there:
            return wanted
        return self._cpu_instead(
            f"provider {wanted} is not part of the installed onnxruntime {self._runtime.__version__} "
            f"(it has {', '.join(there)}). pip install onnxruntime-gpu in place of onnxruntime brings cuda"
        )

    def _cpu_instead(self, problem: str) -> str:
        if not self._allow_cpu:
            raise RestorerError(f"{problem}; allow_cpu: true runs it on the CPU")
        logger.warning("%s. The CPU runs it", problem)
        return "cpu"

    def _open(self, device: torch.device) -> None:
        self._device, self._shape = device, None
        self.provider = self._possible(device)
        try:
            self._session = self._made(self.provider)
        except RestorerError as error:
            if self.provider == "cpu" or not self._allow_cpu:
                raise
            self.provider = self._cpu_instead(str(error))
            self._session = self._made("cpu")

    def _made(self, provider: str) -> Any:
        """A session that runs `provider`."""
        import torch

        self._runtime.disable_telemetry_events()
        options = self._runtime.SessionOptions()
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = _QUIET
        with translated(f"loading {self._spec_name} into ONNX Runtime with provider {provider}"):
            session = self._runtime.InferenceSession(
                str(self._path), options, self._provider_options(provider), enable_fallback=0
            )
            running = session.get_providers()[0]  # onnxruntime leaves out what does not start, without an error
        if running != PROVIDERS[provider]:
            raise RestorerError(
                f"provider {provider} was asked for, but onnxruntime would run {running}: the drivers or libraries "
                f"of {provider} do not fit; allow_cpu: true runs it on the CPU"
            )
        return session

    def _provider_options(self, provider: str) -> list[str | tuple[str, dict[str, str]]]:
        """`provider` and those it leans on, each with its options."""
        import torch

        if provider == "cpu":
            return [PROVIDERS["cpu"]]
        place = {"device_id": str(self._device.index or 0)}
        cuda = {**place, "arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
        if _version(self._runtime.__version__) >= (1, 18):
            cuda["use_tf32"] = str(int(torch.backends.cudnn.allow_tf32))
        chain: list[str | tuple[str, dict[str, str]]] = [(PROVIDERS["cuda"], cuda), PROVIDERS["cpu"]]
        if provider == "tensorrt":  # its fp16 gives flat colour with GFPGAN
            chain.insert(0, (PROVIDERS["tensorrt"], {**place, "trt_fp16_enable": "0"}))
        return chain


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
