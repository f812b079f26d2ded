"""The services one by one, and in a row: pixels, masks, reports, requests."""

from __future__ import annotations

import ast
import base64
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import (
    AnalysisError,
    CheckpointError,
    ConfigError,
    FrameError,
    MediaError,
    MissingWeightError,
)
from musetalk_enhance.faces.detect import FFHQ_512, YuNet
from musetalk_enhance.faces.occlusion import feathered
from musetalk_enhance.faces.paste import Paste, crop_face, paste_faces
from musetalk_enhance.media import decode_image, read_image, write_image
from musetalk_enhance.onnx_pipeline import (
    MODELS,
    Inference,
    Pipeline,
    PipelineOptions,
    Postprocess,
    Preprocess,
    Services,
    postprocess,
)
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.lite import LiteRestorer
from tests.conftest import ROOT
from tests.onnx_pipeline.conftest import FLOAT, onnx, save_graph

SERVICES = ("preprocess", "inference", "postprocess")


def decoded(result) -> np.ndarray:
    return decode_image(base64.b64decode(result["image"]["base64_png"]), "result").bgr


def test_the_services_do_not_know_one_another():
    for name in SERVICES:
        path = ROOT / "musetalk_enhance" / "onnx_pipeline" / f"{name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not modules & {*SERVICES, "pipeline"}, name


@pytest.mark.parametrize("side", [256, 512])
def test_an_identity_changes_no_pixel(side, restorer, portrait, face):
    """Whatever the template, size and rotation; also where faces overlap or leave the image."""
    other = {"kps": (np.array(face["landmark_5"]) * 1.4 + (20, -120)).tolist()}
    result = Pipeline(portrait, [face, other], model=str(restorer(side=side)), threads=1).run()
    assert np.array_equal(decoded(result), portrait)
    assert result["status"] == "unchanged"
    assert result["counts"] == {
        **{"faces": 2, "restored": 0, "unchanged": 2, "failed": 0, "skipped": 0}
    }


@pytest.mark.parametrize("value_range", ["0..1", "-1..1", "0..255"])
def test_a_constant_color_comes_back_in_every_range(value_range, restorer, face):
    """Another range than the model's would change it: the gain 0 returns the shift."""
    image = np.full((480, 640, 3), (10, 130, 240), np.uint8)
    path = restorer("mine.onnx", image="picture", side=128)
    options = {"value_range": value_range, "template": "arcface_112_v2", "threads": 1}
    assert np.array_equal(decoded(Pipeline(image, face, model=str(path), **options).run()), image)
    path = restorer("mine.onnx", image="picture", side=128, gain=0, shift=1.0)
    restored = decoded(Pipeline(image, face, model=str(path), **options).run())
    center = restored[240, 320].tolist()
    assert center == {"0..1": [255] * 3, "-1..1": [255] * 3, "0..255": [1] * 3}[value_range]


def test_only_the_face_changes_and_blend_halves_it(restorer, portrait, face):
    path = str(restorer(shift=0.4))
    images = {
        blend: decoded(Pipeline(portrait, face, model=path, blend=blend, threads=1).run())
        for blend in (0, 50, 100)
    }
    assert np.array_equal(images[0], portrait)
    full, half = (images[blend].astype(int) - portrait for blend in (100, 50))
    assert abs(full[240, 320].max() - 51) <= 1 and abs(half[240, 320].max() - 25.5) <= 1.5
    matrix = Preprocess(MODELS.get("gfpgan_1.4")).run(portrait, face).faces[0].affine_matrix
    ys, xs = np.nonzero(full.any(axis=2))
    corners = np.column_stack((xs, ys, np.ones(len(xs)))) @ matrix.T
    assert corners.min() > -2 and corners.max() < 514


def test_an_image_prepared_in_another_thread_is_restored_alike(restorer, portrait, face):
    from concurrent.futures import ThreadPoolExecutor

    pipeline = Pipeline(portrait, face, model=str(restorer(shift=0.4)), threads=1)
    expected = pipeline.run()
    with ThreadPoolExecutor(1) as pool:
        prepared = pool.submit(pipeline.prepare).result()
    assert prepared is pipeline
    assert np.array_equal(decoded(pipeline.run()), decoded(expected))
    pipeline.image = portrait[:, ::-1]  # a run after that prepares anew
    assert not np.array_equal(decoded(pipeline.run()), decoded(expected))


def rest(face, portrait):
    """A prepared face, and white in the network's range."""
    prepared = Preprocess(MODELS.get("gfpgan_1.4")).run(portrait, face)
    return prepared, np.ones_like(prepared.batch)


@pytest.mark.parametrize("region", ["lower", "mouth"])
def test_regions(region, portrait, face):
    prepared, white = rest(face, portrait)
    model = MODELS.get("gfpgan_1.4")
    image = Postprocess(model, region=region).run(portrait, prepared.faces, white).image_bgr
    eyes, mouth = (np.array(face["landmark_5"])[part].mean(axis=0) for part in ([0, 1], [3, 4]))
    at = [tuple(point.round().astype(int)[::-1]) for point in (eyes, mouth)]
    assert (image[at[0]] == portrait[at[0]]).all() and (image[at[1]] == 255).all()
    chin = tuple((eyes + 1.75 * (mouth - eyes)).round().astype(int)[::-1])
    jaw = tuple((mouth + 1.2 * (np.array(face["landmark_5"][3]) - mouth) * 2).astype(int)[::-1])
    assert (image[chin] == 255).all() == (region == "lower")
    assert (image[jaw] == 255).all() == (region == "lower")


def test_what_is_covered_stays_and_its_share_is_reported(portrait, face):
    prepared, white = rest(face, portrait)
    visibility = np.ones((1, 256, 256), np.float32)
    visibility[:, :, :128] = 0
    composite = Postprocess(MODELS.get("gfpgan_1.4")).run(
        portrait, prepared.faces, white, visibility
    )
    change = composite.image_bgr != portrait
    ys, xs = np.nonzero(change.any(axis=2))
    x = np.column_stack((xs, ys, np.ones(len(xs)))) @ prepared.faces[0].affine_matrix[0]
    assert x.min() > 250 and x.max() > 450
    assert abs(composite.faces[0].occlusion_share - 0.5) < 0.01


def test_the_feather_is_that_of_torch(rng):
    mask = cv2.resize(rng.random((6, 6), np.float32), (256, 256)).round().astype(np.float32)
    expected = feathered(torch.from_numpy(mask)[None, None])[0, 0].numpy()
    assert np.abs(postprocess._feathered(mask) - expected).max() < 1e-4


def xseg(path, layout="NHWC"):
    """An occluder whose mask is the red of BGR: shaped as dfl_xseg."""
    shape, axis = ([1, 256, 256, 3], 3) if layout == "NHWC" else ([1, 3, 256, 256], 1)
    out = [side if side != 3 else 1 for side in shape]
    nodes = [onnx.helper.make_node("Gather", ["in_face:0", "which"], ["out_mask:0"], axis=axis)]
    inputs, outputs = [("in_face:0", FLOAT, shape)], [("out_mask:0", FLOAT, out)]
    return save_graph(path, nodes, inputs, outputs, {"which": np.array([2])})


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_an_occluder_with_a_known_answer(layout, tmp_path, restorer, face):
    """The left half of the image has no red, which this occluder calls covered."""
    image = np.full((480, 640, 3), (0, 0, 255), np.uint8)
    image[:, :320] = (90, 0, 0)
    occluder = str(xseg(tmp_path / "xseg.onnx", layout))
    path = str(restorer(gain=0, shift=0.0))
    level = {"landmark_5": (FFHQ_512 / 2 + (192, 112)).tolist()}  # not rotated
    result = Pipeline(image, level, model=path, occluder=occluder, threads=1).run()
    share = result["faces"][0]["occlusion_share"]
    restored = decoded(result)
    assert abs(share - 0.5) < 0.02
    assert np.array_equal(restored[:, :318], image[:, :318])
    assert (restored[240, 380] == 128).all()
    with pytest.raises(CheckpointError, match="an occluder"):
        Services.open(PipelineOptions(model=path, occluder=path, threads=1))


def test_a_face_that_the_network_fails_on_stays(restorer, portrait, face):
    path = str(restorer(shift=float("nan")))
    result = Pipeline(portrait, [face, "no face"], model=path, threads=1).run()
    assert np.array_equal(decoded(result), portrait)
    assert [each["status"] for each in result["faces"]] == ["failed", "skipped"]
    assert "NaN" in result["faces"][0]["detail"] and result["skipped_reasons"] == {"form": 1}


def test_the_result_is_json_and_the_file_is_written(tmp_path, restorer, portrait, face):
    source, output = tmp_path / "in.png", tmp_path / "out.png"
    write_image(source, portrait)
    path = restorer(shift=0.2)
    pipeline = Pipeline(source, face, output=output, model=str(path), threads=1)
    result = json.loads(json.dumps(pipeline.run(), allow_nan=False))
    assert result["image"] == {"path": str(output)} and result["size_wh"] == [640, 480]
    (entry,) = result["faces"]
    points = np.column_stack((entry["landmark_5"], np.ones(5))) @ np.array(entry["affine_matrix"]).T
    assert np.abs(points - FFHQ_512).max() < 1e-3
    assert (entry["status"], entry["blend"], entry["score"]) == ("restored", 100, 0.9)
    assert result["model"]["file"] == path.name and len(result["model"]["sha256"]) == 64
    assert result["model"]["provider"] == "cpu" and result["model"]["license"]
    assert all(value >= 0 for value in result["timings_ms"].values())
    changed = Pipeline(portrait, face, model=str(path), threads=1).run()
    assert np.array_equal(read_image(output), decoded(changed))
    assert np.array_equal(read_image(source), portrait)


def test_metadata_alpha_and_rotation_are_kept(tmp_path, restorer, portrait, face):
    from PIL import Image

    rgba = np.dstack((portrait[..., ::-1], np.full(portrait.shape[:2], 77, np.uint8)))
    exif = Image.Exif()
    exif[0x010E] = "a portrait"
    Image.fromarray(rgba).save(tmp_path / "in.png", exif=exif)
    output = tmp_path / "out.png"
    Pipeline(
        tmp_path / "in.png", face, output=output, model=str(restorer(shift=1)), threads=1
    ).run()
    image = Image.open(output)
    assert image.getexif()[0x010E] == "a portrait" and np.asarray(image)[..., 3].min() == 77


def test_requests(tmp_path, restorer, portrait, face):
    source, model = tmp_path / "in.png", str(restorer(shift=0.2))
    write_image(source, portrait)
    encoded = base64.b64encode(source.read_bytes()).decode()
    expected = decoded(Pipeline(source, face, model=model, threads=1).run())
    for image in (str(source), encoded, f"data:image/png;base64,{encoded}", portrait):
        args = {"input_image_1": image, "analysis": {"faces": [face]}, "model": model}
        result = Pipeline.from_request({"args": args}, threads=1).run()
        assert np.array_equal(decoded(result), expected)
    services = Services.open(PipelineOptions(model=model, threads=1))
    args = {"input_image_1": str(source), "analysis": "[]"}
    assert Pipeline.from_request({"args": args}, services=services).run()["status"] == "no_face"
    for request in ({}, {"args": {}}, [], {"args": {"input_image_1": None}}):
        with pytest.raises(ConfigError, match="input_image_1"):
            Pipeline.from_request(request)
    with pytest.raises(ConfigError, match="unknown option 'blnd'.*Did you mean 'blend'"):
        Pipeline.from_request({"args": {**args, "blnd": 3}})
    with pytest.raises(MediaError, match="neither a file nor base64"):
        Pipeline.from_request({"args": {"input_image_1": "no-such.png"}}, services=services)


def test_what_is_refused(tmp_path, restorer, portrait, face):
    model = str(restorer())
    services = Services.open(PipelineOptions(model=model, threads=1))
    with pytest.raises(ConfigError, match="blend: invalid value 101"):
        Pipeline(portrait, model=model, blend=101)
    with pytest.raises(ConfigError, match="no option beside open services"):
        Pipeline(portrait, services=services, blend=3)
    with pytest.raises(MediaError, match=r"gone\.png"):
        Pipeline(tmp_path / "gone.png", face, services=services).run()
    with pytest.raises(FrameError):
        Pipeline(portrait[..., 0], face, services=services).run()
    with pytest.raises(AnalysisError):
        Pipeline(portrait, {"people": 3}, services=services).run()
    with pytest.raises(MissingWeightError, match="weights fetch YuNet"):
        Pipeline(portrait, services=services).run()
    assert not list(tmp_path.glob("*.png"))


@pytest.fixture(scope="module")
def lite_file(tmp_path_factory):
    from musetalk_enhance.cli import main

    path = tmp_path_factory.mktemp("lite") / "lite.onnx"
    assert main(["export", "lite", str(path)]) == 0
    return path


def lite_network() -> torch.nn.Module:
    settings = EnhancerSettings()
    request = LoadRequest(LiteRestorer.info, settings, torch.device("cpu"))
    return LiteRestorer.network(request).module


def test_the_exported_lite_gives_torchs_pixels(lite_file, portrait, face):
    """Within 1/255 on an aligned face; the file states its range, license and name."""
    inference = Inference(lite_file, threads=1)
    model = inference.model
    assert (model.name, model.license, model.value_range) == ("lite", "Apache-2.0", (0.0, 1.0))
    prepared = Preprocess(model).run(portrait, face)
    restored = inference.run(prepared.batch).restored
    with torch.no_grad():
        expected = lite_network()(torch.from_numpy(prepared.batch)).numpy()
    assert restored.shape == (1, 3, 512, 512)
    pixels = [np.rint(values.clip(0, 1) * 255) for values in (restored, expected)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


@pytest.mark.shared
@pytest.mark.parametrize("name", ["s0", "s10"])
def test_portraits_get_the_pixels_of_the_torch_path(name, lite_file, shared):
    """Detected, aligned, restored and pasted by the library's other path, step by step."""
    detector_path = shared / "weights" / "face_detection_yunet_2023mar.onnx"
    detector = YuNet(detector_path)
    portrait = cv2.imread(str(shared / "data" / "portraits" / f"{name}.jpg"))
    scale = 640 / max(portrait.shape[:2])
    image = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    expected, pastes = image.copy(), []
    for face in detector.detect(image):
        crop = crop_face(image, face.landmarks, 256)
        faces_rgb = torch.from_numpy(crop.aligned[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            restored = (lite_network()(faces_rgb)[0].clamp(0, 1) * 255).round().byte()
        pastes.append(Paste(crop, restored.permute(1, 2, 0).numpy()[..., ::-1].copy()))
    paste_faces(expected, pastes)
    options = PipelineOptions(model=str(lite_file), detector_path=str(detector_path), threads=1)
    services = Services.open(options)
    result = Pipeline(image, services=services).run()
    assert result["counts"]["restored"] == len(pastes) >= 1
    assert np.abs(decoded(result).astype(int) - expected).max() <= 1
    assert np.abs(decoded(result).astype(int) - image).max() > 10
    again = Pipeline(image, {"faces": result["faces"]}, services=services).run()
    assert np.array_equal(decoded(again), decoded(result))


@pytest.mark.parametrize("command", ["pipeline", "command line"])
def test_it_runs_without_torch(command, tmp_path, restorer, portrait, face):
    source, analysis = tmp_path / "in.png", tmp_path / "in.json"
    write_image(source, portrait)
    analysis.write_text(json.dumps(face))
    model, output = str(restorer(shift=0.2)), str(tmp_path / "out.png")
    occluder = str(xseg(tmp_path / "xseg.onnx"))
    words = ["onnx", str(source), "--analysis", str(analysis), "--output", output, "--model", model]
    words += ["--occluder", occluder, "--threads", "1", "--json", str(tmp_path / "out.json")]
    arguments = {"output": output, "model": model, "threads": 1, "occluder": occluder}
    run = (
        f"from musetalk_enhance.onnx_pipeline import Pipeline\n"
        f"print(Pipeline({str(source)!r}, {str(analysis)!r}, **{arguments}).run()['status'])"
        if command == "pipeline"
        else f"from musetalk_enhance.cli import main\nassert main({words}) == 0"
    )
    heavy = "torch omegaconf spandrel av torchvision safetensors".split()
    code = f"import sys\n{run}\nprint([name for name in {heavy} if name in sys.modules])"
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "[]"
    assert not np.array_equal(read_image(output), portrait)
