"""A written file gives torch's results for every batch; any other is refused, without a file."""

from __future__ import annotations

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import onnxruntime
import pytest
import torch
from torch import nn

from musetalk_enhance.backends import onnx_export
from musetalk_enhance.backends.ops import TORCH, Modulated
from musetalk_enhance.errors import (
    ConfigError,
    MissingDependencyError,
    OutOfMemoryError,
    RestorerError,
)
from musetalk_enhance.runtime.memory import is_out_of_memory
from tests.backends.conftest import spec_of


class Styled(nn.Module):
    """A modulated convolution."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        weight, style = (
            torch.randn(3, 3, 3, 3, generator=generator),
            torch.randn(3, 3, generator=generator),
        )
        squares = weight.square().sum((2, 3))
        self.layer = Modulated(weight, style, torch.ones(3), torch.zeros(3), squares, epsilon=1e-8)

    def forward(self, faces):
        return TORCH.modulated(faces, faces.mean((2, 3)), self.layer)


class FixedBatch(nn.Module):
    """Its trace remembers the batch size it was made with."""

    def forward(self, faces):
        return torch.cat([faces[index : index + 1] * 2 for index in range(len(faces))])


class Impossible(nn.Module):
    def forward(self, faces):
        return torch.linalg.eigvals(faces).abs()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_faces(tiny, tmp_path, count):
    path = tmp_path / "tiny.onnx"
    assert onnx_export.export(tiny, path) <= 1e-5
    session = onnxruntime.InferenceSession(str(path))
    faces = onnx_export.random_faces(tiny, count)
    (restored,) = session.run(["restored"], {"faces": faces.numpy()})
    assert torch.allclose(torch.from_numpy(restored), tiny.module(faces), atol=1e-5)
    assert [
        axis for port in (*session.get_inputs(), *session.get_outputs()) for axis in port.shape
    ] == [
        *("batch", 3, 16, 16),
        *("batch", 3, 32, 32),
    ]


def test_the_file_says_what_it_is(tiny, tmp_path):
    path = tmp_path / "tiny.onnx"
    onnx_export.export(tiny, path, facts={"license": "MIT"})
    facts = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert (facts["name"], facts["value_range"], facts["license"]) == ("tiny", "-1..1", "MIT")
    assert facts["musetalk_enhance"]


def test_only_standard_operators_of_one_opset(tiny):
    import onnx

    model = onnx.load_model_from_string(onnx_export.trace(tiny))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [
        ("", onnx_export.OPSET)
    ]


def test_a_modulated_convolution_holds_for_every_batch(tmp_path):
    assert onnx_export.export(spec_of(Styled()), tmp_path / "styled.onnx") <= 1e-5


def test_nothing_is_printed(tiny, tmp_path, capfd):
    onnx_export.export(tiny, tmp_path / "tiny.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_graph_for_one_batch_is_refused(tmp_path):
    path = tmp_path / "fixed.onnx"
    path.write_text("what was there before")
    with pytest.raises(RestorerError, match="tiny"):
        onnx_export.export(spec_of(FixedBatch()), path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [
        ("fixed.onnx", "what was there before")
    ]


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_graph_that_differs_is_refused(tiny, tmp_path, monkeypatch, error):
    monkeypatch.setattr(onnx_export, "difference", lambda spec, graph: error)
    with pytest.raises(RestorerError, match="differs from torch"):
        onnx_export.export(tiny, tmp_path / "tiny.onnx")
    assert not list(tmp_path.iterdir())


def test_the_difference_is_measured(tiny):
    other = replace(tiny, module=nn.Sequential(tiny.module, nn.Hardtanh(-0.1, 0.1)))
    assert onnx_export.difference(other, onnx_export.trace(tiny)) > 0.01


def test_what_cannot_be_traced_is_a_typed_error(tmp_path):
    with pytest.raises(RestorerError, match="tiny cannot be written as ONNX"):
        onnx_export.export(spec_of(Impossible()), tmp_path / "no.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tiny.pth", "no/such/folder.onnx", "folder.onnx"])
def test_places_that_cannot_be_written(tiny, tmp_path, name):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ConfigError, match="OUT"):
        onnx_export.export(tiny, tmp_path / name)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package(tiny, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'musetalk_enhance\[onnx\]'"
    ) as caught:
        onnx_export.export(tiny, tmp_path / "tiny.onnx")
    assert caught.value.package == package
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "Failed to allocate memory for requested buffer of size 4294967296",
        "std::bad_alloc",
        "BFCArena::AllocateRawInternal Available memory of 1 is smaller than requested bytes of 2",
        "CUDA failure 2: out of memory",
    ],
)
def test_memory_that_ran_out_is_recognised(text):
    with pytest.raises(OutOfMemoryError) as caught, onnx_export.translated("a test"):
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail(text)
    assert is_out_of_memory(caught.value) and text in str(caught.value)


def test_other_errors_are_the_restorers():
    with (
        pytest.raises(RestorerError, match=r"a test failed: Fail: broken") as caught,
        onnx_export.translated("a test"),
    ):
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("broken")
    assert not is_out_of_memory(caught.value)


def test_a_bicubic_enlargement_is_written_as_a_convolution(tmp_path):
    import onnx

    class Enlarging(nn.Module):
        def forward(self, faces):
            return TORCH.bicubic2(faces)

    assert onnx_export.export(spec_of(Enlarging()), tmp_path / "large.onnx") < 1e-6
    kinds = {node.op_type for node in onnx.load(tmp_path / "large.onnx").graph.node}
    assert "Conv" in kinds and "Resize" not in kinds


def test_two_threads_leave_warnings_and_output_as_they_were(tiny):
    filters, out = list(warnings.filters), sys.stdout
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(onnx_export.trace, tiny) for _ in range(8)]:
            future.result()
    assert warnings.filters == filters and sys.stdout is out
