"""The list of a film's frames and the facts that its copy has to keep."""

from __future__ import annotations

import logging
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np

from ..errors import ConfigError, MediaError
from ..media import PathLike, display_matrix, matrix_and_range, opened, orientation

_HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}  # AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67
_RGB, _BT601, _UNSPECIFIED, _LIMITED = 0, 5, 2, 1  # AVCOL_SPC_RGB, _BT470BG, _UNSPECIFIED; AVCOL_RANGE_MPEG
_AS_THEY_ARE = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_SEMI_PLANAR = {"nv12": "420", "nv21": "420", "nv16": "422", "nv24": "444", "p0": "420", "p2": "422", "p4": "444"}
_CLOCKED = ("mov", "matroska")  # formats whose times begin where the author wanted
log = logging.getLogger("musetalk_enhance")


@dataclass(frozen=True)
class AudioFacts:
    """Facts of one sound stream.

    Attributes:
        index: its number in the file.
        codec: ffmpeg's name, e.g. ``"aac"``.
        rate: samples per second.
        channels: how many.
        language: as the container states it, None where it does not.
        start: when it begins, in seconds on the container's clock, None where unknown.
        duration: in seconds, None where unknown.
    """

    index: int
    codec: str
    rate: int
    channels: int
    language: str | None
    start: float | None
    duration: float | None


@dataclass(frozen=True)
class FilmIndex:
    """Every frame of a film, or of a stretch of it, and what its copy has to keep.

    Colour numbers are ffmpeg's (ITU-T H.273). Times are in ticks of `time_base` on the container's clock.

    Attributes:
        width: of an upright frame, in pixels.
        height: of an upright frame, in pixels.
        source_wh: width and height as the file holds them, before they are turned.
        coded_wh: `source_wh`, grown by one where the copy's chroma needs an even size.
        fps: average frames per second, exact.
        time_base: seconds per tick, exact.
        pts: when each frame is shown, ascending, no two alike.
        stop_pts: when the last of them ends.
        first_pts: when the first frame of the whole film is shown.
        shift: ticks that `join_film` takes from every time, pictures and sound alike.
        left_out: how many frames of the film come before the first of these.
        whole: whether no frame was left out by a start or an end.
        counted: the file states no times of showing (or one twice), so frames are counted from its beginning.
        key_times: (shown, decoded) times of every key frame, in the order of decoding; places to seek to.
        rotation: by how many degrees a player turns the frames to the left, 0, 90, 180 or 270.
        mirrored: whether it mirrors them from left to right before.
        display_matrix: the nine numbers that say so, as in the file; None where there are none.
        colorspace: matrix of the copy; that of the source, unless the source is RGB.
        color_range: 1 limited, 2 full, 0 not stated.
        color_primaries: as the source states them.
        color_trc: transfer characteristics, as the source states them.
        sample_aspect_ratio: width to height of one pixel, None where it is not stated.
        pix_fmt: ffmpeg's pixel format of the source.
        out_pix_fmt: that of the copy: the same where it is plain 8-bit YUV, else one of the same chroma grid.
        bit_depth: bits per component of the source.
        codec: ffmpeg's name of the source's codec.
        audio: its sound streams.
    """

    width: int
    height: int
    source_wh: tuple[int, int]
    coded_wh: tuple[int, int]
    fps: Fraction
    time_base: Fraction
    pts: tuple[int, ...]
    stop_pts: int
    first_pts: int
    shift: int
    left_out: int
    whole: bool
    counted: bool
    key_times: tuple[tuple[int, int], ...]
    rotation: int
    mirrored: bool
    display_matrix: tuple[int, ...] | None
    colorspace: int
    color_range: int
    color_primaries: int
    color_trc: int
    sample_aspect_ratio: Fraction | None
    pix_fmt: str
    out_pix_fmt: str
    bit_depth: int
    codec: str
    audio: tuple[AudioFacts, ...]

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def duration(self) -> Fraction:
        """From the first frame's beginning to the last one's end, in seconds."""
        return (self.stop_pts - self.pts[0]) * self.time_base

    @property
    def turns(self) -> int:
        """`rotation` in quarter turns."""
        return self.rotation // 90

    @property
    def chroma_grid(self) -> tuple[int, int]:
        """How many pixels of the copy share one chroma value: (in a row, in a column)."""
        return _chroma_grid(self.out_pix_fmt)

    @property
    def matrix_and_range(self) -> tuple[str, str]:
        """swscale's words for the copy's matrix and range."""
        return matrix_and_range(self.colorspace, self.color_range, self.out_pix_fmt, self.source_wh[1])


def index_film(path: PathLike, start: float | None = None, end: float | None = None) -> FilmIndex:
    """List a film's frames without decoding more than the first; the file is read through once.

    A file that states no time of showing (a raw stream, AVI with B-frames), or the same time twice, is `counted`:
    frame n of the file is what the decoder gives n-th. Without times, frame n is shown n / fps seconds after
    the beginning. Frames that a player does not show (before an edit list's start, hidden reference frames,
    frames before the first that can be decoded) are left out.

    Args:
        path: the film.
        start: seconds after its first frame; earlier frames are left out. Decimals are taken as written.
        end: frames from here on are left out.

    Raises:
        ConfigError: `start` or `end` is no time, `end` is not after `start`, or no frame lies between them.
        MediaError: missing, unreadable, cut off, without pictures, or HDR (8 bits would spoil it).
    """
    since = Fraction(0) if start is None else _seconds("start", start)
    until = None if end is None else _seconds("end", end)
    if until is not None and until <= since:
        raise ConfigError("end", end, f"a number of seconds over the start, {start or 0}")
    facts, decoded_first = _facts(path)
    if facts["coded_wh"] != facts["source_wh"]:
        sides = (*facts["source_wh"], *facts["coded_wh"])
        log.warning("%s: its %d x %d pixels become %d x %d, as its chroma needs even sides", path, *sides)
    with opened(path) as (container, stream):
        walk = _Walk(path, container, stream, decoded_first)
        sound = tuple(_audio_facts(each) for each in container.streams.audio)
        clocked = any(name in container.format.name for name in _CLOCKED) and not walk.timeless
    time_base = 1 / facts["fps"] if walk.timeless else walk.time_base
    times = [*walk.times, walk.stop(facts["fps"])]
    count = len(times) - 1

    def place(seconds: Fraction) -> int:
        """The first frame that is shown then or later."""
        return bisect_left(times, times[0] + ceil(seconds / time_base), 0, count)

    first, stop = place(since), count if until is None else place(until)
    if first >= stop:
        length = (times[-1] - times[0]) * time_base
        key, value = ("start", start) if first == count else ("end", end)
        raise ConfigError(key, value, f"a stretch with a frame in it; {path} is {float(length):.3f} s long")
    return FilmIndex(
        **facts,
        time_base=time_base,
        pts=tuple(times[first:stop]),
        stop_pts=times[stop],
        first_pts=times[0],
        shift=times[first] - (times[0] if clocked else 0),
        left_out=first,
        whole=stop - first == count,
        counted=walk.counted,
        key_times=() if walk.counted else tuple(walk.keys),
        audio=sound,
    )


class _Walk:
    """One pass through the packets of a film.

    Attributes:
        time_base: of the picture stream.
        times: when each frame is shown, ascending, no two alike.
        keys: (shown, decoded) times of the key frames.
        timeless: some frames have no time, so `times` just counts.
        counted: `timeless`, or two frames had one time, or the file is AVI with frames out of order, which has
            no place for times of showing.
    """

    def __init__(self, path: PathLike, container: Any, stream: Any, decoded_first: int | None) -> None:
        self.time_base = Fraction(stream.time_base)
        self.keys: list[tuple[int, int]] = []
        count, stamps = 0, array("q")
        for shown, length in self._packets(path, container, stream):
            count += 1
            if shown is not None:
                stamps.extend((shown, length))
        if not count:
            raise MediaError(path, "holds no picture")
        self.timeless = decoded_first is None or len(stamps) < 2 * count
        if decoded_first is None or self.timeless:
            self.times, self.counted, self._last = list(range(count)), True, 1
            return
        invented = container.format.name == "avi" and bool(stream.codec_context.has_b_frames)
        pairs = np.array(stamps, np.int64).reshape(-1, 2)
        pairs = pairs[np.lexsort(pairs.T[::-1])]
        pairs = pairs if invented else pairs[pairs[:, 0] >= decoded_first]
        times = pairs[:, 0].tolist()
        self.times = _rising(list(times))
        self.counted = invented or self.times != times
        self._last = int(pairs[-1, 1])

    def stop(self, fps: Fraction) -> int:
        """When the last frame ends."""
        return self.times[-1] + (self._last or max(round(1 / fps / self.time_base), 1))

    def _packets(self, path: PathLike, container: Any, stream: Any) -> Iterator[tuple[int | None, int]]:
        """Time and length of each picture that is shown; key frames are noted."""
        streams = [stream, *container.streams.audio]
        counts = dict.fromkeys((each.index for each in streams), 0)
        try:
            for packet in container.demux(streams):
                if packet.is_corrupt:
                    raise MediaError(path, f"is cut off or damaged after about {counts[stream.index]} frames")
                if not packet.size:
                    continue
                counts[packet.stream_index] += 1
                if packet.stream_index == stream.index:
                    if packet.is_keyframe and packet.pts is not None:
                        self.keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
                    if not _is_hidden(packet, stream):
                        yield packet.pts, packet.duration or 0
        except MediaError:
            raise
        except (OSError, ValueError) as error:
            raise MediaError(path, f"cannot be read after frame {counts[stream.index]} ({error})") from error
        for each in streams:
            if "mp4" in container.format.name and counts[each.index] < len(getattr(each, "index_entries", ())):
                raise MediaError(path, f"is cut off after about {counts[stream.index]} frames")


def _is_hidden(packet: Any, stream: Any) -> bool:
    """Whether a packet's frame is only for reference. VP8 says so itself, in bit 4 of its frame tag (RFC 6386)."""
    return packet.is_discard or (stream.codec_context.name == "vp8" and not bytes(packet)[0] & 16)


def _rising(times: list[int]) -> list[int]:
    """Ascending times with one tick at least between two of them."""
    for at in range(1, len(times)):
        times[at] = max(times[at], times[at - 1] + 1)
    return times


def _seconds(key: str, value: float) -> Fraction:
    """A time as it is written: 0.1 is a tenth, not the float next to it."""
    try:
        seconds = Fraction(str(value))
    except ValueError:  # NaN, infinity, no number
        seconds = Fraction(-1)
    if seconds < 0:
        raise ConfigError(key, value, "a number of seconds, 0 or more")
    return seconds


def _facts(path: PathLike) -> tuple[dict[str, Any], int | None]:
    """What the first frame and its stream tell, under the names of `FilmIndex`, and that frame's time."""
    with opened(path) as (container, stream):
        rate = stream.average_rate or getattr(stream, "guessed_rate", None)
        if not rate:
            raise MediaError(path, "states no frame rate")
        try:
            frame = next(container.decode(stream), None)
        except (OSError, ValueError) as error:
            raise MediaError(path, f"cannot be decoded ({error})") from error
        if frame is None:
            raise MediaError(path, "holds no picture that can be decoded")
        codec = stream.codec_context
        ratio = stream.sample_aspect_ratio
        facts = {"fps": Fraction(rate), "sample_aspect_ratio": ratio or None, "codec": codec.name}
        return facts | _geometry(frame) | _colours(path, frame, codec), frame.pts


def _geometry(frame: Any) -> dict[str, Any]:
    turns, mirrored = orientation(frame)
    upright = (frame.width, frame.height)[:: -1 if turns % 2 else 1]
    across, down = _chroma_grid(_encodable(frame.format.name))
    return {
        "width": upright[0],
        "height": upright[1],
        "source_wh": (frame.width, frame.height),
        "coded_wh": (-(-frame.width // across) * across, -(-frame.height // down) * down),
        "rotation": turns * 90,
        "mirrored": mirrored,
        "display_matrix": display_matrix(frame),
    }


def _colours(path: PathLike, frame: Any, codec: Any) -> dict[str, Any]:
    space, range_, depth = int(frame.colorspace), int(frame.color_range), max(c.bits for c in frame.format.components)
    if codec.color_trc in _HDR:
        raise MediaError(
            path,
            f"is HDR, {_HDR[codec.color_trc]}; the 8 bits written here would spoil it. Convert it to SDR first",
        )
    name = frame.format.name
    if depth > 8:
        log.warning("%s: its %d bits per colour become 8", path, depth)
    if frame.format.is_rgb:
        space, range_ = _BT601 if space == _RGB and frame.height < 720 else 1, _LIMITED
    return {
        "colorspace": space,
        "color_range": range_,
        "color_primaries": int(codec.color_primaries),
        "color_trc": int(codec.color_trc),
        "pix_fmt": name,
        "out_pix_fmt": _encodable(name),
        "bit_depth": depth,
    }


def _encodable(pix_fmt: str) -> str:
    """The 8-bit planar YUV format with the same chroma grid that x264 takes, yuv420p for anything exotic."""
    if pix_fmt in _AS_THEY_ARE:
        return pix_fmt
    planar = re.match(r"yuva?(420|422|444)p", pix_fmt)
    packed = re.match("nv12|nv21|nv16|nv24|p[024](?=1)", pix_fmt)
    grid = planar[1] if planar else _SEMI_PLANAR[packed[0]] if packed else "420"
    return f"yuv{grid}p"


def _chroma_grid(pix_fmt: str) -> tuple[int, int]:
    return {"420": (2, 2), "422": (2, 1), "444": (1, 1)}[pix_fmt[-4:-1]]


def _audio_facts(stream: Any) -> AudioFacts:
    def seconds(ticks: int | None) -> float | None:
        return None if ticks is None else float(ticks * stream.time_base)

    codec = stream.codec_context
    return AudioFacts(
        index=stream.index,
        codec=codec.name,
        rate=codec.sample_rate,
        channels=len(codec.layout.channels),
        language=stream.metadata.get("language"),
        start=seconds(stream.start_time),
        duration=seconds(stream.duration),
    )
