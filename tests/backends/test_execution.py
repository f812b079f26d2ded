"""fp32 unless a reduced precision is clearly faster, twice: noise decides nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from musetalk_enhance.backends.execution import MARGIN, Execution, contest, fastest, ordered, select

NCNN, TORCH, BF16, FP16 = (
    Execution("ncnn", "fp32"),
    Execution("torch", "fp32"),
    Execution("openvino", "bf16"),
    Execution("torch", "fp16"),
)


@pytest.mark.parametrize(
    ("seconds", "pair"),
    [
        ({NCNN: 1.0, TORCH: 2.0}, None),
        ({NCNN: 1.0, TORCH: 2.0, BF16: 0.9}, None),
        ({NCNN: 1.0, TORCH: 2.0, BF16: 0.81}, None),
        ({NCNN: 1.0, TORCH: 2.0, BF16: 0.8}, (NCNN, BF16)),
        ({TORCH: 2.0, NCNN: 1.0, BF16: 0.5, FP16: 0.4}, (NCNN, FP16)),
        ({BF16: 0.5, FP16: 0.4}, None),
        ({BF16: 0.5}, None),
    ],
)
def test_a_contest_needs_a_clear_margin(seconds, pair):
    assert contest(seconds) == pair


def test_a_reduced_precision_must_win_twice():
    first = {NCNN: 1.0, TORCH: 0.9, BF16: 0.5}
    assert select(first, {TORCH: 0.9, BF16: 0.5}) == BF16
    assert select(first, {TORCH: 0.9, BF16: 0.8}) == TORCH
    assert select(first, {TORCH: 0.9}) == select(first, {}) == TORCH  # it failed the second time
    assert select(first, {BF16: 0.5}) == TORCH
    assert select({NCNN: 1.0, BF16: 0.9}, {}) == NCNN
    assert select({BF16: 0.5, FP16: 0.4}, {}) == FP16  # asked for: there is no fp32 among them


def test_noise_decides_nothing():
    """Every measurement is up to a tenth off: 2,000 choices each between equals and unequals."""
    noise = np.random.default_rng(11).uniform(0.9, 1.1, (2000, 4))
    for a, b, c, d in noise:
        assert select({NCNN: a, BF16: b}, {NCNN: c, BF16: d}) == NCNN
        assert select({NCNN: 2 * a, BF16: b}, {NCNN: 2 * c, BF16: d}) == BF16


def test_one_look_disturbed_by_others_does_not_decide():
    for slow in itertools.product((1.0, 3.0), repeat=2):
        first = {NCNN: slow[0], BF16: 1.0}
        assert select(first, {NCNN: 1.0, BF16: slow[1]}) == NCNN


def test_the_order_in_which_ways_are_tried():
    executions = [NCNN, TORCH, BF16, FP16]
    ms = {"ncnn fp32": 3.0, "torch fp32": 2.0, "openvino bf16": 1.0}
    assert ordered(executions, ms, "openvino bf16") == [BF16, TORCH, NCNN, FP16]
    for unknown in (None, "onnx fp32", 3):  # of an older version, of a backend that is gone, spoilt
        assert ordered(executions, ms, unknown) == [TORCH, NCNN, BF16, FP16]
    assert ordered([BF16, FP16], {"torch fp16": 1.0, "openvino bf16": 2.0}, None) == [FP16, BF16]
    assert fastest({NCNN: 2.0, TORCH: 1.0}) == TORCH and MARGIN > 1.2
