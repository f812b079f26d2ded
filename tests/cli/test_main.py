"""The command line as a whole: exit codes, help, listings."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from musetalk_enhance import __version__
from musetalk_enhance.cli import COMMANDS, main


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
    assert "--gfpgan_strength" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["fly"], ["weights"], ["models", "a", "b"]])
def test_wrong_calls_are_exit_code_2(words, capsys):
    assert main(words) == 2


def test_models(capsys):
    assert main(["models", "gfpgan*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["gfpgan-1.4", "gfpgan-1.3", "gfpgan-1.2"]
    assert all(row["status"] == "no weight" and row["weight"] and row["licence"] for row in rows)
    assert main(["models"]) == 0
    assert "ready" in capsys.readouterr().out
    assert main(["models", "nothing*"]) == 1


def test_typed_errors_are_one_line(capsys):
    assert main(["weights", "path", "GFPGANv9"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("musetalk-enhance: ")
        and "GFPGANv1.4" in error
        and "Traceback" not in error
    )


def test_as_a_module():
    process = subprocess.run(
        [sys.executable, "-m", "musetalk_enhance", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert __version__ in process.stdout
