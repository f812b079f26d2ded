"""The hosts' own code, where their repositories are at hand: see `scripts.host_checks`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.host_checks.__main__ import CHECKS
from tests.conftest import ROOT


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_the_hosts_own_code(name):
    """MUSETALK_ENHANCE_HOSTS names a folder with checkouts."""
    hosts = os.environ.get("MUSETALK_ENHANCE_HOSTS")
    if not hosts or not Path(hosts, CHECKS[name]).is_dir():
        pytest.skip(f"no checkout of {CHECKS[name]} (set MUSETALK_ENHANCE_HOSTS)")
    command = [sys.executable, "-m", "scripts.host_checks", "--hosts", hosts, name]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "skipped: " in run.stdout:
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["--one", "nothing"],
        ["--minutes", "1", "livetalking", "wav2lip"],
        ["--pictures", ".", "musetalk_realtime"],
    ],
)
def test_an_unknown_check_is_refused(tmp_path, words):
    command = [sys.executable, "-m", "scripts.host_checks", "--hosts", str(tmp_path), *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2 and words[-1] in run.stderr.partition("; there are")[0]
