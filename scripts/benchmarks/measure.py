"""Candidates in turn, round after round, in one process: noise of the machine then affects all
alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from musetalk_enhance.pipeline import costs
from musetalk_enhance.runtime import memory

from .runner import Candidate, Runner

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass
class Measurement:
    """The figures of one candidate.

    Attributes:
        candidate: what was measured.
        faces: faces in one run.
        ms: milliseconds a face, one figure a round.
        against: name of a reference to the median of its milliseconds a face in the same rounds.
        stages: stage to milliseconds a face.
        loaded_bytes: growth of the process (or of the GPU's memory) when it was loaded.
        working_bytes: most that a run took on top of what was in use before.
        peak_bytes: high-water mark of the process (or of the GPU's memory) during its runs,
            everything else that is loaded included.
        runs_as: backend and dtype that ran, where the candidate knows.
        output: of its last run.
        reason: why it could not be measured; None if it was.
    """

    candidate: Candidate
    faces: int = 0
    ms: list[float] = field(default_factory=list)
    against: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    loaded_bytes: int = 0
    working_bytes: int = 0
    peak_bytes: int = 0
    runs_as: str = ""
    output: np.ndarray | None = None
    reason: str | None = None

    @property
    def median_ms(self) -> float:
        """Median over the rounds of the milliseconds a face takes."""
        return statistics.median(self.ms)


@dataclass(frozen=True)
class Rounds:
    """How to measure.

    Attributes:
        rounds: measured runs of each candidate.
        warmup: runs before them that are not measured; one at least, when it is loaded.
        device: whose memory is watched.
        bound_bytes: how much may be in use at once; None takes half of what is free.
        log: takes a line of progress.
    """

    rounds: int
    warmup: int
    device: torch.device
    bound_bytes: int | None = None
    log: Callable[[str], object] = print


def measure(
    candidates: Sequence[Candidate], rounds: Rounds, base: Sequence[Candidate] = ()
) -> list[Measurement]:
    """Measure `base` and `candidates`: load and warm up each, then run each once a round.

    What counts towards the bound is what is in use after the first run, when a backend has its
    arenas, and the most that a run takes on top of that. Where not all can be loaded at once, they
    are measured in groups, one after the other; `base` runs in each of them, and a candidate is
    compared (`Measurement.against`) with what `base` took in its own group.

    Returns:
        One entry for each of `base` and `candidates`, in order. Whatever fails has a `reason`.
    """
    bound = rounds.bound_bytes or memory.free_bytes(rounds.device) // 2
    references = [_Entry(candidate, rounds.device) for candidate in base]
    group: list[_Entry] = []
    results: list[Measurement] = []
    start, groups = resident(rounds.device), 1
    for index, candidate in enumerate(candidates):
        rounds.log(f"loading {candidate.name} ({index + 1} of {len(candidates)})")
        group.append(_Entry(candidate, rounds.device))
        working = max(entry.measurement.working_bytes for entry in (*references, *group))
        if resident(rounds.device) - start + working > bound and index + 1 < len(candidates):
            rounds.log(
                f"over {bound / 2**30:.1f} GiB are in use: measuring group {groups} now, the "
                "others after it"
            )
            results += _rounds(references, group, rounds)
            group, groups = [], groups + 1
    results += _rounds(references, group, rounds)
    for entry in references:
        entry.close()
    return [entry.measurement for entry in references] + results


def _rounds(references: list[_Entry], group: list[_Entry], rounds: Rounds) -> list[Measurement]:
    """Run what is loaded in turn; close `group`."""
    entries = [*references, *group]
    offsets = [len(entry.measurement.ms) for entry in references]
    for number in range(min(0, 1 - rounds.warmup), rounds.rounds):
        if number == 0:
            for entry in entries:
                entry.start()
        rounds.log(f"round {number + 1} of {rounds.rounds}" if number >= 0 else "warming up")
        for entry in entries:
            entry.run(counts=number >= 0)
    against = {}
    for entry, offset in zip(references, offsets, strict=True):
        measurement = entry.measurement
        if measurement.reason is None:
            against[measurement.candidate.name] = statistics.median(measurement.ms[offset:])
    for entry in group:
        entry.measurement.against = against
        entry.close()
    memory.release(rounds.device)
    return [entry.measurement for entry in group]


class _Entry:
    """A candidate with its runner, or with the reason why it has none."""

    def __init__(self, candidate: Candidate, device: torch.device) -> None:
        self.measurement, self._device = Measurement(candidate), device
        self._runner: Runner | None = None
        start = resident(device)
        try:
            self._runner = candidate.build()
        except Exception as error:  # any failure is a row of the table
            self._fail(error)
            return
        self.measurement.faces = self._runner.faces
        self.measurement.loaded_bytes = max(0, resident(device) - start)
        self.run(counts=False)

    def _fail(self, error: Exception) -> None:
        self.measurement.reason = str(error) or type(error).__name__
        self.close()

    def start(self) -> None:
        if self._runner is not None:
            self._runner.start()

    def run(self, counts: bool) -> None:
        if self._runner is None:
            return
        in_use = resident(self._device)
        try:
            with costs.watch(self._device) as peak:
                start = time.perf_counter()
                output = self._runner.run()
                elapsed_s = time.perf_counter() - start
        except Exception as error:
            self._fail(error)
            return
        result = self.measurement
        result.peak_bytes = max(result.peak_bytes, in_use + peak.highest)
        result.working_bytes = max(result.working_bytes, peak.highest)
        if counts:
            result.ms.append(elapsed_s * 1e3 / result.faces)
            result.output = output

    def close(self) -> None:
        if self._runner is not None:
            self.measurement.stages = self._runner.stages()
            self.measurement.runs_as = self._runner.runs_as()
            self._runner.close()
            self._runner = None


def resident(device: torch.device) -> int:
    """Bytes in use: of the GPU, by whatever runtime, or resident ones of the process."""
    if device.type == "cuda":
        return memory.on_gpu(device)[1] - memory.free_bytes(device)
    return memory.resident_bytes()
