"""Held still: flicker goes, sharpness stays, nothing is dragged along, and a still frame is
still."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance.pipeline.compose import Compositor
from musetalk_enhance.pipeline.stability.motion import MotionEstimator
from musetalk_enhance.pipeline.stability.temporal import (
    _moved,
    _steady_on_cpu,
    _steady_on_gpu,
    steady,
)
from tests.stability.conftest import to_faces, to_frames

PLAIN = {"color_match": False, "guard": False, "sharpness_gate": False}


class Flickering:
    """Sharpens, by another amount and with another grain in every frame: a restorer that decides
    anew."""

    def __init__(self, sharp: torch.Tensor, amount: float = 0.5, grain: float = 0.02) -> None:
        self.sharp, self.amount, self.grain, self.calls = sharp, amount, grain, 0
        self.random = torch.Generator().manual_seed(5)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        first, self.calls = self.calls, self.calls + len(batch)
        truth = (
            self.sharp[first : first + len(batch)].repeat_interleave(2, 2).repeat_interleave(2, 3)
        )
        share = 1 + self.amount * (2 * torch.rand(len(batch), 1, 1, 1, generator=self.random) - 1)
        grain = self.grain * torch.randn(len(batch), 1, 64, 64, generator=self.random)
        grain = torch.nn.functional.interpolate(grain, size=batch.shape[2:], mode="bicubic")
        return batch + share * (truth - batch) + grain


def energy(frames: np.ndarray) -> float:
    import cv2

    return float(
        np.mean(
            [cv2.Laplacian(cv2.cvtColor(f, cv2.COLOR_BGR2GRAY), cv2.CV_64F).var() for f in frames]
        )
    )


def flicker(frames: np.ndarray, given: np.ndarray) -> float:
    """How much what was added changes from frame to frame, moved with the face."""
    added = (to_faces(frames) - to_faces(given)).permute(0, 2, 3, 1).contiguous().numpy()
    return sum(
        float(np.abs(added[index] - _moved(added[index - 1], motion.flow, (0.0, 1.0))).mean())
        for index, motion in enumerate(motions_of(given))
        if motion is not None
    )


def motions_of(frames: np.ndarray) -> list:
    """The motion into each frame; None into the first."""
    estimator, images = MotionEstimator(), np.ascontiguousarray(frames[..., ::-1])
    return [None, *(estimator.between(a, b) for a, b in zip(images[:-1], images[1:], strict=True))]


@pytest.fixture(scope="module")
def given(soft) -> np.ndarray:
    return to_frames(soft)


def test_flicker_goes_and_sharpness_stays(make_enhancer, take, given):
    off = make_enhancer(Flickering(take), **PLAIN)(given)
    on = make_enhancer(Flickering(take), stability=1, **PLAIN)(given)
    assert flicker(on, given) < 0.4 * flicker(off, given)
    assert energy(on) - energy(given) > 0.9 * (energy(off) - energy(given))
    truth = to_frames(take).astype(np.float32)
    assert np.abs(on - truth).mean() < np.abs(off - truth).mean(), "nearer to the truth as well"


def test_a_restorer_that_is_steady_by_itself_arrives(make_enhancer, take, given):
    perfect = make_enhancer(Flickering(take, amount=0, grain=0), stability=1, **PLAIN)(given)
    errors = np.abs(perfect - to_frames(take).astype(np.float32)).mean((1, 2, 3))
    assert errors[5:].mean() < 0.1, "within five frames; it took ten, and twenty with a low share"


def test_half_of_it_is_half(make_enhancer, take, given):
    runs = [
        make_enhancer(Flickering(take), stability=share, **PLAIN)(given) for share in (0, 0.5, 1)
    ]
    still = [flicker(run, given) for run in runs]
    assert still[0] > 1.2 * still[1] > 1.2 * still[2]


def test_batches_do_not_matter(make_enhancer, take, given):
    def sharpen(batch):
        smooth = torch.nn.functional.avg_pool2d(batch, 9, 1, 4)
        return (batch + 0.5 * (batch - smooth)).clamp(0, 1)

    whole, single = (
        make_enhancer(sharpen, stability=1, batch_size=size, **PLAIN) for size in (8, 1)
    )
    together = whole(given[:12])
    realtime = np.concatenate([single(given[:5]), single(given[5:6]), single(given[6:12])])
    assert np.abs(together.astype(int) - realtime).max() <= 1


def test_a_frame_never_depends_on_the_next(make_enhancer, take, given):
    sharpen = lambda batch: 2 * batch - torch.nn.functional.avg_pool2d(batch, 9, 1, 4)  # noqa: E731
    one = make_enhancer(sharpen, stability=1, guard=True, color_match=True, batch_size=8)(
        given[:10]
    )
    other = make_enhancer(sharpen, stability=1, guard=True, color_match=True, batch_size=8)
    changed = given[:16].copy()
    changed[10:] = 255 - changed[10:]
    assert np.array_equal(other(changed)[:8], one[:8])


def test_a_still_frame_comes_out_the_same_fifty_times(make_enhancer, take, given):
    enhancer = make_enhancer(Flickering(take[:1].expand(50, -1, -1, -1)), stability=1, batch_size=8)
    out = enhancer(np.repeat(given[:1], 50, 0))
    assert (out == out[0]).all() and enhancer.stats.repeated == 49


def test_what_the_host_does_to_its_frames_afterwards_is_its_own_affair(make_enhancer, given):
    enhancer = make_enhancer(lambda batch: 1 - batch, stability=1)
    first = enhancer(given[:1])
    kept = first.copy()
    first[:] = 0
    assert np.array_equal(enhancer(given[:1]), kept)


def test_a_cut_lets_go(make_enhancer, given):
    brighter = lambda batch: batch + 0.2  # noqa: E731
    other = 255 - given[:1, ::-1]
    enhancer = make_enhancer(brighter, stability=1, **PLAIN)
    enhancer(given[:5])
    after = enhancer(other)
    assert enhancer.stats.cuts == 1
    assert np.array_equal(after, make_enhancer(brighter, stability=1, **PLAIN)(other)), (
        "as if nothing had been before"
    )


def test_reset_forgets(make_enhancer, take, given):
    enhancer = make_enhancer(Flickering(take), stability=1, **PLAIN)
    enhancer(given[:6])
    enhancer.reset()
    enhancer.engine.model.restorer.backend.function = Flickering(take[6:])
    fresh = make_enhancer(Flickering(take[6:]), stability=1, **PLAIN)
    assert np.array_equal(enhancer(given[6:12]), fresh(given[6:12]))


def test_two_streams_know_nothing_of_each_other(make_enhancer, take, given):
    one, other = (make_enhancer(Flickering(take), stability=1, **PLAIN) for _ in range(2))
    only = make_enhancer(Flickering(take), stability=1, **PLAIN)
    alone = np.concatenate([only(given[start : start + 4]) for start in range(0, 12, 4)])
    parts = []
    for start in range(0, 12, 4):
        parts.append(one(given[start : start + 4]))
        other(given[::-1][start : start + 4])
    assert np.array_equal(np.concatenate(parts), alone)


def test_lips_that_move_are_not_dragged(make_enhancer, take, given):
    """With a perfect restorer holding still can only spoil: the mouth must stay as open as it
    is."""
    from musetalk_enhance.faces.meter import FaceMeter

    out = make_enhancer(Flickering(take, 0.0), stability=1, **PLAIN)(given)
    gauge = FaceMeter()
    truth, ours = gauge.measure(take).mouth.numpy(), gauge.measure(to_faces(out)).mouth.numpy()
    assert np.corrcoef(truth, ours)[0, 1] > 0.99 and np.abs(truth - ours).max() < 0.03


def test_a_batch_that_failed_leaves_the_stream_as_it_was(make_enhancer, take, given, monkeypatch):
    calls = []
    real = Compositor.compose

    def once(self, work, stream):
        done = real(self, work, stream)
        if len(calls) == 1:
            calls.append(1)
            raise MemoryError
        calls.append(1)
        return done

    sharpen = lambda batch: 2 * batch - torch.nn.functional.avg_pool2d(batch, 9, 1, 4)  # noqa: E731
    alone = make_enhancer(sharpen, stability=1, batch_size=4, **PLAIN)(given[:8])
    monkeypatch.setattr(Compositor, "compose", once)
    enhancer = make_enhancer(sharpen, stability=1, batch_size=4, **PLAIN)
    out = enhancer(given[:8])
    assert enhancer.stats.backoffs == 1 and np.abs(out.astype(int) - alone).max() <= 1


@pytest.mark.parametrize("first_row", [0, 112])
def test_the_cpu_and_a_gpu_compute_the_same(given, take, first_row):
    """The code for a GPU runs on the CPU too."""
    residual = (take[:6] - to_faces(given[:6]))[:, :, first_row:] * torch.linspace(
        0.5, 1.5, 6
    ).view(-1, 1, 1, 1)
    support = torch.ones(1, 1, 256 - first_row, 256)
    support[..., :40] = 0
    rows = (first_row / 256, 1.0)
    motions = motions_of(given[:6])
    motions[3] = None
    on_cpu, state = _steady_on_cpu(residual.clone(), motions, None, 1.0, rows, support)
    on_gpu, other = _steady_on_gpu(residual.clone(), motions, None, 1.0, rows, support)
    assert (on_cpu - on_gpu).abs().max() < 0.02 and (on_cpu - on_gpu).abs().mean() < 5e-4
    assert float(other.share) == pytest.approx(state.share, rel=0.1)
    assert (on_cpu - residual).abs().mean() > 1e-3, "something was kept"


def test_a_stream_goes_on_where_the_network_moved_to(given, take):
    """What is remembered follows the faces to another device and back; here one that every machine
    has."""
    residual = take[:2] - to_faces(given[:2])
    motions = motions_of(given[:3])
    _, state = steady(residual, motions[:2], None, 1.0, 0, 256)
    there = state.to(torch.device("meta"))
    assert {each.device.type for each in (there.residual, there.share, there.changes)} == {"meta"}
    again = state.to(torch.device("cpu"))
    out, after = steady(take[2:3] - to_faces(given[2:3]), motions[2:], again, 1.0, 0, 256)
    assert torch.isfinite(out).all() and 0 < after.share < 2
