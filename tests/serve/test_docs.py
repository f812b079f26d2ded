"""The curl and Python examples in docs/service.md run as they are printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.serve.conftest import png, portrait, running

TEXT = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", TEXT, re.S)


def run(kind: str, code: str, url: str, folder) -> str:
    code = code.replace("http://127.0.0.1:7860", url)
    code = code.replace("ws://127.0.0.1:7860", url.replace("http", "ws"))
    code = code.replace('"deadline_ms": 200', '"deadline_ms": 20000')  # no test is about time
    command = [sys.executable, "-c", code] if kind == "python" else ["bash", "-ec", code]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_examples_run(network, tmp_path):
    assert len(BLOCKS) == 4
    (tmp_path / "face.png").write_bytes(png(portrait(1, 200)))
    with running() as url:
        for kind, code in BLOCKS:
            if "talk.mp4" in code or (kind == "bash" and shutil.which("curl") is None):
                continue
            (tmp_path / "restored.png").unlink(missing_ok=True)
            output = run(kind, code, url, tmp_path)
            if "/stream" in code:
                assert output.count("restored") + output.count("left alone") == 3
            else:
                assert (tmp_path / "restored.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.shared
@pytest.mark.long
def test_the_example_of_a_video_runs(shared, tmp_path):
    from tests.serve.test_videos import server

    if shutil.which("curl") is None:
        pytest.skip("no curl")
    (code,) = (code for kind, code in BLOCKS if "talk.mp4" in code)
    shutil.copy(shared / "data" / "clips" / "d11.mp4", tmp_path / "talk.mp4")
    with server(shared, tmp_path / "data") as (url, _):
        code = code.replace("http://127.0.0.1:7860", url).replace("python -c", "python3 -c")
        result = subprocess.run(["bash", "-ec", code], cwd=tmp_path, text=True, timeout=500)
    assert result.returncode == 0 and (tmp_path / "restored.mp4").stat().st_size > 10000
