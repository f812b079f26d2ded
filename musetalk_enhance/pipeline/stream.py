"""One sequence of faces: its state, counters and observers. The network is the engine's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..frames.batch import Extent
from ..frames.hints import Hints
from .outcome import Outcome
from .stats import EnhancerStats

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ..config.settings import EnhancerSettings
    from ..faces.align import LandmarkTrack
    from .engine import Engine
    from .match import MatchState
    from .stability.temporal import TemporalState

logger = logging.getLogger("musetalk_enhance")

Observer = Callable[[Any, Any, Outcome], None]


@dataclass(frozen=True)
class StreamState:
    """State of a stream, all of it from the last composed frame.

    Attributes:
        size_hw: height and width of the frame, in pixels.
        thumbnail: of it, (1, 3, 32, 32), on the CPU; see `scene_cuts`.
        motion_image: as its motion is measured, uint8 (h, w, 3), RGB.
        temporal: its restored detail.
        sharpness: how sharp the faces have been; see `stability.sharpness`.
        guard: how much of the restorer it got.
        match: how its detail was matched to the source.
    """

    size_hw: tuple[int, int] | None = None
    thumbnail: torch.Tensor | None = None
    motion_image: NDArray[np.uint8] | None = None
    temporal: TemporalState | None = None
    sharpness: float | None = None
    guard: float = 1.0
    match: MatchState | None = None

    def to(self, device: torch.device) -> StreamState:
        """The same on another device: a stream outlives the network's move to the CPU."""
        temporal = None if self.temporal is None else self.temporal.to(device)
        match = None if self.match is None else self.match.to(device)
        return replace(self, temporal=temporal, match=match)


@dataclass(frozen=True)
class LastFrame:
    """Copies of the last frame of a stream and its result.

    Attributes:
        frame: the input.
        result: the output.
        hints: the caller's hints.
        outcome: of the frame.
    """

    frame: Any
    result: Any
    hints: Hints
    outcome: Outcome


class Stream:
    """One sequence of faces over an engine's network; `GFPGANEnhancer.stream` makes one.

    A stream may be used from any thread, by one at a time. It holds only its state, so it may
    simply be dropped; `close` frees the state at once.

    Attributes:
        settings: the engine's, with this stream's changes.
        stats: counters of this stream.
        value_range: lowest and highest value of its float frames, once known.
        share: of the strength that a deadline left to its last frame, 0..1.
        step: of a deadline, that its last frame was restored with.
    """

    def __init__(self, engine: Engine, settings: EnhancerSettings) -> None:
        self.engine, self.settings = engine, settings
        limits = ("deadline_ms", "budget_ms")
        self.stats = EnhancerStats(tuple(name for name in limits if getattr(engine.settings, name)))
        self.value_range: Extent | None = None
        self.state = StreamState()
        self.last: LastFrame | None = None
        self.landmark_track: LandmarkTrack | None = None
        self.share, self.step = 1.0, 0
        self.observers: list[Observer] = []
        self.warned: set[str] = set()
        self.closed = False

    def __call__(
        self,
        frames: Any,
        *,
        landmarks: Any = None,
        occlusion: Any = None,
        keys: Any = None,
        cuts: Any = None,
        sources: Any = None,
    ) -> Any:
        """Restore the next frames of this stream; see `GFPGANEnhancer.__call__`."""
        from .engine import Request

        hints = (landmarks, occlusion, keys, cuts, sources)
        request = Request(self, frames, hints, self.settings.output_size)
        return self.engine.restore([request])[0].frames

    def observe(self, observer: Observer) -> None:
        """Call `observer` with every frame from now on, in order.

        Args:
            observer: called with the input frame, the result and its `Outcome`, which it must not
                change. One that raises is not called again, with a warning; with
                ``on_error="raise"`` its error reaches the host.
        """
        self.observers.append(observer)

    def notify(self, frame: Any, result: Any, outcome: Outcome) -> None:
        """Call the observers. One that fails is removed, so that no frame is lost."""
        for observer in list(self.observers):
            try:
                observer(frame, result, outcome)
            except Exception:
                if self.settings.on_error == "raise":
                    raise
                self.observers.remove(observer)
                logger.warning("an observer failed and is not called again", exc_info=True)

    def warn_once(self, key: str, text: str, *values: Any) -> None:
        """Log a warning the first time that `key` is used in this stream."""
        if key not in self.warned:
            self.warned.add(key)
            logger.warning(text, *values)

    def reset(self) -> None:
        """Forget what was learned of the frames so far; call it between clips."""
        with self.engine.lock:
            self.value_range = None
            self.share = 1.0
            self.begin_again()
            self.last = None
            if self.landmark_track is not None:
                self.landmark_track.reset()

    def begin_again(self) -> None:
        """Forget the frame before, because the next one does not continue it."""
        self.state = StreamState()

    def close(self) -> None:
        """Free the state; later calls raise `RestorerError`. The engine stays open."""
        self.reset()
        self.closed = True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
