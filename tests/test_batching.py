"""How large the next batch is, as what batches take becomes known."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.pipeline import costs
from musetalk_enhance.pipeline.batch_planner import BatchPlanner
from musetalk_enhance.pipeline.costs import Peak
from tests.conftest import RECORD

MIB = 2**20
FACE = 24


class Machine:
    """Where a face takes `FACE` MiB and some runs take more; runs what a planner says.

    Attributes:
        spikes: (faces, how many batches of that size ran before) to MiB that this one takes
            besides.
        tried: faces of each batch.
        measured: faces of each batch that was watched.
        exact: whether its peaks are.
    """

    def __init__(self, spikes: dict[tuple[int, int], int]) -> None:
        self.spikes, self.exact, self.tried, self.measured = spikes, True, [], []

    @contextmanager
    def watch(self, device: torch.device):
        peak = Peak(exact=self.exact)
        yield peak
        faces = self.tried[-1]
        self.measured.append(faces)
        peak.highest = (
            FACE * faces + self.spikes.get((faces, self.tried.count(faces) - 1), 0)
        ) * MIB

    def run(self, planner: BatchPlanner, waiting: int = 99) -> None:
        self.tried.append(planner.next(waiting))
        with planner.watched(self.tried[-1]):
            pass
        planner.succeeded()


@pytest.fixture
def machine(monkeypatch):
    made = Machine({})
    monkeypatch.setattr(costs, "watch", made.watch)
    return made


def planned(budget: int, known: BatchPlanner | None = None, **options) -> BatchPlanner:
    settings = EnhancerSettings(enabled=True, mode="memory", memory_budget=budget * MIB, **options)
    return BatchPlanner(settings, RECORD, torch.device("cpu"), known)


def test_in_a_quiet_place_the_plan_is_reached_in_three_steps(machine):
    planner = planned(206)
    for _ in range(6):
        machine.run(planner)
    assert machine.tried == [1, 2, 7, 7, 7, 7] and planner.planned == 7
    assert machine.measured == [1, 2, 7, 7], "the last twice, as it is why there are not more"


def test_what_nothing_limits_is_measured_once(machine):
    planner = planned(400)
    for _ in range(6):
        machine.run(planner)
    assert machine.tried == [1, 2, 8, 8, 8, 8] and machine.measured == [1, 2, 8]


@pytest.mark.parametrize(
    ("faces", "tried"), [(1, [1, 1, 2, 7, 7, 7]), (2, [1, 2, 2, 7, 7, 7]), (7, [1, 2, 7, 7, 7, 7])]
)
def test_what_only_one_run_takes_does_not_keep_batches_small(machine, faces, tried):
    machine.spikes[faces, 0] = 160
    planner = planned(206)
    for _ in range(6):
        machine.run(planner)
    assert machine.tried == tried and planner.planned == 7


@pytest.mark.parametrize(
    ("faces", "tried"), [(1, [1] * 6), (2, [1, 2, 2, 1, 1, 1]), (7, [1, 2, 7, 7, 4, 4])]
)
def test_what_two_runs_take_is_believed(machine, faces, tried):
    machine.spikes.update({(faces, 0): 160, (faces, 1): 160})
    planner = planned(206)
    for _ in range(6):
        machine.run(planner)
    assert machine.tried == tried and planner.planned == tried[-1]
    assert machine.measured.count(faces) == 2


def test_one_face_a_batch_is_not_measured_twice_where_no_more_is_wanted(machine):
    planner = planned(20, batch_size=1)
    for _ in range(3):
        machine.run(planner)
    assert machine.measured == [1]


def test_what_another_planner_learns_of_the_same_costs_counts(machine):
    machine.spikes[1, 0] = 160
    planner = planned(206)
    machine.run(planner)
    assert planner.planned == 1
    other = planned(206, planner, batch_size=4)
    machine.run(other)
    assert planner.planned == 1
    machine.run(planner)
    assert planner.next(99) == 2 and planner.planned == 7
    for _ in range(3):
        machine.run(planner)
    assert machine.tried == [1, 1, 1, 2, 7, 7]


def test_a_larger_batch_of_another_planner_is_not_asked_for(machine):
    planner = planned(206, batch_size=2)
    machine.run(planner)
    other = planned(900, planner, batch_size=8)
    for _ in range(2):
        machine.run(other, 3)
    assert planner.costs.largest == 3
    for _ in range(3):
        machine.run(planner)
    assert machine.tried == [1, 2, 3, 2, 2, 2]


def test_a_second_look_waits_until_as_many_faces_do(machine):
    machine.spikes[7, 0] = 160
    planner = planned(206)
    for waiting in (99, 99, 99, 5, 5, 1, 7, 7):
        machine.run(planner, waiting)
    assert machine.tried == [1, 2, 7, 4, 4, 1, 7, 7] and machine.measured == [1, 2, 7, 7]


def test_memory_that_runs_out_is_a_second_look(machine):
    machine.spikes[7, 0] = 160
    planner = planned(206)
    for _ in range(3):
        machine.run(planner)
    assert planner.next(99) == 7 and planner.planned == 4
    assert planner.ran_out(7)
    for _ in range(100):
        machine.run(planner)
    assert max(machine.tried[3:]) == 4


def test_figures_that_are_not_exact_are_not_looked_for_again(machine):
    machine.exact = False
    machine.spikes[7, 0] = 160
    planner = planned(206)
    for _ in range(6):
        machine.run(planner)
    assert machine.tried == [1, 2, 7, 4, 4, 4] and machine.measured == [1, 2, 7]
