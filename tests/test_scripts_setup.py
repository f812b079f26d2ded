"""scripts/venv.sh and demo.sh: what is said while pip works, and how they end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(os.name == "nt", reason="bash")

PYTHON = """#!/bin/bash
# a python that makes its own copy as a virtual environment, and whose pip takes a second
if [ "$1" = -m ] && [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
if [ "$2" = pip ]; then echo "$*" >> "$LOG"; /bin/sleep 1; exit "${PIP_CODE:-0}"; fi
if [ "$1" = -c ] && [[ "$2" = *runpy* ]]; then exec "$REAL" "$@"; fi
"""
SLEEP = """#!/bin/bash
exec /bin/sleep "0.0$1"
"""
DEMO = """import sys, time
print("imports", *sys.argv, flush=True)
time.sleep(20 * ("wait" in sys.argv))
"""


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The scripts beside a demo that only waits; python and sleep are stand-ins."""
    for name in ("scripts/venv.sh", "scripts/demo.sh", "setup.cfg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in {"python": PYTHON, "sleep": SLEEP}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/demo.py").write_text(DEMO)
    return tmp_path


def environment(checkout: Path, **variables: str) -> dict[str, str]:
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    own = {"PYTHON": str(checkout / "bin/python"), "LOG": str(checkout / "log"), "PATH": path}
    return {**os.environ, **own, "REAL": sys.executable, "VENV": ".venv", **variables}


def demo(checkout: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "scripts/demo.sh", *words],
        cwd=checkout,
        env=environment(checkout, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_size_is_said_first_and_lines_follow(checkout):
    process = demo(checkout, "--seconds", "8")
    assert process.returncode == 0 and process.stdout == "imports examples/demo.py --seconds 8\n"
    first, *lines = process.stderr.splitlines()
    assert "about 3 GB to download and 6 to 8 GB on disk" in first
    assert len(lines) >= 4 and all("pip is at work: " in line for line in lines)
    assert "install --quiet" in (checkout / "log").read_text()
    again = demo(checkout)
    assert again.stderr == "" and again.returncode == 0, "nothing is installed twice"


def test_a_failure_of_pip_ends_it_and_is_tried_again(checkout):
    assert demo(checkout, PIP_CODE="7").returncode == 1
    assert not (checkout / ".venv/.installed").exists()
    assert demo(checkout).returncode == 0 and (checkout / ".venv/.installed").exists()


def test_an_interruption_during_the_imports_is_one_line(checkout):
    assert demo(checkout).returncode == 0
    process = subprocess.Popen(
        ["bash", "scripts/demo.sh", "wait"],
        cwd=checkout,
        env=environment(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell's background jobs ignore SIGINT, and hand that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline().startswith("imports")
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert printed == "demo: interrupted, nothing was written\n"
    assert process.returncode == 130
