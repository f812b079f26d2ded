"""The verdicts, each on synthetic curves."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_enhance.report.document import terminal_line
from musetalk_enhance.report.flicker import FlickerWindows, Window
from musetalk_enhance.report.series import Series
from musetalk_enhance.report.verdicts import Limits, Verdict, judge

COUNT = 40


def curves(**changes) -> Series:
    """Forty frames of a flawless clip, with some curves changed; a number fills its curve."""
    wave = 0.1 + 0.1 * np.sin(np.arange(COUNT) / 3)
    values_by_name = {
        **{f"sharpness_{clip}": 10.0 for clip in ("in", "out")},
        **{f"gradient_{clip}": 50.0 for clip in ("in", "out")},
        **{f"warping_{clip}": 4.0 for clip in ("in", "out")},
        **{f"{part}_{clip}": wave for part in ("mouth", "eyes") for clip in ("in", "out")},
        **{f"structure_{part}": 0.99 for part in ("whole", "eyes", "mouth")},
        **{f"moved_{part}": 0.1 for part in ("whole", "eyes", "mouth")},
        **{f"drift_{channel}": 0.0 for channel in "bgr"},
        "colour": 0.1,
        "seam": 0.1,
        **changes,
    }
    series = Series()
    arrays = {name: np.broadcast_to(values, COUNT) for name, values in values_by_name.items()}
    for index in range(COUNT):
        series.add({name: values[index] for name, values in arrays.items()})
    return series


def windows(**energy) -> FlickerWindows:
    flicker = FlickerWindows(25)
    for name in energy:
        flicker.maps[name] = np.zeros((2, 2), np.float32)
    flicker.windows = [Window(0, 15, 0.5, energy)] if energy else []
    return flicker


def verdicts(flicker: FlickerWindows | None = None, **changes) -> dict[str, Verdict]:
    lines = judge(curves(**changes), flicker or windows(**{"in": 0.1, "out": 0.1}), Limits())
    return {verdict.key: verdict for verdict in lines}


def states(by_key: dict[str, Verdict]) -> dict[str, set[str]]:
    return {
        state: {key for key, one in by_key.items() if one.state == state}
        for state in ("pass", "fail")
    }


def test_all_is_well():
    keys = states(verdicts())
    assert not keys["fail"] and len(keys["pass"]) == 14


def test_frames_that_were_left_alone_do_not_count_for_sharpness():
    """Encoding a video again loses detail that restoration was not asked to bring back."""
    first = np.arange(COUNT) < 30
    lost = {"sharpness_out": np.where(first, 8.0, 15.0)}
    assert verdicts(**lost)["sharpness"].state == "fail"
    verdict = verdicts(**lost, note_strength=np.where(first, 0.0, 1.0))["sharpness"]
    assert verdict.state == "pass" and verdict.value == 1.5
    assert "over the 10 of 40 frames" in verdict.text
    handed_back = verdicts(**lost, note_strength=np.where(first, np.nan, 0.7))["sharpness"]
    assert handed_back.value == 1.5
    none = verdicts(sharpness_out=8.0, note_strength=0.0)["sharpness"]
    assert none.state == "unmeasured" and "sharp already" in none.text
    assert verdicts(sharpness_out=8.0, note_strength=1.0)["sharpness"].state == "fail"


WAVE = 0.1 + 0.1 * np.sin(np.arange(COUNT) / 3)


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"sharpness_out": 9.0}, {"sharpness"}),
        ({"mouth_out": 0 * WAVE}, {"mouth_correlation", "mouth_opening"}),
        ({"mouth_out": np.roll(WAVE, 1)}, {"mouth_correlation", "mouth_lag"}),
        ({"mouth_out": WAVE + 0.06}, {"mouth_opening"}),
        ({"eyes_out": -WAVE + 0.2}, {"eyes_correlation", "eyes_lag", "eyes_opening"}),
        ({"drift_r": -1.1}, {"drift"}),
        ({"drift_r": 5 * np.sin(np.arange(COUNT))}, set()),
        ({"colour": 1.2}, {"colour"}),
        ({"seam": 2.0}, {"seam"}),
        ({"structure_eyes": 0.9}, {"structure"}),
        ({"moved_mouth": 1.3}, {"movement"}),
        ({"warping_out": 8.5}, {"warping"}),
        ({"warping_out": 5.9}, set()),  # under two levels squared of grain
        ({"warping_out": 7.0, "gradient_out": 90.0}, set()),  # as much more as its detail
        ({"warping_out": 7.0, "warping_ref": 7.0}, set()),
        ({"warping_out": 6.5, "warping_ref": 4.0, "gradient_out": 90.0}, {"warping"}),
        ({"warping_out": 4.19, "warping_ref": 3.0}, set()),
    ],
)
def test_one_thing_is_wrong(changes, failed):
    by_key = verdicts(**changes)
    missing = {"mouth_lag", "eyes_lag"} & failed - by_key.keys()
    assert states(by_key)["fail"] == failed - missing


def test_where_it_is_worst_is_named():
    by_key = verdicts(moved_eyes=3.0, structure_mouth=0.5, drift_g=-2.0)
    assert "the eyes" in by_key["movement"].text and "the mouth" in by_key["structure"].text
    assert "green, -2.000" in by_key["drift"].text


def test_late_and_early():
    assert "2 late" in verdicts(mouth_out=np.roll(WAVE, 2))["mouth_lag"].text
    assert "3 early" in verdicts(mouth_out=np.roll(WAVE, -3))["mouth_lag"].text


def test_a_mouth_that_does_not_move_is_judged_by_its_opening():
    by_key = verdicts(mouth_in=0.1, mouth_out=0.1)
    assert (
        by_key["mouth_correlation"].state == "unmeasured"
        and by_key["mouth_opening"].state == "pass"
    )
    assert "hardly moves" in by_key["mouth_correlation"].text and "mouth_lag" not in by_key
    assert verdicts(mouth_in=0.1, mouth_out=0.2)["mouth_opening"].state == "fail"


@pytest.mark.parametrize(
    ("energy", "state"),
    [
        ({"in": 0.1, "out": 0.9}, "pass"),
        ({"in": 0.1, "out": 1.1}, "fail"),
        ({"in": 2.0, "out": 2.09}, "pass"),
        ({"in": 0.1, "out": 3.0, "ref": 3.0}, "pass"),
        ({}, "unmeasured"),
    ],
)
def test_flicker(energy, state):
    assert verdicts(windows(**energy))["flicker"].state == state


def test_likeness_is_told_and_not_judged():
    by_key = verdicts(psnr_in=30.0, psnr_out=32.0, ssim_in=0.9, ssim_out=1.0)
    assert by_key["psnr"].state == by_key["ssim"].state == "info" and by_key["psnr"].value == 32
    equal = verdicts(psnr_in=30.0, psnr_out=np.inf, ssim_in=0.9, ssim_out=1.0)["psnr"]
    assert equal.value is None and "infinite" in equal.text


def test_a_line_for_the_terminal():
    assert (
        terminal_line(verdicts()["drift"])
        == "pass       Color kept, mean             0 (at most 1)"
    )
    assert terminal_line(verdicts(colour=2.0)["colour"]).startswith("FAIL ")
