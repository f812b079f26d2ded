"""``scripts/gpu_check.sh``: what it judges, and what it says without a GPU."""

from __future__ import annotations

import sys

import pytest
import torch

from scripts import gpu_check


def row(subject, options, batch, ms, **more):
    name = f"{subject} bf16 batch {batch} {options}"
    facts = {"path": "ours", "subject": subject, "options": options, "dtype": "bf16"}
    figures = {"ms_per_face": ms, "faces_per_second": 1e3 / ms, "peak_bytes": 2**30}
    facts |= {"batch": batch, "reason": None, "runs_as": "x"}
    return {"name": name, **facts, **figures, **more}


def report(defaults_ms, share=0.3, faster=12.0):
    rows = [
        row("GFPGAN", "alone", 8, 10.0, times_faster={"plan": faster}),
        row("GFPGAN", "defaults", 8, defaults_ms),
        row("lite", "alone", 8, 1.0),
        {"name": "lite fp16", "path": "ours", "reason": "out of memory with this batch"},
    ]
    limit = {"dtype": "bf16", "best": {"full": {"share": share}}}
    return {
        "rows": rows,
        "roofline": {"limits": [limit]},
        "left_out": ["lite fp32 batch 64 alone"],
        "checks": {"tests": "passed"},
    }


@pytest.mark.parametrize(
    ("content", "reached"),
    [
        (report(12.4), [True, True, True]),
        (report(12.6), [True, True, False]),
        (report(12.4, share=0.24, faster=9.0), [False, False, True]),
        (report(12.4, share=None), [True, False, True]),
    ],
)
def test_bars(content, reached):
    bars = gpu_check._bars(content)
    assert [bar["reached"] for bar in bars.values()] == reached
    text = "\n".join(gpu_check._table({**content, "bars": bars}))
    assert text.count("MISSED") == reached.count(False)
    assert "not reached in time: lite fp32 batch 64 alone" in text
    assert "out of memory with this batch" in text and "tests: passed" in text


def test_without_a_gpu_it_ends_with_exit_code_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path)])
    assert gpu_check.main() == 2
    assert "torch finds no GPU; --cpu is a dry run" in capsys.readouterr().out


def test_missing_packages_are_named_with_the_command_that_collects_them(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "NEEDED", {"no_such_module": "no-such-package"})
    monkeypatch.setattr(gpu_check, "OPTIONAL", {"another_module": "another-package"})
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 2
    command = "pip wheel --wheel-dir wheels no-such-package another-package"
    assert command in capsys.readouterr().out
