"""torch's own backend: moves, and CUDA graphs as far as they can be told without a GPU."""

from __future__ import annotations

import contextlib

import pytest
import torch

from musetalk_enhance.backends import TorchBackend, torch_backend
from tests.backends.conftest import CPU


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_off_the_gpu_it_works_in_fp32(tiny, batch, dtype):
    """A CPU without instructions for less takes many times as long."""
    backend = TorchBackend(tiny, CPU, dtype)
    backend._device = torch.device("cuda", 0)  # as if it had been opened there
    backend.to(CPU)
    assert backend.dtype == "fp32" and backend.module.first.weight.dtype == torch.float32
    assert torch.allclose(backend.run(batch), tiny.module(batch), atol=2e-2)
    backend.module.to = lambda _: backend.module  # and back, as far as that goes without one
    backend.to(torch.device("cuda", 0))
    assert backend.dtype == dtype and backend.module.first.weight.dtype == backend._type != torch.float32


def test_on_the_cpu_it_keeps_what_was_asked_for(tiny):
    backend = TorchBackend(tiny, CPU, "bf16")
    backend.to(CPU)
    assert backend.dtype == "bf16"


class Gpu:
    """Stands in for torch.cuda: notes streams and devices; a graph runs what `captured` says."""

    def __init__(self, monkeypatch, replay) -> None:
        self.devices, self.stream, self.captures = [], None, []
        gpu = self

        class Stream:
            def __init__(self, *_):
                gpu.stream = self

            def wait_stream(self, _):
                pass

        class Graph:
            def replay(self):
                replay()

        @contextlib.contextmanager
        def within(device):
            gpu.devices.append(device)
            try:
                yield
            finally:
                gpu.devices.pop()

        class Capture(contextlib.nullcontext):
            def __init__(self, graph, pool=None, stream=None, capture_error_mode="global"):
                super().__init__()
                gpu.captures.append((list(gpu.devices), stream, capture_error_mode))

        fakes = {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": Capture,
            "device": within,
            "stream": lambda _: contextlib.nullcontext(),
            "current_stream": lambda *_: Stream.__new__(Stream),
            "synchronize": lambda *_: None,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake, raising=False)


@pytest.fixture
def backend(tiny):
    return TorchBackend(tiny, CPU)


def run(backend, batch):
    with torch.inference_mode():
        return backend._graphed(batch)


def test_a_graph_is_captured_on_the_device_of_the_faces(backend, batch, monkeypatch):
    """Else it captures nothing on a second GPU, and every later face would be the first one."""
    made = []
    capture = torch_backend._Graph._capture

    def noted(graph, *rest):
        made.append(graph)
        capture(graph, *rest)

    gpu = Gpu(monkeypatch, lambda: made[0]._output.copy_(backend.module(made[0]._input)))
    monkeypatch.setattr(torch_backend._Graph, "_capture", noted)
    monkeypatch.setattr(torch_backend, "_seconds", lambda function: 1.0)
    four = torch.cat([batch, batch[:1] * 0.3])
    for faces in (batch, batch.flip(0) * 0.5, four, batch):
        assert torch.allclose(run(backend, faces), backend.module(faces), atol=1e-5)
    ((devices, stream, mode),) = gpu.captures
    assert devices == [batch.device] and stream is gpu.stream and mode == "thread_local"


def test_a_graph_that_computes_nothing_is_not_used(backend, batch, monkeypatch, caplog):
    Gpu(monkeypatch, lambda: None)
    assert torch.allclose(run(backend, batch), backend.module(batch), atol=1e-5)
    assert "came out different" in caplog.text and not backend._may_graph and not backend._graphs


def test_a_graph_that_does_not_win_keeps_no_memory(backend, batch, monkeypatch):
    class Slow:
        wins = False

        def __init__(self, *_):
            made.append(1)

    made: list[int] = []
    monkeypatch.setattr(torch_backend, "_Graph", Slow)
    for _ in range(2):
        assert torch.allclose(run(backend, batch), backend.module(batch), atol=1e-5)
    assert made == [1] and list(backend._graphs.values()) == [None]


def test_memory_that_runs_out_in_a_capture_is_no_reason_against_graphs(backend, batch, monkeypatch):
    def full(*_):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(torch_backend, "_Graph", full)
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        run(backend, batch)
    assert backend._may_graph and not backend._graphs
