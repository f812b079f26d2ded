"""Putting segments together under the film's own times, with its sound."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any

from ..errors import EnhanceError, MediaError
from ..media import PathLike, disposition, opened, temporary_name
from .index import FilmIndex
from .matrix import write_display_matrix

_MOV = (".mp4", ".m4v", ".mov")
_NOT_COPIED = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # of the container, not of the work
_SPOILING = ("14.0.", "14.1.")  # PyAV that knows no stream but an encoder's
_STREAM_TAGS = ("language", "title", "handler_name")
log = logging.getLogger("musetalk_enhance")


def check_target(index: FilmIndex, source_path: PathLike, out_path: PathLike) -> None:
    """Say now what `join_film` would say after all the work: whether `out_path` can hold the film at all.

    Raises:
        MediaError: the folder does not exist, the ending names no container for H.264, it cannot hold a sound
            stream of the source, it cannot hold the source's rotation, or PyAV is 14.0 or 14.1, whose copies of
            streams do not play.
    """
    target = Path(out_path)
    with opened(source_path) as (source, pictures), _output(target, index) as output:
        if _add_sound(output, source, pictures, target):
            try:
                output.start_encoding()
            except (OSError, ValueError) as error:
                names = ", ".join(sorted({each.codec for each in index.audio}))
                raise MediaError(target, f"cannot hold the source's {names} sound; choose .mkv") from error


def join_film(segments: Sequence[PathLike], index: FilmIndex, source_path: PathLike, out_path: PathLike) -> None:
    """Join segments, in order, to one film; nothing is encoded again.

    Every frame gets its own time of the source back, so a variable frame rate survives (exactly in ``.mp4`` and
    ``.mov``, in whole milliseconds in ``.mkv``). The source's sound packets are copied as they are, all of
    them, or those that overlap the index's range, moved with the pictures. Subtitles are copied where the
    container takes them, else a warning says so. Title, languages and so on, which stream is played by default,
    chapters (PyAV 16 and later know them), colours, pixel shape and rotation are kept. Covers and data streams are
    not. The same input gives the same bytes. An ``.mkv`` states its frame rate with PyAV 18 only.

    Where the film is cut, or its format counts from any number (MPEG-TS), `FilmIndex.shift` is taken from all
    times. In ``.mkv``, sound that begins before 0 (the lead-in of AAC) moves all times on by as much.

    The file appears under its name only when it is complete; on an error an older file of that name stays.

    Raises:
        MediaError: as `check_target`; a segment is missing, damaged or of other settings; their frames are not
            as many as the index's; the disk refused.
    """
    target = Path(out_path)
    order = _Order([Path(each) for each in segments], index, target)
    with opened(source_path) as (source, pictures), _output(target, index) as output:
        part = Path(output.name)
        with opened(order.paths[0]) as (_, template):
            film = _copy_of(output, template)
            film.codec_context.framerate = index.fps
        sound = _add_sound(output, source, pictures, target)
        film.metadata.update(_stream_tags(pictures))
        output.metadata.update({key: text for key, text in source.metadata.items() if key not in _NOT_COPIED})
        if hasattr(source, "chapters"):
            output.set_chapters(_chapters(source, index, target))
        packets = heapq.merge(order.packets(film), _sound_packets(source, sound, index, source_path), key=_when)
        try:
            for packet in packets:
                output.mux(packet)
            output.close()
            if index.display_matrix and (index.rotation or index.mirrored):
                write_display_matrix(part, index.display_matrix)
            _check_count(part, len(index), target)
            os.replace(part, target)
        except (OSError, ValueError) as error:
            if isinstance(error, EnhanceError):
                raise
            raise MediaError(target, f"cannot be written ({error})") from error


@contextlib.contextmanager
def _output(target: Path, index: FilmIndex) -> Iterator[Any]:
    """An output container under a temporary name, which is gone after the block unless it was renamed."""
    import av

    if av.__version__.startswith(_SPOILING):
        raise MediaError(
            target, f"cannot be written with PyAV {av.__version__}, which spoils what it copies; use another"
        )
    if not target.parent.is_dir():
        raise MediaError(target, "its folder does not exist")
    if target.suffix.lower() not in (*_MOV, ".mkv"):
        raise MediaError(target, f"{target.suffix} is no container for this; choose .mp4, .mov or .mkv")
    if (index.rotation or index.mirrored) and target.suffix.lower() not in _MOV:
        raise MediaError(target, f"cannot hold the source's rotation by {index.rotation} degrees; choose .mp4")
    part = temporary_name(target)
    output: Any = None
    try:
        output = av.open(str(part), "w", container_options=_options(target, index))
        yield output
    except (OSError, ValueError) as error:
        if isinstance(error, EnhanceError):
            raise
        raise MediaError(target, f"cannot be written ({error})") from error
    finally:
        if output is not None:
            with contextlib.suppress(OSError, ValueError):  # what it could not flush is thrown away anyway
                output.close()
        part.unlink(missing_ok=True)


def _options(target: Path, index: FilmIndex) -> dict[str, str]:
    """Options of the container: the source's ticks, and nothing that differs from run to run."""
    options = {"fflags": "+bitexact"}
    if target.suffix.lower() in _MOV:
        ticks = index.time_base.denominator
        options |= {"movflags": "+faststart", "video_track_timescale": str(ticks)}
        options["movie_timescale"] = str(_movie_ticks(index, ticks))
    return options


def _movie_ticks(index: FilmIndex, ticks: int) -> int:
    """Ticks a second of the clock that says when each stream begins: those of all streams, if 32 bits suffice."""
    common = lcm(ticks, *(each.rate for each in index.audio))
    return common if common * (index.stop_pts * index.time_base + 1) < 2**32 else ticks * max(1, 10000 // ticks)


def _copy_of(output: Any, template: Any) -> Any:
    """A stream of `output` that takes the packets of `template`."""
    if hasattr(output, "add_stream_from_template"):  # PyAV 14 and later; without opaque, it is an encoder's stream
        return output.add_stream_from_template(template, opaque=True)
    return output.add_stream(template=template)


def _add_sound(output: Any, source: Any, pictures: Any, target: Path) -> dict[int, Any]:
    """Streams for the source's sound and subtitles, by their number in the source."""
    found = {}
    for stream in source.streams:
        if stream.type not in ("audio", "subtitle"):
            continue
        try:
            if stream.type == "audio" and _unplayable(stream.codec_context.name, target):
                raise ValueError("players do not play it")
            copy = _copy_of(output, stream)
        except (OSError, ValueError) as error:
            name = getattr(stream.codec_context, "name", "unknown")
            if stream.type == "audio":
                advice = "convert the sound first" if target.suffix.lower() == ".mkv" else "choose .mkv"
                what = f"{target.suffix} cannot hold the source's {name} sound ({error}); {advice}"
                raise MediaError(target, what) from error
            log.warning("%s: left out the %s subtitles, which %s cannot hold", target, name, target.suffix)
            continue
        copy.metadata.update(_stream_tags(stream))
        with contextlib.suppress(AttributeError, TypeError):  # PyAV before 14.1 knows no such marks
            copy.disposition = disposition(stream)
        found[stream.index] = copy
    return found


def _unplayable(codec: str, target: Path) -> bool:
    """What ffmpeg writes to .mp4 although hardly anybody reads it there."""
    return target.suffix.lower() in (".mp4", ".m4v") and (codec == "vorbis" or codec.startswith("pcm_"))


def _stream_tags(stream: Any) -> dict[str, str]:
    return {key: stream.metadata[key] for key in _STREAM_TAGS if key in stream.metadata}


def _chapters(source: Any, index: FilmIndex, target: Path) -> list[dict[str, Any]]:
    """The source's chapters, moved by the index's shift; of a stretch, those that reach into it, cut to it.

    Where the first one begins later than the film, ``.mp4`` and ``.mov`` get one without a title before it.
    """
    begin, end = index.pts[0] * index.time_base, index.stop_pts * index.time_base
    found: list[dict[str, Any]] = []
    try:
        chapters = source.chapters()
    except UnicodeDecodeError as error:  # not worth a film
        log.warning("%s: left out the chapters, whose titles are not UTF-8 (%s)", target, error)
        return found
    for chapter in sorted(chapters, key=lambda one: one["start"] * Fraction(one["time_base"])):
        tick = Fraction(chapter["time_base"])
        start, stop = chapter["start"] * tick, chapter["end"] * tick
        if not index.whole:
            start, stop = max(start, begin), min(stop, end)
        if start < stop:
            moved = {
                name: round((time - index.shift * index.time_base) / tick)
                for name, time in (("start", start), ("end", stop))
            }
            found.append({**chapter, **moved, "id": len(found) + 1})
    if found and found[0]["start"] > 0 and target.suffix.lower() in _MOV:  # ffmpeg has the first one begin at 0
        found.insert(0, {**found[0], "start": 0, "end": found[0]["start"], "id": 0, "metadata": {"title": ""}})
    return found


def _when(packet: Any) -> Fraction:
    return Fraction((packet.pts if packet.dts is None else packet.dts) or 0) * Fraction(packet.time_base)


def _sound_packets(source: Any, sound: dict[int, Any], index: FilmIndex, path: PathLike) -> Iterator[Any]:
    """The source's packets of sound and subtitles, moved by the index's shift, for the streams of the copy."""
    begin, end = index.pts[0] * index.time_base, index.stop_pts * index.time_base
    streams = [stream for stream in source.streams if stream.index in sound]
    for packet in source.demux(streams) if streams else ():
        if packet.is_corrupt:
            raise MediaError(path, "its sound is cut off or damaged")
        if not packet.size:
            continue
        tick = Fraction(packet.time_base)
        time = packet.pts if packet.pts is not None else packet.dts
        if not index.whole and time is not None:
            if time * tick >= end or (time + (packet.duration or 0)) * tick <= begin:
                continue
        moved = round(index.shift * index.time_base / tick)
        if packet.pts is not None:
            packet.pts -= moved
        if packet.dts is not None:
            packet.dts -= moved
        packet.stream = sound[packet.stream_index]
        yield packet


@dataclass
class _Segment:
    """What is remembered of one segment: for each packet, in order of decoding, its frame's place in the film."""

    path: Path
    places: list[int]


class _Order:
    """The packets of all segments with their times in the film."""

    def __init__(self, paths: list[Path], index: FilmIndex, target: Path) -> None:
        self.paths, self._index = paths, index
        self._segments: list[_Segment] = []
        self._first: Any = None
        count = 0
        for path in paths:
            places = self._places(path, count)
            self._segments.append(_Segment(path, places))
            count += len(places)
        if count != len(index):
            raise MediaError(target, f"its segments hold {count} frames, not the film's {len(index)}")
        every = [place for segment in self._segments for place in segment.places]
        delay = max(at - place for at, place in enumerate(every))
        self._dts = _decoding_times(index.pts, delay)

    def _places(self, path: Path, before: int) -> list[int]:
        """The places in the film of a segment's frames, in order of decoding, once it is seen to be sound."""
        with opened(path) as (container, stream):
            codec = stream.codec_context
            kind = (codec.name, codec.width, codec.height, bytes(codec.extradata or b""))  # the format is in the last
            self._first = self._first or kind
            if kind != self._first:
                raise MediaError(path, f"was encoded with other settings than {self.paths[0].name}")
            times: list[int] = []
            for packet in _demuxed(path, container, stream):
                if not times and not packet.is_keyframe:
                    raise MediaError(path, "does not begin with a key frame")
                times.append(packet.pts)
        rank = {time: at for at, time in enumerate(sorted(times))}
        return [before + rank[time] for time in times]

    def packets(self, film: Any) -> Iterator[Any]:
        """All packets in order of decoding, for the stream `film`."""
        index, at = self._index, 0
        ends = (*index.pts[1:], index.stop_pts)
        for segment in self._segments:
            with opened(segment.path) as (container, stream):
                for place, packet in zip(segment.places, _demuxed(segment.path, container, stream), strict=True):
                    length = ends[place] - index.pts[place]
                    if at + 1 == len(index):  # so that the stated length, and with it the rate, is the source's
                        length = (index.stop_pts - index.pts[0]) - (self._dts[-1] - self._dts[0])
                    _put(packet, index, index.pts[place] - index.shift, self._dts[at] - index.shift, length)
                    packet.stream = film
                    at += 1
                    yield packet


def _demuxed(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError(path, "is cut off or damaged")
        if packet.size:
            yield packet


def _put(packet: Any, index: FilmIndex, pts: int, dts: int, duration: int) -> None:
    """Give a packet its times, in ticks of the index.

    PyAV 12 cannot set a duration. There the packet keeps the one it has, in its own ticks, if the index's are
    whole numbers of them; a `SegmentWriter` sees to that in ``.mp4``.
    """
    scale = index.time_base / Fraction(packet.time_base)
    if scale.denominator != 1:
        packet.time_base, scale = index.time_base, Fraction(1)
    packet.pts, packet.dts = pts * scale.numerator, dts * scale.numerator
    with contextlib.suppress(AttributeError):
        packet.duration = duration * scale.numerator


def _decoding_times(pts: Sequence[int], delay: int) -> list[int]:
    """Rising decoding times, none after the showing: each frame's is what is shown `delay` frames earlier.

    Before the first, time goes on in steps of the first frame's length, or shorter ones where the last frames
    are shorter, so that nothing is decoded after the film's end.
    """
    if not delay:
        return list(pts)
    step = max(1, min(pts[1] - pts[0], (pts[-1] - pts[-1 - delay]) // delay))
    return [pts[0] - step * before for before in range(delay, 0, -1)] + list(pts[:-delay])


def _check_count(part: Path, expected: int, target: Path) -> None:
    with opened(part) as (container, stream):
        count = sum(1 for packet in _demuxed(target, container, stream) if not packet.is_discard)
    if count != expected:
        raise MediaError(target, f"would show {count} frames, not the film's {expected}")
