"""One loaded network, shared by any number of streams, whose faces it restores in common batches.

Apart from the network the engine is stateless: each sequence of faces has its state in a stream.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import EnhanceError, FrameError, NoFaceError, OutOfMemoryError, RestorerError
from ..frames.batch import FrameBatch, is_tensor, same_bits
from ..frames.hints import Hints
from ..frames.resize import resize
from ..runtime import memory
from ..runtime.precision import without_autocast
from ..runtime.threads import submit
from .batch_planner import BatchPlanner
from .compose import Composed, ComposeInput, Compositor
from .match import Source
from .model_handle import ModelHandle
from .outcome import Cause, Outcome, Status, passed_through
from .prepare import Prepared, Preparer
from .stats import counted
from .stream import LastFrame, Stream, StreamState

if TYPE_CHECKING:
    import torch

    from ..config.settings import EnhancerSettings
    from ..faces.landmarks import LandmarkFinder
    from ..faces.paste import FaceCrop
    from ..media.arrays import Image
    from ..restorers.base import ModelInfo, Restorer

logger = logging.getLogger("musetalk_enhance")

LANDMARKS_AT_ONCE = 16
"""Faces whose landmarks are measured together."""
MOST_IN_ROUND = 4
"""Frames of one round, as a multiple of the batch: frames that skip the network are free."""

HostHints = tuple[Any, ...]
"""Landmarks, occlusion, keys, cuts and sources, as passed by the host; those left out are None."""


@dataclass(frozen=True)
class Request:
    """Frames of one stream to restore.

    Attributes:
        stream: the stream that they continue.
        frames: the host's frames.
        hints: landmarks, occlusion, keys, cuts and sources of each frame.
        output_size: as the option of that name.
        batch_size: faces in one run of the network, for this call; None as the engine plans.
        shares: of the strength that each frame gets, 0..1; None: all of it. A `Pace` may lower
            those of frames that wait.
    """

    stream: Stream
    frames: Any
    hints: HostHints = ()
    output_size: str | int = "same"
    batch_size: int | None = None
    shares: list[float] | None = None


Pace = Callable[[Sequence[tuple[Request, int]]], int]
"""Called before each round with the requests that wait and the index of the first frame of each
that does; the most faces of the round."""


@dataclass(frozen=True)
class Restored:
    """The result of a request.

    Attributes:
        frames: as many as in the request, in their container.
        outcomes: one per frame.
    """

    frames: Any
    outcomes: list[Outcome]


@dataclass
class _Work:
    """A request in progress."""

    request: Request
    batch: FrameBatch
    hints: Hints
    host_hints: Hints
    results: dict[int, Any] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    @property
    def stream(self) -> Stream:
        return self.request.stream

    @property
    def color(self) -> str:
        """Order of the channels: what the container implies, or the stream's option."""
        return self.batch.color or self.stream.settings.color


@dataclass(frozen=True)
class _Part:
    """Frames of one request and size that follow one another."""

    work: _Work
    indices: list[int]


@dataclass(frozen=True)
class _PreparedPart:
    """The same, prepared."""

    part: _Part
    prepared: Prepared
    state: StreamState
    inputs: torch.Tensor | None
    alignment: Any
    motions: Future[Any] | None
    sources: list[Source | None]

    @property
    def active(self) -> list[int]:
        return self.prepared.active

    def continued(self, state: StreamState) -> StreamState:
        """What the stream remembers before this part: nothing where its size is another one."""
        size_hw = self.state.size_hw
        return state if state.size_hw == size_hw else StreamState(size_hw)


class Engine:
    """Restores faces of many streams with one network.

    Args:
        settings: all options, checked.
        restorer: the caller's own restorer; None loads the one that `settings` name.

    Raises:
        WeightError: the weight is missing, damaged, not to be trusted, or another network.
        MissingDependencyError: an optional package is needed.
    """

    def __init__(self, settings: EnhancerSettings, restorer: Restorer | None = None) -> None:
        self.settings = settings
        self.lock = threading.RLock()
        self.closed = False
        self._process = os.getpid()
        self.model = ModelHandle(settings, restorer)
        self._planner: BatchPlanner | None = None
        self._landmarks: LandmarkFinder | None = None
        self._preparer, self._compositor = self._opened()
        self._pool = ThreadPoolExecutor(1, "musetalk_enhance-motion")

    def _opened(self) -> tuple[Preparer, Compositor]:
        """Load what the settings need, so that missing files are reported before a long run."""
        settings, aligner, occluder = self.settings, None, None
        if settings.align == "ffhq":
            from ..faces.align import Aligner
            from ..faces.templates import TEMPLATE_SIDE

            info = self.model.info
            side = info.input_size or TEMPLATE_SIDE
            aligner = Aligner(side, template=info.landmark_template)
        if settings.align == "ffhq" or settings.region == "mouth":
            from ..faces.landmarks import LandmarkFinder

            self._landmarks = LandmarkFinder(settings.landmarks)
        if settings.occluder is not None:
            from ..faces.occlusion import Occluder

            occluder = Occluder(settings.occluder, provider="auto", device=self.device)
        return Preparer(settings, aligner, occluder), Compositor(settings, aligner)

    @property
    def device(self) -> torch.device:
        """Where the network runs; after `unload`, where it ran last."""
        return self.model.device

    @property
    def planner(self) -> BatchPlanner:
        """Created with the first frames, when the host has loaded its own networks."""
        if self._planner is None:
            self._planner = BatchPlanner(self.settings, self.model.info, self.device)
        return self._planner

    def crop_face(self, image_bgr: Image, landmarks: Any) -> FaceCrop:
        """Crop a face from a whole image, on the network's template and at its `crop_size`.

        Args:
            image_bgr: BGR uint8 (H, W, 3).
            landmarks: (5, 2) x, y in pixels, in the order of `Face.landmarks`.

        Raises:
            FrameError: see `faces.paste.crop_face`.
        """
        from ..faces.paste import crop_face

        info = self.model.info
        return crop_face(image_bgr, landmarks, crop_size(info), info.landmark_template)

    def stream(self, settings: EnhancerSettings | None = None) -> Stream:
        """Open another stream over this network, with options of its own if given."""
        return Stream(self, settings or self.settings)

    def check_open(self, stream: Stream) -> None:
        """Raises:
        RestorerError: the engine or the stream was closed.
        """
        if self.closed or stream.closed:
            raise RestorerError("this enhancer or stream was closed; create a new one")

    def unload(self, streams: Sequence[Stream] = ()) -> None:
        """Free the network's and the streams' GPU memory; the next call loads it again."""
        from ..runtime.devices import torch_device

        with self.lock:
            if self.closed or not self.model.loaded:
                return
            for stream in streams:
                stream.state = stream.state.to(torch_device("cpu"))
            self._preparer.unload()
            self._compositor.unload()
            if self._landmarks is not None:
                self._landmarks.unload()
            self.model.unload()

    def close(self) -> None:
        """Free the network for good; later calls raise `RestorerError`."""
        with self.lock:
            if not self.closed:
                self.closed = True
                self._preparer.close()
                self._compositor.unload()
                self._landmarks = None
                self.model.close()
                self._pool.shutdown()

    def restore(self, requests: Sequence[Request]) -> list[Restored]:
        """Restore frames of one or more streams, with common batches for the network.

        Args:
            requests: at most one for each stream.

        Returns:
            One result for each request, in order. A stream's frames come out the same whatever
            other streams there are, as far as the backend's arithmetic does not depend on the size
            of a batch.

        Raises:
            FrameError: frames that are no batch at all; hints of another number or form; with
                ``on_error="raise"`` a bad frame or an empty batch.
            RestorerError: the engine or a stream was closed; the process was forked; with
                ``on_error="raise"``, the network failed.
        """
        return self.restore_paced(requests)

    def restore_paced(
        self, requests: Sequence[Request], pace: Pace | None = None
    ) -> list[Restored]:
        """`restore` with rounds that `pace` may limit."""
        if os.getpid() != self._process:
            raise RestorerError(
                "this enhancer was created before the process was forked, and a fork has none of "
                "its threads. Create it in the child process, or start that with the method 'spawn'"
            )
        with self.lock:
            start = time.perf_counter()
            spent = [dict(request.stream.stats.ms) for request in requests]
            works = [self._open(request) for request in requests]
            if any(work.batch.runs() for work in works) and self._awake(works):
                self._find_landmarks(works)
                self._run(works, pace)
            restored = [self._close(work) for work in works]
            if self.settings.mode == "memory":
                # the C library's heap would swell and shrink with the sizes of the batches
                memory.trim()
            seconds = time.perf_counter() - start
            for request, before in zip(requests, spent, strict=True):
                request.stream.stats.add_call(before, 1e3 * seconds)
            return restored

    def _open(self, request: Request) -> _Work:
        """Check a request and unpack its frames."""
        stream = request.stream
        self.check_open(stream)
        batch = FrameBatch.open(request.frames, stream.settings.value_range, stream.value_range)
        batch.warn(stream.warn_once)
        if batch.value_range is not None and batch.range_shown:
            stream.value_range = batch.value_range
        hints = Hints.of(len(batch), *request.hints)
        if self.settings.match == "none":
            hints = replace(hints, sources=[None] * len(batch))
        elif len(batch) and (request.hints[4:] or (None,))[0] is None:
            stream.warn_once("sources", "match: source has no effect: the host passes no sources")
        work = _Work(request, batch, hints, hints)
        stream.stats.frames += len(batch)
        if len(batch) == 0 and stream.settings.on_error == "raise":
            raise FrameError("empty", "an empty batch", "at least one frame")
        for index in sorted(batch.problems):
            self._pass_through(work, index, batch.problems[index])
        return work

    def _awake(self, works: Sequence[_Work]) -> bool:
        """Whether the network is loaded; loads it after `unload`. Failures are counted."""
        try:
            if self.model.wake():
                self._planner = None
                for work in works:
                    work.stream.stats.reloads += 1
        except Exception as error:
            for work in works:
                if work.stream.settings.on_error == "raise":
                    raise
                for index in (index for run in work.batch.runs() for index in run):
                    self._fail(work, index, error, Cause.RELOAD)
            return False
        return True

    def _find_landmarks(self, works: Sequence[_Work]) -> None:
        """Fill in the landmarks of every good frame, once, in the order of its stream."""
        if self._landmarks is None:
            return
        import torch

        from ..faces.align import LandmarkTrack

        for work in works:
            landmarks = list(work.host_hints.landmarks)
            if work.stream.landmark_track is None:
                work.stream.landmark_track = LandmarkTrack()
            with (
                work.stream.stats.timed("landmarks"),
                torch.no_grad(),
                without_autocast(self.device),
            ):
                for run in work.batch.runs():
                    for start in range(0, len(run), LANDMARKS_AT_ONCE):
                        indices = run[start : start + LANDMARKS_AT_ONCE]
                        for index, points in zip(
                            indices, self._landmarks_of(work, indices), strict=True
                        ):
                            landmarks[index] = points
            work.hints = work.hints.with_landmarks(landmarks)

    def _landmarks_of(self, work: _Work, indices: list[int]) -> list[Any]:
        """Landmarks of some frames; the host's own if detection fails."""
        hints = work.host_hints.at(indices)
        assert self._landmarks is not None and work.stream.landmark_track is not None
        try:
            faces = work.batch.to_network(indices, self.device, work.color)
            return self._landmarks.fill(faces, hints, work.stream.landmark_track)
        except Exception as error:
            memory.forget_locals(error)
            if work.stream.settings.on_error == "raise":
                if isinstance(error, EnhanceError):
                    raise
                raise RestorerError(
                    f"frame {indices[0]}: landmark detection failed: {error}"
                ) from error
            work.stream.warn_once(
                "landmarks",
                "landmark detection failed (%s): continuing without landmarks; logged once",
                error,
            )
            return hints.landmarks

    def _run(self, works: Sequence[_Work], pace: Pace | None) -> None:
        """Restore the frames of all works, round by round.

        The frames of a round that failed are tried again: all of them, fewer at a time, where
        memory ran out; otherwise singly, so that only those at fault are lost.
        """
        pending = [_Part(work, list(run)) for work in works for run in work.batch.runs()]
        planner = self._planner_of(works)
        single = 0
        while pending:
            waiting = sum(len(part.indices) for part in pending)
            size = 1 if single else planner.next(waiting)
            if pace is not None:
                firsts = {
                    id(part.work): (part.work.request, part.indices[0])
                    for part in reversed(pending)
                }
                size = min(size, pace(list(reversed(firsts.values()))))
            parts, error = self._attempt(pending, size, planner, alone=bool(single))
            number = sum(len(part.indices) for part in parts)
            if error is not None:
                if memory.is_out_of_memory(error):
                    memory.forget_locals(error)
                    if self._back_off(works, planner, min(size, number)):
                        continue
                if number > 1:
                    single = number
                    del error  # and with it the tensors of the round that failed
                    continue
                self._fail(parts[0].work, parts[0].indices[0], error)
            single = max(0, single - number)
            pending = _without(pending, number)

    def _planner_of(self, works: Sequence[_Work]) -> BatchPlanner:
        sizes = [work.request.batch_size for work in works if work.request.batch_size is not None]
        if not sizes:
            return self.planner
        settings = self.settings.replace(batch_size=min(sizes))
        return BatchPlanner(settings, self.model.info, self.device, self.planner)

    def _attempt(
        self, pending: list[_Part], size: int, planner: BatchPlanner, alone: bool
    ) -> tuple[list[_Part], Exception | None]:
        """Run one round; return its parts, and the error if it failed.

        The error is returned, not handled here: while one is being handled, the interpreter keeps
        its traceback and with that every tensor of the round that failed.
        """
        import torch

        parts: list[_Part] = []
        active = 0
        try:
            # not inference mode: a host may change what it gets in place
            with torch.no_grad(), without_autocast(self.device), planner.watched(size) as run:
                prepared = self._prepare_round(
                    pending, size, parts, 1 if alone else MOST_IN_ROUND * size
                )
                run.faces = active = sum(len(each.active) for each in prepared)
                composed: list[Composed | None] = [None] * len(prepared)
                if active:
                    composed = self._network_and_compose(prepared, size)
                self._commit(prepared, composed)
        except Exception as error:
            return parts, error
        if not active:
            return parts, None
        for each in {planner, self.planner}:
            each.succeeded()
        if planner.over_budget(active):
            self._over_budget(parts[0].work.stream, planner, active)
        return parts, None

    def _prepare_round(
        self, pending: list[_Part], size: int, parts: list[_Part], limit: int
    ) -> list[_PreparedPart]:
        """Prepare frames until `size` of them need the network; `parts` collects what was taken."""
        prepared: list[_PreparedPart] = []
        states: dict[int, tuple[StreamState, bool]] = {}
        active = total = 0
        at_once = self._faces_at_once(size)
        for waiting in pending:
            start = 0
            while start < len(waiting.indices) and active < size and total < limit:
                stop = start + min(size - active, limit - total, at_once)
                part = _Part(waiting.work, waiting.indices[start:stop])
                parts.append(part)
                each = self._prepare(part, states, parts[:-1])
                prepared.append(each)
                active, total = active + len(each.active), total + len(part.indices)
                start = stop
            if start < len(waiting.indices):
                break
        return prepared

    def _prepare(
        self, part: _Part, states: dict[int, tuple[StreamState, bool]], round_parts: Sequence[_Part]
    ) -> _PreparedPart:
        """Prepare frames of one stream.

        `states` has what those of the same round that come before leave for the gate and for scene
        cuts, and whether the last of them is restored, so that its detail can be continued;
        `round_parts` are those parts.
        """
        work, stream = part.work, part.work.stream
        size_hw = work.batch.size_hw(part.indices[0])
        state, continues = states.get(id(stream), (stream.state, stream.state.temporal is not None))
        if state.size_hw != size_hw:
            state, continues = StreamState(size_hw), False
        with stream.stats.timed("prepare"):
            faces = work.batch.to_network(part.indices, self.device, work.color)
            hints = work.hints.at(part.indices)
            shares = work.request.shares
            prepared = self._preparer.prepare(
                faces,
                hints,
                self._repeats(part, round_parts),
                state,
                None if shares is None else [shares[index] for index in part.indices],
            )
            active, inputs, alignment = prepared.active, None, None
            sources = [self._source(work, part.indices[place]) for place in active]
            if active:
                some = faces if len(active) == len(faces) else faces[active]
                inputs, alignment = self._preparer.inputs(
                    some, self.model.info.input_size, hints.at(active)
                )
        motions = None
        if active and prepared.motion_images:
            previous = state.motion_image if continues else None
            motions = submit(self._pool, self._preparer.motions, prepared, previous)
        states[id(stream)] = _advanced(state, prepared), _continues(prepared, continues)
        return _PreparedPart(part, prepared, state, inputs, alignment, motions, sources)

    def _source(self, work: _Work, index: int) -> Source | None:
        """The host's original of a frame; None where there is none that can be used."""
        picture = work.hints.sources[index]
        if picture is None:
            return None
        stream = work.stream
        try:
            batch = FrameBatch.open([picture], stream.settings.value_range, stream.value_range)
            if batch.problems:
                raise batch.problems[0]
            color = batch.color or work.color
            faces = batch.to_network([0], self.device, color)
        except FrameError as error:
            stream.warn_once("source", "a source cannot be used (%s): there is none", error)
            return None
        same = color == work.color and same_bits(work.batch.frames[index], batch.frames[0])
        return Source(faces[0], same)

    def _repeats(self, part: _Part, round_parts: Sequence[_Part]) -> list[bool]:
        """Whether each frame has the same bits and hints as the one before it."""
        work, hints = part.work, part.work.host_hints
        first, last = part.indices[0], work.stream.last
        previous: Any = None
        in_round = any(each.work is work and first - 1 in each.indices for each in round_parts)
        if first - 1 in work.results or in_round:
            previous = work.batch.frames[first - 1]
        elif (
            first == _first(work) and last is not None and self._same_size(work, first, last.result)
        ):
            previous = last.frame
        repeats = work.batch.repeats(part.indices, previous)
        for place, index in enumerate(part.indices):
            if repeats[place]:
                continues = last is not None and place == 0 and index == _first(work)
                other, at = (
                    (last.hints, 0) if last is not None and continues else (hints, index - 1)
                )
                repeats[place] = hints.same(index, other, at) and not hints.cuts[index]
        return repeats

    def _same_size(self, work: _Work, index: int, result: Any) -> bool:
        """Whether an earlier result has the size that frame `index` shall have."""
        height, width = self._size_out(work, index, None)
        shape = tuple(result.shape)
        return (height, width) in (shape[1:], shape[:2])

    def _faces_at_once(self, size: int) -> int:
        """Faces in one run of the network, of a batch of `size`.

        On a CPU batches of more faces than cores are no faster, and what has gone through the
        network can be composed while it runs on the next faces.
        """
        import torch

        if not self.model.owned or self.device.type != "cpu":
            return size
        return min(size, max(2, torch.get_num_threads()))

    def _network_and_compose(
        self, prepared: list[_PreparedPart], size: int
    ) -> list[Composed | None]:
        """Run the network on all frames that need it, and compose the parts.

        What one run of the network made is composed while the next one is under way; the last is
        composed here, where nothing else needs the processor.
        """
        runs = _runs(prepared, self._faces_at_once(size))
        states: dict[int, StreamState] = {}
        composing: list[Future[list[Composed | None]]] = []
        try:
            for run in runs[:-1]:
                restored = self._network(run)
                composing.append(submit(self._pool, self._compose_run, run, restored, states))
                del restored
            restored = self._network(runs[-1])
            composed = [each for future in composing for each in future.result()]
            return composed + self._compose_run(runs[-1], restored, states)
        finally:
            wait(composing)  # after an error too: what is under way holds memory

    def _network(self, run: list[_PreparedPart]) -> torch.Tensor:
        """What the network makes of all frames of a run, float32 (N, 3, T, T)."""
        import torch

        inputs = [each.inputs for each in run if each.inputs is not None]
        if not inputs:
            return torch.empty(0)
        stats = next(each.part.work.stream.stats for each in run if each.inputs is not None)
        with stats.timed("network"):
            batch = torch.cat(inputs)  # a copy: a restorer may change it in place
            restored = _checked_form(self.model.restorer.restore(batch), len(batch))
            whole = bool(torch.isfinite(restored.sum()))  # one pass; NaN and infinity survive a sum
        if not whole:
            raise RestorerError("the network returned NaN or infinite values")
        return restored

    def _compose_run(
        self, run: list[_PreparedPart], restored: torch.Tensor, states: dict[int, StreamState]
    ) -> list[Composed | None]:
        """Compose the parts of a run; `states` has what each stream remembers before and after."""
        import torch

        composed: list[Composed | None] = []
        start = 0
        # both hold for one thread only
        with torch.no_grad(), without_autocast(self.device):
            for each in run:
                stream = each.part.work.stream
                state = each.continued(states.get(id(stream), stream.state))
                result: Composed | None = None
                if each.inputs is not None:
                    stop = start + len(each.inputs)
                    with stream.stats.timed("motion"):
                        motions = each.motions.result() if each.motions is not None else []
                    with stream.stats.timed("finish"):
                        result = self._compose(each, restored[start:stop], motions, state)
                    start, state = stop, result.state
                states[id(stream)] = _after(state, each)
                composed.append(result)
        return composed

    def _compose(
        self, each: _PreparedPart, restored: torch.Tensor, motions: list[Any], state: StreamState
    ) -> Composed:
        prepared, active = each.prepared, each.active
        every = len(active) == len(prepared.faces)
        index = each.part.indices[active[0]]
        assert each.inputs is not None
        batch = ComposeInput(
            faces=prepared.faces if every else prepared.faces[active],
            inputs=each.inputs,
            restored=restored,
            size_hw=self._size_out(each.part.work, index, restored),
            hints=prepared.hints if every else prepared.hints.at(active),
            motions=motions,
            cuts=[prepared.cuts[place] for place in active],
            needs=[prepared.needs[place] for place in active],
            shares=[prepared.shares[place] for place in active],
            visibility=prepared.visibility
            if every or prepared.visibility is None
            else prepared.visibility[active],
            alignment=each.alignment,
            sources=each.sources,
        )
        return self._compositor.compose(batch, state)

    def _commit(self, prepared: list[_PreparedPart], composed: Sequence[Composed | None]) -> None:
        """Hand the results of a successful round to the requests and update the streams.

        Nothing is counted before all results are there: if memory runs out, the round is repeated.
        """
        finished: list[tuple[_PreparedPart, Composed | None, Any, list[Outcome]]] = []
        for each, result in zip(prepared, composed, strict=True):
            work, rows, outcomes = each.part.work, None, list[Outcome]()
            if result is not None:
                with work.stream.stats.timed("finish"):
                    indices = [each.part.indices[place] for place in each.active]
                    rows = work.batch.from_network(
                        result.rows, indices, work.color, result.touched, result.first_row
                    )
                    outcomes = result.finished_outcomes()
            finished.append((each, result, rows, outcomes))
        # only the last part of a stream is remembered: a copy of every other would be for nothing
        last_parts = {id(each.part.work.stream): each.part for each in prepared}
        try:
            for each, _, rows, outcomes in finished:
                work = each.part.work
                places = {place: position for position, place in enumerate(each.active)}
                for place, index in enumerate(each.part.indices):
                    if place in places:
                        work.results[index] = rows[places[place]]
                        work.outcomes[index] = outcomes[places[place]]
                    else:
                        outcome = self._left_alone(work, index, each.prepared, place)
                        work.outcomes[index] = outcome
            last_frames = {
                stream: self._last_frame(part.work, part.indices[-1])
                for stream, part in last_parts.items()
            }
        except Exception:
            for each in prepared:
                for index in each.part.indices:
                    each.part.work.results.pop(index, None)
            raise
        restorer = self.model.restorer
        for each, result, _, _ in finished:
            work, stream = each.part.work, each.part.work.stream
            for index in each.part.indices:
                stream.stats.add(work.outcomes[index], stream.settings.strength)
            state = result.state if result is not None else each.continued(stream.state)
            stream.state = _after(state, each)
            stream.stats.batches += result is not None
            stream.stats.fallbacks = restorer.fallbacks
            stream.last = last_frames[id(stream)]

    def _left_alone(self, work: _Work, index: int, prepared: Prepared, place: int) -> Outcome:
        """Return a frame that skipped the network: the input, or the repeated result."""
        cause = prepared.left_alone[place]
        if cause is Cause.UNCHANGED:
            earlier = index - 1
            if earlier in work.results:
                result, outcome = work.results[earlier], work.outcomes[earlier]
            else:
                assert work.stream.last is not None
                result, outcome = work.stream.last.result, work.stream.last.outcome
            work.results[index] = _copy(result)
            return replace(outcome, repeated=True, cut=False)
        size = self._size_out(work, index, None)
        if size == work.batch.size_hw(index):
            work.results[index] = work.batch.passthrough(index, None)
        else:  # as the parts of a restored frame that may not change
            resized = resize(prepared.faces[place : place + 1], size)
            work.results[index] = work.batch.from_network(resized, [index], work.color)[0]
        return Outcome(
            Status.LEFT_ALONE, 0.0, cause, sharp=cause is Cause.SHARP, cut=prepared.cuts[place]
        )

    def _last_frame(self, work: _Work, index: int) -> LastFrame:
        """A copy of a stream's last frame and of its result: the host may change its own."""
        result = _copy(work.results[index])
        hints = work.host_hints.own(index)
        return LastFrame(work.batch.own(index), result, hints, work.outcomes[index])

    def _over_budget(self, stream: Stream, planner: BatchPlanner, faces: int) -> None:
        stream.stats.over_budget += 1
        stream.warn_once(
            "over budget",
            "%s took %d MiB, memory_budget is %d MiB: batches are now limited to %d",
            counted(faces, "face"),
            planner.costs.bytes_for(faces) >> 20,
            (planner.budget or 0) >> 20,
            planner.planned,
        )

    def _back_off(self, works: Sequence[_Work], planner: BatchPlanner, tried: int) -> bool:
        """Make room after memory ran out with `tried` faces; False when nothing is left to try."""
        device = self.device
        if planner.ran_out(tried):
            logger.warning(
                "out of memory with a batch of %d faces: reduced to %d", tried, planner.size
            )
            self.planner.ran_out(tried)  # where it is another one, it has learned the same
        elif self.model.move_to_cpu():
            for each in {planner, self.planner}:
                each.start(self.device)
        else:
            return False
        works[0].stream.stats.backoffs += 1
        memory.release(device)
        return True

    def _fail(self, work: _Work, index: int, error: Exception, cause: Cause | None = None) -> None:
        """A frame could not be restored."""
        if isinstance(error, FrameError):
            self._pass_through(work, index, error)
            return
        detail = type(error).__name__
        if cause is None:
            cause = Cause.RESTORER
            if isinstance(error, NoFaceError):
                cause, detail = Cause.NO_FACE, ""
            elif memory.is_out_of_memory(error):
                cause, detail = Cause.OUT_OF_MEMORY, ""
        if work.stream.settings.on_error == "raise":
            if isinstance(error, EnhanceError):
                raise error
            kind = OutOfMemoryError if cause is Cause.OUT_OF_MEMORY else RestorerError
            raise kind(f"frame {index}: {self.model.info.name} failed: {error}") from error
        work.stream.stats.failed += cause is not Cause.NO_FACE
        text = f"frame {index}: {str(error) or type(error).__name__}"
        self._count(work, index, passed_through(cause, detail or None), text)

    def _pass_through(self, work: _Work, index: int, error: FrameError) -> None:
        """A frame that cannot be used."""
        if work.stream.settings.on_error == "raise":
            raise error
        self._count(work, index, passed_through(Cause.INPUT, error.reason), str(error))

    def _count(self, work: _Work, index: int, outcome: Outcome, text: str) -> None:
        work.outcomes[index] = outcome
        work.stream.stats.add(outcome, work.stream.settings.strength)
        work.stream.warn_once(
            str(outcome.reason),
            "%s: passed through unchanged; further such frames are only counted (stats)",
            text,
        )

    def _size_out(self, work: _Work, index: int, restored: torch.Tensor | None) -> tuple[int, int]:
        """Height and width of a frame's result."""
        output_size, settings = work.request.output_size, work.stream.settings
        height, width = work.batch.size_hw(index)
        if isinstance(output_size, int):
            return output_size, output_size
        if output_size == "native":
            if restored is not None:
                return int(restored.shape[2]), int(restored.shape[3])
            side = self.model.info.output_size
            if side is not None:
                return side, side
        # a network that takes any size has no output size
        if output_size in ("upscale", "native"):
            return max(1, round(height * settings.upscale)), max(1, round(width * settings.upscale))
        return height, width

    def _close(self, work: _Work) -> Restored:
        """The results of a request in the host's container."""
        batch, stream = work.batch, work.stream
        if len(batch) == 0:
            return Restored(batch.copy(), [])
        frames, outcomes = [], []
        for index in range(len(batch)):
            if index in work.results:
                frame = work.results[index]
            else:
                size = self._size_out(work, index, None) if batch.has_size(index) else None
                frame = batch.passthrough(index, size)
            frames.append(frame)
            outcomes.append(work.outcomes[index])
            stream.notify(batch.frames[index], frame, work.outcomes[index])
        return Restored(batch.close(frames), outcomes)


def crop_size(info: ModelInfo) -> int:
    """Side of a face crop, in pixels: a template's, or more so that the network loses nothing."""
    from ..faces.templates import TEMPLATE_SIDE

    return max(TEMPLATE_SIDE, info.input_size or 0, info.output_size or 0)


def _first(work: _Work) -> int:
    """Index of the first frame of a request that was good enough to be restored."""
    return work.batch.runs()[0][0]


def _runs(prepared: list[_PreparedPart], size: int) -> list[list[_PreparedPart]]:
    """Parts that go through the network together, at most `size` faces."""
    runs: list[list[_PreparedPart]] = [[]]
    faces = 0
    for each in prepared:
        if faces and faces + len(each.active) > size:
            runs.append([])
            faces = 0
        runs[-1].append(each)
        faces += len(each.active)
    return runs


def _without(pending: list[_Part], number: int) -> list[_Part]:
    """What is left after the first `number` frames."""
    rest: list[_Part] = []
    for part in pending:
        number_of = min(number, len(part.indices))
        number -= number_of
        if number_of < len(part.indices):
            rest.append(_Part(part.work, part.indices[number_of:]))
    return rest


def _advanced(state: StreamState, prepared: Prepared) -> StreamState:
    """What frames leave for those that are prepared after them in the same round."""
    return replace(
        state,
        thumbnail=prepared.thumbnail,
        sharpness=prepared.sharpness[-1] if prepared.sharpness else None,
        motion_image=prepared.motion_images[-1] if prepared.motion_images else None,
    )


def _after(state: StreamState, each: _PreparedPart) -> StreamState:
    """What a stream remembers after a part."""
    state = replace(_advanced(state, each.prepared), size_hw=each.state.size_hw)
    if _continues(each.prepared, True):
        return state
    return replace(state, temporal=None, guard=1.0)  # the last frame was not restored


def _continues(prepared: Prepared, otherwise: bool) -> bool:
    """Whether the last frame is restored or repeats one that is; `otherwise` if all repeat."""
    for cause in reversed(prepared.left_alone):
        if cause is not Cause.UNCHANGED:
            return cause is None
    return otherwise


def _copy(frame: Any) -> Any:
    return frame.clone() if is_tensor(frame) else frame.copy()


def _checked_form(restored: Any, count: int) -> torch.Tensor:
    """A restorer's output as float32, if it holds one face of three channels for each frame."""
    import torch

    if not isinstance(restored, torch.Tensor):
        raise RestorerError(f"the restorer returned {type(restored).__name__}, not a tensor")
    if restored.ndim != 4 or tuple(restored.shape[:2]) != (count, 3):
        raise RestorerError(
            f"the restorer returned shape {tuple(restored.shape)}, not ({count}, 3, height, width)"
        )
    return restored.float()
