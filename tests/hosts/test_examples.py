"""The examples for hosts run, and say what they promise."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.conftest import ROOT
from tests.hosts.host_folder import host_folder
from tests.hosts.test_livetalking import FILES

EXAMPLES = ROOT / "examples"


def run_example(name: str) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrap_function", ["None (2, 3, 256, 256) float32", "of 4 faces", "of 2 faces"]),
        ("wav2lip", ["(4, 3, 512, 512) torch.float32"]),
        ("wav2lip_onnx_hq", ["(256, 256, 3)", "of 1 face"]),
    ],
)
def test_an_example_without_its_host(name, words, capsys):
    run_example(name)
    printed = capsys.readouterr().out
    assert all(word in printed for word in words), printed


@pytest.mark.parametrize("script", ["app.py", "server.py"])
def test_livetalkings_example_in_its_folder(tmp_path, monkeypatch, capsys, script):
    files = FILES | {"app.py": FILES[script]}
    with host_folder(tmp_path, files, monkeypatch):
        path = list(sys.path)
        run_example("livetalking")
        sys.path[:] = path
    assert "of 8 faces restored" in capsys.readouterr().out
