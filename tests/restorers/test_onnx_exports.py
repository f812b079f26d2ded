"""Real ONNX files, made here: our exports and GPEN's layout, in every place that runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance import FaceEnhancer
from musetalk_enhance.backends import onnx_export
from musetalk_enhance.cli import main
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.faces.paste import crop_by_matrix
from musetalk_enhance.jobs import ImageSettings, VideoSettings, restore_images, restore_video
from musetalk_enhance.media import VideoWriter, read_frames, read_image
from musetalk_enhance.onnx_pipeline import Pipeline
from musetalk_enhance.restorers import catalog
from musetalk_enhance.weights import open_file
from musetalk_enhance.weights.onnx_graph import read_graph
from musetalk_enhance.weights.onnx_models import recognize
from tests.conftest import PLAIN
from tests.gpen_network import save_gpen
from tests.hosts.test_musetalk import host, run
from tests.restorers.test_codeformer import random_codeformer

__all__ = ["host"]  # a fixture
PUBLISHED_GPEN_256 = 75_715_262
"""Bytes of GPEN-BFR-256.onnx."""


def exported(folder: Path, name: str, **options) -> Path:
    """The file that `musetalk-enhance export` writes."""
    path = folder / f"{name}.onnx"
    choice = catalog.choose(EnhancerSettings(trust_unpinned=True, **options))
    license = choice.model.info.license
    assert onnx_export.export(choice.network(), path, facts={"licence": license}) < 1e-4
    return path


def largest_difference(actual: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(actual.astype(int) - expected).max())


@pytest.fixture(scope="module")
def lite(tmp_path_factory) -> Path:
    return exported(tmp_path_factory.mktemp("lite"), "mine", model="lite")


@pytest.fixture(scope="module")
def gpen(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    path = tmp_path_factory.mktemp("gpen") / "gpen_bfr_256.onnx"
    return path, save_gpen(path)


@pytest.fixture(scope="module")
def crops(soft) -> np.ndarray:
    """Three frames of the talking head as a host hands them over: BGR uint8 (3, 256, 256, 3)."""
    bgr = (soft[:3].flip(1) * 255).round().byte().permute(0, 2, 3, 1)
    return np.ascontiguousarray(bgr.numpy())


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_lite_s_export_is_lite(backend, lite, crops):
    """With all that is around a network, and its native 512 px."""
    enhancer = FaceEnhancer(str(lite), backend=backend, output_size="native")
    expected = FaceEnhancer("lite", backend="torch", output_size="native")
    info, model = enhancer.engine.model.info, expected.engine.model.info
    for name in ("name", "input_size", "output_size", "value_range", "license", "commercial"):
        assert getattr(info, name) == getattr(model, name)
    assert largest_difference(enhancer(crops), expected(crops)) <= 1
    assert enhancer.stats.restored == expected.stats.restored == 3


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_gpen_s_published_layout(backend, gpen, crops):
    """The fast model for 256 px: its size, its inputs, its pixels through the library."""
    path, network = gpen
    assert abs(path.stat().st_size / PUBLISHED_GPEN_256 - 1) < 0.01
    (image,) = (graph := read_graph(path)).inputs
    assert (image.name, image.shape, graph.outputs[0].shape) == ("input", *[(1, 3, 256, 256)] * 2)
    assert recognize(graph).model.name == "gpen_bfr_256"
    inputs = torch.from_numpy(crops[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = torch.cat([network(face[None]) for face in inputs])
    expected = ((expected.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()[..., ::-1]
    restored = FaceEnhancer(str(path), backend=backend, **PLAIN)(crops)
    assert np.abs(restored - expected).max() < 0.6 and expected.std() > 20


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_gfpgan_s_export_is_gfpgan(backend, checkpoint, tmp_path, crops):
    source = str(checkpoint("clean"))
    path = exported(tmp_path, "gfpgan", model=source)
    options = {"trust_unpinned": True, "output_size": "native", **PLAIN}
    expected = FaceEnhancer(source, backend="torch", dtype="fp32", **options)(crops)
    restored = FaceEnhancer(str(path), backend=backend, **options)(crops)
    print(f"GFPGAN, {backend}: at most {largest_difference(restored, expected)}/255")
    assert largest_difference(restored, expected) <= 1 and expected.std() > 5


@pytest.mark.slow
@pytest.mark.long
def test_codeformer_s_export_is_codeformer(tmp_path, crops):
    """Where the same codes win; on these inputs they all do."""
    source_path = tmp_path / "codeformer.pth"
    torch.save({"params_ema": random_codeformer()}, source_path)
    path = exported(tmp_path, "codeformer", model=str(source_path), arch="CodeFormer")
    options = {"output_size": "native", **PLAIN}
    given = {"arch": "CodeFormer", "trust_unpinned": True, "backend": "torch", "dtype": "fp32"}
    source = FaceEnhancer(str(source_path), **given, **options)
    expected = source(crops[:2])
    enhancer = FaceEnhancer(str(path), backend="onnx", **options)
    restored = enhancer(crops[:2])
    print(f"CodeFormer: at most {largest_difference(restored, expected)}/255")
    assert largest_difference(restored, expected) <= 1 and expected.std() > 5
    assert not enhancer.engine.model.info.commercial  # its license is in the file


@pytest.mark.shared
def test_images_and_the_pipeline_restore_a_portrait_alike(lite, shared, tmp_path):
    """`images` with the ONNX file, `images` with the model itself, and the torch-free pipeline."""
    source, yunet = tmp_path / "in", shared / "weights" / "face_detection_yunet_2023mar.onnx"
    source.mkdir()
    portrait = read_image(shared / "data" / "portraits" / "s5.jpg")
    scale = 512 / max(portrait.shape)
    small = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(source / "a.png"), small)
    common = {"detector_path": str(yunet), "face_mask": "feathered", "format": "png"}
    results = {}
    for name, options in {
        "file": {"model_path": str(lite)},
        "model": {"model": "lite", "backend": "torch"},
    }.items():
        settings = ImageSettings(**common, **options)
        result = restore_images(source, tmp_path / name, settings)
        assert result.errors == 0 and result.stats["faces"]["restored"] == 1
        results[name] = read_image(tmp_path / name / "restored" / "a.png")
    assert largest_difference(results["file"], results["model"]) <= 1
    assert largest_difference(results["file"], small) > 5
    output = tmp_path / "out.png"
    report = Pipeline(
        small, model=str(lite), detector_path=str(yunet), output=output, threads=1
    ).run()
    assert report["counts"]["restored"] == 1
    assert largest_difference(read_image(output), small) > 5


def test_a_video_with_an_onnx_file(gpen, crops, tmp_path, shared):
    clip = tmp_path / "in.mp4"
    with VideoWriter(clip, 25, (256, 256), crf=12) as writer:
        for at, frame in enumerate(read_frames(shared / "data/clips/d18.mp4")):
            if at == 4:
                break
            writer.write(cv2.resize(frame, (256, 256), interpolation=cv2.INTER_AREA))
    yunet = shared / "weights" / "face_detection_yunet_2023mar.onnx"
    settings = VideoSettings(
        model_path=str(gpen[0]), detector_path=str(yunet), backend="onnx", guard=False
    )
    result = restore_video(clip, tmp_path / "out.mp4", settings)
    assert result.stats["totals"]["faces_restored"] == 4
    assert result.stats["job"]["model_that_ran"]["model"] == "gpen_bfr_256"
    assert len(list(read_frames(tmp_path / "out.mp4"))) == 4


def test_a_host_s_script_with_the_file_in_its_yaml(host, lite):  # noqa: F811
    """MuseTalk's task file names the ONNX file; the script itself knows nothing of it."""
    shutil.copy(lite, host / "restorer.onnx")
    (host / "configs/onnx.yaml").write_text(
        "task_0:\n  video_path: a.mp4\ngfpgan:\n  enabled: true\n  model_path: restorer.onnx\n"
        "  output_size: native\n  region: lower\n  backend: onnx\n"
    )
    code, seen = run(
        "scripts/inference.py", "--inference_config", "configs/onnx.yaml", "--batch_size", "3"
    )
    assert code == 0 and [row["task"] for row in seen["seen"]] == ["task_0"]
    assert seen["seen"][0]["shape"] == [3, 512, 512, 3]
    flags = ["--enable_gfpgan", "--gfpgan_model_path", "restorer.onnx", "--gfpgan_output_size"]
    code, seen = run("-m", "scripts.inference", *flags, "native", "--gfpgan_backend", "openvino")
    assert code == 0 and seen["seen"][0]["shape"] == [2, 512, 512, 3]


def test_the_pipeline_agrees_with_torch(lite, crops):
    """One face that fills its image: the network's own pixels, aligned by the identity."""
    from musetalk_enhance.onnx_pipeline import Inference

    inference = Inference(lite, threads=1)
    matrix = np.array([(2.0, 0, 0), (0, 2.0, 0)])
    crop = crop_by_matrix(crops[0], matrix, 256).aligned
    assert np.array_equal(crop, crops[0])
    values = crop[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
    restored = inference.run(values).restored
    network = catalog.choose(EnhancerSettings(model="lite")).network().module
    with torch.no_grad():
        expected = network(torch.from_numpy(values)).numpy()
    assert np.abs(restored - expected).max() < 1 / 255


def test_the_command_models_lists_what_is_there(own_cache, gpen, capsys):
    own_cache.mkdir()
    shutil.copy(gpen[0], own_cache / "GPEN-BFR-256.onnx")
    assert main(["models", "g*", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["gpen_bfr_256"]["status"] == "ready"
    assert "for crops of 256 px" in rows["gpen_bfr_256"]["summary"]
    assert rows["gpen_bfr_512"]["status"] == "no weight"
    assert open_file(own_cache / "GPEN-BFR-256.onnx").entry is None
