"""The steps of a unit, and the networks they are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance import weights
from musetalk_enhance.errors import ConfigError, MediaError, MissingWeightError, WeightError
from musetalk_enhance.faces import parsing
from musetalk_enhance.jobs import ImageSettings, image_processor, model_loader, restore_images
from musetalk_enhance.jobs.folder import result_names
from musetalk_enhance.jobs.image_processor import (
    FAILED,
    NO_FACE,
    RESTORED,
    UNREADABLE,
    ProcessedImage,
    ReadUnit,
    WriteUnit,
)
from musetalk_enhance.jobs.image_restorer import FaceNote, RestoredImage
from musetalk_enhance.jobs.manifest import Manifest
from musetalk_enhance.jobs.model_loader import PARSENET, REALESRGAN, load_image_models
from musetalk_enhance.restorers import background_upsampler

from .conftest import ADDED, WHOLE, picture, put, read

UNIT = {"id": 0, "job": "x", "items": ["a.png", "b.jpg", "bad.png"]}
YUNET = WHOLE.replace(face_detector="yunet", min_face=0)


@pytest.fixture
def source(tmp_path):
    put(tmp_path / "in", "a.png", "b.jpg")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "in"


def test_reading(source):
    unit, items = ReadUnit(source)(UNIT)
    assert unit is UNIT and [item.name for item in items] == UNIT["items"]
    assert np.array_equal(items[0].image.bgr, read(source / "a.png")) and len(items[0].sha256) == 64
    assert items[1].data == (source / "b.jpg").read_bytes() and items[1].error is None
    assert items[2].image is None and "not a readable image" in items[2].error and items[2].sha256
    gone = ReadUnit(source)({**UNIT, "items": ["gone.png"]})[1][0]
    assert gone.sha256 is None and gone.error.startswith("gone.png: cannot be read")


def written(source, tmp_path, settings, *restored) -> dict:
    """The state after writing what is said to have become of a.png and b.jpg."""
    unit, items = ReadUnit(source)(UNIT)
    made = [ProcessedImage(item, one) for item, one in zip(items, [*restored, None], strict=True)]
    return WriteUnit(tmp_path / "out", settings, result_names(UNIT["items"], settings.format))(
        (unit, made)
    )


def restored(value: int, **changes) -> RestoredImage:
    return RestoredImage(picture(value), (FaceNote((0, 0, 64, 64), 1.0, **changes),))


def test_writing(source, tmp_path):
    left = RestoredImage(read(source / "b.jpg"), (FaceNote((0, 0, 9, 9), 0.9, "too small"),))
    state = written(source, tmp_path, WHOLE.replace(save_comparison=True), restored(90), left)
    items = {item["name"]: item for item in state["items"]}
    assert [items[name]["state"] for name in UNIT["items"]] == [RESTORED, NO_FACE, UNREADABLE]
    assert list(items["a.png"]["outputs"]) == ["restored/a.png", "comparisons/a_compare.jpg"]
    assert np.array_equal(read(tmp_path / "out/restored/a.png"), picture(90))
    assert (tmp_path / "out/restored/b.jpg").read_bytes() == (source / "b.jpg").read_bytes()
    assert items["bad.png"]["outputs"] == {} and items["a.png"]["size_wh"] == [64, 64]
    assert items["a.png"]["faces"][0]["state"] == "restored"
    assert Manifest(tmp_path / "out", {}, {}, [UNIT]).state(UNIT) == state


def test_failures_are_written_and_called_so(source, tmp_path):
    failed = RestoredImage(read(source / "b.jpg"), (), "the detector broke")
    items = written(source, tmp_path, WHOLE, restored(90), failed)["items"]
    assert items[1]["state"] == FAILED and items[1]["error"] == "the detector broke"
    assert (tmp_path / "out/restored/b.jpg").exists()


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_formats_and_quality(source, tmp_path, format):
    heads = {"png": b"\x89PNG", "jpg": b"\xff\xd8", "webp": b"RIFF"}
    sizes = []
    for quality in (95, 30):
        written(
            source,
            tmp_path,
            WHOLE.replace(format=format, quality=quality),
            restored(90),
            restored(60),
        )
        data = (tmp_path / f"out/restored/b.{format}").read_bytes()
        assert data.startswith(heads[format])
        sizes.append(len(data))
    assert sizes[1] == sizes[0] if format == "png" else sizes[1] < sizes[0]


def test_a_full_disk_ends_the_run(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(MediaError, match="No space left"):
        written(source, tmp_path, WHOLE, restored(90), restored(60))


def test_the_networks_of_a_job_are_what_is_asked_for(network):
    opened = load_image_models(YUNET)
    assert (
        opened.run_info.model == "fake"
        and opened.run_info.device == "cpu"
        and opened.run_info.batch_size >= 1
    )
    assert opened.run_info.helpers["face_detector"] == weights.WEIGHTS.get("YuNet").sha256
    assert (
        opened.run_info.helpers["parser"] is None
        and opened.run_info.helpers["bg_upsampler"] is None
    )
    opened.close()


class Parser:
    """Takes the left half of every face for face."""

    def __init__(self, device=None, download=False):
        self.options = (str(device), download)

    def mask(self, faces_rgb):
        mask = torch.zeros(1, 1, 512, 512)
        mask[..., :256] = 1
        return mask

    def close(self):
        pass


@pytest.mark.parametrize("upscale", [1, 2])
def test_a_parsed_mask_is_used(network, source, tmp_path, monkeypatch, upscale):
    monkeypatch.setattr(parsing, "FaceParser", Parser)
    put(source, "wide.png", size_hw=(200, 200))
    settings = YUNET.replace(face_mask="parsed", upscale=upscale)
    stats = restore_images(source, tmp_path / "parsed", settings, pictures=["wide.png"]).stats
    assert stats["helpers_sha256"]["parser"] == weights.WEIGHTS.get(PARSENET).sha256
    restore_images(
        source,
        tmp_path / "feathered",
        settings.replace(face_mask="feathered"),
        pictures=["wide.png"],
    )
    parsed, feathered = (
        read(tmp_path / name / "restored/wide.png").astype(int) for name in ("parsed", "feathered")
    )
    plain = read(source / "wide.png").astype(int)
    middle = 100 * upscale
    if upscale == 1:
        assert np.array_equal(parsed[:, middle + 3 :], plain[:, middle + 3 :])
        assert (parsed[80:120, 70:95] - plain[80:120, 70:95] >= ADDED - 1).all()
    assert np.abs(feathered - parsed)[:, middle + 3 :].max() >= ADDED - 1
    assert np.abs(feathered - parsed)[:, : middle - 3].max() <= 1


def test_auto_takes_the_parser_only_where_it_is_there_and_fits(network, monkeypatch):
    monkeypatch.setattr(parsing, "FaceParser", Parser)
    monkeypatch.setattr(weights, "find", lambda name: "there")
    assert (
        load_image_models(YUNET).run_info.helpers["parser"] is None
    )  # the fake wants no template, as lite
    from dataclasses import replace

    from . import conftest

    monkeypatch.setattr(conftest, "SMALL", replace(conftest.SMALL, landmark_template="ffhq_512"))
    assert (
        load_image_models(YUNET).run_info.helpers["parser"] == weights.WEIGHTS.get(PARSENET).sha256
    )
    assert (
        load_image_models(YUNET.replace(commercial=True)).run_info.helpers["parser"] is None
    )  # its licence says no
    monkeypatch.setattr(weights, "find", lambda name: None)
    assert load_image_models(YUNET).run_info.helpers["parser"] is None


def test_a_parser_that_is_asked_for_is_there_or_an_error(network):
    with pytest.raises(WeightError, match=f"weights fetch {PARSENET}"):
        load_image_models(YUNET.replace(face_mask="parsed"))
    with pytest.raises(ConfigError, match="face_mask"):
        load_image_models(YUNET.replace(face_mask="parsed", commercial=True))


class Upsampler:
    """Enlarges by repetition and takes 10 off."""

    def __init__(self, device=None, download=False):
        self.device = device

    def enlarge(self, picture_bgr, scale):
        return picture_bgr.repeat(scale, 0).repeat(scale, 1) - 10

    def close(self):
        pass


@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_a_background_is_restored(network, source, tmp_path, monkeypatch, upscale):
    monkeypatch.setattr(background_upsampler, "BackgroundUpsampler", Upsampler)
    put(source, "wide.png", size_hw=(64, 200))
    settings = YUNET.replace(bg_upsampler="realesrgan", upscale=upscale)
    stats = restore_images(source, tmp_path / "out", settings, pictures=["wide.png"]).stats
    assert stats["helpers_sha256"]["bg_upsampler"] == weights.WEIGHTS.get(REALESRGAN).sha256
    made, plain = (
        read(tmp_path / "out/restored/wide.png").astype(int),
        read(source / "wide.png").astype(int),
    )
    assert made.shape == (64 * upscale, 200 * upscale, 3)
    assert np.array_equal(made[:, : 60 * upscale : upscale], plain[:, :60].repeat(upscale, 0) - 10)
    assert np.abs(made[32 * upscale, 100 * upscale] - plain[32, 100] - ADDED).max() <= 2


def test_a_picture_without_a_face_has_its_background_restored_too(
    network, source, tmp_path, monkeypatch
):
    import cv2

    monkeypatch.setattr(background_upsampler, "BackgroundUpsampler", Upsampler)
    blue = np.full((64, 64, 3), (200, 20, 20), np.uint8)
    cv2.imwrite(str(source / "blue.png"), blue)
    settings = YUNET.replace(bg_upsampler="realesrgan")
    restore_images(source, tmp_path / "out", settings, pictures=["blue.png"])
    assert np.array_equal(read(tmp_path / "out/restored/blue.png"), blue - 10)


def test_an_upsampler_that_is_missing_is_an_error(network):
    with pytest.raises(WeightError, match=f"weights fetch {REALESRGAN}"):
        load_image_models(YUNET.replace(bg_upsampler="realesrgan"))


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("yunet", "YuNet"),
        ("retinaface", "RetinaFace-R50"),
        ("retinaface-mobile", "RetinaFace-mobile0.25"),
    ],
)
def test_a_detector_that_is_missing_says_what_to_fetch_before_anything_is_loaded(
    monkeypatch, name, weight
):
    monkeypatch.setattr(
        model_loader, "load", lambda *_, **__: pytest.fail("a network was loaded first")
    )
    with pytest.raises(MissingWeightError, match=f"weights fetch {weight}"):
        load_image_models(ImageSettings(face_detector=name))


@pytest.mark.parametrize(
    ("picked", "expected"), [("cuda:0", "cuda:0"), ("cpu", "cpu"), ("mps", None)]
)
def test_the_detector_runs_where_the_restorer_does(monkeypatch, picked, expected):
    """Also with `auto`: on two devices it may find a face at two places, and the same job would
    have two ends."""
    asked = []
    monkeypatch.setattr(
        model_loader,
        "pick_device",
        lambda word, allow_cpu: asked.append(word) or torch.device(picked),
    )
    monkeypatch.setattr(
        model_loader, "make_detector", lambda name, path, **options: options["device"]
    )
    device = model_loader.load_detector(ImageSettings(face_detector="retinaface", device="auto"))
    assert asked == ["auto"] and (device if device is None else str(device)) == expected


def test_threads_are_as_before(network, monkeypatch):
    from .test_models import run_info

    threads = torch.get_num_threads()
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    load_image_models(WHOLE, run_info(threads=3)).close()
    assert set_to == [3, threads], "afterwards the process has its own number again"
    assert image_processor.ImageProcessorFactory(WHOLE).run_info is None
