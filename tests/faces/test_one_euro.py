"""The One-Euro filter keeps what stands still, takes its jitter off, and follows what moves."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, FrameError
from musetalk_enhance.faces.one_euro import OneEuroFilter

FACE = np.array([(95.0, 101.3), (160.7, 100.9), (127.7, 140.0), (99.1, 181.0), (157.9, 180.2)])


def run(values, fps=25, **options):
    smooth = OneEuroFilter(fps, **options)
    return np.stack([smooth(value) for value in values])


def test_a_constant_stays_exactly_constant():
    out = run([FACE] * 50, beta=0.02)
    assert (out == FACE).all()


def test_jitter_of_a_still_face_goes(rng):
    noise = rng.normal(0, 0.7, (300, 5, 2))
    out = run(FACE + noise, min_cutoff=1.0, beta=0.02)[25:]
    assert (out - FACE).std() < 0.45 * noise.std()
    assert np.diff(out, axis=0).std() < 0.25 * np.diff(noise, axis=0).std()


def test_a_fast_move_is_followed_with_little_lag():
    speed = 400.0  # pixels a second
    values = np.stack([FACE] * 10 + [FACE + speed * k / 25 for k in range(1, 26)])
    lag_frames = np.abs(run(values, beta=0.02)[-1] - values[-1]) / (speed / 25)
    assert lag_frames.max() < 0.7
    slow = np.abs(run(values, beta=0.0)[-1] - values[-1]) / (speed / 25)
    assert slow.min() > 3


def test_it_never_overshoots_a_step():
    out = run(np.stack([FACE] * 5 + [FACE + 30] * 40), beta=0.02)
    assert (np.diff(out, axis=0) >= 0).all() and (out <= FACE + 30).all()
    assert np.abs(out[-1] - FACE - 30).max() < 0.1


def test_it_is_causal(rng):
    values = FACE + rng.normal(0, 5, (30, 5, 2))
    changed = values.copy()
    changed[20:] += 100
    assert (run(values, beta=0.02)[:20] == run(changed, beta=0.02)[:20]).all()


def test_the_time_step_comes_from_the_frame_rate(rng):
    """Twice the frame rate with every value given twice is nearly the same filter in time."""
    values = np.cumsum(rng.normal(0, 1, (100, 5, 2)), axis=0)
    slow, quick = (
        run(values, fps=25, beta=0.1),
        run(values.repeat(2, axis=0), fps=50, beta=0.1)[1::2],
    )
    assert np.abs(slow - quick).max() < 0.5 * np.abs(slow - values).max()


def test_against_the_formula():
    smooth = OneEuroFilter(Fraction(30000, 1001), min_cutoff=1.5, beta=0.3, d_cutoff=0.8)
    fps = 30000 / 1001
    smooth(np.array([1.0]))
    step = 1 / fps
    d_alpha = 1 / (1 + 1 / (2 * np.pi * 0.8) / step)
    speed = d_alpha * (2.0 / step)
    alpha = 1 / (1 + 1 / (2 * np.pi * (1.5 + 0.3 * speed)) / step)
    assert smooth(np.array([3.0]))[0] == pytest.approx(alpha * 3 + (1 - alpha) * 1, rel=1e-12)


def test_reset_forgets():
    smooth = OneEuroFilter(25)
    smooth(FACE)
    smooth.reset()
    assert (smooth(FACE + 50) == FACE + 50).all()
    smooth.reset()
    assert smooth(np.zeros(3)).shape == (3,)


def test_what_comes_out_belongs_to_the_caller():
    smooth = OneEuroFilter(25)
    value = FACE.copy()
    smooth(value)[:] = -1
    value[:] = -1
    assert (smooth(FACE) == FACE).all()


def test_bad_values_are_refused_and_do_no_harm():
    smooth = OneEuroFilter(25)
    smooth(FACE)
    with pytest.raises(FrameError, match="NaN"):
        smooth(FACE * np.nan)
    with pytest.raises(FrameError, match="shape"):
        smooth(FACE[:3])
    assert (smooth(FACE) == FACE).all()


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 0},
        {"fps": "x"},
        {"fps": None},
        {"min_cutoff": 0},
        {"beta": -1},
        {"d_cutoff": float("nan")},
    ],
)
def test_impossible_options(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        OneEuroFilter(**{"fps": 25, **options})
