"""One segment of a video: decodes its frames, detects, tracks, restores and pastes the faces, and
encodes it.

A segment depends on the video and its own range alone, so it comes out the same in any process and
order. Some frames before it are restored and discarded, so that temporal state does not start from
zero at its first frame.
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

import numpy as np

from ..errors import FrameError
from ..faces.detect import Face, FaceDetector
from ..faces.paste import (
    FaceCrop,
    Image,
    Paste,
    paste_faces,
    without_added_color,
)
from ..faces.templates import TEMPLATE_SIDE, template_points
from ..faces.tracks import FaceTracker, TrackedFace
from ..media import DecodedFrame, SegmentWriter, VideoIndex, read_segment
from ..pipeline.engine import Request
from ..pipeline.outcome import Cause, Outcome, passed_through
from ..pipeline.stream import Stream
from .manifest import State, Unit, file_digest, write_state
from .model_loader import VideoModels, load_video_models
from .models import RunInfo
from .options import VideoSettings

PREROLL = 16
"""Frames before a segment that are restored to build up temporal state."""
CHUNK = 8
"""Frames that are processed together."""
SEGMENTS = "segments"
_ALIKE, _THUMBNAIL_SIDE = (
    0.5,
    32,
)  # correlation of two pictures of one face; pixels at which it is taken


@dataclass
class _FrameFaces:
    """A frame with its faces, and their outcomes."""

    decoded: DecodedFrame
    faces: list[Face]
    tracked: list[TrackedFace] = field(default_factory=list)
    crops: dict[int, FaceCrop] = field(default_factory=dict)
    pastes: dict[int, Paste] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)


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
        faces = _Faces(self.models, float(self._index.fps))
        with (
            closing(self._chunks(unit)) as chunks,
            SegmentWriter(path, self._index, settings.crf, settings.preset) as writer,
            ThreadPoolExecutor(1, "write") as writers,
        ):
            pending: Future[None] | None = None
            for chunk in chunks:
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

    def _chunks(self, unit: Unit) -> Generator[list[_FrameFaces], None, None]:
        """Frames with their detected faces, in chunks; the next chunk is read meanwhile."""
        first = max(0, unit["first"] - PREROLL)
        decoded_frames = read_segment(self._source, self._index, first, unit["stop"])
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


class _Faces:
    """The faces of one segment."""

    def __init__(self, models: VideoModels, fps: float) -> None:
        settings = models.settings
        self._enhancer = models.enhancer
        self._tracks = FaceTracker(
            fps, min_face=settings.min_face, only_center=settings.only_center_face
        )
        self._streams: dict[int, Stream] = {}
        self._thumbnails: dict[int, Image] = {}

    def restore(self, chunk: Sequence[_FrameFaces]) -> None:
        """Track, crop and restore the faces of consecutive frames together."""
        frames_of: dict[int, list[_FrameFaces]] = {}
        for frame in chunk:
            height, width = frame.decoded.bgr.shape[:2]
            frame.tracked = self._tracks.update(frame.faces, (width, height))
            for face in frame.tracked:
                if self._crop(frame, face):
                    frames_of.setdefault(face.track, []).append(frame)
        visible = {face.track for face in chunk[-1].tracked}
        for track in [
            track for track in self._streams if track not in frames_of and track not in visible
        ]:
            self._thumbnails.pop(track, None)
            self._streams.pop(track).close()
        requests = [self._request(track, frames) for track, frames in frames_of.items()]
        for (track, frames), restored in zip(
            frames_of.items(), self._enhancer.engine.restore(requests), strict=True
        ):
            for frame, face, outcome in zip(
                frames, restored.frames, restored.outcomes, strict=True
            ):
                frame.outcomes[track] = outcome
                if outcome.restored:
                    crop = frame.crops[track]
                    frame.pastes[track] = Paste(crop, without_added_color(crop.aligned, face))

    def _crop(self, frame: _FrameFaces, face: TrackedFace) -> bool:
        """Crop a face; False, with an outcome, if it cannot be aligned or is no longer there."""
        try:
            crop = self._enhancer.engine.crop_face(frame.decoded.bgr, face.landmarks)
        except FrameError as error:
            frame.outcomes[face.track] = passed_through(Cause.ALIGNMENT, error.reason)
            return False
        thumbnail = _thumbnail(crop.aligned)
        if not face.missed:
            self._thumbnails[face.track] = thumbnail
        elif face.track in self._thumbnails and not _alike(self._thumbnails[face.track], thumbnail):
            frame.outcomes[face.track] = passed_through(Cause.LOST)
            return False
        frame.crops[face.track] = crop
        return True

    def _request(self, track: int, frames: Sequence[_FrameFaces]) -> Request:
        """The request for the faces of one track."""
        if track not in self._streams:
            self._streams[track] = self._enhancer.stream()
        aligned = np.stack([frame.crops[track].aligned for frame in frames])
        points, settings = None, self._enhancer.settings
        if settings.region == "mouth" or settings.match == "source":
            template = self._enhancer.engine.model.info.landmark_template
            scale = aligned.shape[1] / TEMPLATE_SIDE
            points = [template_points(template) * scale] * len(aligned)
        sources = aligned if settings.match == "source" else None
        return Request(self._streams[track], aligned, (points, None, None, None, sources))


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

    def add(self, frames: Sequence[_FrameFaces]) -> None:
        for frame in frames:
            self._counts["frames"] += 1
            self._counts["frames_with_restored_faces"] += bool(frame.pastes)
            self._counts["faces_restored"] += len(frame.pastes)
            self._counts["faces_held"] += sum(
                face.missed and face.track in frame.pastes for face in frame.tracked
            )
            for outcome in frame.outcomes.values():
                self._count(outcome)
            note = _main_note(frame)
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


def _main_note(frame: _FrameFaces) -> dict[str, Any]:
    """The outcome of the largest face, of the restored ones if there are any."""
    if not frame.tracked:
        return {"passthrough": "no face"}

    def weight(face: TrackedFace) -> tuple[bool, float]:
        return face.track in frame.pastes, float(np.prod(face.box_xyxy[2:] - face.box_xyxy[:2]))

    main = max(frame.tracked, key=weight)
    return frame.outcomes[main.track].as_dict()


def _read(decoded_frames: Iterator[DecodedFrame], detector: FaceDetector) -> list[_FrameFaces]:
    return [
        _FrameFaces(decoded, detector.detect(decoded.bgr))
        for decoded in islice(decoded_frames, CHUNK)
    ]


def _write(writer: SegmentWriter, frames: Sequence[_FrameFaces]) -> None:
    for frame in frames:
        if not frame.pastes:
            writer.write(frame.decoded)
            continue
        canvas = frame.decoded.bgr.copy()
        pastes = [frame.pastes[face.track] for face in _by_weight(frame)]
        paste_faces(canvas, pastes)
        boxes = [
            box
            for box in (paste.crop.box() for paste in pastes)
            if box[0] < box[2] and box[1] < box[3]
        ]
        writer.write(frame.decoded, canvas if boxes else None, boxes or None)


def _by_weight(frame: _FrameFaces) -> list[TrackedFace]:
    """The restored faces in paste order: a detected face covers one that is only predicted."""
    restored = [face for face in frame.tracked if face.track in frame.pastes]
    return sorted(restored, key=lambda face: (face.missed, face.track))


def _thumbnail(aligned: Image) -> Image:
    """A face as a small gray image."""
    import cv2

    small = cv2.resize(aligned, (_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), np.uint8)


def _alike(first: Image, second: Image) -> bool:
    """Whether two thumbnails show the same thing, by the correlation of their pixels."""
    a, b = (image.astype(np.float64) - image.mean() for image in (first, second))
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return scale > 0 and float((a * b).sum()) >= _ALIKE * scale
