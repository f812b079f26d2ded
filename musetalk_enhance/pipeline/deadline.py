"""Calls that end in time: an engine that knows what its batches cost and does less before it is
late.

It steps down in a fixed order: only the lower half of each face, then the embedded small model,
then only as many streams as there is time for. What a stream gets never switches from one frame to
the next: its strength falls and rises over several frames. A frame that is not restored is the
host's own; nothing of an earlier frame stands in for it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..config.settings import EnhancerSettings, options
from ..errors import FrameError
from ..frames.batch import unpacked
from .engine import Engine, Request, Restored
from .outcome import Cause, Outcome

if TYPE_CHECKING:
    from ..restorers.base import Restorer
    from .stream import Stream

logger = logging.getLogger("musetalk_enhance")

MARGIN = 1.1
"""A call must be expected to take this much less than it may."""
QUIET_SECONDS, LONGEST_QUIET = 2.0, 32.0
"""How long more would have been possible before more is done. It doubles each time that this
failed."""
FADE_FRAMES = 8
"""Frames over which a stream's strength rises again."""
MEMORY = 0.8
"""How slowly the measured load falls; it rises at once."""
SMALL_MODEL = "lite"
NOTHING = "none"
"""Name of the last step in the statistics."""
_SIDE = 256
_MANY = 4
_OF_MODEL = (
    *("model_path", "arch", "channel_multiplier", "engine", "bg_upsampler", "fidelity"),
    *("onnx_input_size", "onnx_value_range", "onnx_template"),
)
"""Options that the small model does not have."""
_SKIPPED = {Cause.SHARP, Cause.COVERED, Cause.STRENGTH, Cause.DEADLINE, Cause.INPUT}
"""Why a frame never reaches the network."""


@dataclass(frozen=True)
class Cost:
    """What a call of one step takes on an idle machine: ``fixed + per_face * faces`` seconds."""

    fixed: float
    per_face: float

    def seconds(self, faces: int) -> float:
        """Of a call with that many faces."""
        return self.fixed + self.per_face * faces


class Governor:
    """Decides how much is done in each call.

    Args:
        costs: of each step, the most expensive first; after the last there is nothing.
        clock: seconds, rising.

    Attributes:
        step: the current one, an index of `costs`, or their number: nothing.
        load: how many times longer calls take than on an idle machine.
    """

    def __init__(self, costs: Sequence[Cost], clock: Callable[[], float]) -> None:
        self._costs, self._clock = list(costs), clock
        self.step, self.load = 0, 1.0
        self._quiet = QUIET_SECONDS
        self._since: float | None = None
        self._rose = -LONGEST_QUIET
        self._tries = False

    def choose(self, faces: int, seconds: float) -> tuple[int, int]:
        """The step of a call, and the number of its faces that can be restored.

        Args:
            faces: in the call.
            seconds: that it may take.
        """
        possible = next(
            (step for step in range(len(self._costs)) if self._fits(step, faces, seconds)),
            len(self._costs),
        )
        now = self._clock()
        if possible > self.step:
            if now - self._rose < 2 * self._quiet:  # it was too early
                self._quiet = min(2 * self._quiet, LONGEST_QUIET)
            self.step, self._since = possible, None
        elif self.step == len(self._costs) or possible < self.step:
            self._since = now if self._since is None else self._since
            if now - self._since >= self._quiet:
                self.step, self._since, self._rose = self.step - 1, None, now
                if possible > self.step:  # nothing was measured meanwhile: try
                    self._tries = True
                    return self.step, faces
        else:
            self._since = None
            if now - self._rose > 4 * self._quiet:
                self._quiet = QUIET_SECONDS
        if self.step < len(self._costs):
            return self.step, faces
        last = len(self._costs) - 1
        number = max((n for n in range(faces) if self._fits(last, n, seconds)), default=0)
        return last if number else len(self._costs), number

    def _fits(self, step: int, faces: int, seconds: float) -> bool:
        return MARGIN * self.load * self._costs[step].seconds(faces) <= seconds

    def measured(self, step: int, faces: int, seconds: float) -> None:
        """Learn from a call that took so long, with so many faces restored, or none."""
        if faces and step < len(self._costs):
            load = seconds / self._costs[step].seconds(faces)
            memory = 0.0 if self._tries else MEMORY
            self.load = max(load, memory * self.load + (1 - memory) * load)
            if self._tries:
                self._tries, self._rose = False, self._clock()  # a late call may have been long


class DeadlineEngine(Engine):
    """An `Engine` for ``deadline_ms`` and ``budget_ms``.

    Args:
        settings: all options, checked.
        restorer: the caller's own restorer; None loads the one that `settings` name.
        cheaper: engines that do less, the most expensive first; None: those that `settings` allow.

    Raises:
        WeightError: the weight is missing, damaged, not to be trusted, or another network.
        MissingDependencyError: an optional package is needed.
    """

    def __init__(
        self,
        settings: EnhancerSettings,
        restorer: Restorer | None = None,
        cheaper: Sequence[tuple[str, Engine]] | None = None,
    ) -> None:
        super().__init__(settings, restorer)
        if cheaper is None:
            plans = _cheaper(settings, self.model.info.name) if restorer is None else []
            cheaper = [(name, Engine(each)) for name, each in plans]
        self._steps: list[tuple[str, Engine]] = [("full", self), *cheaper]
        with self.lock:
            costs = [self._cost(step) for step in range(len(self._steps))]
        self.governor = Governor(costs, time.perf_counter)
        logger.info(
            "milliseconds of a call with one face and %d faces: %s",
            _MANY,
            ", ".join(
                f"{name} {1e3 * cost.seconds(1):.0f} and {1e3 * cost.seconds(_MANY):.0f}"
                for (name, _), cost in zip(self._steps, costs, strict=True)
            ),
        )

    def restore(self, requests: Sequence[Request]) -> list[Restored]:
        """See `Engine.restore`. Frames for which there is no time are left alone."""
        start = time.perf_counter()
        with self.lock:
            begun = time.perf_counter()  # other streams may have been first
            counts = [_count(request) for request in requests]
            faces = sum(counts)
            seconds = self._seconds(faces)
            left = seconds - (begun - start)
            before = self.governor.step
            step, number = self.governor.choose(faces, left)
            if self.governor.step != before:
                self._log(before, faces, seconds)
            planned = self._planned(requests, counts, step, number)
            name, engine = (*self._steps, (NOTHING, self))[step]
            loaded = engine.model.loaded  # otherwise the call loads it, which says nothing
            restored = self._run_step(step, planned)
            end = time.perf_counter()
            if loaded:
                active = sum(_computed(outcome) for each in restored for outcome in each.outcomes)
                self.governor.measured(step, active, end - begun)
            for request, count in zip(planned, counts, strict=True):
                idle = 0 if request.shares is None else sum(share <= 0 for share in request.shares)
                request.stream.stats.steps += Counter({name: count - idle, NOTHING: idle})
                request.stream.stats.late += end - start > seconds
            return restored

    def close(self) -> None:
        """See `Engine.close`."""
        with self.lock:
            for _, engine in self._steps[1:]:
                engine.close()
            super().close()

    def unload(self, streams: Sequence[Stream] = ()) -> None:
        """See `Engine.unload`."""
        with self.lock:
            for _, engine in self._steps[1:]:
                engine.unload()
            super().unload(streams)

    def _seconds(self, faces: int) -> float:
        """That a call with so many faces may take."""
        settings = self.settings
        limits = [settings.deadline_ms, settings.budget_ms * max(1, faces)]
        return min(limit for limit in limits if limit > 0) / 1e3

    def _cost(self, step: int) -> Cost:
        """Measured with coarse noise, which is not sharp already, after runs that do not count."""
        import cv2

        stream = self.stream(self.settings.replace(on_error="passthrough"))
        rng = np.random.default_rng(0)

        def seconds(faces: int) -> float:
            cells = rng.integers(0, 256, (faces, 9, 9, 3), np.uint8)  # no frame is repeated
            size = (_SIDE, _SIDE)
            noise = [cv2.resize(each, size, interpolation=cv2.INTER_CUBIC) for each in cells]
            start = time.perf_counter()
            self._run_step(step, [Request(stream, noise, (None, None, None, None, noise))])
            return time.perf_counter() - start

        seconds(1)
        one = min(seconds(1) for _ in range(2))
        if one > 0.25:  # more would take long to learn little
            return Cost(0.0, one)
        seconds(_MANY)
        many = min(seconds(_MANY) for _ in range(2))
        per_face = max((many - one) / (_MANY - 1), many / _MANY / 2, 1e-6)
        return Cost(max(0.0, one - per_face), per_face)

    def _run_step(self, step: int, requests: Sequence[Request]) -> list[Restored]:
        """Restore with one of the engines; what it cannot continue of another one is forgotten."""
        if step in (0, len(self._steps)):
            step = 0
        side = self.model.info.output_size
        adapted = []
        for request in requests:
            stream = request.stream
            if stream.step != step:
                stream.state = replace(stream.state, temporal=None, match=None)
                stream.step = step
            if step and request.output_size == "native" and side is not None:
                request = replace(request, output_size=side)  # a stream keeps its size
            adapted.append(request)
        if step == 0:
            return super().restore(adapted)
        return self._steps[step][1].restore(adapted)

    def _planned(
        self, requests: Sequence[Request], counts: Sequence[int], step: int, number: int
    ) -> list[Request]:
        """The requests with the shares of their strength: all, rising to all, or falling to none.

        Streams are restored as far as `number` faces go, in their order.
        """
        planned = []
        for request, count in zip(requests, counts, strict=True):
            stream = request.stream
            if number >= count:
                shares = [
                    min(1.0, stream.share + (index + 1) / FADE_FRAMES) for index in range(count)
                ]
                number -= count
            else:
                falling = min(number, count) if stream.share else 0
                shares = [
                    stream.share * (1 - (index + 1) / (falling + 1)) for index in range(falling)
                ] + [0.0] * (count - falling)
                number = 0
            if count:
                stream.share = shares[-1]
            whole = min(shares, default=1.0) == 1
            planned.append(request if whole else replace(request, shares=shares))
        return planned

    def _log(self, before: int, faces: int, seconds: float) -> None:
        after, names = self.governor.step, [*(name for name, _ in self._steps), NOTHING]
        logger.log(
            logging.WARNING if after > before else logging.INFO,
            "deadline: %s instead of %s; a call with %d faces may take %.0f ms, and the machine is "
            "%.1f times slower than idle",
            names[after],
            names[before],
            faces,
            1e3 * seconds,
            self.governor.load,
        )


def _cheaper(settings: EnhancerSettings, model: str) -> list[tuple[str, EnhancerSettings]]:
    """Names and options of the steps after the first."""
    steps = []
    plain = settings.replace(deadline_ms=0, budget_ms=0)
    if settings.region == "full":
        plain = plain.replace(region="lower")
        steps.append(("lower half", plain))
    if model != SMALL_MODEL:
        of_model = {each.name: each.default for each in options() if each.name in _OF_MODEL}
        steps.append((SMALL_MODEL, plain.replace(**of_model | {"model": SMALL_MODEL})))
    return steps


def _computed(outcome: Outcome) -> bool:
    """Whether a frame went through the network."""
    return not outcome.repeated and (outcome.restored or outcome.cause not in _SKIPPED)


def _count(request: Request) -> int:
    try:
        return len(unpacked(request.frames)[0])
    except FrameError:
        return 0  # the engine says what is wrong
