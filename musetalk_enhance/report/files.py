"""The report on two video files: the host's own, and the same one with restored faces."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, MediaError
from ..media import VideoInfo, probe, read_frames
from .builder import ReportBuilder
from .document import Report
from .measuring import fit
from .openings import Gauge
from .region import Box, Locate, Track, find_difference, follow, grow_to_face
from .verdicts import FAIL, PASS, Limits, Verdict

logger = logging.getLogger("musetalk_enhance")

Image = NDArray[np.uint8]
PathLike = str | Path

_LOOKED_AT = 64  # frames, about, at which differences or faces are looked for


def compare(
    before: PathLike,
    after: PathLike,
    reference: PathLike | None = None,
    *,
    box: Box | None = None,
    locate: Locate | None = None,
    notes: Sequence[Mapping[str, Any]] = (),
    totals: Mapping[str, Any] | None = None,
    title: str = "",
    gauge: Gauge | None = None,
    limits: Limits | None = None,
) -> Report:
    """Compare a clip with its restored version; frames are streamed, twice where the face must be found.

    >>> compare("host.mp4", "restored.mp4").write("out/report")  # doctest: +SKIP

    Args:
        before: the host's video, with soft faces.
        after: the same with restored faces: same frame rate and size.
        reference: the unsoftened original, where there is one: same frame rate; another size is brought to
            the others'.
        box: where the face is, left, top, right, bottom in pixels, for the whole clip.
        locate: finds the face in a frame, see `region.Locate`; used where there is no `box`. With neither, it is
            where the clips differ.
        notes: what the enhancer knows of each frame, in order, see `ReportBuilder.add`.
        totals: what the enhancer counted.
        title: heading; default: the names of both files.
        gauge: see `ReportBuilder`.
        limits: see `ReportBuilder`.

    Raises:
        MediaError: a file is missing or damaged, or the clips differ in size or frame rate.
        ConfigError: `box` is not inside the frames.
        MissingDependencyError: a package of the extra ``report`` is not installed.
    """
    facts = probe(before)
    for path in (after, *(() if reference is None else (reference,))):
        _check_alike(before, facts, path, probe(path), same_size=path is after)
    builder = ReportBuilder(
        float(facts.fps), title=title or f"{Path(before).name} → {Path(after).name}", gauge=gauge, limits=limits
    )
    track = _track(before, after, facts, box, locate, builder.notes)
    _feed(builder, track, notes, before, after, reference)
    return builder.finish(totals)


def _check_alike(first: PathLike, facts: VideoInfo, path: PathLike, other: VideoInfo, *, same_size: bool) -> None:
    if same_size and (other.width, other.height) != (facts.width, facts.height):
        what = f"is {other.width}x{other.height}, but {first} is {facts.width}x{facts.height}"
        raise MediaError(path, f"{what}; a report compares clips of one size")
    if abs(other.fps - facts.fps) > facts.fps / 1000:
        what = f"has {float(other.fps):g} frames per second, but {first} has {float(facts.fps):g}"
        raise MediaError(path, f"{what}; a report compares frame with frame")


def _track(
    before: PathLike, after: PathLike, facts: VideoInfo, box: Box | None, locate: Locate | None, notes: list[str]
) -> Track:
    """Where the face is, and a sentence about how that is known."""
    frame_wh = facts.width, facts.height
    if box is not None:
        if not (0 <= box[0] < box[2] <= frame_wh[0] and 0 <= box[1] < box[3] <= frame_wh[1]):
            raise ConfigError("box", box, f"left, top, right, bottom inside {frame_wh[0]}x{frame_wh[1]}")
        return Track.standing(box)
    every = max(1, (facts.frames or 8 * _LOOKED_AT) // _LOOKED_AT)
    with ExitStack() as stack:
        pairs = zip(*(_opened(stack, path) for path in (before, after)), strict=False)
        found = find_difference(islice(pairs, 0, None, every))
    if found is None:
        notes.append("IN and OUT do not differ beyond a codec's noise: nothing was restored.")
    if locate is not None:
        faces = _located(before, locate, every)
        if faces:
            return follow(faces)
        notes.append("No face was found in IN; the region where IN and OUT differ is looked at instead.")
    if found is None:
        notes.append("Where the face is, is not known; the whole frame is looked at. Say it with --box.")
        return Track.standing((0, 0, *frame_wh))
    grown = grow_to_face(found, frame_wh)
    notes.append(
        f"The face is taken to be at {', '.join(map(str, grown))} (left, top, right, bottom), from where the clips "
        "differ. Another box can be given with --box."
    )
    return Track.standing(grown)


def _located(path: PathLike, locate: Locate, every: int) -> list[tuple[int, Sequence[float]]]:
    """``(frame, box)`` of the frames in which a face was found."""
    found: list[tuple[int, Sequence[float]]] = []
    for index, frame in enumerate(read_frames(path)):
        box = locate(frame) if index % every == 0 else None
        if box is not None:
            found.append((index, tuple(float(side) for side in box)))
    return found


def _opened(stack: ExitStack, path: PathLike) -> Iterator[Image]:
    """The frames of a clip, whose file is closed with the stack."""
    frames = read_frames(path)
    stack.callback(getattr(frames, "close", lambda: None))
    return frames


def _feed(
    builder: ReportBuilder,
    track: Track,
    notes: Sequence[Mapping[str, Any]],
    before: PathLike,
    after: PathLike,
    reference: PathLike | None,
) -> None:
    """Hand every moment's crops to the builder; clips that end early end the comparison, and it says so."""
    paths = [path for path in (before, after, reference) if path is not None]
    with ExitStack() as stack:
        lengths = [0] * len(paths)
        clips = [_counted(_opened(stack, path), lengths, at) for at, path in enumerate(paths)]
        for frames in zip(*clips, strict=False):
            index, size_wh = builder.frames, (frames[0].shape[1], frames[0].shape[0])
            left, top, right, bottom = track.at(index, size_wh)
            crops = [fit(frame, size_wh)[top:bottom, left:right] for frame in frames]
            builder.add(*crops, notes=notes[index] if index < len(notes) else None)
        for clip in clips:
            for _ in clip:
                pass
    _judge_lengths(builder, lengths)


def _counted(frames: Iterator[Image], lengths: list[int], at: int) -> Iterator[Image]:
    """The same frames; how many there were stands in ``lengths[at]``."""
    for frame in frames:
        lengths[at] += 1
        yield frame


def _judge_lengths(builder: ReportBuilder, lengths: Sequence[int]) -> None:
    apart = abs(lengths[1] - lengths[0])
    text = f"IN has {lengths[0]}, OUT {lengths[1]}"
    state = PASS if apart == 0 else FAIL
    builder.verdicts.append(Verdict("frames", "As many frames", apart, 0, True, state, text, "other"))
    if len(set(lengths)) > 1:
        names = ("IN", "OUT", "the reference")
        counts = ", ".join(f"{name} {count}" for name, count in zip(names, lengths, strict=False))
        builder.notes.append(
            f"The clips differ in length ({counts} frames): the first {builder.frames} are compared."
        )
        logger.warning("%s", builder.notes[-1])
