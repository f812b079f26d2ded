"""Concatenating segments to one video, with the source's timestamps and audio."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import islice
from math import ceil, lcm
from pathlib import Path
from typing import Any

from ..errors import MediaError
from ..runtime.files import AtomicFile, PathLike
from .container import (
    as_utf8,
    disposition,
    error_types,
    is_cover,
    media_errors,
    open_video,
    tags_of,
    url,
)
from .display_matrix import write_display_matrix
from .index import VideoIndex
from .segment_packets import SegmentPackets, demux
from .timecode import move_timecode, read_timecode

_MOV = (".mp4", ".m4v", ".mov")
_SUFFIXES = (".mkv", ".mov", ".mp4")
_FINEST = 100_000  # ticks a second that are fine enough for moved timestamps
# Metadata of the container, not of its content.
_CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "software"}
_STREAM_TAGS = ("language", "title", "handler_name")
_BROKEN_PYAV = ("14.0.", "14.1.")  # can only copy a stream as an encoder's


def check_output(
    index: VideoIndex, source_path: PathLike, out_path: PathLike
) -> tuple[str, ...]:
    """Check whether `out_path` can hold the video, before any work for `concat_segments` is done.

    A short file with the real codecs, rates and tags is written to memory.

    Returns:
        What the file will not hold of the source, in words: streams, tags, properties of frames.

    Raises:
        MediaError: the folder does not exist; the extension is not that of a container for H.264;
            the container cannot hold an audio stream or the rotation of the source; or PyAV is 14.0
            or 14.1, whose copies of streams do not play.
    """
    target = Path(out_path)
    _check_target(target, index)
    trial = _trial(index, source_path, target.suffix.lower())
    if trial.problem is None:
        return (*index.losses, *trial.losses)
    if not index.audio:
        raise MediaError(target, f"cannot be written ({trial.problem})")
    others = [suffix for suffix in _SUFFIXES if suffix != target.suffix.lower()]
    others = [suffix for suffix in others if not (index.is_rotated and suffix not in _MOV)]
    fitting = [
        suffix for suffix in others if _trial(index, source_path, suffix).problem is None
    ]
    advice = f"choose {' or '.join(fitting)}"
    if not fitting:
        advice = f"nor can {' or '.join(others)}: convert the audio first, to AAC for example"
    codecs = ", ".join(sorted({stream.codec for stream in index.audio}))
    reason = f" ({trial.problem})" if trial.is_audio else ""
    what = f"{target.suffix} cannot hold the source's {codecs} audio{reason}; {advice}"
    raise MediaError(target, what)


def concat_segments(
    segments: Sequence[PathLike], index: VideoIndex, source_path: PathLike, out_path: PathLike
) -> None:
    """Concatenate segments, in order, to one video; nothing is re-encoded.

    Every frame gets its own timestamp of the source, so a variable frame rate survives (exactly in
    ``.mp4`` and ``.mov``, in whole milliseconds in ``.mkv``). The source's audio packets are copied
    unchanged: all of them, or those that overlap the index's range, with their timestamps moved
    like the video's. Subtitles are copied if the container supports them. Title, languages and so
    on, default streams, chapters (with PyAV 16 and later), the timecode (moved by the frames before
    the index), colors, pixel aspect ratio and rotation are kept. `check_output` tells what is not.
    The same input gives the same bytes. An ``.mkv`` states its frame rate only with PyAV 18.

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
    _check_target(target, index)
    encoded = SegmentPackets([Path(path) for path in segments], index, target)
    with (
        open_video(source_path) as (source, source_video),
        _output(target, index) as (output, file),
    ):
        with open_video(encoded.paths[0]) as (_, template):
            video = _copy_video(output, template, index)
        others, _ = _add_streams(output, source, source_video, target.suffix.lower())
        _add_tags(output, video, source, source_video, index, target.suffix.lower())
        if hasattr(source, "chapters"):
            output.set_chapters(_chapters(source, index, target.suffix.lower()))
        packets = heapq.merge(
            _video_packets(encoded, video),
            _other_packets(source, others, index, source_path),
            key=_decoding_time,
        )
        with media_errors(target, "cannot be written"):
            for packet in packets:
                output.mux(packet)
            output.close()
            if index.display_matrix:
                write_display_matrix(file.path, index.display_matrix)
            _check_frame_count(file.path, len(index), target)
            file.commit()


@dataclass
class _Trial:
    """The result of writing a short file: why it cannot be written, and what is not in it.

    `is_audio` says that the problem names an audio stream; else it is FFmpeg's.
    """

    problem: str | None = None
    is_audio: bool = False
    losses: tuple[str, ...] = ()


def _trial(index: VideoIndex, source_path: PathLike, suffix: str) -> _Trial:
    """Write a short file to memory: a blank frame, and the first packet of each other stream."""
    import av

    with open_video(source_path) as (source, source_video):
        buffer = BytesIO()
        container_format = {".mkv": "matroska", ".mov": "mov"}.get(suffix, "mp4")
        options = _options(suffix, index)
        options.pop("movflags", None)  # it would read the file again, which has no name
        try:
            output: Any = av.open(buffer, "w", format=container_format, container_options=options)
            with output, av.open(_blank_segment(index)) as template:
                video = _copy_video(output, template.streams.video[0], index)
                copies, losses = _add_streams(output, source, source_video, suffix)
                timecode = _add_tags(output, video, source, source_video, index, suffix)
                for packet in template.demux(video=0):
                    if packet.size:
                        packet.stream = video
                        output.mux(packet)
                for packet in _first_packets(source, copies, index, source_path):
                    output.mux(packet)
                tags = {key: text for key, text in output.metadata.items()}
        except error_types() as error:
            is_audio = str(error).startswith("no ")
            return _Trial(getattr(error, "strerror", None) or str(error), is_audio)
        buffer.seek(0)
        with av.open(buffer) as result:
            stored = {key.lower() for key in result.metadata}
            if timecode is not None and read_timecode(result) != timecode:
                losses.append(f"the timecode {timecode}")
        lost = [key for key in tags if key.lower() not in stored | {"timecode"}]
        losses += [f"the tags {', '.join(lost)}"] if lost else []
        return _Trial(losses=tuple(losses))


def _blank_segment(index: VideoIndex) -> BytesIO:
    """A segment of one blank frame, in memory."""
    import av

    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=index.fps)
        stream.width, stream.height = index.coded_wh
        stream.pix_fmt, stream.options = index.out_pix_fmt, {"preset": "ultrafast"}
        blank = av.VideoFrame(*index.coded_wh, index.out_pix_fmt)
        for packet in (*stream.encode(blank), *stream.encode(None)):
            output.mux(packet)
    buffer.seek(0)
    return buffer


def _first_packets(
    source: Any, copies: dict[int, Any], index: VideoIndex, path: PathLike
) -> list[Any]:
    """The first packet of each copied stream, as far as they are near the beginning."""
    first: dict[int, Any] = {}
    for packet in islice(_other_packets(source, copies, index, path), 64 * len(copies)):
        first.setdefault(packet.stream.index, packet)
        if len(first) == len(copies):
            break
    return list(first.values())


def _check_target(target: Path, index: VideoIndex) -> None:
    """Check what needs no file; see `check_output`."""
    import av

    extension = target.suffix.lower()
    if av.__version__.startswith(_BROKEN_PYAV):
        what = f"cannot be written with PyAV {av.__version__}, which breaks copied streams"
        raise MediaError(target, f"{what}; use another version")
    if not target.parent.is_dir():
        raise MediaError(target, "its folder does not exist")
    if target.is_dir():
        raise MediaError(target, "is a folder; give the path of a file")
    if extension not in (*_MOV, ".mkv"):
        what = f"{extension} is not a supported container" if extension else "has no extension"
        raise MediaError(target, f"{what}; choose .mp4, .mov or .mkv")
    if index.is_rotated and extension not in _MOV:
        turns = [f"rotation by {index.rotation} degrees"] if index.rotation else []
        turns += ["flip"] if index.flipped else []
        words = " and ".join(turns) or "rotation"
        raise MediaError(target, f"cannot hold the source's {words}; choose .mp4 or .mov")


@contextlib.contextmanager
def _output(target: Path, index: VideoIndex) -> Iterator[tuple[Any, AtomicFile]]:
    """An output container and its file, which is discarded after the block unless committed."""
    import av

    file = AtomicFile(target, keep_extension=True)
    output: Any = None
    options = _options(target.suffix.lower(), index)
    try:
        with media_errors(target, "cannot be written"):
            output = av.open(url(file.path), "w", container_options=options)
            yield output, file
    finally:
        if output is not None:
            with contextlib.suppress(*error_types()):  # what it cannot flush is discarded
                output.close()
        file.discard()


def _options(suffix: str, index: VideoIndex) -> dict[str, str]:
    """Options of the container: the source's ticks, and nothing that differs from run to run."""
    options = {"fflags": "+bitexact"}
    if suffix in _MOV:
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


def _copy_video(output: Any, template: Any, index: VideoIndex) -> Any:
    """The video stream of `output`, for the packets of segments."""
    video = _copy_stream(output, template)
    video.codec_context.framerate = index.fps
    return video


def _add_streams(
    output: Any, source: Any, video: Any, suffix: str
) -> tuple[dict[int, Any], list[str]]:
    """Output streams for the source's audio and subtitles, by their number in the source.

    Returns:
        The streams; and in words, which streams of the source have none.

    Raises:
        ValueError: the container cannot hold an audio stream.
    """
    copies: dict[int, Any] = {}
    losses = []
    for stream in source.streams:
        if stream.index == video.index:
            continue
        words = _stream_words(stream)
        if stream.type not in ("audio", "subtitle"):
            losses += [] if "timecode" in stream.metadata else [words]
            continue
        if stream.codec_context is None:
            losses.append(f"{words}, whose codec has no decoder")
            continue
        try:
            if stream.type == "audio" and _is_unplayable(stream.codec_context.name, suffix):
                raise ValueError("players do not support it")
            copy = _copy_stream(output, stream)
        except error_types() as error:
            if stream.type == "audio":
                codec = stream.codec_context.name
                raise ValueError(f"no {codec} audio in {suffix}: {error}") from error
            losses.append(f"{words}, which {suffix} cannot hold")
            continue
        copy.metadata.update(_stream_tags(stream))
        with contextlib.suppress(AttributeError, TypeError):  # not supported before PyAV 14.1
            copy.disposition = disposition(stream)
        copies[stream.index] = copy
    return copies, losses


def _stream_words(stream: Any) -> str:
    """A stream in words: ``"video stream 2 (h264)"``, ``"attachment 3 (font.ttf)"``."""
    kind = "cover" if stream.type == "video" and is_cover(stream) else f"{stream.type} stream"
    kind = "attachment" if stream.type == "attachment" else kind
    tags = {key.lower(): text for key, text in tags_of(stream).items()}
    codec = getattr(stream.codec_context, "name", "")
    detail = tags.get("filename") or codec or tags.get("handler_name", "")
    return f"the {kind} {stream.index}{f' ({detail})' if detail else ''}"


def _is_unplayable(codec: str, suffix: str) -> bool:
    """Whether hardly any player reads this codec in .mp4, although FFmpeg writes it there."""
    return suffix in (".mp4", ".m4v") and (codec == "vorbis" or codec.startswith("pcm_"))


def _add_tags(
    output: Any, video: Any, source: Any, source_video: Any, index: VideoIndex, suffix: str
) -> str | None:
    """Copy the tags of the container and of the video stream; returns the copy's timecode."""
    video.metadata.update(_stream_tags(source_video))
    tags = tags_of(source)
    skipped = {*_CONTAINER_TAGS, "timecode"}
    output.metadata.update({key: tags[key] for key in tags if key.lower() not in skipped})
    timecode = read_timecode(source)
    if timecode is None:
        return None
    timecode = move_timecode(timecode, index.skipped, index.fps)
    if suffix in _MOV:
        video.metadata["timecode"] = timecode
    else:
        output.metadata["TIMECODE"] = timecode
    return timecode


def _stream_tags(stream: Any) -> dict[str, str]:
    return {key: text for key, text in tags_of(stream).items() if key in _STREAM_TAGS}


def _chapters(source: Any, index: VideoIndex, suffix: str) -> list[dict[str, Any]]:
    """The source's chapters with their timestamps moved; those of a range, clipped to it.

    If the first one begins later than the video, ``.mp4`` and ``.mov`` get one without a title
    before it.
    """
    begin, end = index.pts[0] * index.time_base, index.stop_pts * index.time_base
    offset = index.timestamp_offset * index.time_base
    chapters: list[dict[str, Any]] = []
    for chapter in sorted(source.chapters(), key=_chapter_start):
        chapter["metadata"] = as_utf8(chapter["metadata"])
        tick = Fraction(chapter["time_base"])
        start, stop = chapter["start"] * tick, chapter["end"] * tick
        if not index.complete:
            start, stop = max(start, begin), min(stop, end)
        if start < stop:
            times = {"start": round((start - offset) / tick), "end": round((stop - offset) / tick)}
            chapters.append({**chapter, **times, "id": len(chapters) + 1})
    # FFmpeg makes the first chapter of these containers begin at 0.
    if chapters and chapters[0]["start"] > 0 and suffix in _MOV:
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
        if packet.is_corrupt and index.strict:
            raise MediaError(path, "its audio is truncated or damaged")
        if not packet.size:
            continue
        tick = Fraction(packet.time_base)
        time = packet.pts if packet.pts is not None else packet.dts
        if not index.complete and time is not None:
            if time * tick >= end or (time + (packet.duration or 0)) * tick <= begin:
                continue
        _move(packet, index.timestamp_offset * index.time_base)
        packet.stream = copies[packet.stream_index]
        yield packet


def _move(packet: Any, offset_s: Fraction) -> None:
    """Subtract an offset from a packet's timestamps, in finer ticks where its own are too coarse.

    AVI counts whole packets of audio, 26 ms each: audio and video would move apart.
    """
    tick = Fraction(packet.time_base)
    if (offset_s / tick).denominator > 1 and tick * _FINEST > 1:
        by = ceil(tick * _FINEST)
        with contextlib.suppress(AttributeError):  # PyAV 12 cannot set a duration
            packet.duration = (packet.duration or 0) * by
        packet.pts = None if packet.pts is None else packet.pts * by
        packet.dts = None if packet.dts is None else packet.dts * by
        tick /= by
        packet.time_base = tick
    ticks = round(offset_s / tick)
    if packet.pts is not None:
        packet.pts -= ticks
    if packet.dts is not None:
        packet.dts -= ticks


def _check_frame_count(part: Path, expected: int, target: Path) -> None:
    with open_video(part) as (container, stream):
        packets = demux(target, container, stream)
        count = sum(1 for packet in packets if not packet.is_discard)
    if count != expected:
        raise MediaError(target, f"would display {count} frames, the video has {expected}")
