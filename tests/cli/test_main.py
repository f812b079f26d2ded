"""The command line as a whole: exit codes, help, listings."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from musetalk_enhance import __version__
from musetalk_enhance.cli import COMMANDS, images, main
from musetalk_enhance.cli.parser import CommandParser
from musetalk_enhance.config.flags import GROUPS


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
    assert "--gfpgan_strength" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["fly"], ["weights"], ["models", "a", "b"]])
def test_wrong_calls_are_exit_code_2(words, capsys):
    assert main(words) == 2


@pytest.mark.parametrize("words", [[], ["help"], ["help", "images"], ["help", "run"]])
def test_help_in_other_words(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert main([*words[1:], "--help"]) == 0
    assert printed == capsys.readouterr().out and "examples:\n" in printed


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["images"], "INPUT_DIR, --output-dir"),
        (["images", "photos"], "--output-dir"),
        (["video", "a.mp4"], "OUT"),
        (["report"], "IN, OUT"),
        (["run"], "SCRIPT"),
        (["weights"], "COMMAND"),
        (["weights", "fetch"], "NAME"),
        (["export", "lite"], "OUT.onnx"),
    ],
)
def test_a_missing_argument_is_three_lines(words, missing, capsys):
    assert main(words) == 2
    error, usage, hint = capsys.readouterr().err.splitlines()
    assert error.endswith(f": the following arguments are required: {missing}")
    command = f"musetalk-enhance {' '.join(word for word in words if word in _COMMAND_WORDS)}"
    assert usage.startswith(f"usage: {command} ") and hint.startswith(f"`{command} --help`")


_COMMAND_WORDS = {*COMMANDS, "fetch"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_what_matters_and_ends_with_examples(command, capsys):
    assert main([command, "--help"]) == 0
    head, _, examples = capsys.readouterr().out.partition("examples:\n")
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert len(lines) == 2
    assert all(line.startswith(f"musetalk-enhance {command}") for line in lines)
    if command in ("run", "images", "video"):
        title = "face restoration (musetalk_enhance):" if command == "run" else "options:"
        main_options = head.partition(f"\n{title}\n")[2].partition("\n\n")[0]
        flags = [line.split()[0] for line in main_options.splitlines() if line.startswith("  --")]
        assert 9 <= len(flags) <= 12
        assert {flag.rpartition("gfpgan_")[2].strip("-,") for flag in flags} >= {
            *("model", "strength", "fidelity", "device", "download")
        }


@pytest.mark.parametrize("command", ["run", "images", "video", "serve"])
def test_every_option_stands_in_a_group(command, capsys):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "other options:" not in printed
    service = {"service", "limits"}
    titles = service if command == "serve" else GROUPS.keys() - service
    assert all(f"{title}:\n" in printed for title in titles)


def _images(words):
    parser = CommandParser(prog="x")
    images.add_arguments(parser)
    return parser.parse_args([*words, "--output-dir", "out"])


@pytest.mark.parametrize(
    ("words", "guard"),
    [
        (["--guard", "photos"], "true"),
        (["--guard", "--no-download", "photos"], "true"),
        (["--guard", "false", "photos"], "false"),
        (["--guard", "AUTO", "photos"], "AUTO"),
        (["--guard=off", "photos"], "off"),
        (["--no-guard", "photos"], "false"),
        (["photos", "--guard"], "true"),
    ],
)
def test_a_switch_does_not_swallow_a_folder(words, guard):
    args = _images(words)
    assert (str(args.source), args.job_guard) == ("photos", guard)


def test_words_after_two_dashes_are_no_switches():
    parser = CommandParser(prog="x")
    images.add_arguments(parser)
    assert str(parser.parse_args(["--output-dir", "x", "--", "--guard"]).source) == "--guard"


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_negated_switch_takes_no_value(value, capsys):
    words = ["images", "photos", "--output-dir", "out", f"--no-download={value}"]
    assert main(words) == 2
    assert f"--no-download takes no value, got '{value}'" in capsys.readouterr().err
    assert main(["images", "--help"]) == 0
    assert "--download [true|false], --no-download\n" in capsys.readouterr().out


def test_models(capsys):
    assert main(["models", "gfpgan-*", "--json"]) == 0
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


def test_gfpgan_is_the_newest_gfpgan(tmp_path, capsys):
    words = ["images", str(tmp_path), "--output-dir", str(tmp_path / "out"), "--quiet"]
    (tmp_path / "a.png").write_bytes(b"")
    assert main([*words, "--face-detector", "none", "--model", "gfpgan"]) == 2
    assert "musetalk-enhance weights fetch GFPGANv1.4" in capsys.readouterr().err
    assert main([*words, "--face-detector", "none", "--model", "gfpgans"]) == 2
    error = capsys.readouterr().err
    assert "invalid value 'gfpgans'; expected auto, lite, gfpgan-1.4, gfpgan-1.3" in error


@pytest.mark.parametrize("name", ["", "a\0b"])
@pytest.mark.parametrize(
    "words",
    [
        ["images", "?", "--output-dir", "out"],
        ["images", "in", "--output-dir", "?"],
        ["video", "?", "out.mp4"],
        ["video", "in.mp4", "?"],
        ["video", "in.mp4", "out.mp4", "--report", "?"],
        ["report", "in.mp4", "?"],
        ["report", "in.mp4", "out.mp4", "--out", "?"],
        ["onnx", "?", "--output", "out"],
    ],
)
def test_an_empty_name_is_not_the_current_folder(words, name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([name if word == "?" else word for word in words]) == 2
    assert f"invalid path {name!r}; expected a name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["images", ".", "--output-dir", "taken"],
        ["video", "in.mp4", "out.mp4", "--report", "taken"],
        ["report", "in.mp4", "out.mp4", "--out", "taken"],
        ["bench", "--out", "taken"],
    ],
)
def test_a_file_in_the_place_of_a_folder_is_told_before_the_work(
    words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_bytes(b"mine")
    assert main(words) == 2
    assert "taken is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "printed"), [("ascii", "\\xfc\\udc80"), ("utf-8", "ü\\udc80")]
)
def test_names_that_stdout_cannot_encode_are_escaped(monkeypatch, encoding, printed):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("musetalk_enhance.cli.weights.run", lambda args: print("ü\udc80") or 0)
    assert main(["weights", "list"]) == 0
    assert stream.buffer.getvalue().decode(encoding).strip() == printed
    assert stream.errors == "strict"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_reader_that_stops_and_a_full_disk():
    command = [sys.executable, "-m", "musetalk_enhance", "weights", "list", "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("musetalk-enhance: the output cannot be written (")


def test_as_a_module():
    process = subprocess.run(
        [sys.executable, "-m", "musetalk_enhance", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert __version__ in process.stdout
