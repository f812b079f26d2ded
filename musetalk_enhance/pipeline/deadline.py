"""Calls that end in time: an engine that knows what its batches cost and does less before it is
late.

It steps down in a fixed order: only the lower half of each face, then the embedded small model,
then only as many streams as there is time for. A call whose faces take too long ends between two
groups of them. What a stream gets never switches from one frame to the next: its strength falls
and rises over several frames. A frame that is not restored is the host's own; nothing of an earlier
frame stands in for it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ..config.settings import EnhancerSettings, options
from ..errors import FrameError
from ..frames.batch import unpacked
from .engine import Engine, Pace, Request, Restored
from .outcome import Cause, Outcome

if TYPE_CHECKING:
    from ..restorers.base import Restorer
    from .stream import Stream

logger = logging.getLogger("musetalk_enhance")

MARGIN = 1.1
"""A step is taken if a call is expected to take this much less than it may, and kept while it is
not expected to take more."""
RECENT_CALLS = 5
"""Calls that tell the load. One of them may be slow by chance: beside other work single calls take
twice as long as the median; one that is late counts twice."""
QUIET_SECONDS, LONGEST_QUIET = 2.0, 32.0
"""How long to wait before more is done. It grows by half each time that this failed: quickly down,
slowly up, as WebRTC's `OveruseFrameDetector`."""
TRIAL_CALLS = 3
"""Calls of a trial, which their median decides."""
TRUST_SECONDS = 60.0
"""Age of a measured cost that is doubted: the machine may have been busy then."""
FADE_FRAMES = 8
"""Frames over which a stream's strength rises again."""
GROUP, GROUP_PART = 4, 16
"""Faces of a call between two looks at the clock: so many (two on a CPU of one or two threads), or
more that are expected to take only one part of so many of the time that the call has. With lite on
one thread a call of 20 faces takes 0.97 (groups of 2) and 0.99 times (4) the processor time of the
whole call."""
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
    """

    def __init__(self, costs: Sequence[Cost], clock: Callable[[], float]) -> None:
        self._costs, self._clock = list(costs), clock
        self._ratios = deque([1.0], RECENT_CALLS)
        self._trial: list[float] = []
        self._quiet = [QUIET_SECONDS] * len(self._costs)
        self._measure_times = [clock()] * len(self._costs)
        self._rise_time, self._move_time, self._limit_time = -LONGEST_QUIET, 0.0, 0.0
        self._call = (0, 0.0)
        self._move(0)

    @property
    def load(self) -> float:
        """How many times longer calls take than on an idle machine."""
        return sorted(self._ratios)[-2:][0]

    def group(self, step: int, seconds: float, least: int = GROUP) -> int:
        """Faces of a call between two looks at the clock; the fixed cost is a fifth at most.

        Args:
            step: of the call, not nothing.
            seconds: that the call may take.
            least: faces that are no slower together than more.
        """
        cost = self._costs[step]
        quick = seconds / GROUP_PART / (self.load * cost.per_face)
        return max(least, int(quick), round(4 * cost.fixed / cost.per_face))

    def choose(self, faces: int, seconds: float) -> tuple[int, int]:
        """The step of a call, and the number of its faces that can be restored.

        Args:
            faces: in the call.
            seconds: that it may take.
        """
        nothing, now = len(self._costs), self._clock()
        if seconds <= 0:  # another stream took the time; the others' calls may fit all the same
            return nothing, 0
        self._call = faces, seconds
        possible = next(
            (step for step in range(nothing) if self._fits(step, faces, seconds)), nothing
        )
        if possible > self.step:
            if now - self._rise_time < 2 * self._quiet[self.step]:  # it was too early
                self._wait_longer(self.step, LONGEST_QUIET)
            self._move(possible)
        elif possible < self.step < nothing:
            if now - self._limit_time >= self._quiet[self.step - 1]:
                self._rise()
        else:
            self._limit_time = now
            if self.step < nothing and now - self._rise_time > 4 * self._quiet[self.step]:
                self._quiet[self.step] = QUIET_SECONDS
        if self.step < nothing:
            return self.step, faces
        number = max((n for n in range(faces) if self._fits(nothing - 1, n, seconds)), default=0)
        return nothing - 1 if number else nothing, number

    def observe(self, step: int, faces: int, seconds: float, late: bool = False) -> None:
        """Learn from a call that took so long, with so many faces restored, or none."""
        if faces and step < len(self._costs):
            ratio = self._ratio_of(step, faces, seconds)
            self._ratios.extend([ratio] * (1 + late))

    def trial(self, seconds: float) -> tuple[int, int] | None:
        """The step before the current one and a number of faces, to be run for the measurement.

        A step is taken again only after a few calls that showed that it fits. The first of them
        has one face, those after it as many as fit by its measurement.

        Args:
            seconds: what is left of a call that did its work.
        """
        step, idle = self.step - 1, self.step == len(self._costs)
        if step < 0:
            return None
        if not self._trial:
            now, quiet = self._clock(), self._quiet[step]
            if now - self._move_time < (quiet if idle else max(quiet, TRUST_SECONDS)):
                return None
            one = self._costs[step].seconds(1) * (1 if idle else self.load)
            doubt = 1 + (now - self._measure_times[step]) / TRUST_SECONDS
            return (step, 1) if one <= doubt * seconds else None
        one = self._costs[step].seconds(1) * max(self._trial)
        fit = int(seconds / MARGIN / one)
        return (step, max(1, min(_MANY, self._call[0], fit))) if fit >= 1 else None

    def observe_trial(self, faces: int, seconds: float, late: bool) -> None:
        """Learn from a call of a trial.

        Args:
            faces: as `trial` said; 0 if the network failed.
            seconds: that they took.
            late: whether the call that it was part of took longer than it may.
        """
        step = self.step - 1
        if faces:
            ratio = self._ratio_of(step, faces, seconds)
            self._trial.append(ratio)
        if faces and not late:
            if len(self._trial) < TRIAL_CALLS:
                return
            self._ratios = deque(self._trial, RECENT_CALLS)
            if self._fits(step, *self._call):
                self._rise()
                return
        self._wait_longer(step, LONGEST_QUIET if late else LONGEST_QUIET / 4)
        self._move(self.step)

    def _fits(self, step: int, faces: int, seconds: float) -> bool:
        margin = 1.0 if step == self.step else MARGIN
        return margin * self.load * self._costs[step].seconds(faces) <= seconds

    def _ratio_of(self, step: int, faces: int, seconds: float) -> float:
        """How much longer a call took than the shortest of that step so far, 1 or more."""
        self._measure_times[step] = self._clock()
        cost = self._costs[step]
        ratio = max(seconds, 1e-6) / cost.seconds(faces)
        if ratio < 1:
            self._costs[step] = Cost(cost.fixed * ratio, cost.per_face * ratio)
            self._trial = [each / ratio for each in self._trial]
            self._ratios = deque((each / ratio for each in self._ratios), RECENT_CALLS)
        return max(1.0, ratio)

    def _wait_longer(self, step: int, longest: float) -> None:
        self._quiet[step] = max(self._quiet[step], min(1.5 * self._quiet[step], longest))

    def _rise(self) -> None:
        self._rise_time = self._clock()
        self._move(self.step - 1)

    def _move(self, step: int) -> None:
        self.step, self._trial = step, []
        # of the last change, and when no more than this step was possible
        self._move_time = self._limit_time = self._clock()


class CallPace:
    """Ends a call in time: when its faces take too long, those that wait are left to the host.

    Full strength goes on until no more than two groups fit, since one slow group may be chance.
    The streams fade within what still fits.

    Args:
        due: when the call shall end, in seconds of `time.perf_counter`.
        group: the most faces between two looks at the clock.

    Attributes:
        ended: whether frames were left to the host.
    """

    def __init__(self, due: float, group: int) -> None:
        self._due, self._group = due, group
        self._time, self._faces = 0.0, 0
        self.ended = False

    def __call__(self, waiting: Sequence[tuple[Request, int]]) -> int:
        """See `engine.Pace`; the shares of the requests are lowered."""
        now = time.perf_counter()
        left = self._due - now
        rests = [(request.shares or [])[first:] for request, first in waiting]
        faces = sum(share > 0 for rest in rests for share in rest)
        progress, since = self._faces - faces, self._time
        if progress:
            self._time, self._faces = now, faces
        if not faces:
            return self._group
        number = 0
        if left > 0:
            per_face = (now - since) / progress if progress > 0 else 0.0
            if self.ended or per_face * min(faces, 2 * self._group) <= left:
                return self._group
            number = max(int(left / per_face), min(self._group, len(waiting)))
        self.ended = True
        last_shares = [
            request.shares[first - 1] if request.shares and first else _last_share(request.stream)
            for request, first in waiting
        ]
        fading = _fading(last_shares, [len(rest) for rest in rests], number)
        for (request, first), shares in zip(waiting, fading, strict=True):
            assert request.shares is not None
            request.shares[first:] = shares
        return self._group


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
        self._noise = self.stream(settings.replace(on_error="passthrough"))
        self._rng = np.random.default_rng(0)
        with self.lock:
            costs = [self._cost(step) for step in range(len(self._steps))]
        for _, engine in self._steps:
            engine._planner = None  # with the first frames the host has loaded its own networks
        self.governor = Governor(costs, time.perf_counter)
        self._last_step = 0
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
            due = start + seconds
            step, number = self.governor.choose(faces, due - begun)
            if self.governor.step != self._last_step:
                self._log(self._last_step, faces, seconds)
                self._last_step = self.governor.step
            planned = self._planned(requests, counts, step, number)
            name, engine = (*self._steps, (NOTHING, self))[step]
            loaded = engine.model.loaded  # otherwise the call loads it, which says nothing
            last_shares = [_last_share(request.stream) for request in requests]
            pace = None
            if step < len(self._steps):
                least = engine._faces_at_once(GROUP)
                pace = CallPace(due, self.governor.group(step, seconds, least))
            restored = self._run_step(step, planned, pace)
            end = time.perf_counter()
            if loaded:
                outcomes = [outcome for each in restored for outcome in each.outcomes]
                failed = any(outcome.failed for outcome in outcomes)  # which may be quick
                active = 0 if failed else sum(map(_computed, outcomes))
                ended = pace is not None and pace.ended
                self.governor.observe(step, active, end - begun, end > due or ended)
            trial = self.governor.trial(due - end) if faces else None
            if trial is not None:
                failures = self._noise.stats.failed
                taken = self._run_noise(*trial)
                end = time.perf_counter()
                works = self._noise.stats.failed == failures
                self.governor.observe_trial(trial[1] if works else 0, taken, end > due)
                logger.debug(
                    "deadline: trial of %s: %d faces took %.0f ms, %s",
                    *(self._steps[trial[0]][0], trial[1], 1e3 * taken),
                    "late" if end > due else "in time",
                )
            for request, last_share, result in zip(planned, last_shares, restored, strict=True):
                stream, shares = request.stream, request.shares or []
                idle = sum(share <= 0 for share in shares)
                stream.stats.steps += Counter({name: len(shares) - idle, NOTHING: idle})
                stream.stats.late += end > due
                stream.stats.switches += sum(
                    one > 0.5 and other <= 0 for one, other in pairwise([last_share, *shares])
                )
                stream.share = shares[-1] if shares else stream.share
                if result.outcomes and result.outcomes[-1].failed:
                    stream.share = 0.0  # it comes back by and by
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
            super().unload([*streams, self._noise])

    def _seconds(self, faces: int) -> float:
        """That a call with so many faces may take."""
        settings = self.settings
        limits = [settings.deadline_ms, settings.budget_ms * max(1, faces)]
        return min(limit for limit in limits if limit > 0) / 1e3

    def _cost(self, step: int) -> Cost:
        """Measured after runs that do not count."""
        self._run_noise(step, 1)
        one = min(self._run_noise(step, 1) for _ in range(2))
        if one > 0.25:  # more would take long to learn little
            return Cost(0.0, one)
        self._run_noise(step, _MANY)
        many = min(self._run_noise(step, _MANY) for _ in range(2))
        per_face = max((many - one) / (_MANY - 1), many / _MANY / 2, 1e-6)
        return Cost(max(0.0, one - per_face), per_face)

    def _run_noise(self, step: int, faces: int) -> float:
        """Seconds that a step takes for faces of coarse noise, which is not sharp already."""
        import cv2

        cells = self._rng.integers(0, 256, (faces, 9, 9, 3), np.uint8)  # no frame is repeated
        size = (_SIDE, _SIDE)
        noise = [cv2.resize(each, size, interpolation=cv2.INTER_CUBIC) for each in cells]
        start = time.perf_counter()
        self._run_step(step, [Request(self._noise, noise, (None, None, None, None, noise))])
        return time.perf_counter() - start

    def _run_step(
        self, step: int, requests: Sequence[Request], pace: Pace | None = None
    ) -> list[Restored]:
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
            return self.restore_paced(adapted, pace)
        return self._steps[step][1].restore_paced(adapted, pace)

    def _planned(
        self, requests: Sequence[Request], counts: Sequence[int], step: int, number: int
    ) -> list[Request]:
        """The requests with the shares of their strength: all, rising to all, or falling to none.

        Streams are restored as far as `number` faces go, in their order.
        """
        planned = []
        for request, count in zip(requests, counts, strict=True):
            share = request.stream.share
            if number >= count:
                shares = [min(1.0, share + (index + 1) / FADE_FRAMES) for index in range(count)]
                number -= count
            else:
                shares = _fading([share], [count], number)[0]
                number = 0
            planned.append(replace(request, shares=shares))
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


def _last_share(stream: Stream) -> float:
    """The share of the strength that a stream's last frame had; 0 before the first frame."""
    return stream.share if stream.last is not None else 0.0


def _fading(last_shares: Sequence[float], counts: Sequence[int], number: int) -> list[list[float]]:
    """Shares of the frames of streams that fall to none.

    Args:
        last_shares: the share of each stream's last frame, 0..1.
        counts: frames of each stream.
        number: faces that can be restored, the same for all streams that are not at 0 already.
    """
    streams = max(1, sum(share > 0 for share in last_shares))
    rest, fading = number % streams, []
    for share, count in zip(last_shares, counts, strict=True):
        falling = 0
        if share > 0:
            falling = min(number // streams + (rest > 0), count)
            rest -= 1
        shares = [share * (1 - (index + 1) / (falling + 1)) for index in range(falling)]
        fading.append(shares + [0.0] * (count - falling))
    return fading


def _computed(outcome: Outcome) -> bool:
    """Whether a frame went through the network."""
    return not outcome.repeated and (outcome.restored or outcome.cause not in _SKIPPED)


def _count(request: Request) -> int:
    try:
        return len(unpacked(request.frames)[0])
    except FrameError:
        return 0  # the engine says what is wrong
