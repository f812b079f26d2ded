"""Candidates in turn, round after round, in one process: a noisy machine is then noisy for all of them alike."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from ..runtime import memory
from .runner import Candidate, Runner

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass
class Measured:
    """What was seen of one candidate.

    Attributes:
        candidate: what it is.
        faces: in one run.
        ms: of one face, one figure a round.
        against: name of a reference to the median of its milliseconds a face in the same rounds.
        stages: stage to milliseconds a face.
        loaded_bytes: growth of the process (or of the GPU's memory) when it was loaded.
        working_bytes: most that a run took on top of what was there before it.
        peak_bytes: high-water mark of the process (or of the GPU's memory) during its runs, everything
            else that is loaded included.
        runs_as: what really ran, where the candidate says so.
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
        rounds: how often each candidate runs.
        warmup: runs before that which do not count.
        device: whose memory is watched.
        bound_bytes: how much may be loaded at once; None takes half of what is free.
        say: takes a line for the user.
    """

    rounds: int
    warmup: int
    device: torch.device
    bound_bytes: int | None = None
    say: Callable[[str], object] = print


def measure(candidates: Sequence[Candidate], rounds: Rounds, base: Sequence[Candidate] = ()) -> list[Measured]:
    """Measure `base` and `candidates`: load them, warm them up, then run each once a round.

    Where not all can be loaded at once, they are measured in groups, one after the other; `base` runs in each of
    them, and a candidate is compared (`Measured.against`) with what `base` took in its own group.

    Returns:
        One entry for each of `base` and `candidates`, in order. Whatever fails has a `reason`.
    """
    bound = rounds.bound_bytes or memory.free_bytes(rounds.device) // 2
    kept = [_Loaded(candidate, rounds.device) for candidate in base]
    group: list[_Loaded] = []
    done: list[Measured] = []
    start, groups = resident(rounds.device), 1
    for index, candidate in enumerate(candidates):
        rounds.say(f"loading {candidate.name} ({index + 1} of {len(candidates)})")
        group.append(_Loaded(candidate, rounds.device))
        if resident(rounds.device) - start > bound and index + 1 < len(candidates):
            rounds.say(f"{bound / 2**30:.1f} GiB are loaded: group {groups} is measured now, the others after it")
            done += _rounds(kept, group, rounds)
            group, groups = [], groups + 1
    done += _rounds(kept, group, rounds)
    for loaded in kept:
        loaded.close()
    return [loaded.seen for loaded in kept] + done


def _rounds(kept: list[_Loaded], group: list[_Loaded], rounds: Rounds) -> list[Measured]:
    """Run what is loaded in turn; close `group`."""
    turn = [*kept, *group]
    already = {loaded.seen.candidate.name: len(loaded.seen.ms) for loaded in kept}
    for number in range(-rounds.warmup, rounds.rounds):
        if number == 0:
            for loaded in turn:
                loaded.start()
        rounds.say(f"round {number + 1} of {rounds.rounds}" if number >= 0 else "warming up")
        for loaded in turn:
            loaded.run(counts=number >= 0)
    here = {}
    for loaded in kept:
        name = loaded.seen.candidate.name
        if loaded.seen.reason is None:
            here[name] = statistics.median(loaded.seen.ms[already[name] :])
    for loaded in group:
        loaded.seen.against = here
        loaded.close()
    memory.release(rounds.device)
    return [loaded.seen for loaded in group]


class _Loaded:
    """A candidate with its runner, or with the reason why there is none."""

    def __init__(self, candidate: Candidate, device: torch.device) -> None:
        self.seen, self._device = Measured(candidate), device
        self._runner: Runner | None = None
        before = resident(device)
        try:
            self._runner = candidate.build()
        except Exception as error:  # a refusal is a row of the table, whatever it looks like
            self._failed(error)
            return
        self.seen.faces = self._runner.faces
        self.seen.loaded_bytes = max(0, resident(device) - before)

    def _failed(self, error: Exception) -> None:
        self.seen.reason = str(error) or type(error).__name__
        self.close()

    def start(self) -> None:
        if self._runner is not None:
            self._runner.start()

    def run(self, counts: bool) -> None:
        if self._runner is None:
            return
        try:
            with Peak(self._device) as peak:
                start = time.perf_counter()
                output = self._runner.run()
                took = time.perf_counter() - start
        except Exception as error:
            self._failed(error)
            return
        self.seen.peak_bytes = max(self.seen.peak_bytes, peak.most)
        self.seen.working_bytes = max(self.seen.working_bytes, peak.most - peak.before)
        if counts:
            self.seen.ms.append(took * 1e3 / self.seen.faces)
            self.seen.output = output

    def close(self) -> None:
        if self._runner is not None:
            self.seen.stages, self.seen.runs_as = self._runner.stages(), self._runner.runs_as()
            self._runner.close()
            self._runner = None


def resident(device: torch.device) -> int:
    """Bytes in use: torch's on a GPU, the whole process's resident ones otherwise."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)


class Peak:
    """High-water mark of `resident` while inside its ``with``.

    On a GPU torch keeps it (what other runtimes allocate there is not seen); elsewhere a thread looks every
    `EVERY_S` seconds.

    Attributes:
        before: bytes on entering.
        most: most bytes seen.
    """

    EVERY_S = 0.005

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.before = self.most = 0

    def __enter__(self) -> Peak:
        self.before = self.most = resident(self._device)
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(self.EVERY_S):
            self.most = max(self.most, resident(self._device))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            import torch

            self.most = max(self.most, int(torch.cuda.max_memory_allocated(self._device)))
            return
        self._ended.set()
        self._thread.join()
        self.most = max(self.most, resident(self._device))
