"""The report on two video files: the host's video, and the same video with restored faces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MediaError, renamed_arguments
from ..media import VideoInfo, probe, read_frames
from ..media.arrays import Image, resize_image
from .builder import ReportBuilder
from .document import Report
from .openings import Meter
from .region import Box, Locate, Track, find_difference, follow, grow_to_face
from .verdicts import FAIL, PASS, Limits, Verdict

logger = logging.getLogger("musetalk_enhance")

PathLike = str | Path

_SAMPLES = 64  # approximate number of frames in which differences or faces are detected


@renamed_arguments(before="original", after="restored", gauge="meter")
def compare(
    original: PathLike,
    restored: PathLike,
    reference: PathLike | None = None,
    *,
    box: Box | None = None,
    locate: Locate | None = None,
    notes: Sequence[Mapping[str, Any]] = (),
    totals: Mapping[str, Any] | None = None,
    title: str = "",
    meter: Meter | None = None,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare a clip with its restored version.

    Frames are streamed, twice where the face must be located first.

    >>> compare("host.mp4", "restored.mp4").write("out/report")  # doctest: +SKIP

    Args:
        original: the host's video, with soft faces.
        restored: the same video with restored faces; same frame rate and size.
        reference: the unsoftened original, if available; same frame rate, frames of another size
            are resized.
        box: the face's box in every frame: left, top, right, bottom in pixels.
        locate: detects the face in a frame, see `region.Locate`; ignored with `box`. Without
            both, the face is where the clips differ.
        notes: the enhancer's notes on each frame, in order, see `ReportBuilder.add`.
        totals: the enhancer's counters.
        title: heading; default: the names of both files.
        meter: see `ReportBuilder`.
        limits: see `ReportBuilder`.
        progress: called as ``progress(read, all)`` with numbers of frames, each counted once for
            every time that it is read; not called where the file does not state how many it has.

    Raises:
        MediaError: a file is missing or damaged, or the clips differ in size or frame rate.
        ConfigError: `box` is not inside the frames.
        MissingDependencyError: a package of the extra ``report`` is not installed.
    """
    info = probe(original)
    for path in (restored, *(() if reference is None else (reference,))):
        _check_match(original, info, path, probe(path), same_size=path is restored)
    title = title or f"{Path(original).name} → {Path(restored).name}"
    builder = ReportBuilder(float(info.fps), title=title, meter=meter, limits=limits)
    passes = 1 if box is not None else 2 if locate is None else 3
    clip = _Clip(original, (info.frames or 0) * passes, progress)
    track = _track(clip, restored, info, box, locate, builder.notes)
    _measure(builder, track, notes, clip, restored, reference)
    clip.finish()
    return builder.finish(totals)


class _Clip:
    """A file that is read several times, with the progress over all of them."""

    def __init__(
        self, path: PathLike, total: int, progress: Callable[[int, int], None] | None
    ) -> None:
        self.path, self.total, self.read = path, total, 0
        self._progress = progress if total else None

    def frames(self) -> Iterator[Image]:
        """The frames, from the first one."""
        for frame in read_frames(self.path):
            self.read += 1
            if self._progress is not None:
                self._progress(min(self.read, self.total), self.total)
            yield frame

    def finish(self) -> None:
        """Report that everything is read: a face may be located without the last pass."""
        if self._progress is not None:
            self._progress(self.total, self.total)


def _check_match(
    first: PathLike, info: VideoInfo, path: PathLike, other: VideoInfo, *, same_size: bool
) -> None:
    if same_size and (other.width, other.height) != (info.width, info.height):
        what = f"is {other.width}x{other.height}, but {first} is {info.width}x{info.height}"
        raise MediaError(path, f"{what}; a report needs clips of one size")
    if abs(other.fps - info.fps) > info.fps / 1000:
        what = f"has {float(other.fps):g} frames per second, but {first} has {float(info.fps):g}"
        raise MediaError(path, f"{what}; a report needs clips of one frame rate")


def _track(
    clip: _Clip,
    path_out: PathLike,
    info: VideoInfo,
    box: Box | None,
    locate: Locate | None,
    notes: list[str],
) -> Track:
    """Locate the face, and add a sentence on how it was located to `notes`."""
    frame_wh = info.width, info.height
    if box is not None:
        if not (0 <= box[0] < box[2] <= frame_wh[0] and 0 <= box[1] < box[3] <= frame_wh[1]):
            allowed = f"left, top, right, bottom inside {frame_wh[0]}x{frame_wh[1]}"
            raise ConfigError("box", box, allowed)
        return Track.fixed(box)
    every = max(1, (info.frames or 8 * _SAMPLES) // _SAMPLES)
    with ExitStack() as stack:
        pairs = zip(_open(stack, clip.frames()), _open(stack, read_frames(path_out)), strict=False)
        changed_box = find_difference(islice(pairs, 0, None, every))
    if changed_box is None:
        notes.append("IN and OUT differ only by compression noise: nothing was restored.")
    if locate is not None:
        faces = _detect_faces(clip.frames(), locate, every)
        if faces:
            return follow(faces)
        notes.append("No face was found in IN; using the region where IN and OUT differ.")
    if changed_box is None:
        notes.append(
            "The face's position is unknown; the whole frame is measured. Set it with --box."
        )
        return Track.fixed((0, 0, *frame_wh))
    face_box = grow_to_face(changed_box, frame_wh)
    notes.append(
        f"The face is assumed at {', '.join(map(str, face_box))} (left, top, right, bottom), "
        "from where the clips differ. Set another box with --box."
    )
    return Track.fixed(face_box)


def _detect_faces(
    frames: Iterator[Image], locate: Locate, every: int
) -> list[tuple[int, Sequence[float]]]:
    """``(frame, box)`` of each sampled frame in which a face is detected."""
    boxes: list[tuple[int, Sequence[float]]] = []
    for index, frame in enumerate(frames):
        box = locate(frame) if index % every == 0 else None
        if box is not None:
            boxes.append((index, tuple(float(side) for side in box)))
    return boxes


def _open(stack: ExitStack, frames: Iterator[Image]) -> Iterator[Image]:
    """The frames of a clip; `stack` closes its file."""
    stack.callback(getattr(frames, "close", lambda: None))
    return frames


def _measure(
    builder: ReportBuilder,
    track: Track,
    notes: Sequence[Mapping[str, Any]],
    clip_in: _Clip,
    path_out: PathLike,
    reference: PathLike | None,
) -> None:
    """Add every frame's crops to the builder; the shortest clip ends the comparison."""
    others = [read_frames(path) for path in (path_out, reference) if path is not None]
    sources = [clip_in.frames(), *others]
    with ExitStack() as stack:
        lengths = [0] * len(sources)
        clips = [_count(_open(stack, one), lengths, i) for i, one in enumerate(sources)]
        for frames in zip(*clips, strict=False):
            index, size_wh = builder.frames, (frames[0].shape[1], frames[0].shape[0])
            left, top, right, bottom = track.at(index, size_wh)
            crops = [resize_image(frame, size_wh)[top:bottom, left:right] for frame in frames]
            builder.add(*crops, notes=notes[index] if index < len(notes) else None)
        for clip in clips:
            for _ in clip:
                pass
    _compare_lengths(builder, lengths)


def _count(frames: Iterator[Image], lengths: list[int], index: int) -> Iterator[Image]:
    """The same frames; ``lengths[index]`` counts them."""
    for frame in frames:
        lengths[index] += 1
        yield frame


def _compare_lengths(builder: ReportBuilder, lengths: Sequence[int]) -> None:
    """Add the verdict on the number of frames, and a note where the clips differ in length."""
    difference = abs(lengths[1] - lengths[0])
    text = f"IN has {lengths[0]}, OUT {lengths[1]}"
    state = PASS if difference == 0 else FAIL
    verdict = Verdict("frames", "Same number of frames", difference, 0, True, state, text, "other")
    builder.verdicts.append(verdict)
    if len(set(lengths)) > 1:
        names = ("IN", "OUT", "the reference")
        counts = ", ".join(f"{name} {count}" for name, count in zip(names, lengths, strict=False))
        note = (
            f"The clips differ in length ({counts} frames): "
            f"the first {builder.frames} are compared."
        )
        builder.notes.append(note)
        logger.warning("%s", note)
