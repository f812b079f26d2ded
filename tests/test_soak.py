"""A long stream keeps memory flat; scripts/soak.py says so and fails when it does not."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from musetalk_enhance.runtime.memory import resident_bytes
from tests.conftest import RECORD, ROOT

spec = importlib.util.spec_from_file_location("soak", ROOT / "scripts" / "soak.py")
soak = importlib.util.module_from_spec(spec)
spec.loader.exec_module(soak)


@pytest.fixture(autouse=True)
def one_thread():
    """Small frames on many threads mean waiting for one another, for minutes on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_batches_are_as_many_frames_as_asked_in_odd_sizes():
    sizes = [len(batch) for batch in soak.batches(1000, 16)]
    assert sum(sizes) == 1000 and max(sizes) == 8 and len(set(sizes)) > 4
    arrays = [batch for batch in soak.batches(1000, 16) if isinstance(batch, np.ndarray)]
    assert arrays[0].strides[-1] == -1 and len(arrays) < len(sizes)


@pytest.mark.parametrize("mode", ["memory", "batch"])
def test_two_thousand_frames_leave_nothing_behind(make_enhancer, mode):
    record = replace(RECORD, input_size=64, output_size=64)
    enhancer = make_enhancer(lambda batch: 1 - batch, record, mode=mode)
    seen, python, resident = 0, [], []
    tracemalloc.start()
    try:
        for batch in soak.batches(2000, 64):
            enhancer(batch)
            seen += len(batch)
            if seen // 500 > len(python):
                python.append(tracemalloc.get_traced_memory()[0])
                resident.append(resident_bytes())
    finally:
        tracemalloc.stop()
    assert len(python) == 4 and enhancer.stats.frames == 2000
    assert python[-1] - python[0] < 2**20, "objects of Python and arrays of numpy"
    assert resident[-1] < 1.05 * resident[0]


def test_the_script_ends_with_zero_when_memory_stays(monkeypatch, capsys, tmp_path):
    words = [
        "soak.py",
        "--model",
        "none",
        "--frames",
        "1000",
        "--side",
        "64",
        "--json",
        str(tmp_path / "seen.json"),
    ]
    monkeypatch.setattr(sys, "argv", words)
    assert soak.main() == 0
    assert (
        "growth after the first 500" in capsys.readouterr().out
        and (tmp_path / "seen.json").is_file()
    )


def test_the_script_ends_with_one_when_it_leaks(monkeypatch, capsys):
    seen = iter([(500.0, 100.0), (490.0, 106.0)])  # files' pages dropped hide nothing
    monkeypatch.setattr(soak, "resident", lambda: next(seen))
    monkeypatch.setattr(
        sys, "argv", ["soak.py", "--model", "none", "--frames", "1000", "--side", "64"]
    )
    assert soak.main() == 1
    assert "6.00%" in capsys.readouterr().out
