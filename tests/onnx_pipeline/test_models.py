"""A file is recognized by the names and shapes of its inputs; templates are the published ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from musetalk_enhance.errors import (
    CheckpointError,
    ConfigError,
    CorruptWeightError,
    LicenseError,
    MissingWeightError,
    RestorerError,
)
from musetalk_enhance.faces.align import Aligner
from musetalk_enhance.onnx_pipeline import (
    MODELS,
    TEMPLATES,
    Inference,
    PipelineOptions,
    Services,
    providers,
)
from musetalk_enhance.onnx_pipeline.templates import fit
from musetalk_enhance.runtime.onnx_session import PROVIDERS
from tests.onnx_pipeline.conftest import DOUBLE, FLOAT, HALF, onnx, save_graph

PUBLISHED = {  # FaceFusion's table, to eight digits: the left eye and the right mouth corner
    "arcface_112_v1": ((0.35473214, 0.45658929), (0.62086607, 0.77687500)),
    "arcface_112_v2": ((0.34191607, 0.46157411), (0.63151696, 0.82325089)),
    "arcface_128": ((0.36167656, 0.40387734), (0.61507734, 0.72034453)),
    "ffhq_512": ((0.37691676, 0.46864664), (0.61150205, 0.72490465)),
}


@pytest.mark.parametrize("template", PUBLISHED)
def test_templates(template):
    assert np.abs(TEMPLATES[template][[0, 4]] - PUBLISHED[template]).max() < 1e-8
    assert TEMPLATES.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("template", PUBLISHED)
def test_the_fit_maps_a_moved_template_onto_itself(template, face):
    turn = np.array([(0.6, -0.8), (0.8, 0.6)])
    points = TEMPLATES[template] * 300 @ turn.T + (40, 90)
    matrix = fit(points, template)
    assert np.allclose(points @ matrix[:, :2].T + matrix[:, 2], TEMPLATES[template] * 512)
    landmarks = np.array([face["landmark_5"]]) + np.arange(10).reshape(5, 2) % 3
    expected = Aligner(512).fit(landmarks, (480, 640), aspect=640 / 480).to_template[0]
    assert np.allclose(fit(landmarks[0], "ffhq_512"), expected)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_published_files_are_recognized(model, restorer):
    fidelity = {"codeformer": "weight", "vqfr": "fidelity_ratio"}.get(model.name)
    path = restorer(model.files[0], side=model.input_size, fidelity=fidelity)
    inference = Inference(path, threads=1)
    expected = replace(model, output_size=model.input_size)  # as this file's graph has
    assert inference.model == expected and len(inference.sha256) == 64
    path = path.rename(path.with_name("mine.onnx"))  # the same facts under any name
    facts = Inference(path, threads=1).model
    for name in ("template", "input_size", "value_range", "color", "fidelity"):
        assert getattr(facts, name) == getattr(model, name)
    assert facts.name == "mine" and model.license in facts.license


def test_a_name_does_not_make_a_model(restorer):
    """The name says gfpgan_1.4, its input gpen_bfr_256."""
    model = Inference(restorer("gfpgan_1.4.onnx", side=256), threads=1).model
    assert (model.template, model.input_size, model.commercial) == ("arcface_128", 256, False)


def test_an_unknown_model_needs_three_options_and_then_works(restorer):
    path = restorer("mine.onnx", side=96, image="picture")
    for options in ({}, {"template": "ffhq_512"}, {"value_range": (0.0, 1.0)}):
        with pytest.raises(CheckpointError, match="Set input_size, value_range and template"):
            Inference(path, threads=1, **options)
    inference = Inference(path, template="arcface_112_v2", value_range=(0.0, 255.0), threads=1)
    assert inference.model.input_size == 96 and not inference.model.commercial
    with pytest.raises(CheckpointError, match="input_size is 128"):
        Inference(path, input_size=128, template="ffhq_512", value_range=(0.0, 1.0))
    path = restorer("mine.onnx", side="S", image="picture")
    options = {"template": "ffhq_512", "value_range": (0.0, 1.0)}
    with pytest.raises(CheckpointError, match="Set input_size"):
        Inference(path, threads=1, **options)
    inference = Inference(path, input_size=64, threads=1, **options)
    assert inference.run(np.zeros((3, 3, 64, 64), np.float32)).restored.shape == (3, 3, 64, 64)


@pytest.mark.parametrize("batch", ["N", 1, 2])
@pytest.mark.parametrize("kind", [FLOAT, HALF])
def test_batches_of_open_and_fixed_size(batch, kind, restorer, rng):
    path = restorer(gain=0.5, shift=0.25, side=256, batch=batch, kind=kind)
    inference = Inference(path, threads=1, batch_size=4)
    faces = rng.uniform(-1, 1, (5, 3, 256, 256)).astype(np.float32)
    result = inference.run(faces)
    assert np.abs(result.restored - (faces * 0.5 + 0.25)).max() < (1e-6 if kind == FLOAT else 1e-3)
    assert result.restored.dtype == np.float32
    assert result.runs == {"N": 2, 1: 5, 2: 3}[batch]
    empty = inference.run(faces[:0])
    assert empty.restored.shape == (0, 3, 256, 256) and empty.runs == 0


@pytest.mark.parametrize("name", ["weight", "w"])
def test_the_fidelity_reaches_the_network(name, restorer):
    path = restorer("codeformer.onnx", fidelity=name)
    faces = np.zeros((1, 3, 512, 512), np.float32)
    for fidelity in (0.0, 0.3):
        restored = Inference(path, fidelity=fidelity, threads=1).run(faces).restored
        assert np.allclose(restored, fidelity)


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_opsets(opset, restorer):
    assert Inference(restorer(opset=opset), threads=1).model.name == "gfpgan_1.4"


def test_of_several_outputs_the_image_is_taken(tmp_path):
    shape = [1, 3, 512, 512]
    node = onnx.helper.make_node
    nodes = [node("ReduceMean", ["input"], ["loss"], keepdims=0), node("Neg", ["input"], ["extra"])]
    nodes.append(node("Identity", ["input"], ["main_dec"]))
    outputs = [("loss", FLOAT, []), ("extra", FLOAT, shape), ("main_dec", FLOAT, shape)]
    path = save_graph(tmp_path / "v.onnx", nodes, [("input", FLOAT, shape)], outputs)
    faces = np.full(shape, 0.5, np.float32)
    assert np.array_equal(Inference(path, threads=1).run(faces).restored, faces)


def graph(path, inputs, shape_out):
    nodes = [onnx.helper.make_node("Identity", [inputs[0][0]], ["output"])]
    return save_graph(path, nodes, inputs, [("output", inputs[0][1], shape_out)])


@pytest.mark.parametrize(
    ("inputs", "shape_out"),
    [
        ([("input", FLOAT, [1, 512, 512, 3])], [1, 512, 512, 3]),  # channels last
        ([("input", FLOAT, [1, 1, 512, 512])], [1, 1, 512, 512]),
        ([("input", DOUBLE, [1, 3, 512, 512])], [1, 3, 512, 512]),
        ([("target", FLOAT, [1, 3, 128, 128]), ("source", FLOAT, [1, 512])], [1, 3, 128, 128]),
        ([("input", FLOAT, [1, 3, 512, 256])], [1, 3, 512, 256]),
        ([("input", FLOAT, [1, 512])], [1, 512]),
    ],
)
def test_another_tasks_network_is_refused(inputs, shape_out, tmp_path):
    with pytest.raises(CheckpointError, match="holds a graph with the inputs"):
        Inference(graph(tmp_path / "gfpgan_1.4.onnx", inputs, shape_out), threads=1)


def test_an_output_that_is_no_image_is_refused(tmp_path):
    shape = [1, 3, 512, 512]
    nodes = [onnx.helper.make_node("ReduceMean", ["input"], ["mask"], axes=[1], keepdims=1)]
    outputs = [("mask", FLOAT, [1, 1, 512, 512])]
    path = save_graph(tmp_path / "m.onnx", nodes, [("input", FLOAT, shape)], outputs)
    with pytest.raises(CheckpointError, match="with the outputs mask"):
        Inference(path, threads=1)
    nodes = [onnx.helper.make_node("AveragePool", ["input"], ["output"], kernel_shape=[512, 512])]
    outputs = [("output", FLOAT, ["a", "b", "c", "d"])]
    path = save_graph(tmp_path / "p.onnx", nodes, [("input", FLOAT, shape)], outputs)
    with pytest.raises(RestorerError, match=r"returned \(1, 3, 1, 1\)"):
        Inference(path, threads=1).run(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", CorruptWeightError),
        (b"<!DOCTYPE html><html>", CorruptWeightError),
        (b"version https://git-lfs.github.com/spec/v1\n", CorruptWeightError),
        (b"\x08\x08 no graph", CorruptWeightError),
    ],
)
def test_wrong_files(content, error, tmp_path):
    path = tmp_path / "gfpgan_1.4.onnx"
    path.write_bytes(content)
    with pytest.raises(error):
        Inference(path)


def test_a_truncated_file(restorer):
    path = restorer()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptWeightError, match="truncated"):
        Inference(path)


def test_names_are_looked_up_in_the_cache(own_cache, restorer):
    for name, text in (
        ("auto", "no such file"),
        ("gfpgan_1.4", "Also used: gfpgan_1.4.onnx"),
        ("gpen_bfr_256", "weights fetch GPEN-BFR-256.onnx"),
        ("gpen_bfr_256.onnx", r"no file gpen_bfr_256.onnx in "),
    ):
        with pytest.raises(MissingWeightError, match=text):
            Inference(name)
    with pytest.raises(MissingWeightError):
        Inference("no-such.onnx")
    with pytest.raises(ConfigError, match="Did you mean 'gfpgan_1.4'"):
        Inference("gfpgan_14")
    own_cache.mkdir()
    path = own_cache / "GPEN-BFR-256.onnx"
    restorer("GPEN-BFR-256.onnx", side=256).rename(path)
    for name in ("auto", "gpen_bfr_256", "GPEN-BFR-256.onnx"):
        inference = Inference(name, threads=1)
        assert (inference.path, inference.model.name) == (path, "gpen_bfr_256")
    with pytest.raises(LicenseError, match="gpen_bfr_256"):
        Services.open(PipelineOptions(model="auto", commercial=True, threads=1))


def test_the_provider_asked_for_runs_or_is_an_error(restorer, caplog):
    path, installed = restorer(), providers()
    assert "cpu" in installed and set(installed) <= PROVIDERS.keys()
    absent = next(each for each in ("rocm", "coreml", "directml") if each not in installed)
    with pytest.raises(RestorerError, match=f"{absent} is not part of .* allow_cpu"):
        Inference(path, provider=absent)
    assert Inference(path, provider=absent, allow_cpu=True).provider == "cpu"
    assert "falling back to the CPU" in caplog.text
    with pytest.raises(ConfigError, match="provider"):
        Inference(path, provider="npu")


def test_a_provider_that_does_not_start_is_an_error(restorer, monkeypatch):
    """onnxruntime leaves it out, or raises; both are errors here."""
    import onnxruntime

    path, session = restorer(), onnxruntime.InferenceSession
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)

    def without_cuda(path, options, chain, **_):
        return session(path, options, ["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(RestorerError, match="would run CPUExecutionProvider"):
        Inference(path, provider="cuda")

    def failing(path, options, chain, **_):
        if len(chain) > 1:
            raise RuntimeError("no driver")
        return session(path, options, ["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", failing)
    with pytest.raises(RestorerError, match="no driver"):
        Inference(path, provider="cuda")
    assert Inference(path, provider="cuda", allow_cpu=True).provider == "cpu"
