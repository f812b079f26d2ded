"""ONNX files in the enhancer: recognized, run by both runtimes, with what a checkpoint has."""

from __future__ import annotations

import argparse
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from musetalk_enhance import FaceEnhancer, GFPGANEnhancer, add_gfpgan_arguments, weights
from musetalk_enhance.backends import onnx_backend
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import (
    CheckpointError,
    ConfigError,
    CorruptWeightError,
    LicenseError,
    MissingWeightError,
    RestorerError,
)
from musetalk_enhance.faces.align import Aligner, fit
from musetalk_enhance.faces.detect import FFHQ_512
from musetalk_enhance.faces.paste import crop_face
from musetalk_enhance.faces.templates import TEMPLATES, template_points
from musetalk_enhance.jobs.models import load
from musetalk_enhance.jobs.options import ImageSettings
from musetalk_enhance.restorers import catalog
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.onnx_file import OnnxRestorer
from musetalk_enhance.weights.onnx_graph import read_graph
from musetalk_enhance.weights.onnx_models import MODELS, GraphFile, recognize
from tests.conftest import PLAIN
from tests.onnx_pipeline.conftest import DOUBLE, FLOAT, HALF, onnx, restorer, save_graph

__all__ = ["restorer"]  # a fixture
BACKENDS = ("onnx", "openvino")


@pytest.fixture
def faces(rng) -> np.ndarray:
    """Five smooth BGR uint8 frames, (5, 256, 256, 3)."""
    import cv2

    coarse = rng.integers(40, 216, (5, 16, 16, 3), np.uint8)
    return np.stack([cv2.resize(one, (256, 256), interpolation=cv2.INTER_CUBIC) for one in coarse])


def change(faces, gain, shift):
    """What ``gain * x + shift`` makes of uint8 frames, in a network with the range -1..1."""
    return ((faces / 127.5 - 1) * gain + shift + 1).clip(0, 2) * 127.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("batch", "kind"), [("N", FLOAT), (1, FLOAT), (2, HALF)], ids=["open", "one", "two half"]
)
def test_both_runtimes_run_open_and_fixed_batches(backend, batch, kind, restorer, faces):
    pytest.importorskip("openvino" if backend == "openvino" else "onnxruntime")
    path = restorer("gpen_bfr_256.onnx", 0.5, 0.25, side=256, batch=batch, kind=kind)
    for size in ("auto", 3):
        enhancer = FaceEnhancer(str(path), backend=backend, batch_size=size, **PLAIN)
        restored = enhancer(faces)
        assert np.abs(restored - change(faces, 0.5, 0.25)).max() < (0.51 if kind == FLOAT else 1.1)
        assert enhancer.stats.restored == 5
        assert enhancer.backend == (backend, "fp32")
        assert enhancer.model_name == "gpen_bfr_256"
        enhancer.engine.close()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["weight", "w", "fidelity_ratio"])
def test_the_fidelity_reaches_the_network(backend, name, restorer, faces):
    path = restorer("codeformer.onnx", 0.0, 0.0, fidelity=name, batch=1)
    for fidelity in (0.2, 0.7):
        enhancer = FaceEnhancer(str(path), fidelity=fidelity, backend=backend, **PLAIN)
        assert enhancer.engine.model.info.has_fidelity
        assert np.abs(enhancer(faces) - 127.5 * (1 + fidelity)).max() < 1
    with pytest.raises(ConfigError, match="fidelity"):
        FaceEnhancer(str(restorer()), fidelity=0.2)


def test_everything_that_a_checkpoint_has(restorer, faces):
    path = str(restorer("mine.onnx", shift=0.2, side=256, batch=1))
    half = FaceEnhancer(path, strength=0.5, **PLAIN)(faces)
    assert np.abs(half - change(faces, 1, 0.1)).max() < 1
    lower = FaceEnhancer(path, region="lower", **PLAIN)(faces)
    assert (
        np.array_equal(lower[:, :100], faces[:, :100]) and (lower[:, 200:] > faces[:, 200:]).all()
    )
    native = FaceEnhancer(str(restorer("b.onnx")), output_size="native", **PLAIN)(faces)
    assert native.shape == (5, 512, 512, 3)
    memory = FaceEnhancer(path, mode="memory", memory_budget="1GiB", **PLAIN)
    assert np.abs(memory(faces) - change(faces, 1, 0.2)).max() < 1
    assert memory.memory_plan()["measured"] >= 1
    path = str(restorer("mine.onnx", 1.2, side=256, batch=1))
    full = FaceEnhancer(path)  # stability, color match, guard
    assert full(faces).shape == faces.shape and full.stats.restored == 5
    again = full(faces)
    full.engine.unload()
    assert np.array_equal(full(faces)[1:], again[1:]) and full.stats.reloads == 1
    stream = full.stream()
    assert np.array_equal(stream(faces), FaceEnhancer(path)(faces))


def test_an_identity_changes_no_pixel(restorer, faces):
    for side, options in ((256, {}), (256, PLAIN), (512, {}), (256, {"align": "ffhq"})):
        path = restorer("gpen_bfr_256.onnx", side=side, batch=1)
        enhancer = FaceEnhancer(str(path), **options)
        landmarks = np.tile(FFHQ_512 / 2, (5, 1, 1))
        restored = enhancer(faces, landmarks=landmarks)
        assert np.abs(restored.astype(int) - faces).max() <= 1
        assert side == 512 or np.array_equal(restored, faces)


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize("value_range", ["0..1", "0..255"])
def test_an_unknown_file_needs_three_options_and_then_works(size, value_range, restorer, faces):
    gain = {"0..1": 1.0, "0..255": 255.0}[value_range]
    path = str(restorer("x.onnx", 0.0, 0.5 * gain, side="S", image="picture"))
    options = {"onnx_value_range": value_range, "onnx_template": "arcface_112_v2"}
    for given in ({}, options, {"onnx_input_size": size, "onnx_template": "ffhq_512"}):
        with pytest.raises(CheckpointError, match="Set input_size, value_range and template"):
            FaceEnhancer(path, **given)
    enhancer = FaceEnhancer(path, onnx_input_size=size, **options, **PLAIN)
    info = enhancer.engine.model.info
    assert (info.input_size, info.landmark_template, info.commercial) == (
        *(size, "arcface_112_v2", False),
    )
    # the frames are finer than the network: of their own detail a rest stays
    assert np.abs(enhancer(faces) - 127.5).mean() < 1
    with pytest.raises(ConfigError, match="onnx_template"):
        FaceEnhancer("lite", onnx_template="ffhq_512")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_published_layouts(model, restorer, own_cache):
    """By name in the cache, by path, and by its inputs under a name that says something else."""
    names = {"codeformer": "weight", "vqfr": "fidelity_ratio"}
    image = {"codeformer": "x", "vqfr": "x_lq"}.get(model.name, "input")
    layout = {"side": model.input_size, "fidelity": names.get(model.name), "image": image}
    own_cache.mkdir()
    path = restorer(model.files[-1], batch=1, **layout).rename(own_cache / model.files[-1])
    known = "codeformer.onnx" if model.name == "codeformer" else model.name
    settings = [EnhancerSettings(model=str(path)), EnhancerSettings(model_path=str(path))]
    if known == model.name:
        settings.append(EnhancerSettings(model=known))
    for each in settings:
        choice = catalog.choose(each)
        info = choice.model.info
        assert choice.weight.path == path and info.name == model.name
        assert (info.license, info.commercial) == (model.license, model.commercial)
        assert info.value_range == (-1.0, 1.0) and info.input_size == model.input_size
    assert recognize(read_graph(path), "GPEN-BFR-512.onnx").model.license in (
        *("GPEN (Alibaba) (non-commercial)", f"unknown: {model.license}"),
    )
    other = path.rename(path.with_name("gfpgan-1024.onnx"))
    info = catalog.choose(EnhancerSettings(model=str(other))).model.info
    assert (info.input_size, info.has_fidelity, info.landmark_template) == (
        *(model.input_size, model.fidelity, model.template),
    )


def test_a_hash_says_more_than_a_name(restorer, monkeypatch):
    """The published GPEN-512 under the name of a GFPGAN is not for commercial use."""
    path = restorer("gfpgan_1.4.onnx", batch=1)
    assert catalog.choose(EnhancerSettings(model=str(path))).model.info.commercial
    digest = weights.open_file(path).sha256
    entry = replace(weights.WEIGHTS.get("GPEN-BFR-512.onnx"), sha256=digest)
    monkeypatch.setitem(weights.WEIGHTS._items, entry.name, entry)
    info = catalog.choose(EnhancerSettings(model=str(path))).model.info
    assert (info.name, info.commercial) == ("gpen_bfr_512", False)


@pytest.mark.parametrize("name", ["gpen_bfr_256.onnx", "mine.onnx"])
def test_commercial_refuses_what_is_not_known_to_be_free(name, restorer):
    path = str(restorer(name, side=256))
    with pytest.raises(LicenseError, match="GPEN"):
        load(ImageSettings(model_path=path, commercial=True))
    with pytest.raises(LicenseError, match="gpen_bfr_256"):
        load(ImageSettings(model="gpen_bfr_256", commercial=True))
    free = load(ImageSettings(model_path=str(restorer()), commercial=True))
    assert free.restorer.request.info.name == "gfpgan_1.4"


def test_a_name_that_is_not_there_is_fetched_only_if_allowed(own_cache):
    with pytest.raises(MissingWeightError, match="weights fetch GPEN-BFR-256.onnx"):
        FaceEnhancer("gpen_bfr_256")
    with pytest.raises(MissingWeightError, match="no such file"):
        FaceEnhancer("no/such.onnx")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", CorruptWeightError),
        (b"<!DOCTYPE html><html>", CorruptWeightError),
        (b"version https://git-lfs.github.com/spec/v1\n", CorruptWeightError),
        (b"\x08\x08 no graph", CorruptWeightError),
        (None, CorruptWeightError),
    ],
    ids=["empty", "page", "lfs", "garbage", "truncated"],
)
def test_wrong_files(content, error, restorer):
    path = restorer()
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(error):
        FaceEnhancer(str(path))


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        ([("input", FLOAT, [1, 512, 512, 3])], [1, 512, 512, 3]),
        ([("input", DOUBLE, [1, 3, 512, 512])], [1, 3, 512, 512]),
        ([("target", FLOAT, [1, 3, 128, 128]), ("source", FLOAT, [1, 512])], [1, 3, 128, 128]),
    ],
)
def test_another_tasks_network_is_refused(inputs, shape, tmp_path):
    nodes = [onnx.helper.make_node("Identity", [inputs[0][0]], ["output"])]
    path = save_graph(
        tmp_path / "gfpgan_1.4.onnx", nodes, inputs, [("output", inputs[0][1], shape)]
    )
    with pytest.raises(CheckpointError, match="expected a face restorer"):
        FaceEnhancer(str(path))


@pytest.mark.parametrize("opset", [11, 13, 17, 21, "newest"])
def test_opsets(opset, restorer, faces):
    """From 11, in which the published files are, to the newest that the runtime loads."""
    newest = range(onnx.defs.onnx_opset_version(), 20, -1)
    for number in newest if opset == "newest" else [opset]:
        path = restorer(opset=number, shift=0.2, side=256)
        try:
            enhancer = FaceEnhancer(str(path), backend="onnx", **PLAIN)
        except RestorerError as error:
            assert number > 21 and "cannot load" in str(error)
            continue
        break
    assert np.abs(enhancer(faces) - change(faces, 1, 0.2)).max() < 1


@pytest.mark.parametrize(
    "options",
    [
        *({"backend": "torch"}, {"backend": "ncnn"}, {"engine": "official"}, {"dtype": "fp16"}),
        *({"arch": "CodeFormer"}, {"channel_multiplier": 1}),
    ],
    ids=str,
)
def test_options_that_a_file_cannot_follow(options, restorer):
    with pytest.raises(ConfigError, match=next(iter(options))):
        FaceEnhancer(str(restorer()), **options)


def test_a_graph_that_fails_is_passed_through_and_counted(tmp_path, faces):
    shape = [1, 3, 256, 256]
    nodes = [onnx.helper.make_node("AveragePool", ["input"], ["p"], kernel_shape=[256, 256])]
    nodes.append(onnx.helper.make_node("Gather", ["p", "far"], ["output"], axis=1))
    outputs = [("output", FLOAT, ["a", "b", "c", "d"])]
    inputs, constants = [("input", FLOAT, shape)], {"far": np.array([7, 7, 7])}
    path = save_graph(tmp_path / "g.onnx", nodes, inputs, outputs, constants)
    enhancer = FaceEnhancer(str(path), backend="onnx", **PLAIN)
    assert np.array_equal(enhancer(faces), faces) and enhancer.stats.failed == 5
    with pytest.raises(RestorerError, match="in ONNX Runtime"):
        FaceEnhancer(str(path), backend="onnx", on_error="raise", **PLAIN)(faces)


def test_bf16_is_checked_against_the_same_runtime_in_fp32(restorer, faces, monkeypatch):
    """A file has no torch module to compare with."""
    openvino_backend = pytest.importorskip("musetalk_enhance.backends.openvino_backend")
    path = str(restorer(side=256, shift=0.2))
    opened = []

    class Backend(openvino_backend.OpenVinoBackend):
        def __init__(self, spec, device, *, dtype="fp32"):
            super().__init__(spec, device, dtype="fp32")
            self.dtype = dtype
            opened.append(dtype)

        def run(self, batch):
            return super().run(batch) * (5.0 if self.dtype == "bf16" else 1.0)

    monkeypatch.setattr(openvino_backend, "OpenVinoBackend", Backend)
    enhancer = FaceEnhancer(path, backend="openvino", dtype="bf16", **PLAIN)
    restored = enhancer(faces)
    assert np.abs(restored - change(faces, 1, 0.2)).max() < 1
    assert enhancer.backend == ("openvino", "fp32") and opened[0] == "bf16"
    assert enhancer.engine.model.restorer.fallbacks == 1


def test_on_a_gpu_every_run_of_a_fixed_batch_is_bound(restorer, monkeypatch):
    """float16 in and out, the fidelity from the host's memory, the last run filled up."""
    path = restorer("codeformer.onnx", kind=HALF, batch=2, fidelity="w", side=512)
    file = recognize(read_graph(path)).graph_file(0.3)
    spec = SimpleNamespace(name="x", graph=file)
    backend = onnx_backend.OnnxBackend(spec, torch.device("cpu"))
    calls = []

    class Binding:
        def __getattr__(self, name):
            return lambda *words: calls.append((name, *words))

    backend._session = SimpleNamespace(
        io_binding=Binding, run_with_iobinding=lambda binding: calls.append(("run",))
    )
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    restored = backend._bound(torch.zeros(3, 3, 512, 512), (3, 512, 512))
    assert restored.shape == (3, 3, 512, 512) and restored.dtype == torch.float32
    assert [call[0] for call in calls].count("run") == 2
    inputs = [call for call in calls if call[0] == "bind_input"]
    assert [call[1:6] for call in inputs] == [
        ("input", "cuda", 0, np.float16, (2, 3, 512, 512))
    ] * 2
    constants = [call for call in calls if call[0] == "bind_cpu_input"]
    assert constants[0][1] == "w" and constants[0][2] == np.array([0.3])


def test_runs_of_a_fixed_batch():
    file = GraphFile(b"", "x", "y", batch=4)
    parts = list(file.parts(torch.arange(6)))
    assert [(part.tolist(), count) for part, count in parts] == [
        *(([0, 1, 2, 3], 4), ([4, 5, 5, 5], 2)),
    ]
    assert [len(part) for part, _ in GraphFile(b"", "x", "y").parts(np.arange(7), 3)] == [3, 3, 1]


@pytest.mark.parametrize("template", TEMPLATES)
def test_faces_are_aligned_to_the_network_s_own_template(template, faces):
    points = FFHQ_512 / 2 + (3, -4)
    crop = crop_face(faces[0], points, 256, template)
    assert np.allclose(crop.to_template, fit(points, template))
    moved = np.column_stack((points, np.ones(5))) @ crop.to_template.T
    off = np.abs(moved - template_points(template)).max()
    assert off < (1e-6 if template == "ffhq_512" else 25)  # the templates differ in proportion
    aligner = Aligner(256, template=template)
    alignment = aligner.fit(points[None], (256, 256), aspect=1.0)
    assert np.allclose(alignment.to_template[0], crop.to_template)


def test_a_mac_s_gpu_runs_it_on_the_cpu(restorer):
    path = restorer()
    choice = catalog.choose(EnhancerSettings(model=str(path), backend="onnx"))
    request = LoadRequest(choice.model.info, choice.settings, torch.device("mps"), choice.weight)
    assert OnnxRestorer(request).device == torch.device("cpu")


def test_flags_and_yaml_of_a_host(restorer, faces, tmp_path):
    """A host's own parser, its task file with the section, and the old name of the class."""
    path = restorer("x.onnx", shift=0.2, side=64, image="picture")
    parser = add_gfpgan_arguments(argparse.ArgumentParser())
    words = ["--enable_gfpgan", "--gfpgan_model_path", str(path), "--gfpgan_onnx_template"]
    args = parser.parse_args([*words, "ffhq_512", "--gfpgan_onnx_value_range=-1..1"])
    config = {"task_0": {"video_path": "a.mp4"}, "gfpgan": {"onnx_template": "arcface_128"}}
    enhancer = GFPGANEnhancer.from_args(args, config)
    info = enhancer.engine.model.info
    assert (info.landmark_template, info.value_range) == ("ffhq_512", (-1.0, 1.0))
    assert GFPGANEnhancer(model_path=str(restorer()), arch="clean").model_name == "gfpgan_1.4"
    yaml = tmp_path / "task.yaml"
    yaml.write_text(f"task_0: {{}}\ngfpgan:\n  enabled: true\n  model_path: {restorer()}\n")
    assert GFPGANEnhancer.from_config(str(yaml)).model_name == "gfpgan_1.4"
