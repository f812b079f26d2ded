"""Several at once, and Ctrl-C: other threads, other processes, the next run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from weights_server import DATA, Resource, Server

from musetalk_enhance.weights import WeightEntry, fetch

Add = Callable[..., WeightEntry]


def test_threads_take_turns_and_download_once(server: Server, add: Add) -> None:
    resource = Resource(DATA, hold_after=10_000)
    add(server.add("/tiny.pth", resource))
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(fetch("tiny", progress=False)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: server.sent == 10_000)
    resource.go.set()
    for thread in threads:
        thread.join(10)
    assert len(paths) == 3
    assert server.sent == len(DATA)


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from musetalk_enhance.runtime.registry import Registry
from musetalk_enhance.weights import WeightEntry, fetch, table
url, size, sha256 = sys.argv[1:]
table.WEIGHTS = Registry("weight")
entry = WeightEntry("tiny", "tiny.pth", (url,), int(size), sha256, "MIT", (), "a test")
table.WEIGHTS.add("tiny", entry)
print(fetch("tiny", progress=False))
"""


def start(entry: WeightEntry) -> subprocess.Popen[str]:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", SCRIPT, entry.urls[0], str(entry.size), entry.sha256]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_two_processes_download_once(server: Server, add: Add, cache_folder: Path) -> None:
    resource = Resource(DATA, hold_after=10_000)
    entry = add(server.add("/tiny.pth", resource))
    processes = [start(entry), start(entry)]
    wait_for(lambda: server.sent == 10_000)
    time.sleep(0.2)  # for the second one to come to the lock, if it is that quick
    resource.go.set()
    outputs = [process.communicate(timeout=20) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert (cache_folder / "tiny.pth").read_bytes() == DATA
    assert len(server.log) == 1
    assert server.sent == len(DATA)


def test_ctrl_c_leaves_the_part_and_the_next_run_goes_on(
    server: Server, add: Add, cache_folder: Path
) -> None:
    resource = Resource(DATA, hold_after=40_000)
    entry = add(server.add("/tiny.pth", resource))
    part = cache_folder / "tiny.pth.part"
    process = start(entry)
    wait_for(lambda: part.exists() and part.stat().st_size == 40_000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert part.read_bytes() == DATA[:40_000]
    resource.hold_after = None
    assert fetch("tiny", progress=False).read_bytes() == DATA
    assert server.log[-1].range == "bytes=40000-"
    assert server.log[-1].sent == len(DATA) - 40_000
