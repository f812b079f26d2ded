"""ONNX Runtime against torch, and the provider that was asked for."""

from __future__ import annotations

import logging
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from musetalk_enhance.backends.onnx_backend import OnnxBackend
from musetalk_enhance.errors import (
    ConfigError,
    MissingDependencyError,
    OutOfMemoryError,
    RestorerError,
)
from musetalk_enhance.runtime.memory import is_out_of_memory
from musetalk_enhance.weights.onnx_models import GraphFile
from tests.backends.conftest import CPU

CUDA = torch.device("cuda", 0)

no_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this onnxruntime has CUDA",
)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files that stays empty: a killed process leaves nothing there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_what_torch_computes(tiny, count):
    backend = OnnxBackend(tiny, CPU)
    faces = torch.rand(count, 3, 16, 16) * 2 - 1
    assert torch.allclose(backend.run(faces), tiny.module(faces), atol=1e-5)
    assert (str(backend), backend.provider) == ("onnx fp32", "cpu")


def test_strided_and_half_precision_batches(tiny, batch):
    backend = OnnxBackend(tiny, CPU)
    expected = tiny.module(batch)
    assert torch.allclose(
        backend.run(batch.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5
    )
    assert torch.allclose(backend.run(batch.flip(0)), expected.flip(0), atol=1e-5)
    assert backend.run(batch.half()).dtype == torch.float32


def test_the_answer_is_the_callers_own(tiny, batch):
    backend = OnnxBackend(tiny, CPU)
    first = backend.run(batch)
    kept = first.clone()
    second = backend.run(batch * 0.5)
    assert torch.equal(first, kept)
    first.zero_()
    assert torch.equal(backend.run(batch * 0.5), second)


def test_it_uses_as_many_threads_as_torch_and_all_optimisations(tiny):
    options = OnnxBackend(tiny, CPU)._session.get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


@no_cuda
@pytest.mark.parametrize(
    ("device", "provider"),
    [(CPU, "cuda"), (CPU, "tensorrt"), (CUDA, "auto"), (torch.device("mps"), "auto")],
)
def test_a_provider_that_is_not_there_is_refused(tiny, device, provider):
    with pytest.raises(
        RestorerError, match="is not part of the installed onnxruntime .* allow_cpu: true"
    ):
        OnnxBackend(tiny, device, provider=provider)


@no_cuda
def test_with_allow_cpu_it_runs_there_and_says_so(tiny, batch, caplog):
    with caplog.at_level(logging.WARNING):
        backend = OnnxBackend(tiny, CPU, provider="cuda", allow_cpu=True)
    assert (
        "provider cuda is not part of" in caplog.text and "falling back to the CPU" in caplog.text
    )
    assert backend.provider == "cpu"
    assert torch.allclose(backend.run(batch), tiny.module(batch), atol=1e-5)


@pytest.fixture
def pretended_cuda(monkeypatch):
    """An onnxruntime with the CUDA provider, but no driver for it: it runs the CPU instead."""
    asked = []
    original = onnxruntime.InferenceSession

    def session(path, options, providers, **rest):
        asked.append(providers)
        return original(path, options, ["CPUExecutionProvider"], **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    return asked


def test_a_provider_that_quietly_does_not_run_is_refused(tiny, pretended_cuda):
    with pytest.raises(
        RestorerError, match="provider cuda does not start, onnxruntime would run CPUExecution"
    ):
        OnnxBackend(tiny, CUDA)
    (chain,) = pretended_cuda
    assert chain[0][0] == "CUDAExecutionProvider" and chain[0][1]["device_id"] == "0"


def test_or_replaced_where_that_is_allowed(tiny, batch, pretended_cuda, caplog):
    with caplog.at_level(logging.WARNING):
        backend = OnnxBackend(tiny, CUDA, provider="tensorrt", allow_cpu=True)
    assert "would run CPUExecutionProvider" in caplog.text and backend.provider == "cpu"
    assert [each[0] for each in pretended_cuda[0][:2]] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
    ]
    assert torch.allclose(backend.run(batch), tiny.module(batch), atol=1e-5)


class Session:
    """Stands for a session that runs CUDA."""

    def __init__(self, providers: list[str], error: Exception | None = None) -> None:
        self._providers, self._error = providers, error

    def get_providers(self) -> list[str]:
        return self._providers

    def run(self, outputs, inputs):
        if self._error is not None:
            raise self._error
        return [np.zeros((len(inputs["faces"]), 3, 32, 32), np.float32)]


@pytest.fixture
def working_cuda(monkeypatch):
    """An onnxruntime whose CUDA provider starts; graphs compute nothing there."""
    names = {"C": "CPUExecutionProvider", "G": "CUDAExecutionProvider"}
    original = onnxruntime.InferenceSession

    def session(path, options, providers, **rest):
        gpu = not isinstance(providers[0], str)
        return (
            Session([names["G"], names["C"]]) if gpu else original(path, options, providers, **rest)
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [names["G"], names["C"]])


def test_from_the_gpu_to_the_cpu_and_back(tiny, batch, working_cuda, temporary):
    backend = OnnxBackend(tiny, CUDA)
    assert backend.provider == "cuda" and backend.run(batch).abs().max() == 0
    backend.to(CPU)
    assert backend.provider == "cpu"
    assert torch.allclose(backend.run(batch), tiny.module(batch), atol=1e-5)
    backend.to(CUDA)
    assert backend.provider == "cuda"
    backend.close()
    assert not list(temporary.iterdir())


def test_from_the_cpu_it_does_not_move(tiny, working_cuda):
    backend = OnnxBackend(tiny, CPU)
    backend.to(CPU)
    with pytest.raises(RestorerError, match="was opened on the CPU"):
        backend.to(CUDA)
    on_cpu = OnnxBackend(tiny, CPU, provider="cpu")
    on_cpu.to(CUDA)  # the provider was named: faces travel, the graph stays
    assert on_cpu.provider == "cpu"


def test_memory_that_runs_out_is_recognised(tiny, batch):
    backend = OnnxBackend(tiny, CPU)
    error = onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException(
        "Failed to allocate memory for a buffer"
    )
    backend._session = Session(["CPUExecutionProvider"], error)
    with pytest.raises(OutOfMemoryError) as caught:
        backend.run(batch)
    assert is_out_of_memory(caught.value)


def test_a_batch_of_another_size_is_a_typed_error(tiny):
    with pytest.raises(RestorerError, match="tiny in ONNX Runtime failed"):
        OnnxBackend(tiny, CPU).run(torch.zeros(1, 3, 8, 8))


def test_options_that_do_not_exist(tiny):
    with pytest.raises(ConfigError, match="dtype"):
        OnnxBackend(tiny, CPU, dtype="bf16")
    with pytest.raises(ConfigError, match="provider"):
        OnnxBackend(tiny, CPU, provider="rocm")


def test_a_file_of_ones_own(tiny, batch, tmp_path):
    from musetalk_enhance.backends import onnx_export

    path = tmp_path / "tiny.onnx"
    path.write_bytes(onnx_export.trace(tiny))
    backend = OnnxBackend(tiny, CPU, graph=GraphFile(path, "faces", "restored"))
    assert torch.allclose(backend.run(batch), tiny.module(batch), atol=1e-5)
    backend.close()
    assert path.exists()


def test_a_file_that_is_no_graph(tiny, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(RestorerError, match="loading tiny into ONNX Runtime"):
        OnnxBackend(tiny, CPU, graph=GraphFile(path, "faces", "restored"))


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_a_missing_package(tiny, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[onnx\]"):
        OnnxBackend(tiny, CPU)


def test_on_a_gpu_nothing_is_copied_to_the_host(tiny, monkeypatch):
    """torch's own memory is bound, on the device of the faces."""
    noted = {}

    class Binding:
        def bind_input(self, *words):
            noted["input"] = words

        def bind_output(self, *words):
            noted["output"] = words

        def synchronize_outputs(self):
            noted["synchronised"] = True

    backend = OnnxBackend(tiny, CPU)
    backend._session = SimpleNamespace(
        io_binding=Binding, run_with_iobinding=lambda binding: noted.setdefault("ran", True)
    )
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None)
    )
    faces = torch.zeros(2, 3, 16, 16)
    restored = backend._bound(faces, (3, 32, 32))
    assert noted["input"] == ("faces", "cuda", 0, np.float32, (2, 3, 16, 16), faces.data_ptr())
    assert noted["output"] == (
        "restored",
        "cuda",
        0,
        np.float32,
        (2, 3, 32, 32),
        restored.data_ptr(),
    )
    assert noted["ran"] and noted["synchronised"]


def test_a_provider_that_was_asked_for_leaves_the_gpu_only_where_that_is_allowed(
    tiny, batch, working_cuda, caplog
):
    strict = OnnxBackend(tiny, CUDA, provider="cuda")
    with pytest.raises(RestorerError, match="runs with provider: cuda; set allow_cpu: true"):
        strict.to(CPU)
    assert strict.provider == "cuda" and strict.run(batch).abs().max() == 0
    backend = OnnxBackend(tiny, CUDA, provider="cuda", allow_cpu=True)
    backend.to(CPU)
    assert backend.provider == "cpu" and "falling back to the CPU" in caplog.text
    assert torch.allclose(backend.run(batch), tiny.module(batch), atol=1e-5)
    backend.to(CUDA)
    assert backend.provider == "cuda"
