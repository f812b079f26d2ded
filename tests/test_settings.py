"""One schema: defaults, YAML, flags, and errors that name key, value and what is allowed."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.config.flags import add_gfpgan_arguments, flag_of, given_flags
from musetalk_enhance.config.loader import merge, plain, section_of
from musetalk_enhance.config.settings import EnhancerSettings, options
from musetalk_enhance.errors import ConfigError


def parse(*words: str) -> dict:
    return given_flags(add_gfpgan_arguments(argparse.ArgumentParser()).parse_args(words))


def test_a_section_in_capitals_is_told():
    """A host would take it for a task of its own."""
    with pytest.raises(ConfigError, match="GFPGAN:.*in lower case"):
        section_of({"GFPGAN": {"enabled": True}, "task_0": {}})


def test_settings_of_another_class_are_told():
    with pytest.raises(ConfigError, match="from_config takes a mapping"):
        GFPGANEnhancer.from_settings({"model": "lite"})


def test_a_section_that_is_too_deep_is_a_typed_error():
    deep = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(ConfigError, match="recursion"):
        section_of({"gfpgan": deep})


def test_defaults():
    settings = EnhancerSettings()
    assert not settings.enabled and settings.upscale == 2 and settings.arch == "clean"
    assert (
        settings.channel_multiplier == 2
        and settings.output_size == "same"
        and settings.on_error == "passthrough"
    )


def test_flags_win_over_yaml_over_defaults():
    section = section_of(
        OmegaConf.create({"gfpgan": {"enabled": True, "strength": 0.5, "upscale": 4}})
    )
    settings = merge(section, parse("--gfpgan_upscale", "1", "--gfpgan_color", "rgb"))
    assert (settings.enabled, settings.strength, settings.upscale, settings.color) == (
        True,
        0.5,
        1,
        "rgb",
    )


def test_a_flag_may_switch_off_what_yaml_switched_on():
    assert not merge({"enabled": True}, parse("--no-enable_gfpgan")).enabled
    assert merge({"enabled": False}, parse("--enable_gfpgan")).enabled


def test_flags_that_are_not_given_leave_no_trace():
    assert parse() == {}


def test_every_option_has_a_flag_and_help():
    text = add_gfpgan_arguments(argparse.ArgumentParser()).format_help()
    for option in options():
        assert option.metadata["help"].endswith((".", "only."))
        assert (flag_of(option.name) in text) == option.metadata["flag"]
    assert "--enable_gfpgan" in text and "--gfpgan_model MODEL" in text


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"strenght": 1},
            ["'gfpgan.strenght'", "value 1", "known options", "Did you mean 'strength'?"],
        ),
        ({"strength": 2}, ["gfpgan.strength", "2", "a number from 0 to 1"]),
        ({"strength": float("nan")}, ["gfpgan.strength", "nan"]),
        ({"strength": True}, ["gfpgan.strength", "True"]),
        ({"upscale": 0}, ["gfpgan.upscale", "0", "0.25 to 8"]),
        (
            {"arch": "cleen"},
            ["gfpgan.arch", "'cleen'", "clean | bilinear", "Did you mean 'clean'?"],
        ),
        (
            {"region": "mouht"},
            ["gfpgan.region", "'mouht'", "expected full | lower | mouth", "mean 'mouth'"],
        ),
        ({"stability": 2}, ["gfpgan.stability", "2", "expected auto | a number from 0 to 1"]),
        ({"landmarks": "yunet"}, ["landmarks", "'yunet'", "align: ffhq or region: mouth"]),
        ({"guard": "maybe"}, ["gfpgan.guard", "'maybe'", "expected auto | true | false"]),
        ({"dtype": "int8"}, ["gfpgan.dtype", "'int8'", "fp32 | bf16 | fp16"]),
        ({"provider": "rocm"}, ["gfpgan.provider", "'rocm'", "cpu | cuda | tensorrt"]),
        ({"backend": "tvm"}, ["gfpgan.backend", "'tvm'"]),
        ({"output_size": "huge"}, ["gfpgan.output_size", "'huge'", "same | native | upscale"]),
        ({"output_size": 5}, ["gfpgan.output_size", "5", "16 to 4096"]),
        ({"batch_size": 0}, ["gfpgan.batch_size", "0"]),
        ({"batch_size": 2.5}, ["gfpgan.batch_size", "2.5"]),
        ({"enabled": "maybe"}, ["gfpgan.enabled", "'maybe'", "true | false"]),
        ({"memory_budget": "2 parsecs"}, ["gfpgan.memory_budget", "2 parsecs"]),
        ({"memory_budget": 10}, ["gfpgan.memory_budget", "10"]),
        ({"device": "gpu"}, ["gfpgan.device", "'gpu'", "cuda:N"]),
        ({"device": "cpu:1"}, ["gfpgan.device"]),
        ({"device": "cuda:"}, ["gfpgan.device"]),
        ({"device": "auto:"}, ["gfpgan.device"]),
        ({"memory_budget": 0.0}, ["gfpgan.memory_budget", "above 0.0 and at most 1.0"]),
        ({"model_path": ""}, ["gfpgan.model_path"]),
        ({"model_path": [1]}, ["gfpgan.model_path"]),
        ({"model": None, "model_path": None, "color": None}, ["gfpgan.color", "None"]),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(section, words):
    with pytest.raises(ConfigError) as caught:
        merge(section)
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, ValueError) and caught.value.key


def test_an_error_in_a_flag_names_the_flag():
    with pytest.raises(ConfigError, match="--gfpgan_strength: invalid value '3'"):
        merge(None, parse("--gfpgan_strength", "3"))


@pytest.mark.parametrize(
    "pair",
    [
        {"model": "lite", "model_path": "x.pth"},
        {"engine": "official", "model": "lite"},
        {"bg_upsampler": object()},
    ],
)
def test_options_that_contradict(pair):
    with pytest.raises(ConfigError):
        EnhancerSettings(**pair)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2GiB", 2**31),
        ("1.5 MB", 1500000),
        ("0.25", 0.25),
        (0.5, 0.5),
        (2**22, 2**22),
        ("auto", "auto"),
    ],
)
def test_memory_budget(text, value):
    assert EnhancerSettings(memory_budget=text).memory_budget == value


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (None, "auto"),
        (torch.device("cpu"), "cpu"),
        (torch.device("cpu", 0), "cpu"),
        ("CUDA:1", "cuda:1"),
        ("mps:0", "mps"),
    ],
)
def test_device(raw, value):
    assert EnhancerSettings(device=raw).device == value


def test_text_from_flags_is_read_like_yaml():
    settings = merge(
        None,
        parse(
            "--gfpgan_output_size", "512", "--gfpgan_batch_size", "auto", "--gfpgan_upscale", "1.5"
        ),
    )
    assert (settings.output_size, settings.batch_size, settings.upscale) == (512, "auto", 1.5)


def test_yaml_files(tmp_path):
    good = tmp_path / "good.yaml"
    good.write_text("size: 4\ngfpgan:\n  enabled: true\n  upscale: ${size}\n")
    assert merge(section_of(good)).upscale == 4
    bad = tmp_path / "bad.yaml"
    bad.write_text("gfpgan: [enabled\n")
    for path in (bad, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match=path.name):
            plain(path)
    bad.write_text("gfpgan: yes please\n")
    with pytest.raises(ConfigError, match="gfpgan: invalid value 'yes please'"):
        section_of(bad)
    bad.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="mapping"):
        plain(bad)


def test_empty_section_is_a_section():
    assert (
        section_of({"gfpgan": None}) == {}
        and section_of({"task_0": {}}) is None
        and section_of(None) is None
    )


def test_null_is_auto_for_the_model():
    assert EnhancerSettings(model=None).model == merge({"model": None}).model == "auto"


def test_numbers_of_numpy_are_numbers():
    settings = EnhancerSettings(
        strength=np.float32(0.5),
        batch_size=np.int64(4),
        memory_budget=np.float64(0.25),
        cpu_fallback=np.bool_(False),
    )
    assert settings == EnhancerSettings(
        strength=0.5, batch_size=4, memory_budget=0.25, cpu_fallback=False
    )
    assert type(settings.batch_size) is int and type(settings.strength) is float


def test_only_our_section_is_resolved():
    tree = OmegaConf.create(
        {"task": "${oc.env:NO_SUCH_VARIABLE_HERE}", "size": 4, "gfpgan": {"upscale": "${size}"}}
    )
    assert section_of(tree) == {"upscale": 4}
    with pytest.raises(ConfigError, match="nowhere"):
        section_of({"gfpgan": {"upscale": "${nowhere}"}})
