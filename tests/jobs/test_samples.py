"""Trying first: a few pictures on a sheet, one option at several values side by side."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError
from musetalk_enhance.jobs import images, samples
from musetalk_enhance.jobs.samples import Sweep, restore_samples, restore_sweep

from .conftest import WHOLE, files, put, read

NAMES = [f"{index}.png" for index in range(7)] + ["sub/7.png"]


@pytest.fixture
def folders(tmp_path):
    put(tmp_path / "in", *NAMES)
    return tmp_path / "in", tmp_path / "out"


def test_samples_are_spread_and_shown(network, folders):
    source, output = folders
    tried = restore_samples(source, output, WHOLE, 3)
    restored = {name for name in files(output) if "/restored/" in name}
    assert (
        restored == {f"samples/restored/{name}" for name in ("1.png", "4.png", "6.png")}
        and network.faces == 3
    )
    assert tried.sheet == output / "samples" / "contact_sheet.jpg" and tried.errors == 0
    sheet = read(tried.sheet)
    assert sheet.shape[0] > 3 * 64 and sheet.shape[1] >= 2 * 64
    assert restore_samples(source, output, WHOLE, 3).results[0].resumed == 3


def test_more_samples_than_pictures_are_all(network, folders):
    source, output = folders
    assert restore_samples(source, output, WHOLE, 10).results[0].stats["pictures"]["all"] == 8
    with pytest.raises(ConfigError, match="--num-samples"):
        restore_samples(source, output, WHOLE, 0)


def test_an_unreadable_sample_is_counted(network, folders):
    source, output = folders
    for name in ("1.png", "2.png"):
        (source / name).write_bytes(b"no picture")
    assert restore_samples(source, output, WHOLE, 10).errors == 2
    for name in NAMES:
        (source / name).write_bytes(b"no picture")
    tried = restore_samples(source, output, WHOLE, 2)
    assert tried.sheet is None and tried.errors == 2


def test_a_sheet_of_many_pictures_shows_some(network, folders, monkeypatch):
    source, output = folders
    monkeypatch.setattr(samples, "MAX_ON_SHEET", 2)
    few = restore_sweep(source, output, WHOLE, Sweep.parse("strength=0,1"))
    height = read(few.sheet).shape[0]
    assert len(list((output / "sweep").rglob("*_strength.jpg"))) == 8
    monkeypatch.setattr(samples, "MAX_ON_SHEET", 8)
    assert (
        read(restore_sweep(source, output, WHOLE, Sweep.parse("strength=0,1")).sheet).shape[0]
        > 2 * height
    )


def test_what_fails_with_one_value_of_a_sweep_only_is_counted(network, tmp_path):
    put(tmp_path / "in", "a.png")
    put(
        tmp_path / "in", "b.webp", size_hw=(16, 4100)
    )  # four times that is more than a WebP can have
    tried = restore_sweep(tmp_path / "in", tmp_path / "out", WHOLE, Sweep.parse("upscale=1,4"))
    assert [result.errors for result in tried.results] == [0, 1] and tried.errors == 1


def test_a_sweep_shows_every_value_side_by_side(network, folders):
    source, output = folders
    tried = restore_sweep(source, output, WHOLE, Sweep.parse("strength=0,0.5,1"), 2)
    made = files(output)
    shown = sorted(name for name in made if name.endswith("_strength.jpg"))
    assert shown == ["sweep/2.png_strength.jpg", "sweep/6.png_strength.jpg"]
    strip = read(output / shown[0]).astype(float)
    columns = np.array_split(strip[-40:-24].mean(axis=(0, 2)), 4)  # input and three values
    plain, none, half, full = (float(np.median(column)) for column in columns)
    assert abs(none - plain) < 4 and abs(half - plain - 20) < 6 and abs(full - plain - 40) < 6
    assert {name.split("/")[1] for name in made if "/restored/" in name} == {
        f"strength={v}" for v in ("0.0", "0.5", "1.0")
    }
    assert tried.sheet.exists() and len(tried.results) == 3
    network.faces = 0
    again = restore_sweep(source, output, WHOLE, Sweep.parse("strength=0,0.5,1"), 2)
    assert files(output) == made and network.faces == 0 and again.results[2].resumed == 2


def test_a_sweep_over_all_pictures_and_sub_folders(network, folders):
    source, output = folders
    part = output / "sweep" / "sub" / f".{'0' * 32}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of a killed run")
    restore_sweep(source, output, WHOLE, Sweep.parse("upscale=1,2"))
    assert "sweep/sub/7.png_upscale.jpg" in files(output) and not part.exists()
    assert len([name for name in files(output) if name.endswith("_upscale.jpg")]) == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("strength", "--sweep"),
        ("strength=0.5", "two different values"),
        ("strength=0.5,0.50", "two different values"),
        ("strength=0.5,,1", "--sweep"),
        ("strength=0.5,9", "--sweep strength"),
        ("strenght=0,1", "strength"),
        ("=1,2", "unknown option"),
    ],
)
def test_impossible_sweeps(text, said):
    with pytest.raises(ConfigError, match=said):
        Sweep.parse(text)


def test_values_are_checked_options():
    assert Sweep.parse("only-center-face=yes,no") == Sweep("only_center_face", (True, False))
    assert Sweep.parse(" fidelity = 0.5, 0.7 ").label(0.7) == "fidelity=0.7"


def test_contradictions_are_refused_before_the_work_begins(network, folders):
    source, output = folders
    with pytest.raises(ConfigError, match="upscale"):
        restore_sweep(source, output, WHOLE, Sweep.parse("upscale=1,2,3"))
    assert network.opened == 0 and not output.exists()


def test_a_sweep_of_fidelity_needs_a_model_that_has_it(network, folders):
    source, output = folders
    with pytest.raises(ConfigError, match="a model that has it"):
        restore_sweep(source, output, WHOLE, Sweep.parse("fidelity=0.5,0.9"), 1)


@pytest.mark.parametrize("what", ["samples", "sweep"])
def test_sheets_within_the_input_are_no_inputs(network, folders, what):
    source, _ = folders
    for _ in range(2):
        if what == "samples":
            restore_samples(source, source / "out", WHOLE, 99)
        else:
            restore_sweep(source, source / "out", WHOLE, Sweep.parse("strength=0,1"), 99)
        assert network.faces % 8 == 0
    with pytest.raises(ConfigError, match="--output-dir"):
        restore_samples(source, source, WHOLE, 2)
    assert samples.SHEET != images.STATS
