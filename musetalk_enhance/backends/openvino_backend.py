"""OpenVINO: the exported graph on the CPU, in fp32 or bf16."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, RestorerError
from .base import Backend, NetworkSpec
from .onnx_export import graph_file, runtime, translated

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's names for the values of `dtype`. Unset, OpenVINO takes bf16 where it can."""
_TELEMETRY = "openvino_telemetry"
_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI")


class OpenVinoBackend(Backend):
    """Runs the exported graph in OpenVINO on all cores. One thread at a time.

    One compiled graph serves every batch size. A graph compiled for one size took as much processor
    time (within 4 %, lite and GFPGAN, batches of 1 and 2), and each has a copy of the weights: over
    1 GB with GFPGAN.

    Args:
        spec: the network.
        device: where faces come from; OpenVINO itself runs on the CPU.
        dtype: ``"fp32"`` or ``"bf16"``.

    Raises:
        ConfigError: `dtype` is neither.
        MissingDependencyError: openvino or onnx is not installed.
        RestorerError: the CPU has no instructions for bf16, or the graph cannot be made or loaded.
    """

    name = "openvino"

    def __init__(self, spec: NetworkSpec, device: torch.device, *, dtype: str = "fp32") -> None:
        if dtype not in PRECISIONS:
            allowed = f"auto | {' | '.join(PRECISIONS)} with backend: openvino"
            raise ConfigError("dtype", dtype, allowed)
        self.dtype, self._spec_name = dtype, spec.name
        self._openvino = import_openvino()
        core = self._openvino.Core()
        if dtype == "bf16" and not has_bf16(core):
            cpu = core.get_property("CPU", "FULL_DEVICE_NAME")
            raise RestorerError(
                f"backend openvino has no bf16 on this processor ({cpu}, which has "
                f"{', '.join(capabilities(core))}{_limit()}); set dtype: fp32"
            )
        graph = graph_file(spec)
        with translated(f"loading {spec.name} into OpenVINO"):
            compiled = core.compile_model(core.read_model(graph.graph), "CPU", _config(dtype))
            self._request: Any = compiled.create_infer_request()
        self._names = replace(graph, graph=b"")

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`. Faces on the CPU are not copied."""
        import torch

        faces = batch.detach().to("cpu", torch.float32).contiguous().numpy()
        with translated(f"{self._spec_name} in OpenVINO"):
            restored = self._names.run(faces, self._infer)
        if len(restored) != len(faces):
            raise RestorerError(
                f"{self._spec_name} in OpenVINO returned {len(restored)} faces for {len(faces)}"
            )
        return torch.from_numpy(restored).to(batch.device)

    def _infer(self, inputs: dict[str, Any]) -> Any:
        import numpy as np

        for name, value in inputs.items():
            self._request.set_tensor(name, self._openvino.Tensor(value, shared_memory=True))
        self._request.infer()
        # a copy: the next run writes to the same memory
        return np.array(self._request.get_tensor(self._names.output).data)

    def to(self, device: torch.device) -> None:
        """See `Backend.to`: only the CPU is accepted."""
        if device.type != "cpu":
            raise RestorerError(f"backend openvino runs on the CPU, not on {device}")

    def close(self) -> None:
        """See `Backend.close`."""
        self._request = None


def import_openvino() -> Any:
    """openvino, without its telemetry.

    ``import openvino`` imports its converter, which sends an event ("ov", "import") to Google
    Analytics and leaves an id in the home folder, unless the user opted out or CI=true. It falls
    back to a stub that does nothing if the package ``openvino_telemetry`` cannot be imported, so
    that package is hidden from it. Reading and compiling a graph send nothing. If the host imported
    openvino earlier, the event is already sent.

    Raises:
        MissingDependencyError: openvino is not installed.
    """
    hidden = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # its import fails then
    try:
        return runtime("openvino", "backend: openvino", "openvino")
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]


def capabilities(core: Any) -> list[str]:
    """The dtypes that this CPU computes in, as OpenVINO names them: ``["FP32", "BF16", ...]``."""
    return list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def has_bf16(core: Any) -> bool:
    """Whether OpenVINO can compute in bf16 here.

    It says so of a processor whatever instructions its oneDNN may use, and then fails or returns
    nothing.
    """
    return "BF16" in capabilities(core) and not _limit()


def _limit() -> str:
    """The switch that keeps oneDNN from what bf16 needs, for a message; empty where there is none.

    oneDNN reads either name (its developer guide, "CPU Dispatcher Control").
    """
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        value = os.environ.get(name, "")
        if value.upper() in _WITHOUT_BF16:
            return f", and {name}={value} is set"
    return ""


def _config(dtype: str) -> dict[str, Any]:
    import torch

    return {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
