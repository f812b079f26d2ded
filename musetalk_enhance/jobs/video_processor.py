"""One segment of a video: decodes its frames, detects, tracks, restores and pastes the faces, and
encodes it.

A segment depends on the video and its own range alone, so it comes out the same in any process and
order. Some frames before it are restored and discarded, so that temporal state does not start from
zero at its first frame; some frames after it are detected and tracked, so that a gap of a track at
its end is filled from both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..faces.detect import FaceDetector
from ..faces.selection import LOOK_AHEAD, FaceSelection, IdentitySelection, PositionSelection
from ..media import DecodedFrame, SegmentWriter, VideoIndex, read_segment
from ..pipeline.outcome import Outcome
from .manifest import State, Unit, file_digest, write_state
from .model_loader import VideoModels, load_video_models
from .models import RunInfo
from .options import VideoSettings
from .video_faces import FrameFaces, VideoFaces, composite, main_note

PREROLL = 16
"""Frames before a segment that are restored to build up temporal state."""
CHUNK = 8
"""Frames that are processed together."""
SEGMENTS = "segments"


@dataclass
class _SegmentFrame(FrameFaces):
    """A frame of a segment."""

    decoded: DecodedFrame = field(kw_only=True)


@dataclass(frozen=True)
class VideoProcessorFactory:
    """Loads the networks in a worker.

    Attributes:
        settings: of the job.
        run_info: of an earlier run, None the first time.
        source: the video.
        index: its frames.
        folder: state folder of the job.
        on_frames: see `VideoProcessor`; None in other processes.
    """

    settings: VideoSettings
    run_info: RunInfo | None
    source: Path
    index: VideoIndex
    folder: Path
    on_frames: Callable[[int], None] | None = None

    def __call__(self) -> VideoProcessor:
        return VideoProcessor(
            load_video_models(self.settings, self.run_info),
            self.source,
            self.index,
            self.folder,
            self.on_frames,
        )


@dataclass(frozen=True)
class PassUnit:
    """First step: nothing to read ahead, a segment is streamed."""

    def __call__(self, unit: Unit) -> Unit:
        return unit


@dataclass(frozen=True)
class WriteSegmentState:
    """Last step: mark a segment as done.

    Attributes:
        folder: state folder of the job.
    """

    folder: Path

    def __call__(self, state: State) -> State:
        write_state(self.folder, state)
        return state


class VideoProcessor:
    """Second step: restores segments.

    Args:
        models: the networks.
        source: the video.
        index: its frames.
        folder: state folder of the job; segments are written to its subfolder ``segments``.
        on_frames: called with the number of frames just finished.
    """

    def __init__(
        self,
        models: VideoModels,
        source: Path,
        index: VideoIndex,
        folder: Path,
        on_frames: Callable[[int], None] | None = None,
    ) -> None:
        self.models, self._source, self._index, self._folder = models, source, index, folder
        self._on_frames: Callable[[int], None] = on_frames or (lambda frames: None)

    @property
    def run_info(self) -> RunInfo:
        """What runs."""
        return self.models.run_info

    def prepare(self, unit: Unit) -> Unit:
        """Does nothing: a segment is streamed."""
        return unit

    def process(self, unit: Unit) -> State:
        """Restore a segment and write it; returns its state."""
        name = f"{SEGMENTS}/{unit['id']:06d}.mp4"
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        settings, counts = self.models.settings, _SegmentCounts()
        faces: VideoFaces[_SegmentFrame] = VideoFaces(
            self.models.enhancer,
            float(self._index.fps),
            min_face=settings.min_face,
            only_center_face=settings.only_center_face,
            selection=self._selection(),
        )
        with (
            closing(self._chunks(unit)) as chunks,
            SegmentWriter(path, self._index, settings.crf, settings.preset) as writer,
            ThreadPoolExecutor(1, "write") as writers,
        ):
            pending: Future[None] | None = None
            for chunk in _tracked(chunks, faces, unit["stop"]):
                faces.restore(chunk)
                segment_frames = [frame for frame in chunk if frame.decoded.index >= unit["first"]]
                counts.add(segment_frames)
                if pending is not None:
                    pending.result()
                pending = writers.submit(_write, writer, segment_frames)
                self._on_frames(len(segment_frames))
            if pending is not None:
                pending.result()
        item = {"name": name, "outputs": {name: file_digest(path)}, **counts.as_dict()}
        return {"unit": unit, "items": [item]}

    def _selection(self) -> FaceSelection | None:
        """A new selection for a segment; None: all faces are restored."""
        if self.models.reference is not None:
            return IdentitySelection(self.models.reference)
        point = self.models.settings.at
        return None if point is None else PositionSelection(point)

    def _chunks(self, unit: Unit) -> Generator[list[_SegmentFrame], None, None]:
        """Frames with their detected faces, in chunks; the next chunk is read meanwhile."""
        first = max(0, unit["first"] - PREROLL)
        stop = min(unit["stop"] + LOOK_AHEAD, len(self._index))
        decoded_frames = read_segment(self._source, self._index, first, stop)
        with ThreadPoolExecutor(1, "read") as readers:
            upcoming = readers.submit(_read, decoded_frames, self.models.detector)
            try:
                while chunk := upcoming.result():
                    upcoming = readers.submit(_read, decoded_frames, self.models.detector)
                    yield chunk
            finally:
                upcoming.cancel()
                readers.submit(getattr(decoded_frames, "close", lambda: None)).result()

    def finish(self, state: State) -> State:
        """Does nothing: the segment is written."""
        return state

    def close(self) -> None:
        """Close the networks."""
        self.models.close()


class _SegmentCounts:
    """Counts of the outcomes of a segment."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._partial: Counter[str] = Counter()
        self._passed: Counter[str] = Counter()
        self._restored = {"strength": 0.0, "change": 0.0}
        self._damage: list[list[Any]] = []
        self._notes: list[dict[str, Any]] = []

    def add(self, frames: Sequence[_SegmentFrame]) -> None:
        for frame in frames:
            self._counts["frames"] += 1
            self._counts["frames_with_restored_faces"] += bool(frame.pastes)
            self._counts["faces_restored"] += len(frame.pastes)
            self._counts["faces_held"] += sum(
                face.missed and face.track in frame.pastes for face in frame.tracked
            )
            for outcome in frame.outcomes.values():
                self._count(outcome)
            note = main_note(frame)
            if frame.decoded.damage is not None:
                note = {**note, "damage": frame.decoded.damage}
                add_damage(self._damage, [frame.decoded.damage] + [frame.decoded.index] * 2)
            self._passed.update([note["passthrough"]] if "passthrough" in note else [])
            self._notes.append(note)

    def _count(self, outcome: Outcome) -> None:
        """Count one face of a frame."""
        self._counts["faces"] += 1
        self._counts["faces_failed"] += outcome.failed
        reason = outcome.reason
        if not outcome.restored:
            self._left[str(reason)] += 1
            return
        self._restored["strength"] += outcome.strength
        self._restored["change"] += outcome.change
        self._partial.update([reason] if reason else [])

    def as_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        counters: dict[str, dict[str, Any]] = {
            "counts": self._counts,
            "left": self._left,
            "partial": self._partial,
            "passed_through": self._passed,
            "restored": self._restored,
        }
        values = {name: dict(counter) for name, counter in counters.items()}
        return {**values, "damage": self._damage, "notes": self._notes}


def add_damage(runs: list[list[Any]], run: Sequence[Any]) -> None:
    """Append damaged frames, ``[kind, first, last]``, to a list of such runs."""
    if runs and runs[-1][0] == run[0] and runs[-1][2] + 1 == run[1]:
        runs[-1][2] = run[2]
    else:
        runs.append(list(run))


def _tracked(
    chunks: Iterator[list[_SegmentFrame]], faces: VideoFaces[_SegmentFrame], stop: int
) -> Iterator[list[_SegmentFrame]]:
    """Frames before `stop` with their tracked faces, in chunks."""
    for chunk in chunks:
        yield [frame for frame in faces.track(chunk) if frame.decoded.index < stop]
    yield [frame for frame in faces.track_rest() if frame.decoded.index < stop]


def _read(decoded_frames: Iterator[DecodedFrame], detector: FaceDetector) -> list[_SegmentFrame]:
    return [
        _SegmentFrame(decoded.bgr, detector.detect(decoded.bgr), decoded=decoded)
        for decoded in islice(decoded_frames, CHUNK)
    ]


def _write(writer: SegmentWriter, frames: Sequence[_SegmentFrame]) -> None:
    for frame in frames:
        if not frame.pastes:
            writer.write(frame.decoded)
            continue
        canvas, boxes = composite(frame)
        writer.write(frame.decoded, canvas if boxes else None, boxes or None)
