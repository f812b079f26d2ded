"""OpenVINO against torch; no precision that was not asked for, nothing sent."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from musetalk_enhance.backends import onnx_export, openvino_backend
from musetalk_enhance.backends.openvino_backend import (
    OpenVinoBackend,
    import_openvino,
)
from musetalk_enhance.errors import (
    ConfigError,
    MissingDependencyError,
    OutOfMemoryError,
    RestorerError,
)
from tests.backends.conftest import CPU
from tests.conftest import ROOT


def has_bf16() -> bool:
    return openvino_backend.has_bf16(import_openvino().Core())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_what_torch_computes(tiny, count):
    backend = OpenVinoBackend(tiny, CPU)
    faces = torch.rand(count, 3, 16, 16) * 2 - 1
    assert torch.allclose(backend.run(faces), tiny.module(faces), atol=1e-5)
    assert str(backend) == "openvino fp32"
    backend.close()


def test_batches_of_changing_size(tiny):
    backend = OpenVinoBackend(tiny, CPU)
    for count in (3, 1, 4, 3):
        faces = onnx_export.random_faces(tiny, count)
        assert torch.allclose(backend.run(faces), tiny.module(faces), atol=1e-5)


def test_strided_batches(tiny, batch):
    backend = OpenVinoBackend(tiny, CPU)
    expected = tiny.module(batch)
    assert torch.allclose(
        backend.run(batch.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5
    )
    assert torch.allclose(backend.run(batch.flip(0)), expected.flip(0), atol=1e-5)


def test_the_answer_is_the_callers_own_and_the_input_is_not_touched(tiny, batch):
    backend, given = OpenVinoBackend(tiny, CPU), batch.clone()
    first = backend.run(batch)
    kept = first.clone()
    second = backend.run(batch * 0.5)
    assert torch.equal(first, kept) and torch.equal(batch, given)
    first.zero_()
    assert torch.equal(backend.run(batch * 0.5), second)


def test_precision_and_threads_are_said(tiny):
    compiled = OpenVinoBackend(tiny, CPU)._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()


def test_bf16_is_refused_where_the_processor_has_none(tiny, monkeypatch):
    monkeypatch.setattr(openvino_backend, "capabilities", lambda core: ["FP32", "INT8"])
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with pytest.raises(
        RestorerError, match=r"no bf16 on this processor .* FP32, INT8\); set dtype: fp32"
    ):
        OpenVinoBackend(tiny, CPU, dtype="bf16")


def test_bf16_where_it_has(tiny, batch):
    if not has_bf16():
        pytest.skip("this processor has no bf16")
    backend = OpenVinoBackend(tiny, CPU, dtype="bf16")
    expected = tiny.module(batch)
    assert backend.dtype == "bf16"
    assert float((backend.run(batch) - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_bf16_is_refused_where_its_instructions_are_switched_off(tiny, monkeypatch, name):
    monkeypatch.setattr(openvino_backend, "capabilities", lambda core: ["FP32", "BF16"])
    for each in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "avx2")
    with pytest.raises(RestorerError, match=f"no bf16 .*{name}=avx2 is set.*dtype: fp32"):
        OpenVinoBackend(tiny, CPU, dtype="bf16")


def test_a_run_that_returns_too_few_faces_is_an_error(tiny, batch):
    backend = OpenVinoBackend(tiny, CPU)

    class Names:
        def run(self, faces, infer):
            return faces[:0]

    backend._names = Names()
    with pytest.raises(RestorerError, match=f"returned 0 faces for {len(batch)}"):
        backend.run(batch)


def test_an_unknown_precision(tiny):
    with pytest.raises(ConfigError, match=r"fp32 \| bf16 with backend: openvino"):
        OpenVinoBackend(tiny, CPU, dtype="fp16")


def test_errors_are_translated(tiny, batch):
    backend = OpenVinoBackend(tiny, CPU)
    with pytest.raises(RestorerError, match="tiny in OpenVINO failed"):
        backend.run(torch.zeros(1, 3, 8, 8))

    class Request:
        def set_tensor(self, name, tensor):
            raise RuntimeError("Exception from src/inference: std::bad_alloc")

    backend._request = Request()
    with pytest.raises(OutOfMemoryError):
        backend.run(batch)


def test_it_stays_on_the_cpu(tiny):
    backend = OpenVinoBackend(tiny, CPU)
    backend.to(CPU)
    with pytest.raises(RestorerError, match="not on cuda"):
        backend.to(torch.device("cuda"))


def test_a_missing_package(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'musetalk_enhance\[openvino\]'"):
        OpenVinoBackend(tiny, CPU)


def test_importing_it_sends_nothing(tmp_path):
    """In a new process with its own home and no variable that switches the telemetry off."""
    code = (
        "import socket, sys\n"
        "def refuse(*words): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from musetalk_enhance.backends.openvino_backend import import_openvino\n"
        "import_openvino().Core()\n"
        "stub = sys.modules['openvino.tools.ovc.telemetry_utils'].tm.__name__\n"
        "print('openvino_telemetry' in sys.modules, stub)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        check=True,
    )
    assert done.stdout.split() == ["False", "openvino.tools.ovc.telemetry_stub"]
    assert not list(tmp_path.iterdir())
