"""``python -m scripts.benchmarks`` from its words to its files, with the embedded model or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, MissingWeightError, RestorerError
from scripts.benchmarks import candidates, roofline, suite
from scripts.benchmarks.__main__ import build_parser, main, plan_of
from scripts.benchmarks.subject import Subject, open_subject, pictures
from tests.conftest import ROOT

from .conftest import CPU


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Tiny probes; returns the words of a short run of lite."""
    tiny = roofline.probes(CPU, 16, 2**12)
    monkeypatch.setattr(roofline, "probes", lambda device: list(tiny))
    words = ["--model", "lite", "--device", "cpu", "--quick", "--batches", "1"]
    words += ["--backends", "torch", "--dtypes", "fp32", "--regions", "full"]
    return [*words, "--out", str(tmp_path / "out")]


@pytest.fixture
def no_network(monkeypatch, make_enhancer):
    """Every enhancer of the bench repeats pixels instead of running a network."""

    def from_settings(settings):
        return make_enhancer(
            None, **{name: getattr(settings, name) for name in ("batch_size", "on_error")}
        )

    monkeypatch.setattr(candidates, "GFPGANEnhancer", SimpleNamespace(from_settings=from_settings))


def test_a_run_writes_json_and_prints_the_table_last(small, tmp_path, capsys):
    assert main([*small, "--dtypes", "fp32,fp4", "--backends", "torch,abacus"]) == 0
    out = capsys.readouterr().out
    assert out.rstrip().splitlines()[-1].startswith("torch fp32 batch 1")
    made = json.loads((tmp_path / "out" / suite.JSON_FILE).read_text(encoding="utf-8"))
    assert made["schema"] == 1 and made["model"] == "lite"
    assert made["asked"]["backends"] == ["torch", "abacus"]
    ours = [row for row in made["rows"] if row["path"] == "ours"]
    assert len(ours) == 4 and sum(row["reason"] is None for row in ours) == 1
    assert "invalid value 'fp4'" in out and "invalid value 'abacus'" in out
    assert ours[0]["difference"] == {"max": 0, "mean": 0.0}
    assert {"prepare", "network", "finish"} <= ours[0]["stages_ms"].keys()
    assert any("no GPU" in note for note in made["notes"])


def test_nothing_of_ours_is_exit_code_1(small, no_network, capsys):
    assert main([*small, "--backends", "abacus", "--no-reference", "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in made["rows"]] == ["ours"]


def test_without_matplotlib_there_is_json_and_a_note(
    small, no_network, capsys, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*small, "--no-reference"]) == 0
    assert "no plot, JSON only" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == [suite.JSON_FILE]


def test_the_host_s_loop_with_the_quickest(small, no_network, capsys, monkeypatch):
    from scripts.benchmarks import host_loop

    host = host_loop.Host("a test", lambda: pictures(1), 1)
    monkeypatch.setattr(host_loop, "open_host", lambda *_: host)
    assert main([*small, "--no-reference", "--host-loop"]) == 0
    out = capsys.readouterr().out
    assert "a test; enhanced with torch fp32 batch 1" in out and "overlapped" in out


def test_a_host_that_fails_costs_only_its_line(small, no_network, capsys, monkeypatch):
    from scripts.benchmarks import host_loop

    def fail(*_):
        raise KeyError("weights")

    monkeypatch.setattr(host_loop, "open_host", fail)
    assert main([*small, "--no-reference", "--host-loop"]) == 0
    assert "not measured: KeyError" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--batches", "0"],
        ["--batches", "1,x"],
        ["--frame", "64"],
        ["--rounds", "-1"],
        ["--backends", ","],
    ],
)
def test_impossible_words_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_impossible_values_are_typed_errors(small, capsys):
    assert main([*small, "--loaded", "0.5"]) == 2
    assert main(["--model", "gfpgan-9"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_quick_is_small_and_words_win(small):
    parser = build_parser()
    plan = plan_of(
        parser.parse_args(["--quick", "--faces", "5", "--loaded", "2GiB", "--frame", "640x360"])
    )
    assert (plan.faces, plan.rounds, plan.reference_faces, plan.bound_bytes) == (5, 1, 1, 2**31)
    assert plan.batches == [1, 2] and plan.frame_wh == (640, 360)
    assert plan_of(parser.parse_args([])).batches == [1, 4, 8]


def test_faces_are_whole_batches_and_the_same_for_all():
    one = candidates.ours(
        Subject("lite", {"model": "lite"}),
        "cpu",
        5,
        backend="torch",
        dtype="fp32",
        batch=4,
        region="full",
    )
    assert one.build().faces == 8
    assert one.name == "torch fp32 batch 4" and one.facts["path"] == "ours"
    assert np.array_equal(pictures(8)[:3], pictures(3)) and pictures(2, 64, 32).shape == (
        2,
        32,
        64,
        3,
    )


def test_every_combination_batches_fastest():
    listed = candidates.every(
        Subject("lite"), "cpu", 1, ["torch", "onnx"], ["fp32"], ["full", "lower"], [1, 8]
    )
    assert [one.name for one in listed][:4] == [
        "torch fp32 batch 1",
        "torch fp32 batch 8",
        "torch fp32 batch 1 lower",
        "torch fp32 batch 8 lower",
    ]
    assert len(listed) == 8


def test_emulated_arithmetic_is_refused(monkeypatch):
    monkeypatch.setattr(candidates, "is_emulated", lambda dtype: True)
    one = candidates.ours(
        Subject("lite"), "cpu", 1, backend="torch", dtype="bf16", batch=1, region="full"
    )
    with pytest.raises(RestorerError, match="no bf16 instructions"):
        one.build()


def test_models_that_are_not_here(tmp_path, monkeypatch):
    with pytest.raises(MissingWeightError):
        open_subject("restoreformer", False, tmp_path, print)
    with pytest.raises(ConfigError):
        open_subject("no-such-model", False, tmp_path, print)
    monkeypatch.setattr(
        "scripts.benchmarks.subject.random_subject", lambda folder: Subject("random")
    )
    said: list[str] = []
    assert open_subject("gfpgan-1.4", False, tmp_path, said.append).name == "random"
    assert "not on this machine" in said[0] and "random weights" in said[1]
    assert open_subject("auto", True, tmp_path, said.append).name == "random" and len(said) == 3


def test_a_path_is_never_a_name_in_the_report(tmp_path):
    from musetalk_enhance.restorers.lite import ASSET

    subject = open_subject(str(ASSET), False, tmp_path, print)
    assert subject.name == "lite" and subject.arch is None


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal\n"
        "from scripts.benchmarks.suite import work_folder\n"
        "with work_folder() as folder:\n"
        "    (folder / 'weights').write_bytes(b'0')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment)
    (left,) = tmp_path.iterdir()
    assert (left / "weights").exists()
    with suite.work_folder() as running, suite.work_folder() as other:
        assert set(tmp_path.iterdir()) == {running, other}, "a folder in use stays"
    assert not list(tmp_path.iterdir())
