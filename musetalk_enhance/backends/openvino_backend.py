"""OpenVINO: the exported graph on the CPU, in fp32 or bf16."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, RestorerError
from .base import Backend, NetworkSpec
from .exporting import INPUT, OUTPUT, runtime, translated, write

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""What the option `dtype` calls them, and what OpenVINO does. Left unsaid, OpenVINO takes bf16 where it can."""
_TELEMETRY = "openvino_telemetry"


class OpenVinoBackend(Backend):
    """Runs the exported graph in OpenVINO on all cores. One thread at a time.

    One compiled graph takes every batch. A graph compiled for one size took as much processor time (within 4 %, lite
    and GFPGAN, batches of 1 and 2), and each keeps a copy of the weights: over 1 GB with GFPGAN.

    Args:
        spec: the network; it is exported to a private file.
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
            raise ConfigError("dtype", dtype, f"auto | {' | '.join(PRECISIONS)} with backend: openvino")
        self.dtype, self._spec_name = dtype, spec.name
        self._openvino = import_openvino()
        core = self._openvino.Core()
        if dtype == "bf16" and "BF16" not in capabilities(core):
            raise RestorerError(
                f"backend openvino has no bf16 on this processor ({core.get_property('CPU', 'FULL_DEVICE_NAME')}, "
                f"which does {', '.join(capabilities(core))}); say dtype: fp32"
            )
        with tempfile.TemporaryDirectory(prefix="musetalk_enhance-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "network.onnx"
            write(spec, path)
            with translated(f"loading {spec.name} into OpenVINO"):
                compiled = core.compile_model(core.read_model(path), "CPU", _config(dtype))
                self._request: Any = compiled.create_infer_request()

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`. Faces that lie on the CPU are read where they are."""
        import numpy as np
        import torch

        faces = batch.detach().to("cpu", torch.float32).contiguous().numpy()
        with translated(f"{self._spec_name} in OpenVINO"):
            self._request.set_tensor(INPUT, self._openvino.Tensor(faces, shared_memory=True))
            self._request.infer()
            restored = np.array(self._request.get_tensor(OUTPUT).data)  # a copy: the next run writes there again
        return torch.from_numpy(restored).to(batch.device)

    def to(self, device: torch.device) -> None:
        """See `Backend.to`: the CPU is all there is."""
        if device.type != "cpu":
            raise RestorerError(f"backend openvino runs on the CPU, not on {device}")

    def close(self) -> None:
        """See `Backend.close`."""
        self._request = None


def import_openvino() -> Any:
    """openvino, without its telemetry.

    ``import openvino`` imports its converter, which sends an event ("ov", "import") to Google Analytics and
    leaves an id in the home folder, unless the user opted out or CI=true. It falls back to a stub that does
    nothing where the package ``openvino_telemetry`` cannot be imported, and so that package is hidden from it.
    Reading and compiling a graph send nothing of their own. Where the host has imported openvino before, its
    event is gone already.

    Raises:
        MissingDependencyError: openvino is not installed.
    """
    hidden = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        return runtime("openvino", "backend: openvino", "openvino")
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]


def capabilities(core: Any) -> list[str]:
    """The types that this CPU computes in, as OpenVINO names them: ``["FP32", "BF16", ...]``."""
    return list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _config(dtype: str) -> dict[str, Any]:
    import torch

    return {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
