"""Interleaving, groups and refusals; nothing here asserts on time."""

from __future__ import annotations

import contextlib

import pytest

from musetalk_enhance.errors import ConfigError, MissingDependencyError, RestorerError
from musetalk_enhance.pipeline.costs import Peak
from scripts.benchmarks.measure import Rounds, measure

from .conftest import CPU


def runs(log: list[str]) -> list[str]:
    return [word for word in log if " " not in word]


def test_every_candidate_runs_once_a_round(fake, rounds, log):
    seen = measure([fake("x"), fake("y")], rounds, [fake("base", "plan")])
    assert runs(log) == ["base", "x", "y"] * 3  # one of them to warm up
    assert log.index("x starts") > log.index("y")  # warm-up is over for all before counting begins
    assert [one.candidate.name for one in seen] == ["base", "x", "y"]
    assert all(len(one.ms) == 2 and one.faces == 2 and one.reason is None for one in seen)
    assert seen[1].against == {"base": seen[0].median_ms}
    assert seen[1].stages == {"network": 1.5} and seen[1].runs_as == "torch fp32"
    assert log.count("x closed") == log.count("base closed") == 1


@pytest.mark.parametrize(("working", "groups"), [(0, 1), (20, 2)])
def test_the_bound_counts_what_is_in_use_after_a_run_and_what_a_run_needs(
    fake, log, monkeypatch, working, groups
):
    """40 bytes may be in use; each candidate keeps 15 from its first run on."""
    in_use = [0]

    @contextlib.contextmanager
    def watch(device):
        yield Peak(highest=working)
        in_use[0] = 15 * log.count("x") + 15 * log.count("y")

    monkeypatch.setattr("scripts.benchmarks.measure.resident", lambda device: in_use[0])
    monkeypatch.setattr("scripts.benchmarks.measure.costs.watch", watch)
    lines: list[str] = []
    measure([fake("x"), fake("y"), fake("z")], Rounds(1, 1, CPU, 40, lines.append))
    assert sum("measuring group" in line for line in lines) == groups - 1
    assert log.index("x loaded") < log.index("x") < log.index("y loaded")


def test_groups_where_not_all_fit(fake, log, monkeypatch):
    """Each load takes 10 bytes of 15: two are a group, the base runs in both groups."""
    taken = iter(range(0, 10_000, 10))
    monkeypatch.setattr("scripts.benchmarks.measure.resident", lambda device: next(taken))
    said: list[str] = []
    seen = measure(
        [fake("x"), fake("y"), fake("z")],
        Rounds(1, 0, CPU, 15, said.append),
        [fake("base", "plan")],
    )
    assert runs(log) == ["base", "x", "base", "x", "y", "base", "y", "z", "base", "z"]
    assert log.index("x closed") < log.index("y loaded")
    assert sum("group" in line for line in said) == 2
    assert len(seen[0].ms) == 3
    assert [one.against["base"] for one in seen[1:]] == seen[0].ms


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("dtype", "fp4", "auto | fp32"),
        MissingDependencyError("openvino", "openvino", "backend: openvino"),
        RestorerError("no such provider"),
        ZeroDivisionError(),
    ],
)
def test_what_cannot_be_loaded_has_a_reason_and_stops_nobody(fake, rounds, log, error):
    refused, fine = measure([fake("x", error=error), fake("y")], rounds)
    assert refused.reason == (str(error) or "ZeroDivisionError") and refused.ms == []
    assert fine.reason is None and runs(log) == ["y"] * 3


def test_what_fails_later_is_taken_out_and_closed(fake, rounds, log):
    failed, fine = measure([fake("x", fails=2), fake("y")], rounds)
    assert failed.reason == "the network\nfell over"
    assert runs(log) == ["x", "y", "y", "y"] and log.count("x closed") == 1
    assert len(fine.ms) == 2


def test_a_failing_reference_is_no_comparison(fake, rounds):
    seen = measure([fake("x")], rounds, [fake("base", "plan", error=RestorerError("no"))])
    assert seen[1].against == {} and seen[1].reason is None
