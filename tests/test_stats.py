"""What an enhancer counts and says: only faces whose pixels changed are called restored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from musetalk_enhance.pipeline.outcome import Outcome
from musetalk_enhance.pipeline.stability import sharpness
from musetalk_enhance.pipeline.stats import EnhancerStats, mostly_left_alone
from tests.pictures import to_frames

ADDED = 10


def brighter(batch):
    return batch + ADDED / 255


def sharper(batch):
    return batch + 0.4 * (batch - avg_pool2d(batch, 9, 1, 4, count_include_pad=False))


def total(stats: EnhancerStats) -> int:
    return stats.restored + stats.left_alone.total() + stats.passed_through.total()


@pytest.fixture(scope="module")
def frames(soft) -> np.ndarray:
    """12 soft faces, uint8 (12, 256, 256, 3), none near white."""
    return np.minimum(to_frames(soft[:12]), 240)


def test_every_frame_is_in_one_count(make_enhancer, frames):
    """A face that changes, one that comes back the same, and one that no network can take."""
    dark = np.zeros_like(frames[0])
    enhancer = make_enhancer(lambda batch: batch * 1.05)
    enhancer([frames[0], dark, frames[1][..., :1]])
    stats = enhancer.stats
    assert (stats.restored, stats.left_alone, stats.passed_through) == (
        1,
        {"unchanged": 1},
        {"channels": 1},
    )
    assert total(stats) == stats.frames == 3 and stats.processed == 2


@pytest.mark.parametrize("region", ["full", "lower", "mouth"])
def test_the_change_is_that_of_the_pixels_that_may_change(make_enhancer, frames, region):
    enhancer = make_enhancer(brighter, region=region, color_match=False)
    notes: list[Outcome] = []
    enhancer.observe(lambda before, after, note: notes.append(note))
    out = enhancer(frames[:4])
    changed = [
        np.abs(a.astype(int) - b)[(a != b).any(2)].mean() for a, b in zip(out, frames, strict=False)
    ]
    assert [note.change for note in notes] == pytest.approx(changed, rel=0.1)
    assert enhancer.stats.mean_change == pytest.approx(
        np.mean([note.change for note in notes]), abs=1e-3
    )
    assert enhancer.stats.mean_change == pytest.approx(ADDED, abs=0.01 if region == "full" else 3)
    assert enhancer.stats.mean_strength == 1 and not enhancer.stats.partial


@pytest.mark.parametrize("output_size", ["native", "upscale", 100])
def test_in_another_size_the_change_is_against_the_resized_frame(
    make_enhancer, frames, output_size
):
    enhancer = make_enhancer(brighter, output_size=output_size)
    enhancer(frames[:2])
    assert enhancer.stats.mean_change == pytest.approx(ADDED, abs=0.1)
    same = make_enhancer(output_size=output_size, strength=0)
    same(frames[:2])
    assert same.stats.restored == 0 and same.stats.left_alone == {"strength 0": 2}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_change_that_8_bits_cannot_show_is_none(make_enhancer, frames, dtype):
    enhancer = make_enhancer(lambda batch: batch + 0.2 / 255)
    enhancer((frames[:2] / 255).astype(dtype))
    assert enhancer.stats.left_alone == {"unchanged": 2}


def test_half_strength_asked_for_is_no_partial_restoration(make_enhancer, frames):
    enhancer = make_enhancer(brighter, strength=0.5)
    enhancer(frames[:2])
    assert enhancer.stats.mean_strength == 0.5 and not enhancer.stats.partial
    assert enhancer.stats.mean_share == 1 and enhancer.stats.warning() is None
    assert (
        "2 of 2 faces restored, by 5.00 of 255 at strength 0.50 in the mean;"
        in enhancer.stats.summary()
    )


def test_what_the_guard_takes_is_counted_by_reason(make_enhancer, soft):
    """One bad frame, then ten that the guard lets recover, then good ones."""
    calls = []

    def once(batch):
        calls.append(1)
        return batch.flip(3) if len(calls) == 3 else sharper(batch)

    enhancer = make_enhancer(once, guard=True, stability=0.001, batch_size=1)
    enhancer(to_frames(soft[:20]))
    stats = enhancer.stats
    assert sum(stats.left_alone.values()) == 1 and next(iter(stats.left_alone)).startswith(
        "held back: "
    )
    assert stats.partial == {"held back: recovery": 9} and stats.restored == 19
    assert 0.7 < stats.mean_strength < 1 and total(stats) == 20
    assert "(9 in part: 9 held back: recovery); 1 left alone (1 held back: " in stats.summary()
    assert stats.warning() is None, "most of it arrived"


def test_sharp_faces_are_not_restored_and_a_warning_says_how(make_enhancer, monkeypatch):
    monkeypatch.setattr(sharpness, "needed", torch.zeros_like)
    sharp = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    enhancer = make_enhancer(lambda batch: 1 - batch, sharpness_gate=True)
    enhancer(np.repeat(sharp[None, ..., None], 3, 0).repeat(3, 3))
    stats = enhancer.stats
    assert stats.restored == 0 and stats.left_alone == {"sharp already": 3} and stats.sharp == 3
    assert stats.summary().startswith(
        "0 of 3 faces restored; 3 left alone (3 sharp already); 0 passed through"
    )
    assert stats.warning() == (
        "most of the restoration is not in the result: 3 of 3 faces left alone (3 sharp already)"
        "; to restore more, set sharpness_gate: false"
    )
    assert "--gfpgan_sharpness_gate=false" in stats.warning(
        lambda name, value: f"--gfpgan_{name}={value}"
    )


def test_a_frame_that_is_repeated_has_the_note_of_the_one_before(make_enhancer, frames):
    notes: list[Outcome] = []
    enhancer = make_enhancer(brighter)
    enhancer.observe(lambda before, after, note: notes.append(note))
    for batch in ([frames[0], frames[0]], [frames[0]], [frames[1]]):
        enhancer(batch)
    assert enhancer.stats.repeated == 2 and enhancer.stats.restored == 4
    assert notes[0].change == notes[1].change == notes[2].change == pytest.approx(ADDED)


def test_no_frames_and_no_network():
    stats = EnhancerStats()
    assert stats.mean_strength is stats.mean_change is stats.mean_share is stats.warning() is None
    assert stats.summary().startswith("0 of 0 faces restored; 0 left alone; 0 passed through;")
    assert {
        "left_alone",
        "partial",
        "mean_strength",
        "mean_change",
        "processed",
    } <= stats.as_dict().keys()


@pytest.mark.parametrize(
    ("faces", "left", "partial", "share", "expected"),
    [
        (10, {}, {}, 1.0, None),
        (10, {"sharp already": 5}, {}, 0.5, None),
        (
            10,
            {"sharp already": 6},
            {},
            0.4,
            "6 of 10 faces left alone (6 sharp already); to restore more, set gate",
        ),
        (
            10,
            {},
            {"held back: mouth": 9},
            0.3,
            "9 restored in part (9 held back: mouth); to restore more, set guard",
        ),
        (10, {"sharp already": 2}, {"held back: eyes": 8}, 0.2, "set guard or gate"),
        (10, {"held back: eyes": 1, "sharp already": 6}, {}, 0.2, "set gate or guard"),
        (10, {"too small": 9}, {}, None, "set size"),
        (10, {"unchanged": 9}, {}, 0.1, "9 of 10 faces left alone (9 unchanged)"),
        (0, {}, {}, None, None),
    ],
)
def test_when_a_warning_is_due(faces, left, partial, share, expected):
    names = {"sharpness_gate": "gate", "guard": "guard", "min_face": "size"}
    warning = mostly_left_alone(faces, left, partial, share, lambda name, value: names[name])
    assert warning is None if expected is None else expected in warning


def test_limits_of_merged_streams_are_named_once():
    total = EnhancerStats()
    for limits in (("deadline_ms",), ("deadline_ms", "budget_ms"), ("deadline_ms",)):
        stats = EnhancerStats(limits, frames=2)
        stats.left_alone["no time"] = 2
        total.merge(stats)
    assert total.limits == ("deadline_ms", "budget_ms") and total.frames == 6
    assert total.warning().endswith("set deadline_ms: 0 and budget_ms: 0")
