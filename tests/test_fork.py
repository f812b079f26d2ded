"""An enhancer in a forked process would wait for threads that only the parent has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

FORK = """
import os, sys, warnings
import numpy as np
from musetalk_enhance import FaceEnhancer
from musetalk_enhance.errors import RestorerError

warnings.simplefilter("ignore")  # Python 3.12 warns of every fork
frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
enhancer = FaceEnhancer(model="lite", device="cpu", backend=sys.argv[1], dtype="fp32")
enhancer(frames)
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    enhancer(frames)
except RestorerError as error:
    print(error, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("backend", ["torch", "ncnn"])
def test_it_is_refused_with_the_way_out(backend):
    command = [sys.executable, "-c", FORK, backend]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "created before the process was forked" in run.stdout and "'spawn'" in run.stdout
