"""Threads: what runs beside each other comes out as it does in turn, also where none can start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from musetalk_enhance.runtime.threads import for_each
from tests.conftest import ROOT

LATE = """
import threading, time
import numpy as np, torch
from tests.conftest import enhancer_around

torch.set_num_threads(3)
enhancer = enhancer_around(lambda faces: faces * 0.5, stability=1.0, batch_size=3)
frames = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)

def work():
    threading.main_thread().join()
    time.sleep(0.2)  # what the interpreter does then, before it waits for this thread
    enhancer(frames)
    stats = enhancer.stats
    print(stats.restored, stats.batches, dict(stats.passed_through), flush=True)

threading.Thread(target=work).start()
"""


@pytest.fixture
def three_threads():
    previous = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(previous)


def test_results_keep_their_order_and_the_first_error_is_raised(three_threads):
    assert for_each(lambda a, b: a - b, range(9), [1] * 9) == list(range(-1, 8))
    with pytest.raises(ZeroDivisionError, match="of 2"):
        for_each(_divide, [1, 2, 3, 4])


def _divide(number: int) -> None:
    if number % 2 == 0:
        raise ZeroDivisionError(f"of {number}")


def test_nested_and_from_many_threads_it_ends(three_threads):
    def nested(number: int) -> int:
        return sum(for_each(lambda each: each * number, range(3)))

    results: list[list[int]] = []
    callers = [
        threading.Thread(target=lambda: results.append(for_each(nested, range(12))), daemon=True)
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert results == [[3 * number for number in range(12)]] * 4


def test_after_the_main_thread_has_ended_frames_are_restored():
    """No executor takes work any more then, and a host's last thread may still be at it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LATE]
    run = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=300)
    assert run.stdout.strip() == "6 2 {}", run.stderr
