"""The guard: restorers that close a mouth, open one, shut or shift eyes, or change who it is, are
held back.

Everything holds on faces that were resized and on faces that a latent decoder made.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance.faces.meter import FaceMeter
from musetalk_enhance.faces.regions import region_mask
from musetalk_enhance.pipeline.stability.guard import RECOVERY, strength_allowed
from tests.stability.conftest import to_faces, to_frames

ONLY = {"guard": True, "batch_size": 8}


@pytest.fixture(scope="module")
def gauge() -> FaceMeter:
    return FaceMeter()


@pytest.fixture(scope="module")
def mouths(gauge, soft):
    """(indices by opening, the mask of the mouth)."""
    measured = gauge.measure(soft)
    mask = region_mask("mouth", (256, 256), list((measured.landmarks[:1] / 256).numpy()))
    return measured.mouth.argsort().tolist(), mask


def painted(soft: torch.Tensor, index: int, mask: torch.Tensor):
    """A restorer that paints the mouth of frame `index` on every face."""
    mouth = soft[index : index + 1]

    def paint(batch: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(batch, 2)
        return (small + mask * (mouth - small)).repeat_interleave(2, 2).repeat_interleave(2, 3)

    return paint


def shifted_eyes(batch: torch.Tensor) -> torch.Tensor:
    batch = batch.clone()
    batch[:, :, 130:250] = torch.roll(batch[:, :, 130:250], 12, 3)
    return batch


def test_the_sharp_original_keeps_its_strength(make_enhancer, take, given):
    truth = iter(take.split(8))
    original = lambda batch: next(truth).repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    strengths = []
    enhancer = make_enhancer(original, **ONLY)
    enhancer.observe(lambda before, after, note: strengths.append(note.strength))
    out = enhancer(to_frames(given))
    full = np.flatnonzero(np.array(strengths) == 1)
    assert len(full) >= 36 and np.mean(strengths) > 0.97
    assert np.array_equal(out[full], to_frames(take)[full])


def test_a_resized_face_gets_all_of_the_original(make_enhancer, take, soft):
    truth = iter(take.split(8))
    original = lambda batch: next(truth).repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    enhancer = make_enhancer(original, **ONLY)
    assert np.array_equal(enhancer(to_frames(soft)), to_frames(take)) and not enhancer.stats.guarded


def test_of_a_very_soft_face_most_of_the_original_comes_through(make_enhancer, take, decoder_soft):
    """Blend 0.5: the teeth are gone, and so is some of what the guard compares."""
    very_soft = torch.cat([decoder_soft(part, 0.5) for part in take[:16].split(4)])
    truth, strengths = iter(take[:16].split(8)), []
    original = lambda batch: next(truth).repeat_interleave(2, 2).repeat_interleave(2, 3)  # noqa: E731
    enhancer = make_enhancer(original, **ONLY)
    enhancer.observe(lambda before, after, note: strengths.append(note.strength))
    enhancer(to_frames(very_soft))
    assert np.mean(strengths) > 0.7


def test_added_detail_keeps_its_strength(make_enhancer, take, decoder_soft):
    """The original's high frequencies on the input's low ones, at a blend where the teeth are
    gone."""
    very_soft = torch.cat([decoder_soft(part, 0.5) for part in take[:8].split(4)])
    blur = torch.nn.AvgPool2d(9, 1, 4, count_include_pad=False)
    coarse = [blur(faces) for faces in (take[:8], very_soft)]
    answer = (take[:8] - coarse[0] + coarse[1]).clamp(0, 1)
    enhancer = make_enhancer(
        lambda batch: answer.repeat_interleave(2, 2).repeat_interleave(2, 3), **ONLY
    )
    enhancer(to_frames(very_soft))
    assert not enhancer.stats.guarded


def test_a_restorer_that_closes_the_mouth_is_held_back(make_enhancer, given, mouths, gauge):
    order, mask = mouths
    wide = given[order[-4:]]
    enhancer = make_enhancer(painted(given, order[0], mask), **ONLY)
    out = to_faces(enhancer(to_frames(wide)))
    assert (
        enhancer.stats.guarded.keys() & {"mouth", "identity"}
        and enhancer.stats.guarded.total() == 4
    )
    assert (gauge.measure(out).mouth - gauge.measure(wide).mouth).abs().max() < 0.04
    spoilt = to_faces(make_enhancer(painted(given, order[0], mask))(to_frames(wide)))
    moved = (gauge.measure(spoilt).mouth - gauge.measure(wide).mouth).abs()
    assert moved.min() > 0.04, "without the guard it is shut"


def test_teeth_in_a_closed_mouth_are_held_back(make_enhancer, given, mouths, gauge):
    order, mask = mouths
    shut = given[order[:3]]
    enhancer = make_enhancer(painted(given, order[-1], mask), **ONLY)
    out = to_faces(enhancer(to_frames(shut)))
    assert enhancer.stats.guarded.total() == 3
    assert (gauge.measure(out).mouth - gauge.measure(shut).mouth).abs().max() < 0.04


def test_shifted_eyes_are_held_back(make_enhancer, given):
    frames = to_frames(given[:4])
    enhancer = make_enhancer(shifted_eyes, **ONLY)
    out = enhancer(frames)
    assert enhancer.stats.guarded.total() == 4
    unguarded = make_enhancer(shifted_eyes)(frames)
    assert (
        np.abs(out.astype(int) - frames).mean()
        < 0.3 * np.abs(unguarded.astype(int) - frames).mean()
    )


def test_another_face_is_held_back(make_enhancer, given):
    enhancer = make_enhancer(lambda batch: batch.flip(3), **ONLY)
    frames = to_frames(given[:3])
    assert np.array_equal(enhancer(frames), frames)
    assert sum(enhancer.stats.guarded[reason] for reason in ("identity", "eyes", "mouth")) == 3


def test_strength_comes_back_little_by_little(make_enhancer, soft):
    """One bad frame, then good ones: down at once, up by a tenth a frame."""
    calls = []

    def once(batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return batch.flip(3) if len(calls) == 3 else batch + 0.005

    notes = []
    enhancer = make_enhancer(once, guard=True, stability=0.001, batch_size=1)
    enhancer.observe(lambda given, out, note: notes.append(note))
    enhancer(to_frames(soft[:20]))
    strengths = [note.strength for note in notes]
    assert strengths[:3] == [1, 1, 0] and strengths[13:] == pytest.approx([1] * 7)
    assert np.diff(strengths[2:13]) == pytest.approx([RECOVERY] * 10)
    assert enhancer.stats.guarded["recovery"] == 9, "from 0.1 to 0.9"


def test_what_is_no_face_is_no_reason(gauge):
    noise = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    allowed = strength_allowed(gauge, noise[..., :128, :128], noise.flip(0)[..., :128, :128])
    assert (allowed[:, :2] == 1).all(), "the gauge sees no face, so it says nothing"


def test_the_order_of_a_batch_does_not_matter(gauge, soft):
    both = strength_allowed(gauge, soft[:4], soft[4:8])
    each = [strength_allowed(gauge, soft[i : i + 1], soft[4 + i : 5 + i]) for i in range(4)]
    assert np.allclose(both, np.concatenate(each), atol=1e-3)


def test_tiny_faces_are_left_alone(make_enhancer, soft):
    tiny = torch.nn.functional.interpolate(soft[:3], size=(24, 24), mode="area")
    enhancer = make_enhancer(lambda batch: batch + 0.02, **ONLY)
    enhancer(to_frames(tiny))
    assert not enhancer.stats.guarded and enhancer.stats.restored == 3
