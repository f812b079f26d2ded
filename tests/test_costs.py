"""The cost of a batch, from the batches that were watched."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
import torch

from musetalk_enhance.pipeline import costs
from musetalk_enhance.pipeline.costs import CostModel, Peak
from tests.conftest import ROOT

MIB = 2**20
CPU = torch.device("cpu")


def model(*needs: tuple[int, int]) -> CostModel:
    """A model that has seen (faces, bytes)."""
    costs_ = CostModel(7)
    for faces, need in needs:
        costs_.add(faces, Peak(need, 0))
    return costs_


def test_before_anything_was_measured_the_guess_counts():
    assert model().line() == (0, 7) and model().bytes_for(3) == 21 and model().fitting(31, 9) == 4


def test_one_batch_says_no_more_than_that_all_of_it_grows():
    one = model((1, 100))
    assert one.line() == (0, 100)
    assert one.bytes_for(1) == 100, "measured: no headroom"
    assert one.bytes_for(2) == 210
    assert [one.fitting(budget, 9) for budget in (109, 230, 232)] == [0, 1, 2], (
        "a tenth more than was seen"
    )


def test_two_batches_make_a_line():
    two = model((1, 100), (2, 150))
    assert two.line() == (50, 50)
    assert two.bytes_for(4) == 150 + 110 and two.fitting(10**9, 6) == 6


def test_between_measured_batches_it_is_interpolated():
    three = model((1, 100), (2, 150), (8, 300))
    assert [three.bytes_for(n) for n in (1, 2, 5, 8)] == [100, 150, 225, 300]
    assert three.fitting(250, 32) == 5


def test_a_larger_batch_is_never_taken_to_be_cheaper():
    odd = model((1, 100), (2, 80))
    assert odd.bytes_for(2) == 100 and odd.line() == (0, 50), "no slope to go by: the average"


def test_of_two_looks_the_lower_counts():
    twice = CostModel(7)
    twice.add(1, Peak(300, 20))
    assert not twice.sure(1) and twice.measured == {1: 300}
    twice.add(1, Peak(100, 0))
    assert twice.sure(1) and twice.measured == {1: 120}, (
        "what the first run has kept is still there"
    )
    twice.add(1, Peak(500, 0))
    assert twice.measured == {1: 120}


def test_a_peak_that_may_have_been_missed_is_not_looked_at_again():
    once = CostModel(7)
    once.add(1, Peak(100, 0, exact=False))
    assert once.sure(1) and once.measured == {1: 100}


def test_what_was_freed_meanwhile_hides_nothing():
    freed = CostModel(7)
    freed.add(1, Peak(10, -300))
    freed.add(2, Peak(150, 0))
    assert freed.measured == {1: 310, 2: 150}


def test_what_was_kept_counts_to_the_next():
    arena = CostModel(7)
    arena.add(1, Peak(100, 100))
    arena.add(2, Peak(60, 0))
    assert arena.measured == {1: 100, 2: 160}


def test_steps():
    assert [
        m.next_step for m in (model(), model((1, 9)), model((2, 9)), model((1, 9), (8, 9)))
    ] == [1, 2, 8, 32]


MEASURED = """
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from musetalk_enhance.pipeline import costs
from musetalk_enhance.runtime import memory

def seen():
    # until the thread that samples has looked: it may wait longer than the work takes
    for _ in range(2 if sampled else 0):  # the first look may have begun before
        looked.clear()
        assert looked.wait(60)

def work(size):
    large = np.ones(3 * size, np.uint8)
    seen()
    kept = np.ones(size, np.uint8)
    seen()
    return kept

def refuse(self, text):
    raise PermissionError

def resident_bytes(look=memory.resident_bytes):
    try:
        return look()
    finally:
        looked.set()

looked, sampled = threading.Event(), False
work(2**20)
if sampled := sys.argv[1] == "sampled":
    Path.write_text, memory.resident_bytes = refuse, resident_bytes
with costs.watch(SimpleNamespace(type="cpu")) as peak:
    kept = work(40 * 2**20)
print(peak.highest, peak.kept, kept.size, peak.exact)
"""


@pytest.mark.parametrize("how", ["kernel", "sampled"])
def test_watch_on_the_cpu(how):
    """In a process of its own: in a large one the system takes cold pages away meanwhile."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, how], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    highest, kept, size, exact = map(ast.literal_eval, done.stdout.split())
    assert 140 * MIB < highest < 180 * MIB, "three and one of 40 at once"
    assert 36 * MIB < kept < 46 * MIB and size == 40 * MIB
    assert not exact or how == "kernel"


def test_watch_ends_quietly_with_an_error():
    with pytest.raises(KeyError), costs.watch(CPU):
        raise KeyError


def test_watch_on_cuda(monkeypatch):
    state = {"allocated": 100, "peak": 9999, "reserved": 200, "free": 700}

    def reset(device):
        state["peak"] = state["allocated"]

    for name, answer in {
        "reset_peak_memory_stats": reset,
        "memory_allocated": lambda device: state["allocated"],
        "memory_reserved": lambda device: state["reserved"],
        "max_memory_allocated": lambda device: state["peak"],
        "mem_get_info": lambda device: (state["free"], 1000),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    with costs.watch(torch.device("cuda")) as peak:
        # 60 more reserved, 40 taken by others
        state.update(allocated=110, peak=150, reserved=260, free=600)
    assert (peak.highest, peak.kept) == (50 + 40, 10 + 40)
    assert costs.measurable(torch.device("cuda")) and not costs.measurable(torch.device("meta"))
