"""`deadline_ms` and `budget_ms`, on a clock that the restorers themselves move on."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
import torch

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import ConfigError, FrameError
from musetalk_enhance.pipeline import batch_planner, deadline
from musetalk_enhance.pipeline.deadline import GROUP, Cost, DeadlineEngine, Governor
from musetalk_enhance.pipeline.engine import Engine, Request
from musetalk_enhance.restorers.base import LoadRequest, ModelInfo
from musetalk_enhance.restorers.catalog import choose
from tests.conftest import PLAIN, FakeRestorer

SAME = ModelInfo("fake", "no network", 256, 256, (0.0, 1.0), "none", bytes_per_face=2**20)


class Clock:
    """Seconds that pass only where somebody works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(deadline.time, "perf_counter", clock)
    return clock


def brightened(result, frames) -> list[int]:
    """How many levels each frame is brighter than it was."""
    means = (np.asarray(each).mean((1, 2, 3)) for each in (result, frames))
    return np.rint(np.subtract(*means)).astype(int).tolist()


class Machine:
    """An engine whose steps take 40, 20 and 10 ms a face, times `load`, and brighten by 24, 16 and
    8 levels."""

    def __init__(self, clock: Clock, **options) -> None:
        self.clock, self.load = clock, 1.0
        self.settings = EnhancerSettings(enabled=True, **({"batch_size": 8} | PLAIN | options))
        plain = self.settings.replace(deadline_ms=0, budget_ms=0)
        cheaper = [
            (name, Engine(plain, self.restorer(seconds, level)))
            for name, seconds, level in (("lower half", 0.02, 16), ("lite", 0.01, 8))
        ]
        self.engine = DeadlineEngine(self.settings, self.restorer(0.04, 24), cheaper)
        self.costs = list(self.engine.governor._costs)
        self.stream = self.engine.stream()

    def restorer(self, seconds: float, level: int) -> FakeRestorer:
        def work(faces: torch.Tensor) -> torch.Tensor:
            self.clock.now += self.load * seconds * len(faces)
            return faces + level / 255

        return FakeRestorer(LoadRequest(SAME, self.settings, torch.device("cpu")), work)

    def slow_down(self, load: float) -> None:
        """A load that the engine knows of."""
        self.load = load
        self.engine.governor.observe(2, 8, load * 0.08, late=True)

    def slow_down_after(self, faces: int, load: float) -> None:
        """A load that comes when the first network has restored so many more faces."""
        restorer, left = self.engine.model.restorer, [faces]
        restore = restorer.restore

        def slowly(batch: torch.Tensor) -> torch.Tensor:
            if left[0] <= 0:
                self.load, restorer.restore = load, restore
            left[0] -= len(batch)
            return restore(batch)

        restorer.restore = slowly

    def call(self, faces: int, wait: float = 0.0, stream=None) -> list[int]:
        """How much each of some faces was brightened, after `wait` seconds of idleness."""
        self.clock.now += wait
        frames = np.random.default_rng(int(self.clock.now * 1e3)).integers(
            0, 200, (faces, 64, 64, 3), np.uint8
        )
        request = Request(stream or self.stream, frames)
        result = self.engine.restore([request])[0].frames
        return brightened(result, frames)


def test_with_enough_time_all_is_done(clock):
    machine = Machine(clock, deadline_ms=400)
    assert machine.call(8) == [24] * 8
    assert machine.stream.stats.steps == {"full": 8}
    assert machine.stream.stats.late == 0


def test_steps_are_taken_in_order_before_a_call_is_late(clock):
    for limit, level in ((400, 24), (200, 16), (100, 8)):
        machine = Machine(clock, deadline_ms=limit)
        assert machine.call(8) == [level] * 8
        assert machine.stream.stats.late == 0


def test_a_budget_is_for_each_frame(clock):
    machine = Machine(clock, budget_ms=25)
    assert machine.call(8) == [16] * 8
    assert machine.call(1) == [16]
    both = Machine(clock, budget_ms=50, deadline_ms=100)
    assert both.call(2) == [24] * 2
    assert both.call(8) == [8] * 8


def test_a_slow_machine_makes_it_step_down_and_a_quiet_while_up_again(clock):
    machine = Machine(clock, deadline_ms=400)
    machine.call(8)
    machine.load = 3.0
    assert machine.call(8) == [24] * 4 + [0] * 4, "nobody could know"
    assert machine.stream.stats.late == machine.stream.stats.switches == 1
    assert machine.call(8) == list(range(1, 9)), "960 and 480 ms do not fit"
    machine.load = 1.0
    levels = [machine.call(8, wait=0.3)[0] for _ in range(60)]
    assert levels[-1] == 24
    assert levels == sorted(levels), "one step after the other"
    assert machine.stream.stats.late == 1


def test_when_nothing_fits_faces_fade_and_come_back_by_and_by(clock):
    machine = Machine(clock, deadline_ms=100)
    assert machine.call(8) == [8] * 8
    machine.slow_down(3.0)
    fading = machine.call(8)
    assert fading == [6, 4, 2, 0, 0, 0, 0, 0], "3 faces fit; their strength falls"
    assert machine.call(8) == [0] * 8
    assert machine.stream.stats.left_alone["no time"] >= 12
    assert machine.stream.stats.partial["no time"] == 3
    machine.load = 1.0
    seen = [level for _ in range(40) for level in machine.call(8, wait=0.2)]
    assert seen[-1] == 8
    assert max(np.diff(seen)) <= 1, "it rises over 8 frames"


def test_a_machine_that_stays_slow_is_tried_less_and_less(clock):
    machine = Machine(clock, deadline_ms=100)
    machine.load = 50.0
    machine.call(8)
    late = [0]
    for _ in range(4):
        assert all(machine.call(8, wait=0.5) == [0] * 8 for _ in range(60))
        late.append(machine.stream.stats.late)
    assert 4 <= late[1] <= 7, "one face in a call, after 2, 3, 4.5, 6.75 and 10 s"
    assert np.diff(late[1:]).max() == 1, "at last every 32 s"


def test_frames_without_time_have_the_hosts_own_bits(clock):
    machine = Machine(clock, deadline_ms=1)
    frames = np.random.default_rng(1).integers(0, 200, (4, 64, 64, 3), np.uint8)
    result = machine.engine.restore([Request(machine.stream, frames)])[0]
    assert np.array_equal(result.frames, frames)
    assert [outcome.reason for outcome in result.outcomes] == ["no time"] * 4


def test_the_first_streams_are_restored_and_the_others_wait(clock):
    """Not every second frame of each: a stream keeps its strength."""
    machine = Machine(clock, deadline_ms=50)
    streams = [machine.engine.stream() for _ in range(3)]
    levels = []
    for number in range(5):
        frames = np.random.default_rng(number).integers(0, 200, (2, 64, 64, 3), np.uint8)
        requests = [Request(stream, frames) for stream in streams]
        restored = machine.engine.restore(requests)
        levels.append([brightened(each.frames, frames)[1] for each in restored])
        clock.now += 0.01
    assert [row[0] for row in levels] == [8] * 5
    assert [row[2] for row in levels] == [0] * 5


@pytest.mark.parametrize(
    ("load", "levels", "late", "switches"),
    [
        (3, [24] * 20, 0, 0),
        (5, [24] * 12 + [19, 14, 10, 5] + [0] * 4, 0, 0),
        (10, [24] * 12 + [12] + [0] * 7, 1, 0),
        (20, [24] * 12 + [0] * 8, 1, 1),
    ],
    ids=["all fits", "a group is left", "less than a face is left", "the deadline is passed"],
)
def test_a_call_that_turns_slow_ends(clock, load, levels, late, switches):
    """After 8 of 20 faces: 0.32 of 2 seconds. The next group shows it."""
    machine = Machine(clock, deadline_ms=2000)
    stats, frames = (
        machine.stream.stats,
        np.random.default_rng(0).integers(0, 200, (20, 64, 64, 3), np.uint8),
    )
    machine.slow_down_after(8, load)
    start = clock.now
    restored = machine.engine.restore([Request(machine.stream, frames)])[0]
    assert brightened(restored.frames, frames) == levels
    assert clock.now - start <= 2 + GROUP * 0.04 * load
    alone = levels.count(0)
    if alone:
        assert np.array_equal(restored.frames[-alone:], frames[-alone:])
    assert [outcome.reason for outcome in restored.outcomes[20 - alone :]] == ["no time"] * alone
    assert stats.left_alone == Counter({"no time": alone} if alone else {})
    assert stats.partial.total() == sum(0 < level < 24 for level in levels)
    assert stats.steps == Counter(full=20 - alone) + Counter(none=alone)
    assert (stats.late, stats.switches, stats.frames) == (late, switches, 20)

    machine.load = 1.0
    after = machine.call(20, wait=1)
    assert max(np.diff([levels[-1], *after])) <= 3 and len(set(after[7:])) == 1, "over 8 frames"
    assert [machine.call(20, wait=1) for _ in range(40)][-1] == [24] * 20
    assert (stats.late, stats.switches) == (late, switches)


def test_streams_of_a_call_that_turns_slow_fade_together(clock):
    machine = Machine(clock, deadline_ms=2000)
    streams = [machine.engine.stream() for _ in range(3)]

    def call(seed: int) -> list[list[int]]:
        frames = np.random.default_rng(seed).integers(0, 200, (8, 64, 64, 3), np.uint8)
        restored = machine.engine.restore([Request(stream, frames) for stream in streams])
        return [brightened(each.frames, frames) for each in restored]

    assert call(0) == [[24] * 8] * 3
    machine.slow_down_after(8, 5)
    assert call(1) == [[24] * 8, [24] * 4 + [16, 8, 0, 0], [16, 8] + [0] * 6]
    assert [stream.share for stream in streams] == [1, 0, 0]
    assert [stream.stats.left_alone["no time"] for stream in streams] == [0, 2, 6]
    assert not any(stream.stats.late + stream.stats.switches for stream in streams)


def test_bad_frames_do_not_disturb_the_end_of_a_call(clock):
    machine = Machine(clock, deadline_ms=2000)
    frames = list(np.random.default_rng(0).integers(0, 200, (20, 64, 64, 3), np.uint8))
    frames[10] = frames[19] = np.zeros((64, 64, 7), np.uint8)
    machine.slow_down_after(8, 20)
    restored = machine.engine.restore([Request(machine.stream, frames)])[0]
    assert len(restored.frames) == 20
    assert machine.stream.stats.passed_through.total() == 2
    assert machine.stream.stats.left_alone["no time"] == 6
    assert machine.stream.share == 0


def test_groups_have_the_bits_of_the_whole_call(monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (10, 256, 256, 3), np.uint8)
    whole = GFPGANEnhancer(model="lite", backend="torch", stability=1)(frames)
    monkeypatch.setattr(deadline, "GROUP_PART", 10**9)
    with GFPGANEnhancer(model="lite", backend="torch", stability=1, deadline_ms=600000) as enhancer:
        assert np.array_equal(enhancer(frames), whole)
        assert enhancer.stats.batches >= 10 / GROUP


def test_groups_are_a_small_part_of_the_time_or_of_the_fixed_cost():
    governor = Governor([Cost(0.0, 0.01), Cost(0.03, 0.01)], Clock())
    assert [governor.group(0, seconds, 2) for seconds in (0.1, 1.6, 16)] == [2, 10, 100]
    assert governor.group(1, 0.1) == 12


def test_time_that_other_streams_took_counts(clock):
    """A call that waits for the engine has less time left."""
    machine = Machine(clock, deadline_ms=100)
    own = machine.engine.lock

    class Busy:
        def __enter__(self):
            clock.now += 0.07
            return own.__enter__()

        def __exit__(self, *exception):
            return own.__exit__(*exception)

    machine.engine.lock = Busy()
    assert machine.call(4)[0] < 8
    machine.engine.lock = own


def test_waiting_for_other_streams_says_nothing_about_the_load(clock):
    """Each of three streams waits for the two before it, and all three fit."""
    machine = Machine(clock, deadline_ms=400)
    own = machine.engine.lock

    class Busy:
        waits = True

        def __enter__(self):
            clock.now += 0.1 * self.waits
            self.waits = False
            return own.__enter__()

        def __exit__(self, *exception):
            return own.__exit__(*exception)

    for _ in range(4):
        machine.engine.lock = Busy()
        assert machine.call(4) == [24] * 4
    assert machine.engine.governor.load == pytest.approx(1)
    assert machine.stream.stats.late == 0


def test_frames_without_work_say_nothing_about_the_load(clock):
    """An idle avatar repeats its frame; the first new ones are not late after that."""
    machine = Machine(clock, deadline_ms=200)
    still = np.full((1, 64, 64, 3), 90, np.uint8)
    bad = np.full((1, 64, 64, 3), np.nan, np.float32)
    for frames in [still] * 12 + [bad] * 12:
        machine.engine.restore([Request(machine.stream, frames)])
    assert machine.engine.governor.load == pytest.approx(1)
    assert machine.call(8) == [16] * 8
    assert machine.stream.stats.late == 0


def test_loading_the_network_again_says_nothing_about_the_load(clock):
    machine = Machine(clock, deadline_ms=400)
    model = machine.engine.model
    model.restorer.to = lambda device: setattr(clock, "now", clock.now + 9)
    model._parked_from = torch.device("cpu")  # as after `unload`
    machine.call(8)
    assert machine.stream.stats.late == machine.stream.stats.reloads == 1
    assert machine.call(8) == list(range(3, 27, 3))


def test_costs_are_those_of_faces_that_need_restoring(clock):
    machine = Machine(clock, deadline_ms=400, sharpness_gate=True)
    assert [cost.seconds(8) for cost in machine.engine.governor._costs] == pytest.approx(
        [0.32, 0.16, 0.08]
    )


def test_frames_without_time_are_counted_as_such(clock):
    machine = Machine(clock, deadline_ms=100)
    machine.slow_down(3.0)
    assert machine.call(8)[3:] == [0] * 5
    assert machine.stream.stats.steps == {"lite": 3, "none": 5}


@pytest.mark.parametrize(
    "options",
    [
        {"model_path": "codeformer.pth", "arch": "CodeFormer", "fidelity": 0.3},
        {"model_path": "narrow.pth", "channel_multiplier": 1},
        {"model": "gpen_bfr_256", "onnx_input_size": 256, "onnx_value_range": "-1..1"},
        {"model": "gfpgan", "engine": "official"},
    ],
)
def test_the_small_model_gets_no_options_of_another(options):
    settings = EnhancerSettings(enabled=True, backend="torch", deadline_ms=50, **options)
    small = dict(deadline._cheaper(settings, "another"))["lite"]
    assert choose(small).model.info.name == "lite"


def test_another_engine_continues_a_stream_in_another_region(clock):
    """What a stream remembers has the rows of its region."""
    machine = Machine(clock, deadline_ms=200, stability=1, guard=True)
    lower = machine.settings.replace(deadline_ms=0, region="lower", stability=1, guard=True)
    machine.engine._steps[1] = ("lower half", Engine(lower, machine.restorer(0.02, 16)))
    machine.call(4)
    machine.call(8)
    machine.call(4)
    assert machine.stream.stats.steps == {"full": 4, "lower half": 12}
    assert not machine.stream.stats.failed


def test_a_stream_keeps_its_size(clock):
    machine = Machine(clock, deadline_ms=200, output_size="native")
    small = ModelInfo("fake", "no network", 256, 128, (0.0, 1.0), "none", bytes_per_face=2**20)
    restorer = machine.restorer(0.02, 16)
    restorer.info = small
    lower = Engine(machine.settings.replace(deadline_ms=0), restorer)
    machine.engine._steps[1] = ("lower half", lower)
    shapes = set()
    for faces in (4, 8, 8):
        frames = np.random.default_rng(faces).integers(0, 200, (faces, 64, 64, 3), np.uint8)
        request = Request(machine.stream, frames, output_size="native")
        shapes.add(machine.engine.restore([request])[0].frames.shape[1:])
    machine.load = 100.0
    for _ in range(2):
        frames = np.random.default_rng(9).integers(0, 200, (8, 64, 64, 3), np.uint8)
        request = Request(machine.stream, frames, output_size="native")
        shapes.add(machine.engine.restore([request])[0].frames.shape[1:])
    assert shapes == {(256, 256, 3)}


def test_the_enhancer_has_both_options():
    with GFPGANEnhancer(model="lite", backend="torch", deadline_ms=600000) as enhancer:
        frames = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
        plain = GFPGANEnhancer(model="lite", backend="torch")(frames)
        assert np.array_equal(enhancer(frames), plain)
        assert enhancer.stats.steps == {"full": 2}
        assert set(enhancer.stats.percentiles()["network"]) == {"p50", "p95", "p99"}
        assert enhancer.stats.as_dict()["call_ms"]["call"]["p50"] > 0
        enhancer.unload()
        assert np.array_equal(enhancer(frames), plain)
    with pytest.raises(ConfigError, match="budget_ms"):
        GFPGANEnhancer(model="lite", budget_ms=-1)


def test_steps_of_lite_are_its_lower_half():
    settings = EnhancerSettings(enabled=True, model="lite", backend="torch", deadline_ms=1000)
    engine = DeadlineEngine(settings)
    assert [name for name, _ in engine._steps] == ["full", "lower half"]
    only = EnhancerSettings(
        enabled=True, model="lite", backend="torch", deadline_ms=1000, region="lower"
    )
    assert [name for name, _ in DeadlineEngine(only)._steps] == ["full"]


@pytest.mark.parametrize(
    ("limits", "advice"),
    [
        ({"deadline_ms": 1}, "set deadline_ms: 0"),
        ({"budget_ms": 1}, "set budget_ms: 0"),
        ({"deadline_ms": 1, "budget_ms": 1}, "set deadline_ms: 0 and budget_ms: 0"),
    ],
)
def test_the_advice_names_the_limit_that_is_set(clock, limits, advice):
    machine = Machine(clock, **limits)
    machine.stream.stats.clear()
    machine.call(4)
    assert machine.stream.stats.warning().endswith(advice)


def test_bad_calls_are_told_as_ever(clock):
    machine = Machine(clock, deadline_ms=100)
    with pytest.raises(FrameError):
        machine.engine.restore([Request(machine.stream, "frames")])
    assert machine.engine.restore([]) == []
    assert machine.call(0) == []


def test_changes_are_logged(clock, caplog):
    machine = Machine(clock, deadline_ms=100)
    with caplog.at_level(logging.INFO, "musetalk_enhance"):
        machine.call(8)
    assert "deadline: lite instead of full; a call with 8 faces may take 100 ms" in caplog.text


def test_one_slow_call_is_chance_two_or_a_late_one_are_load():
    governor = Governor([Cost(0.0, 0.01)], Clock())
    governor.observe(0, 10, 0.3)
    assert governor.load == pytest.approx(1)
    governor.observe(0, 10, 0.2)
    assert governor.load == pytest.approx(2)
    governor.observe(0, 10, 0.5, late=True)
    assert governor.load == pytest.approx(5)
    for _ in range(4):
        governor.observe(0, 10, 0.1)
    assert governor.load == pytest.approx(1)


def test_the_shortest_call_is_that_of_an_idle_machine():
    """Measured beside other work at first; `load` is never less than one."""
    governor = Governor([Cost(0.0, 0.01), Cost(0.0, 0.004)], Clock())
    governor.observe(0, 10, 0.05)
    assert governor.load == pytest.approx(1)
    governor.observe(0, 10, 0.1)
    governor.observe(0, 10, 0.1)
    assert governor.load == pytest.approx(2)


def scale_costs(machine: Machine, factor: float) -> None:
    """As if all had taken `factor` times as long when it was loaded."""
    costs = [Cost(each.fixed * factor, each.per_face * factor) for each in machine.costs]
    machine.engine.governor = Governor(costs, machine.clock)


def test_a_bad_figure_of_the_loading_is_measured_again(clock):
    """All that fits is done soon, though by the figures nothing did; no call is late."""
    machine = Machine(clock, deadline_ms=400)
    scale_costs(machine, 6)
    levels = [machine.call(8, wait=0.16)[0] for _ in range(20)]
    assert set(levels[2:12]) == {0} and levels[-1] > 0, "after two seconds"
    levels = [machine.call(8, wait=1.5)[0] for _ in range(120)]
    assert levels[-1] == 24
    assert machine.stream.stats.late == 0


def test_a_bad_figure_of_a_better_step_is_measured_again(clock):
    """Only the figure of the first step is wrong, and the second one fits."""
    machine = Machine(clock, deadline_ms=400)
    full, *cheaper = machine.costs
    machine.engine.governor = Governor([Cost(0, 2 * full.per_face), *cheaper], clock)
    assert machine.call(8) == [16] * 8
    assert [machine.call(8, wait=1.5)[0] for _ in range(50)][-1] == 24
    assert machine.stream.stats.late == 0


def test_what_never_fits_is_not_tried_for_long(clock):
    """A step that takes five times the limit for one face: a late call in a few minutes."""
    machine = Machine(clock, deadline_ms=100)
    slow = machine.restorer(0.5, 24)
    machine.engine.model._restorer = slow
    full, *cheaper = machine.costs
    machine.engine.governor = Governor([Cost(0, 0.5), *cheaper], clock)
    assert all(machine.call(2, wait=2)[0] == 16 for _ in range(300))
    assert machine.stream.stats.late == 1


def test_a_cold_call_does_not_end_a_trial(clock):
    machine = Machine(clock, deadline_ms=200)
    machine.load = 10.0
    machine.call(8)
    machine.load = 1.0
    restore = machine.engine._steps[2][1].restore_paced
    calls = []

    def cold(requests, pace=None):
        """Each first call after a pause takes 50 ms more than the others."""
        pause = not calls or clock.now - calls[-1] > 1
        clock.now += 0.05 * pause
        calls.append(clock.now)
        return restore(requests, pace)

    machine.engine._steps[2][1].restore_paced = cold
    levels = [machine.call(8, wait=0.2)[0] for _ in range(16)]
    assert levels[-1] > 0
    assert machine.stream.stats.late == 1


def test_a_trial_of_a_network_that_fails_says_nothing(clock):
    machine = Machine(clock, deadline_ms=100)
    machine.load = 10.0
    machine.call(8)
    machine.load = 1.0
    restorer = machine.engine._steps[2][1].model.restorer
    restore, restorer.restore = restorer.restore, lambda faces: 1 / 0
    assert all(machine.call(8, wait=0.2) == [0] * 8 for _ in range(30))
    assert machine.engine.governor._costs[2].seconds(1) == pytest.approx(0.01)
    restorer.restore = restore
    assert [machine.call(8, wait=0.2)[0] for _ in range(60)][-1] == 8


def test_a_stream_comes_back_by_and_by_after_failures(clock):
    machine = Machine(clock, deadline_ms=400)
    assert machine.call(8) == [24] * 8
    restorer = machine.engine.model.restorer
    restore, restorer.restore = restorer.restore, lambda faces: 1 / 0
    assert machine.call(8) == [0] * 8
    assert machine.stream.stats.failed == 8
    restorer.restore = restore
    assert machine.call(10) == [3, 6, 9, 12, 15, 18, 21, 24, 24, 24]


def test_batches_are_planned_when_the_host_has_loaded_its_networks(clock, monkeypatch):
    machine = Machine(clock, deadline_ms=400, batch_size="auto")
    monkeypatch.setattr(batch_planner.memory, "free_bytes", lambda device: 2 * 2**20)
    machine.call(4)
    assert machine.engine.planner.planned == 1, "half of the free memory holds one face"


def test_a_step_that_just_fits_is_kept_but_not_taken():
    clock = Clock()
    governor = Governor([Cost(0.0, 0.01), Cost(0.0, 0.005)], clock)

    def steps(faces: int) -> set[int]:
        chosen = set()
        for _ in range(5):
            clock.now += 1
            chosen.add(governor.choose(faces, 0.1)[0])
        return chosen

    assert steps(10) == {0}
    assert steps(11) == {1}
    assert steps(10) == {1}, "100 ms of 100"
    assert steps(9) == {1, 0}, "90 ms, after two seconds"
    assert steps(10) == {0}


def test_a_trial_waits_for_a_call_with_time_left(clock):
    governor = Governor([Cost(0, 0.1)], clock)
    governor.choose(4, 0.05)
    clock.now += 5
    assert governor.trial(0.2) == (0, 1)
    governor.observe_trial(1, 0.1, False)
    assert governor.trial(0.05) is None and governor.trial(-1.0) is None
    assert governor.trial(0.25) == (0, 2)


def test_a_failed_trial_never_shortens_the_wait(clock):
    governor = Governor([Cost(0, 0.1)], clock)
    governor.choose(4, 0.05)
    waits = []
    for late in (True,) * 8 + (False,) * 3:
        governor.observe_trial(0, 0.1, late)
        waits.append(governor._quiet[0])
    assert waits == sorted(waits) and waits[-1] == 32


def test_a_stream_that_waited_too_long_takes_no_other_one_down(clock):
    governor = Governor([Cost(0, 0.01), Cost(0, 0.004)], clock)
    for _ in range(6):
        clock.now += 0.2
        assert governor.choose(8, 0.1) == (0, 8)
        governor.observe(0, 8, 0.08)
        assert governor.choose(8, 0.1 - 0.11) == (2, 0)


def test_a_call_that_took_no_time_by_the_clock_is_learned_from(clock):
    governor = Governor([Cost(0, 0.1)], clock)
    governor.observe(0, 1, 0.0)
    governor.observe(0, 1, 0.1)
    assert governor.load > 1
