"""torch's own backend: moves, and CUDA graphs as far as they can be told without a GPU."""

from __future__ import annotations

import contextlib
from collections import Counter

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
    assert (
        backend.dtype == dtype
        and backend.module.first.weight.dtype == backend._type != torch.float32
    )


def test_on_the_cpu_it_keeps_what_was_asked_for(tiny):
    backend = TorchBackend(tiny, CPU, "bf16")
    backend.to(CPU)
    assert backend.dtype == "bf16"


class Gpu:
    """Stands in for torch.cuda: records what is captured; a graph runs what `replay` says."""

    def __init__(self, monkeypatch, replay) -> None:
        self.devices, self.stream, self.captures, self.waits = [], None, [], []
        self.reserved, self.pools = 0, 0
        gpu = self

        class Stream:
            def __init__(self, *_):
                gpu.stream = self

            def wait_stream(self, _):
                pass

            def wait_event(self, event):
                gpu.waits.append(event)

            def record_event(self):
                return f"replay {len(gpu.waits)}"

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
                gpu.captures.append((list(gpu.devices), pool, stream, capture_error_mode))
                gpu.reserved += 100

        def new_pool():
            gpu.pools += 1
            return gpu.pools

        fakes = {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "graph": Capture,
            "device": within,
            "stream": lambda _: contextlib.nullcontext(),
            "current_stream": lambda *_: Stream.__new__(Stream),
            "synchronize": lambda *_: None,
            "empty_cache": lambda: None,
            "memory_reserved": lambda *_: gpu.reserved,
            "graph_pool_handle": new_pool,
            "current_device": lambda: 0,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake, raising=False)


@pytest.fixture
def backend(tiny, monkeypatch):
    monkeypatch.setattr(torch_backend._Graphs, "_is_launch_bound", lambda *_: True)
    monkeypatch.setattr(torch_backend.memory, "_graph_pools", Counter())
    return TorchBackend(tiny, CPU)


def run(backend, batch):
    with torch.inference_mode():
        return backend._graphs.run(batch)


@pytest.fixture
def replaying(backend, monkeypatch):
    """A GPU whose graphs compute the network."""
    graphs = []
    create = torch_backend._Graph.__init__

    def noted(graph, *rest):
        graphs.append(graph)
        create(graph, *rest)

    def replay():
        for graph in graphs:
            graph._output.copy_(backend.module(graph._input))

    monkeypatch.setattr(torch_backend._Graph, "__init__", noted)
    return Gpu(monkeypatch, replay)


def test_a_size_is_captured_when_it_comes_again(backend, batch, replaying):
    """On the device of the faces: else it captures nothing on a second GPU."""
    four = torch.cat([batch, batch[:1] * 0.3])
    for faces in (batch, four, batch.flip(0) * 0.5, batch, batch * 0.1):
        assert torch.allclose(run(backend, faces), backend.module(faces), atol=1e-5)
    ((devices, pool, stream, mode),) = replaying.captures
    assert devices == [batch.device] and stream is replaying.stream and mode == "thread_local"
    assert replaying.waits == ["replay 0", "replay 1"], "each replay waits for the one before it"
    run(backend, four)
    assert [capture[1] for capture in replaying.captures] == [pool, pool], "one pool for all sizes"


def test_the_memory_of_graphs_is_counted_until_they_are_dropped(backend, batch, replaying):
    count = torch_backend.memory._graph_pools
    for faces in (batch, batch, batch[:2], batch[:2]):
        run(backend, faces)
    assert count[0] == 200
    backend.close()
    assert count[0] == 0


def test_there_are_not_more_graphs_than_that(backend, replaying, monkeypatch):
    monkeypatch.setattr(torch_backend, "MAX_GRAPHS", 2)
    for size in (1, 2, 3, 4):
        for _ in range(3):
            faces = torch.rand(size, 3, 16, 16)
            assert torch.allclose(run(backend, faces), backend.module(faces), atol=1e-5)
    assert len(replaying.captures) == 2


def test_a_graph_that_computes_nothing_is_not_used(backend, batch, monkeypatch, caplog):
    gpu = Gpu(monkeypatch, lambda: None)
    for _ in range(3):
        assert torch.allclose(run(backend, batch), backend.module(batch), atol=1e-5)
    assert "gives another result" in caplog.text and len(gpu.captures) == 1
    assert torch_backend.memory._graph_pools[0] == 0


def test_what_the_gpu_computes_for_longer_than_it_takes_to_launch_has_no_graph(
    tiny, batch, monkeypatch
):
    gpu, backend = Gpu(monkeypatch, lambda: None), TorchBackend(tiny, CPU)
    clock = iter([0.0, 0.1, 1.0])  # launched after a tenth of the time
    monkeypatch.setattr(torch_backend.time, "perf_counter", lambda: next(clock))
    for _ in range(3):
        assert torch.allclose(run(backend, batch), backend.module(batch), atol=1e-5)
    assert not gpu.captures and list(clock) == []


def test_after_a_capture_without_memory_it_runs_eagerly(backend, batch, monkeypatch, caplog):
    captures = []

    def full(*_):
        captures.append(1)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(torch_backend, "_Graph", full)
    Gpu(monkeypatch, lambda: None)
    for faces in [batch] * 3 + [batch[:2]] * 3:
        assert torch.allclose(run(backend, faces), backend.module(faces), atol=1e-5)
    assert captures == [1] and "CUDA graphs are off" in caplog.text


def test_when_memory_runs_out_the_graphs_go_first(backend, batch, replaying, monkeypatch, caplog):
    """Their pool may be what is missing: the batch runs once more, eagerly."""
    for _ in range(2):
        run(backend, batch)
    failures, forward = [1], backend._graphs._forward

    def full(faces):
        if failures:
            failures.pop()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(faces)

    backend._graphs._forward = full
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch_backend.memory, "release", lambda _: None)
    assert torch.allclose(backend.run(batch[:1]), backend.module(batch[:1]), atol=1e-5)
    assert backend._graphs is None and torch_backend.memory._graph_pools[0] == 0
    assert "CUDA graphs are off" in caplog.text


def test_without_graphs_running_out_of_memory_is_an_error(backend, batch, monkeypatch):
    def full(_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    backend._graphs._forward = full
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        backend.run(batch)
