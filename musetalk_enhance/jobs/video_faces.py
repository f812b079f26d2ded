"""The faces of a video's frames: tracked, restored with a stream for each track, and pasted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from ..errors import FrameError
from ..faces.detect import Face
from ..faces.look_ahead import LookAheadTracker
from ..faces.paste import Box, FaceCrop, Image, Paste, paste_faces, without_added_color
from ..faces.selection import FaceSelection
from ..faces.templates import TEMPLATE_SIDE, template_points
from ..faces.tracks import TrackedFace
from ..pipeline.engine import Request
from ..pipeline.outcome import Cause, Outcome, passed_through
from ..pipeline.scene_cuts import LEAST_FRAME_CORRELATION, SIDE, scene_cuts
from ..pipeline.stream import Stream

if TYPE_CHECKING:
    from ..enhancer import GFPGANEnhancer

_ALIKE = 0.5  # correlation of two images of one face
_THUMBNAIL_SIDE = 32  # pixels at which it is taken


@dataclass
class FrameFaces:
    """A frame with its faces, and their outcomes.

    Attributes:
        image: BGR uint8 (H, W, 3); not modified.
        faces: detected faces.
        source: the original of the frame, of the same size, for ``match: source``; None: the frame
            itself.
        tracked: those that are restored, with their tracks, and those that the detector missed.
        crops: track to its crop.
        sources: track to its crop of the source.
        pastes: track to the restored face.
        outcomes: track to its outcome.
    """

    image: Image
    faces: list[Face]
    source: Image | None = None
    tracked: list[TrackedFace] = field(default_factory=list)
    crops: dict[int, FaceCrop] = field(default_factory=dict)
    sources: dict[int, Image] = field(default_factory=dict)
    pastes: dict[int, Paste] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)


Frame = TypeVar("Frame", bound=FrameFaces)


class VideoFaces(Generic[Frame]):
    """The faces of consecutive frames, each with a track and a stream of its own.

    Tracking reads `LOOK_AHEAD` frames ahead: `track` takes frames and returns earlier ones, which
    `restore` takes.

    Args:
        enhancer: restores the faces; its `color` and `output_size` are ignored.
        fps: frames per second.
        min_face: a face whose box is smaller than this on both sides, in pixels, is left
            unchanged.
        only_center_face: restore only one face, the one nearest to the center.
        selection: which faces are restored; None: all.
        open_stream: as the enhancer's `stream`, which it defaults to.
        close_stream: called with the stream of a track that has ended.

    Raises:
        ConfigError: a value is invalid.
    """

    def __init__(
        self,
        enhancer: GFPGANEnhancer,
        fps: float,
        *,
        min_face: float = 0,
        only_center_face: bool = False,
        selection: FaceSelection | None = None,
        open_stream: Callable[..., Stream] | None = None,
        close_stream: Callable[[Stream], None] = methodcaller("close"),
    ) -> None:
        self._enhancer = enhancer
        self._open, self._close = open_stream or enhancer.stream, close_stream
        self._tracks = LookAheadTracker(
            fps, min_face=min_face, only_center=only_center_face, selection=selection
        )
        self._pending: deque[Frame] = deque()
        self._scene: Any = None
        self._streams: dict[int, Stream] = {}
        self._thumbnails: dict[int, Image] = {}

    def track(self, chunk: Sequence[Frame]) -> list[Frame]:
        """Track the faces of the next frames; returns the frames that are ready for `restore`."""
        ready = []
        for frame in chunk:
            self._pending.append(frame)
            tracked = self._tracks.update(frame.image, frame.faces, cut=self._is_cut(frame.image))
            if tracked is not None:
                ready.append(self._next(tracked))
        return ready

    def track_rest(self) -> list[Frame]:
        """The frames that wait for later ones, which do not come."""
        return [self._next(tracked) for tracked in self._tracks.flush()]

    def _next(self, tracked: Sequence[TrackedFace]) -> Frame:
        frame = self._pending.popleft()
        frame.tracked = [face for face in tracked if face.selected]
        for face in tracked:
            if not face.selected and not face.missed:
                frame.outcomes[face.track] = passed_through(Cause.NOT_SELECTED)
        return frame

    def _is_cut(self, image: Image) -> bool:
        """Whether a scene begins with the next frame."""
        import cv2
        import torch

        small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        scene = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
        cut = scene_cuts(scene, self._scene, LEAST_FRAME_CORRELATION)[0]
        self._scene = scene
        return bool(cut)

    def restore(self, chunk: Sequence[Frame]) -> None:
        """Crop and restore the faces of the next tracked frames together."""
        if not chunk:
            return
        frames_of: dict[int, list[Frame]] = {}
        for frame in chunk:
            for face in frame.tracked:
                if self._crop(frame, face):
                    frames_of.setdefault(face.track, []).append(frame)
        visible = {face.track for face in chunk[-1].tracked}
        for track in [
            track for track in self._streams if track not in frames_of and track not in visible
        ]:
            self._thumbnails.pop(track, None)
            self._close(self._streams.pop(track))
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

    def close(self) -> None:
        """End the streams of all tracks."""
        for track in list(self._streams):
            self._close(self._streams.pop(track))

    def _crop(self, frame: FrameFaces, face: TrackedFace) -> bool:
        """Crop a face; False, with an outcome, if it cannot be aligned or is no longer there."""
        try:
            crop = self._enhancer.engine.crop_face(frame.image, face.landmarks)
        except FrameError as error:
            frame.outcomes[face.track] = passed_through(Cause.ALIGNMENT, error.reason)
            return False
        thumbnail = _thumbnail(crop.aligned)
        if not face.missed:
            self._thumbnails[face.track] = thumbnail
        elif not self._is_visible(face, thumbnail):
            frame.outcomes[face.track] = passed_through(Cause.LOST)
            return False
        frame.crops[face.track] = crop
        if frame.source is not None:
            source = self._enhancer.engine.crop_face(frame.source, face.landmarks)
            frame.sources[face.track] = source.aligned
        return True

    def _is_visible(self, face: TrackedFace, thumbnail: Image) -> bool:
        """Whether a face that the detector missed looks as it did before, or does afterwards."""
        previous = self._thumbnails.get(face.track)
        if previous is None or _alike(previous, thumbnail):
            return True
        if face.next_image is None or face.next_landmarks is None:
            return False
        try:
            crop = self._enhancer.engine.crop_face(face.next_image, face.next_landmarks)
        except FrameError:
            return False
        return _alike(_thumbnail(crop.aligned), thumbnail)

    def _request(self, track: int, frames: Sequence[FrameFaces]) -> Request:
        """The request for the faces of one track."""
        if track not in self._streams:
            self._streams[track] = self._open(color="bgr", output_size="same")
        aligned = np.stack([frame.crops[track].aligned for frame in frames])
        points, settings = None, self._enhancer.settings
        if settings.region == "mouth" or settings.match == "source":
            template = self._enhancer.engine.model.info.landmark_template
            scale = aligned.shape[1] / TEMPLATE_SIDE
            points = [template_points(template) * scale] * len(aligned)
        sources = None
        if settings.match == "source":
            sources = [frame.sources.get(track, frame.crops[track].aligned) for frame in frames]
        return Request(self._streams[track], aligned, (points, None, None, None, sources))


def main_face(frame: FrameFaces) -> TrackedFace | None:
    """The largest face, of the restored ones if there are any; None without a face."""

    def weight(face: TrackedFace) -> tuple[bool, float]:
        return face.track in frame.pastes, float(np.prod(face.box_xyxy[2:] - face.box_xyxy[:2]))

    return max(frame.tracked, key=weight, default=None)


def main_note(frame: FrameFaces) -> dict[str, Any]:
    """The outcome of the main face; of another one where none is selected."""
    face = main_face(frame)
    if face is not None:
        return frame.outcomes[face.track].as_dict()
    outcomes = [outcome.as_dict() for outcome in frame.outcomes.values()]
    return outcomes[0] if outcomes else {"passthrough": "no face"}


def composite(
    frame: FrameFaces, canvas: Image | None = None, *, replace: bool = False
) -> tuple[Image, list[Box]]:
    """Paste the restored faces of a frame.

    Args:
        frame: the frame.
        canvas: the frame, or the frame enlarged, BGR uint8; changed. None: a copy of the frame.
        replace: see `paste_faces`.

    Returns:
        The canvas, and the boxes outside of which it is as it was.
    """
    canvas = frame.image.copy() if canvas is None else canvas
    size_hw = (canvas.shape[0], canvas.shape[1])
    pastes = [frame.pastes[face.track] for face in _by_weight(frame)]
    paste_faces(canvas, pastes, replace=replace)
    boxes = [paste.crop.box(size_hw) for paste in pastes]
    return canvas, [box for box in boxes if box[0] < box[2] and box[1] < box[3]]


def _by_weight(frame: FrameFaces) -> list[TrackedFace]:
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
