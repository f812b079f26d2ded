"""A traced graph is stored once and used only if everything about it is the same."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace

import pytest
import torch

from musetalk_enhance.backends import graph_cache, onnx_export
from musetalk_enhance.backends.onnx_backend import OnnxBackend
from musetalk_enhance.backends.openvino_backend import OpenVinoBackend
from tests.backends.conftest import CPU


@pytest.fixture
def traces(monkeypatch):
    """Names of the networks that were traced."""
    names, trace = [], onnx_export.trace

    def counted(spec, *rest):
        names.append(spec.name)
        return trace(spec, *rest)

    monkeypatch.setattr(onnx_export, "trace", counted)
    return names


@pytest.mark.parametrize("kind", [OnnxBackend, OpenVinoBackend])
def test_the_second_start_does_not_trace(tiny, batch, traces, kind):
    for _ in range(2):
        backend = kind(tiny, CPU)
        assert torch.allclose(backend.run(batch), tiny.module(batch), atol=1e-5)
        backend.close()
    assert traces == ["tiny"]
    (path,) = graph_cache.folder().iterdir()
    assert path.suffix == ".onnx"


def test_another_network_is_another_graph(tiny, traces):
    for spec in (tiny, replace(tiny, identity="other weights"), replace(tiny, key="other rows")):
        onnx_export.graph_file(spec)
    assert len(traces) == 3 == len(list(graph_cache.folder().iterdir()))


@pytest.mark.parametrize("what", ["version", "source"])
def test_another_version_or_source_is_another_graph(tiny, traces, monkeypatch, what):
    onnx_export.graph_file(tiny)
    monkeypatch.setattr(graph_cache, f"_{what}{'_digest' * (what == 'source')}", lambda _: "other")
    onnx_export.graph_file(tiny)
    assert len(traces) == 2


def test_without_an_identity_nothing_is_stored(tiny, traces):
    spec = replace(tiny, identity=None)
    assert all(isinstance(onnx_export.graph_file(spec).graph, bytes) for _ in range(2))
    assert len(traces) == 2 and not graph_cache.folder().exists()


def test_it_can_be_switched_off(tiny, traces, monkeypatch):
    monkeypatch.setenv(graph_cache.SWITCH, "off")
    assert (
        isinstance(onnx_export.graph_file(tiny).graph, bytes) and not graph_cache.folder().exists()
    )


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"x" + data[1:]])
def test_a_damaged_file_is_replaced(tiny, traces, caplog, damage):
    path = onnx_export.graph_file(tiny).graph
    path.write_bytes(damage(path.read_bytes()))
    again = onnx_export.graph_file(tiny).graph
    assert again.read_bytes() == onnx_export.trace(tiny) and "is damaged" in caplog.text


def test_a_folder_that_cannot_be_written_stores_nothing(tiny, batch, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUSETALK_ENHANCE_CACHE", str(tmp_path / "file" / "below"))
    assert torch.allclose(OnnxBackend(tiny, CPU).run(batch), tiny.module(batch), atol=1e-5)


def test_a_disk_without_room_stores_nothing(tiny, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert isinstance(onnx_export.graph_file(tiny).graph, bytes)
    assert not list(graph_cache.folder().iterdir())


def test_what_was_not_used_for_longest_is_removed(tiny, monkeypatch):
    specs = [replace(tiny, identity=name) for name in "abc"]
    paths = [onnx_export.graph_file(spec).graph for spec in specs[:2]]
    monkeypatch.setattr(graph_cache, "MAX_BYTES", int(2.5 * paths[0].stat().st_size))
    for age, path in zip((10, 20), paths, strict=True):
        os.utime(path, (time.time() - age,) * 2)
    assert onnx_export.graph_file(specs[1]).graph == paths[1]  # used now
    newest = onnx_export.graph_file(specs[2]).graph
    assert set(graph_cache.folder().iterdir()) == {paths[1], newest}


def test_what_a_killed_process_left_is_removed_after_a_day(tiny):
    graph_cache.folder().mkdir(parents=True)
    stale, current = (graph_cache.folder() / f".{name}.part" for name in ("stale", "current"))
    for path in (stale, current):
        path.write_bytes(b"half")
    os.utime(stale, (time.time() - 2 * 24 * 3600,) * 2)
    onnx_export.graph_file(tiny)
    assert not stale.exists() and current.exists()
