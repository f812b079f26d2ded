"""On a CPU what the network made is composed while it runs on the next faces: with the bytes of one
after the other, and nothing lost where a run fails."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from torch.nn.functional import avg_pool2d

from musetalk_enhance.errors import RestorerError
from musetalk_enhance.pipeline.engine import Request
from tests.pictures import to_frames

ALL = {"stability": 1, "guard": True, "color_match": True, "sharpness_gate": False}


def sharpen(batch):
    return batch + 0.4 * (batch - avg_pool2d(batch, 9, 1, 4, count_include_pad=False))


def owned(make_enhancer, function=sharpen, **options):
    """An enhancer whose restorer counts as the library's own: its batches may be divided."""
    enhancer = make_enhancer(function, **(ALL | {"batch_size": 8} | options))
    enhancer.engine.model.owned = True
    return enhancer


@pytest.fixture(scope="module")
def clip(soft) -> np.ndarray:
    """16 frames, the second half of which repeats some and is cut once."""
    frames = to_frames(soft[:16])
    frames[9] = frames[8]
    frames[10] = frames[8]
    frames[12:] = frames[12:, :, ::-1] // 2
    return frames


def test_it_has_the_bytes_of_one_after_the_other(make_enhancer, clip):
    expected, sizes, threads = make_enhancer(sharpen, **ALL, batch_size=8), [], set()
    wanted = expected(clip)

    def noted(batch):
        sizes.append(len(batch))
        return sharpen(batch)

    enhancer = owned(make_enhancer, noted)
    compose = enhancer.engine._compositor.compose
    enhancer.engine._compositor.compose = lambda *each: (
        threads.add(threading.current_thread().name),
        compose(*each),
    )[1]
    assert np.array_equal(enhancer(clip), wanted)
    assert max(sizes) == enhancer.engine._faces_at_once(8) < 8
    assert sum(sizes) == 14, "the two repeated frames need no network"
    assert len(threads) == 2, "the last part of a round is composed by the caller"
    ours, theirs = enhancer.stats.as_dict(), expected.stats.as_dict()
    counts = [name for name, n in theirs.items() if isinstance(n, int) and name != "batches"]
    assert {name: ours[name] for name in counts} == {name: theirs[name] for name in counts}


def test_several_streams_have_the_bytes_of_each_alone(make_enhancer, clip):
    clips = [clip, clip[:, :, ::-1], clip[..., ::-1][:5]]
    alone = [make_enhancer(sharpen, **ALL)(each) for each in clips]
    enhancer = owned(make_enhancer)
    requests = [Request(enhancer.stream(), each) for each in clips]
    for restored, expected in zip(enhancer.engine.restore(requests), alone, strict=True):
        assert np.array_equal(restored.frames, expected)


@pytest.mark.parametrize("run", [1, 2, 4, 6])
def test_a_run_that_fails_once_loses_nothing(make_enhancer, clip, run):
    expected = make_enhancer(sharpen, **ALL, batch_size=8)(clip)
    runs = 0

    def fails_once(batch):
        nonlocal runs
        runs += 1
        if runs == run:
            raise RuntimeError("a passing fault")
        return sharpen(batch)

    enhancer = owned(make_enhancer, fails_once)
    assert np.array_equal(enhancer(clip), expected)
    assert enhancer.stats.failed == 0
    assert enhancer.stats.frames == enhancer.stats.restored == 16


def test_composing_that_fails_is_an_error_of_these_frames(make_enhancer, clip):
    enhancer = owned(make_enhancer, on_error="raise")
    compositor = enhancer.engine._compositor
    compose, calls = compositor.compose, []

    def fails(batch, state):
        calls.append(len(batch.faces))
        if len(calls) > 1:
            raise ValueError("cannot be composed")
        return compose(batch, state)

    compositor.compose = fails
    with pytest.raises(RestorerError, match="cannot be composed"):
        enhancer(clip)
    compositor.compose = compose
    enhancer.reset()
    assert np.array_equal(enhancer(clip), make_enhancer(sharpen, **ALL, batch_size=8)(clip))


def test_a_restorer_of_the_callers_own_gets_whole_batches(make_enhancer, clip):
    sizes = []

    def noted(batch):
        sizes.append(len(batch))
        return sharpen(batch)

    make_enhancer(noted, **ALL, batch_size=8)(clip)
    assert sizes == [8, 6]
