"""The options of a job: each is checked, each is heard, and none contradicts another in silence."""

from __future__ import annotations

import dataclasses

import pytest

from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import ConfigError
from musetalk_enhance.jobs.options import (
    FaceSettings,
    ImageSettings,
    VideoSettings,
    option_named,
)


def test_defaults_are_the_issue_s():
    settings = ImageSettings()
    assert (settings.model, settings.fidelity, settings.face_detector, settings.upscale) == (
        "auto",
        None,
        "yunet",
        1,
    )
    assert (settings.guard, settings.sharpness_gate, settings.only_center_face) == (
        False,
        False,
        False,
    )
    assert all(
        option.metadata["help"] and option.metadata["allowed"]
        for option in dataclasses.fields(ImageSettings)
    )


@pytest.mark.parametrize("name", [option.name for option in dataclasses.fields(ImageSettings)])
def test_nonsense_is_refused_by_name(name):
    if name in ("model", "model_path", "detector_path", "occluder", "face"):
        nonsense = 3.5  # any text may be a path
    else:
        nonsense = "nonsense"
    with pytest.raises(ConfigError) as caught:
        ImageSettings(**{name: nonsense})
    assert caught.value.key == name


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"upscale": 3}, "upscale"),
        ({"upscale": 0}, "upscale"),
        ({"fidelity": 1.5}, "fidelity"),
        ({"fidelity": float("nan")}, "fidelity"),
        ({"strength": -0.1}, "strength"),
        ({"quality": 0}, "quality"),
        ({"min_face": -1}, "min_face"),
        ({"detection_size": 20}, "detection_size"),
        ({"model": "lite", "model_path": "a.pth"}, "model_path"),
        ({"face_detector": "none", "detector_path": "a.onnx"}, "detector_path"),
        ({"face_detector": "none", "only_center_face": True}, "only_center_face"),
        ({"face_detector": "none", "face_mask": "parsed"}, "face_mask"),
        ({"face_detector": "none", "bg_upsampler": "realesrgan"}, "bg_upsampler"),
        ({"face_detector": "none", "min_face": 100}, "min_face"),
        ({"face_detector": "none", "detection_size": 640}, "detection_size"),
        ({"face_detector": "none", "face": "a.jpg"}, "face"),
        ({"only_center_face": True, "face": "a.jpg"}, "face"),
        ({"face": []}, "face"),
        ({"face": ["a.jpg", " "]}, "face"),
    ],
)
def test_impossible_and_contradicting_values(options, key):
    with pytest.raises(ConfigError) as caught:
        ImageSettings(**options)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"at": "3"}, "at"),
        ({"at": "1,2,3"}, "at"),
        ({"at": "nan,2"}, "at"),
        ({"at": "-1,2"}, "at"),
        ({"at": 7}, "at"),
        ({"at": "1,2", "only_center_face": True}, "at"),
        ({"at": "1,2", "face": "a.jpg"}, "at"),
    ],
)
def test_points_that_are_none_or_contradict(options, key):
    with pytest.raises(ConfigError) as caught:
        VideoSettings(**options)
    assert caught.value.key == key


def test_faces_and_points(tmp_path, monkeypatch):
    assert VideoSettings(at="12, 3.5").at == VideoSettings(at=(12, 3.5)).at == (12, 3.5)
    assert VideoSettings(at="1,2").decisive()["at"] == [1, 2], "as the manifest gives it back"
    assert VideoSettings(face="a.jpg").face == ("a.jpg",)
    settings = ImageSettings(face=["a.jpg", tmp_path / "b.jpg"])
    monkeypatch.chdir(tmp_path)
    assert settings.absolute().face == (str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg"))
    assert "face" not in settings.decisive(), "the photos are told by their content"


def test_texts_of_flags_are_understood():
    settings = ImageSettings(
        upscale="2", fidelity="0.9", only_center_face="yes", face_detector="YuNet", min_face="64"
    )
    assert (settings.upscale, settings.fidelity, settings.only_center_face) == (2, 0.9, True)
    assert settings.face_detector == "yunet" and settings.min_face == 64
    assert ImageSettings(fidelity="auto").fidelity is None


def test_replace_checks_anew():
    assert ImageSettings().replace(upscale=4).upscale == 4
    assert (
        option_named(ImageSettings, "upscale").metadata["allowed"] == "1 | 2 | 4"
    )  # as --help says
    with pytest.raises(ConfigError):
        ImageSettings().replace(upscale=3)


def test_every_option_of_the_enhancer_reaches_it():
    values = {
        "strength": 0.5, "device": "cpu", "backend": "torch", "dtype": "fp32", "allow_cpu": True,
        "color_match": False, "guard": True, "sharpness_gate": True, "mode": "memory",
        "batch_size": 3,
        "memory_budget": "1GiB", "download": True, "trust_unpinned": True,
        "arch": "CodeFormer", "provider": "auto",
    }  # fmt: skip
    made = ImageSettings(**values).enhancer(model="lite")
    assert isinstance(made, EnhancerSettings) and made.enabled and made.model == "lite"
    for name, value in values.items():
        assert getattr(made, name) == getattr(ImageSettings(**values), name), (name, value)


def test_a_video_s_mouths_may_be_matched_to_their_faces():
    assert VideoSettings(match="source").enhancer(model="lite").match == "source"
    assert VideoSettings(match="source").decisive() != VideoSettings().decisive()
    with pytest.raises(ConfigError, match="match"):
        VideoSettings(match="face")


def test_what_decides_the_pixels():
    decisive = ImageSettings().decisive()
    assert {
        "strength",
        "upscale",
        "format",
        "quality",
        "face_detector",
        "save_comparison",
    } <= decisive.keys()
    assert (
        not {"model", "device", "mode", "download", "fidelity"} & decisive.keys()
    )  # facts tell these exactly
    assert (
        ImageSettings(mode="memory").decisive()
        == decisive
        != ImageSettings(strength=0.5).decisive()
    )


def test_options_by_name():
    assert option_named(ImageSettings, "face-detector").name == "face_detector"
    with pytest.raises(ConfigError, match="strength"):
        option_named(FaceSettings, "strenght")
