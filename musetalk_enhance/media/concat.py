"""Concatenating segments to one video, with the source's timestamps and audio."""

from __future__ import annotations

import contextlib
import heapq
import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

from ..errors import EnhanceError, MediaError
from ..runtime.files import AtomicFile, PathLike
from .container import disposition, open_video
from .display_matrix import write_display_matrix
from .index import VideoIndex
from .segment_packets import SegmentPackets, demux

_MOV = (".mp4", ".m4v", ".mov")
# Metadata of the container, not of its content.
_CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_STREAM_TAGS = ("language", "title", "handler_name")
_BROKEN_PYAV = ("14.0.", "14.1.")  # can only copy a stream as an encoder's
log = logging.getLogger("musetalk_enhance")


def check_output(index: VideoIndex, source_path: PathLike, out_path: PathLike) -> None:
    """Check whether `out_path` can hold the video, before any work for `concat_segments` is done.

    Raises:
        MediaError: the folder does not exist; the extension is not that of a container for H.264;
            the container cannot hold an audio stream or the rotation of the source; or PyAV is 14.0
            or 14.1, whose copies of streams do not play.
    """
    target = Path(out_path)
    with open_video(source_path) as (source, video), _output(target, index) as (output, _):
        if _add_streams(output, source, video, target):
            try:
                output.start_encoding()
            except (OSError, ValueError) as error:
                codecs = ", ".join(sorted({stream.codec for stream in index.audio}))
                what = f"cannot hold the source's {codecs} audio; choose .mkv"
                raise MediaError(target, what) from error


def concat_segments(
    segments: Sequence[PathLike], index: VideoIndex, source_path: PathLike, out_path: PathLike
) -> None:
    """Concatenate segments, in order, to one video; nothing is re-encoded.

    Every frame gets its own timestamp of the source, so a variable frame rate survives (exactly in
    ``.mp4`` and ``.mov``, in whole milliseconds in ``.mkv``). The source's audio packets are copied
    unchanged: all of them, or those that overlap the index's range, with their timestamps moved
    like the video's. Subtitles are copied if the container supports them, else a warning is logged.
    Title, languages and so on, default streams, chapters (with PyAV 16 and later), colors, pixel
    aspect ratio and rotation are kept. Covers and data streams are not. The same input gives the
    same bytes. An ``.mkv`` states its frame rate only with PyAV 18.

    For a range of the video, or if the source's format counts from an arbitrary number (MPEG-TS),
    `VideoIndex.timestamp_offset` is subtracted from all timestamps. In ``.mkv``, audio that begins
    before 0 (the priming of AAC) moves all timestamps on by as much.

    The file appears under its name only when it is complete; after an error an existing file of
    that name is unchanged.

    Args:
        segments: files of a `SegmentWriter`, in order.
        index: of the source.
        source_path: the video that the segments come from.
        out_path: where to; the extension gives the container.

    Raises:
        MediaError: as `check_output`; a segment is missing, damaged or of other settings; the
            segments have not as many frames as the index; the disk failed.
    """
    target = Path(out_path)
    encoded = SegmentPackets([Path(path) for path in segments], index, target)
    with (
        open_video(source_path) as (source, source_video),
        _output(target, index) as (output, file),
    ):
        with open_video(encoded.paths[0]) as (_, template):
            video = _copy_stream(output, template)
            video.codec_context.framerate = index.fps
        others = _add_streams(output, source, source_video, target)
        video.metadata.update(_stream_tags(source_video))
        tags = source.metadata.items()
        output.metadata.update({key: text for key, text in tags if key not in _CONTAINER_TAGS})
        if hasattr(source, "chapters"):
            output.set_chapters(_chapters(source, index, target))
        packets = heapq.merge(
            _video_packets(encoded, video),
            _other_packets(source, others, index, source_path),
            key=_decoding_time,
        )
        try:
            for packet in packets:
                output.mux(packet)
            output.close()
            if index.display_matrix and index.is_rotated:
                write_display_matrix(file.path, index.display_matrix)
            _check_frame_count(file.path, len(index), target)
            file.commit()
        except (OSError, ValueError) as error:
            if isinstance(error, EnhanceError):
                raise
            raise MediaError(target, f"cannot be written ({error})") from error


@contextlib.contextmanager
def _output(target: Path, index: VideoIndex) -> Iterator[tuple[Any, AtomicFile]]:
    """An output container and its file, which is discarded after the block unless committed."""
    import av

    extension = target.suffix.lower()
    if av.__version__.startswith(_BROKEN_PYAV):
        what = f"cannot be written with PyAV {av.__version__}, which breaks copied streams"
        raise MediaError(target, f"{what}; use another version")
    if not target.parent.is_dir():
        raise MediaError(target, "its folder does not exist")
    if extension not in (*_MOV, ".mkv"):
        what = f"{target.suffix} is not a supported container; choose .mp4, .mov or .mkv"
        raise MediaError(target, what)
    if index.is_rotated and extension not in _MOV:
        what = f"cannot hold the source's rotation by {index.rotation} degrees; choose .mp4"
        raise MediaError(target, what)
    file = AtomicFile(target, keep_extension=True)
    output: Any = None
    try:
        output = av.open(str(file.path), "w", container_options=_options(target, index))
        yield output, file
    except (OSError, ValueError) as error:
        if isinstance(error, EnhanceError):
            raise
        raise MediaError(target, f"cannot be written ({error})") from error
    finally:
        if output is not None:
            with contextlib.suppress(OSError, ValueError):  # what it cannot flush is discarded
                output.close()
        file.discard()


def _options(target: Path, index: VideoIndex) -> dict[str, str]:
    """Options of the container: the source's ticks, and nothing that differs from run to run."""
    options = {"fflags": "+bitexact"}
    if target.suffix.lower() in _MOV:
        ticks = index.time_base.denominator
        options |= {"movflags": "+faststart", "video_track_timescale": str(ticks)}
        options["movie_timescale"] = str(_movie_timescale(index, ticks))
    return options


def _movie_timescale(index: VideoIndex, ticks: int) -> int:
    """Ticks a second of the clock for the starts of streams: that of all streams, if 32 bits do."""
    common = lcm(ticks, *(stream.rate for stream in index.audio))
    fits = common * (index.stop_pts * index.time_base + 1) < 2**32
    return common if fits else ticks * max(1, 10000 // ticks)


def _copy_stream(output: Any, template: Any) -> Any:
    """A stream of `output` for the packets of `template`."""
    if hasattr(output, "add_stream_from_template"):  # PyAV 14 and later
        return output.add_stream_from_template(template, opaque=True)  # else an encoder's stream
    return output.add_stream(template=template)


def _add_streams(output: Any, source: Any, video: Any, target: Path) -> dict[int, Any]:
    """Output streams for the source's audio and subtitles, by their number in the source."""
    copies = {}
    for stream in source.streams:
        if stream.type not in ("audio", "subtitle"):
            continue
        try:
            if stream.type == "audio" and _is_unplayable(stream.codec_context.name, target):
                raise ValueError("players do not support it")
            copy = _copy_stream(output, stream)
        except (OSError, ValueError) as error:
            codec = getattr(stream.codec_context, "name", "unknown")
            extension = target.suffix
            if stream.type == "audio":
                matroska = extension.lower() == ".mkv"
                advice = "convert the audio first" if matroska else "choose .mkv"
                what = f"{extension} cannot hold the source's {codec} audio ({error}); {advice}"
                raise MediaError(target, what) from error
            text = "%s: dropped the %s subtitles, which %s cannot hold"
            log.warning(text, target, codec, extension)
            continue
        copy.metadata.update(_stream_tags(stream))
        with contextlib.suppress(AttributeError, TypeError):  # not supported before PyAV 14.1
            copy.disposition = disposition(stream)
        copies[stream.index] = copy
    return copies


def _is_unplayable(codec: str, target: Path) -> bool:
    """Whether hardly any player reads this codec in .mp4, although FFmpeg writes it there."""
    in_mp4 = target.suffix.lower() in (".mp4", ".m4v")
    return in_mp4 and (codec == "vorbis" or codec.startswith("pcm_"))


def _stream_tags(stream: Any) -> dict[str, str]:
    return {key: stream.metadata[key] for key in _STREAM_TAGS if key in stream.metadata}


def _chapters(source: Any, index: VideoIndex, target: Path) -> list[dict[str, Any]]:
    """The source's chapters with their timestamps moved; those of a range, clipped to it.

    If the first one begins later than the video, ``.mp4`` and ``.mov`` get one without a title
    before it.
    """
    begin, end = index.pts[0] * index.time_base, index.stop_pts * index.time_base
    offset = index.timestamp_offset * index.time_base
    chapters: list[dict[str, Any]] = []
    try:
        source_chapters = source.chapters()
    except UnicodeDecodeError as error:  # no reason to fail
        log.warning("%s: dropped the chapters, whose titles are not UTF-8 (%s)", target, error)
        return chapters
    for chapter in sorted(source_chapters, key=_chapter_start):
        tick = Fraction(chapter["time_base"])
        start, stop = chapter["start"] * tick, chapter["end"] * tick
        if not index.complete:
            start, stop = max(start, begin), min(stop, end)
        if start < stop:
            times = {"start": round((start - offset) / tick), "end": round((stop - offset) / tick)}
            chapters.append({**chapter, **times, "id": len(chapters) + 1})
    # FFmpeg makes the first chapter of these containers begin at 0.
    if chapters and chapters[0]["start"] > 0 and target.suffix.lower() in _MOV:
        untitled = {"start": 0, "end": chapters[0]["start"], "id": 0, "metadata": {"title": ""}}
        chapters.insert(0, {**chapters[0], **untitled})
    return chapters


def _chapter_start(chapter: dict[str, Any]) -> Fraction:
    return Fraction(chapter["start"] * Fraction(chapter["time_base"]))


def _decoding_time(packet: Any) -> Fraction:
    ticks = packet.pts if packet.dts is None else packet.dts
    return Fraction(ticks or 0) * Fraction(packet.time_base)


def _video_packets(encoded: SegmentPackets, video: Any) -> Iterator[Any]:
    """The packets of the segments, for the stream `video` of the copy."""
    for packet in encoded:
        packet.stream = video
        yield packet


def _other_packets(
    source: Any, copies: dict[int, Any], index: VideoIndex, path: PathLike
) -> Iterator[Any]:
    """The source's audio and subtitle packets, with their timestamps moved, for their copies."""
    begin, end = index.pts[0] * index.time_base, index.stop_pts * index.time_base
    streams = [stream for stream in source.streams if stream.index in copies]
    for packet in source.demux(streams) if streams else ():
        if packet.is_corrupt:
            raise MediaError(path, "its audio is truncated or damaged")
        if not packet.size:
            continue
        tick = Fraction(packet.time_base)
        time = packet.pts if packet.pts is not None else packet.dts
        if not index.complete and time is not None:
            if time * tick >= end or (time + (packet.duration or 0)) * tick <= begin:
                continue
        offset = round(index.timestamp_offset * index.time_base / tick)
        if packet.pts is not None:
            packet.pts -= offset
        if packet.dts is not None:
            packet.dts -= offset
        packet.stream = copies[packet.stream_index]
        yield packet


def _check_frame_count(part: Path, expected: int, target: Path) -> None:
    with open_video(part) as (container, stream):
        packets = demux(target, container, stream)
        count = sum(1 for packet in packets if not packet.is_discard)
    if count != expected:
        raise MediaError(target, f"would display {count} frames, the video has {expected}")
