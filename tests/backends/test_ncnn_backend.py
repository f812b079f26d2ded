"""What is recorded for ncnn is what torch computes."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import nn

from musetalk_enhance.backends.ncnn_backend import NcnnBackend, NcnnRecorder
from musetalk_enhance.errors import MissingDependencyError, RestorerError
from tests.backends.conftest import TinyNetwork, spec_of


class Everything(TinyNetwork):
    """Every operation that is not in the tiny network."""

    def compute(self, ops, faces):
        x = ops.unshuffle2(ops.pad_edge(faces, 2, 4, 6, 0))
        x = ops.shuffle2(x)
        x = ops.cut(x, 2, 4, 6, 0)
        x = ops.add(x, ops.bicubic2(ops.down2(faces)))
        x = ops.crop(x, 6)
        return ops.rows_below(x, 6, 8)


@pytest.mark.parametrize("network", [TinyNetwork, Everything])
def test_it_is_what_torch_computes(network, batch):
    spec = spec_of(network())
    backend = NcnnBackend(spec)
    restored = backend.run(batch)
    assert torch.allclose(restored, spec.module(batch), atol=1e-5)
    restored.zero_()  # the caller's own
    assert torch.allclose(backend.run(batch[:1]), spec.module(batch[:1]), atol=1e-5)
    backend.close()


@pytest.mark.parametrize("threads", [2, 3])
def test_faces_beside_each_other_have_the_bits_of_faces_one_by_one(batch, threads):
    spec = spec_of(TinyNetwork())
    faces = torch.cat([batch, batch.flip(3), batch * 0.5])
    alone, beside = NcnnBackend(spec, threads=1), NcnnBackend(spec, threads=threads)
    expected = torch.cat([alone.run(face[None]) for face in faces])
    assert torch.equal(beside.run(faces), expected)
    assert torch.equal(torch.cat([beside.run(face[None]) for face in faces]), expected)
    alone.close()
    beside.close()


def test_a_blob_that_is_read_twice_is_split():
    recorder = NcnnRecorder()
    doubled = recorder.add(recorder.input, recorder.input)
    graph, _ = recorder.finish(doubled)
    assert graph.splitlines()[3].startswith("Split")
    assert graph.splitlines()[1] == "4 5"


def test_bf16_is_close_and_says_so(batch):
    spec = spec_of(TinyNetwork())
    backend = NcnnBackend(spec, "bf16")
    assert str(backend) == "ncnn bf16"
    expected = spec.module(batch)
    assert float((backend.run(batch) - expected).norm() / expected.norm()) < 0.02


def test_a_network_without_a_recording_is_refused():
    with pytest.raises(RestorerError, match="has no recording"):
        NcnnBackend(spec_of(nn.Conv2d(3, 3, 1)))


def test_another_device_is_refused(tiny):
    backend = NcnnBackend(tiny)
    backend.to(torch.device("cpu"))
    with pytest.raises(RestorerError, match="cuda"):
        backend.to(torch.device("cuda"))


def test_a_missing_package_is_named(tiny, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "ncnn":
            raise ImportError("No module named 'ncnn'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[ncnn\]"):
        NcnnBackend(tiny)
