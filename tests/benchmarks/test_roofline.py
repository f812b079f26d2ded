"""What a face costs, and what the machine does: counted exactly, measured on tiny sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import Conv2d, ConvTranspose2d, Linear

from scripts.benchmarks import roofline
from scripts.benchmarks.measure import measure
from scripts.benchmarks.subject import Subject

from .conftest import CPU


@pytest.mark.parametrize(
    ("module", "shape", "macs", "weights"),
    [
        (Conv2d(3, 8, 3, padding=1), (2, 3, 10, 12), 2 * 8 * 10 * 12 * 3 * 9, 8 * 3 * 9),
        (Conv2d(4, 8, 3, stride=2, groups=2), (1, 4, 9, 9), 8 * 4 * 4 * 2 * 9, 8 * 2 * 9),
        (ConvTranspose2d(3, 5, 4, stride=2), (1, 3, 6, 6), 3 * 6 * 6 * 5 * 16, 3 * 5 * 16),
        (Linear(7, 11), (5, 7), 5 * 7 * 11, 7 * 11),
        (torch.nn.ReLU(), (5, 7), 0, 0),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_are_the_textbook_s(module, shape, macs, weights, device):
    module, x = module.to(device), torch.ones(shape, device=device)
    work = roofline.count(lambda: module(x))
    with torch.no_grad():
        moved = 4 * (x.numel() + module(x).numel()) if macs else 0
    assert work == roofline.WorkloadCost(macs, moved, 4 * weights)


def test_gfpgan_is_198_gmac_and_lite_below_4():
    work = roofline.work_of(Subject("any", {}, "clean"))
    assert 197e9 < work.macs < 199e9
    assert 300e6 < work.weight_bytes < 350e6
    assert 3e9 < roofline.work_of(Subject("lite")).macs < 4e9
    assert roofline.work_of(Subject("a plug-in")) is None


def test_probes_give_rates(rounds):
    seen = measure([], rounds, roofline.probes(CPU, side=32, copy_bytes=2**16))
    assert [one.candidate.facts["dtype"] for one in seen] == ["fp32", "bf16", "bytes"]
    assert all(one.reason is None and one.stages["per_second"] > 0 for one in seen)


def test_a_slow_product_is_not_made_larger(monkeypatch):
    monkeypatch.setattr(roofline, "_LONG_S", 0.0)
    assert roofline.probes(CPU, side=64)[0].build().amount == 4**3


def test_limits():
    work = roofline.WorkloadCost(macs=10**9, activation_bytes=6 * 10**6, weight_bytes=2 * 10**6)
    limits = roofline.limits(work, {"fp32": 1e11, "bf16": 2e11, "bytes": 8e9})
    assert set(limits) == {"fp32", "bf16"}
    assert limits["fp32"].arithmetic_ms == pytest.approx(10) and limits[
        "fp32"
    ].memory_ms == pytest.approx(1)
    assert limits["bf16"].arithmetic_ms == pytest.approx(5) and limits[
        "bf16"
    ].memory_ms == pytest.approx(0.5)
    assert math.isnan(roofline.limits(work, {"fp32": 1.0})["fp32"].memory_ms)
