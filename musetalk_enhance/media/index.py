"""The index of a video: its frames' timestamps and the properties that its copy has to keep."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

from ..errors import ConfigError, MediaError
from ..runtime.files import PathLike
from .container import frame_rate, media_errors, open_video
from .display_matrix import orientation, read_display_matrix, rotates_or_flips, side_data_of
from .packet_scan import PacketScan
from .pixel_converter import field_order, matrix_and_range

# AVCOL_TRC_SMPTE2084, AVCOL_TRC_ARIB_STD_B67
_HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}
# AVCOL_SPC_RGB, _BT709, _BT470BG; AVCOL_RANGE_MPEG
_RGB, _BT709, _BT601, _LIMITED = 0, 1, 5, 1
_PLANAR = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_SEMI_PLANAR = {"nv12": "420", "nv21": "420", "nv16": "422", "nv24": "444"}
_SEMI_PLANAR |= {"p0": "420", "p2": "422", "p4": "444"}
_AUTHORED_START = ("mov", "matroska")  # formats whose timestamps begin where the author wanted
# Side data of a frame that no copy has, by FFmpeg's name.
_SIDE_DATA = {
    "A53_CC": "captions in the video stream (EIA-608)",
    "STEREO3D": "the stereo 3D layout",
    "SPHERICAL": "the spherical projection",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "ICC_PROFILE": "the ICC profile",
    "S12M_TIMECODE": "the timecode in the video stream",
}


@dataclass(frozen=True)
class AudioStream:
    """Properties of one audio stream.

    Attributes:
        index: its number in the file.
        codec: FFmpeg's name, e.g. ``"aac"``.
        rate: samples per second.
        channels: number of channels.
        language: as the container states it, None if it does not.
        start: its start in seconds on the container's clock, None if unknown.
        duration: in seconds, None if unknown.
    """

    index: int
    codec: str
    rate: int
    channels: int
    language: str | None
    start: float | None
    duration: float | None


@dataclass(frozen=True)
class VideoIndex:
    """Every frame of a video, or of a range of it, and the properties that its copy has to keep.

    Color numbers are FFmpeg's (ITU-T H.273). Times are in ticks of `time_base` on the container's
    clock.

    Attributes:
        width: of an upright frame, in pixels.
        height: of an upright frame, in pixels.
        source_wh: width and height in the file, before rotation.
        coded_wh: `source_wh`, enlarged by one where the copy's chroma needs an even size.
        fps: average frames per second, exact.
        time_base: seconds per tick, exact.
        pts: the presentation timestamp of each frame, ascending and unique.
        stop_pts: the end of the last frame.
        first_pts: the timestamp of the first frame of the whole video.
        timestamp_offset: ticks that `concat_segments` subtracts from every timestamp, of video and
            audio alike.
        skipped: number of frames of the video before the first one of the index.
        complete: whether the index has all frames, not only those between a start and an end.
        counted: the file states no timestamps (or one of them twice), so frames are counted from
            its first one.
        keyframes: (presentation, decoding) timestamps of every key frame, in decoding order: the
            positions to seek to.
        rotation: degrees by which a player rotates the frames counterclockwise, 0, 90, 180 or 270.
        flipped: whether a player flips them from left to right first.
        display_matrix: the nine numbers for rotation and flip, as in the file; None without them.
            Its angle need not be a right one, which `rotation` is rounded to.
        colorspace: matrix of the copy; that of the source, unless the source is RGB.
        color_range: 1 limited, 2 full, 0 not stated.
        color_primaries: as the source states them.
        color_trc: transfer characteristics, as the source states them.
        sample_aspect_ratio: width to height of one pixel, None if not stated.
        pix_fmt: FFmpeg's pixel format of the source.
        out_pix_fmt: that of the copy: the same if it is plain 8-bit YUV, else one with the same
            chroma grid.
        bit_depth: bits per component of the source.
        codec: FFmpeg's name of the source's codec.
        audio: its audio streams, without those that FFmpeg has no decoder for.
        interlaced: ``"tff"`` or ``"bff"``, top or bottom field first; None for progressive frames.
        losses: properties of its frames that no copy has, in words.
        damaged_packets: number of packets that the container marks as damaged.
        unlisted_frames: number of frames without an entry in the container's table of times.
        strict: whether damage is an error; if not, frames are concealed, repeated or scaled.
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
    timestamp_offset: int
    skipped: int
    complete: bool
    counted: bool
    keyframes: tuple[tuple[int, int], ...]
    rotation: int
    flipped: bool
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
    audio: tuple[AudioStream, ...]
    interlaced: str | None
    losses: tuple[str, ...]
    damaged_packets: int
    unlisted_frames: int
    strict: bool

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def duration(self) -> Fraction:
        """From the start of the first frame to the end of the last one, in seconds."""
        return (self.stop_pts - self.pts[0]) * self.time_base

    @property
    def quarter_turns(self) -> int:
        """`rotation` in quarter turns."""
        return self.rotation // 90

    @property
    def is_rotated(self) -> bool:
        """Whether a player rotates or flips the frames, by any angle."""
        return self.display_matrix is not None

    @property
    def chroma_grid(self) -> tuple[int, int]:
        """How many pixels of the copy share one chroma value: (in a row, in a column)."""
        return _chroma_grid(self.out_pix_fmt)

    @property
    def box_grid(self) -> tuple[int, int]:
        """The grid that a changed box is extended to: in interlaced frames, that of both fields."""
        across, down = self.chroma_grid
        return across, down * (2 if self.interlaced else 1)

    @property
    def matrix_and_range(self) -> tuple[str, str]:
        """swscale's names of the copy's matrix and range."""
        return matrix_and_range(
            self.colorspace, self.color_range, self.out_pix_fmt, self.source_wh[1]
        )


def index_video(
    path: PathLike, start: float | None = None, end: float | None = None, *, strict: bool = True
) -> VideoIndex:
    """Index a video; the file is read through once, and only its first frame is decoded.

    A file without timestamps (a raw stream, AVI with B-frames), or with the same one twice, is
    `counted`: frame n of the index is the n-th frame of the decoder. Without timestamps, frame n is
    displayed n / fps seconds after the beginning. Frames that a player does not display (before an
    edit list's start, hidden reference frames, frames before the first decodable one) are skipped.

    Args:
        path: the video.
        start: seconds after its first frame; earlier frames are skipped. Decimals are exact.
        end: seconds after its first frame; frames from there on are skipped.
        strict: whether damage is an error, here and for `read_segment`; see `VideoIndex.strict`.

    Raises:
        ConfigError: `start` or `end` is not a time, `end` is not after `start`, or no frame lies
            between them.
        MediaError: missing, unreadable, truncated, without frames, or HDR, which 8 bits cannot
            hold.
    """
    since = Fraction(0) if start is None else _seconds("start", start)
    until = None if end is None else _seconds("end", end)
    if until is not None and until <= since:
        raise ConfigError("end", end, f"a number of seconds over the start, {start or 0}")
    properties, decoded_first = _properties(path)
    with open_video(path) as (container, stream):
        scan = PacketScan(path, container, stream, decoded_first, strict)
        streams = [each for each in container.streams.audio if each.codec_context is not None]
        audio = tuple(_audio_stream(each) for each in streams)
        authored_start = not scan.timeless and any(
            name in container.format.name for name in _AUTHORED_START
        )
    time_base = 1 / properties["fps"] if scan.timeless else scan.time_base
    times = [*scan.times, scan.stop(properties["fps"])]
    count = len(times) - 1

    def frame_at(seconds: Fraction) -> int:
        """The first frame that is displayed then or later."""
        return bisect_left(times, times[0] + ceil(seconds / time_base), 0, count)

    first, stop = frame_at(since), count if until is None else frame_at(until)
    if first >= stop:
        length = float((times[-1] - times[0]) * time_base)
        key, value = ("start", start) if first == count else ("end", end)
        raise ConfigError(key, value, f"a range with a frame in it; {path} is {length:.3f} s long")
    return VideoIndex(
        **properties,
        time_base=time_base,
        pts=tuple(times[first:stop]),
        stop_pts=times[stop],
        first_pts=times[0],
        timestamp_offset=times[first] - (times[0] if authored_start else 0),
        skipped=first,
        complete=stop - first == count,
        counted=scan.counted,
        keyframes=() if scan.counted else tuple(scan.keyframes),
        audio=audio,
        damaged_packets=scan.damaged,
        unlisted_frames=scan.unlisted,
        strict=strict,
    )


def _seconds(key: str, value: float) -> Fraction:
    """A time in decimals: 0.1 is a tenth, not the float next to it."""
    try:
        seconds = Fraction(str(value))
    except ValueError:  # NaN, infinity, not a number
        seconds = Fraction(-1)
    if seconds < 0:
        raise ConfigError(key, value, "a number of seconds, 0 or more")
    return seconds


def _properties(path: PathLike) -> tuple[dict[str, Any], int | None]:
    """Attributes of `VideoIndex` from the first frame and its stream; that frame's timestamp."""
    with open_video(path) as (container, stream):
        fps = frame_rate(path, stream)
        with media_errors(path, "cannot be decoded"):
            frame = next(container.decode(stream), None)
        if frame is None:
            raise MediaError(path, "has no decodable frame")
        codec = stream.codec_context
        ratio = stream.sample_aspect_ratio or None
        properties = {"fps": fps, "sample_aspect_ratio": ratio, "codec": codec.name}
        properties |= _geometry(frame) | _colors(path, frame, codec)
        properties["losses"] = _losses(frame, stream, properties)
        return properties, frame.pts


def _geometry(frame: Any) -> dict[str, Any]:
    quarter_turns, flipped = orientation(frame)
    matrix = read_display_matrix(frame)
    upright_wh = (frame.width, frame.height)[:: -1 if quarter_turns % 2 else 1]
    across, down = _chroma_grid(_encodable(frame.format.name))
    interlaced = field_order(frame)
    down *= 2 if interlaced else 1
    return {
        "interlaced": interlaced,
        "width": upright_wh[0],
        "height": upright_wh[1],
        "source_wh": (frame.width, frame.height),
        "coded_wh": (-(-frame.width // across) * across, -(-frame.height // down) * down),
        "rotation": quarter_turns * 90,
        "flipped": flipped,
        "display_matrix": matrix if matrix is not None and rotates_or_flips(matrix) else None,
    }


def _colors(path: PathLike, frame: Any, codec: Any) -> dict[str, Any]:
    if codec.color_trc in _HDR:
        what = f"is HDR, {_HDR[codec.color_trc]}, which 8 bits cannot hold. Convert it to SDR first"
        raise MediaError(path, what)
    space, color_range = int(frame.colorspace), int(frame.color_range)
    depth = max(component.bits for component in frame.format.components)
    name = frame.format.name
    if frame.format.is_rgb:
        space = _BT601 if space == _RGB and frame.height < 720 else _BT709
        color_range = _LIMITED
    return {
        "colorspace": space,
        "color_range": color_range,
        "color_primaries": int(codec.color_primaries),
        "color_trc": int(codec.color_trc),
        "pix_fmt": name,
        "out_pix_fmt": _encodable(name),
        "bit_depth": depth,
    }


def _losses(frame: Any, stream: Any, properties: dict[str, Any]) -> tuple[str, ...]:
    """What no copy keeps of a video's frames, in words; see `VideoIndex.losses`."""
    losses = []
    tags = {key.lower(): text for key, text in stream.metadata.items()}
    if re.match("yuva|.*(rgba|bgra|argb|abgr|gbrap|ya8|ya16)", frame.format.name) or (
        tags.get("alpha_mode") == "1"
    ):
        losses.append("transparency")
    if properties["bit_depth"] > 8:
        losses.append(f"{properties['bit_depth']} bits per color, which become 8")
    source_wh, coded_wh = properties["source_wh"], properties["coded_wh"]
    if coded_wh != source_wh:
        sizes = "{} x {} pixels, which become {} x {}".format(*source_wh, *coded_wh)
        losses.append(f"{sizes} because of the chroma")
    types = {getattr(each.type, "name", "") for each in side_data_of(frame) or ()}
    return (*losses, *dict.fromkeys(text for name, text in _SIDE_DATA.items() if name in types))


def _encodable(pix_fmt: str) -> str:
    """x264's 8-bit planar YUV format with the same chroma grid; yuv420p for anything exotic."""
    if pix_fmt in _PLANAR:
        return pix_fmt
    planar = re.match(r"yuva?(420|422|444)p", pix_fmt)
    packed = re.match("nv12|nv21|nv16|nv24|p[024](?=1)", pix_fmt)
    grid = planar[1] if planar else _SEMI_PLANAR[packed[0]] if packed else "420"
    return f"yuv{grid}p"


def _chroma_grid(pix_fmt: str) -> tuple[int, int]:
    return {"420": (2, 2), "422": (2, 1), "444": (1, 1)}[pix_fmt[-4:-1]]


def _audio_stream(stream: Any) -> AudioStream:
    def seconds(ticks: int | None) -> float | None:
        return None if ticks is None else float(ticks * stream.time_base)

    codec = stream.codec_context
    return AudioStream(
        index=stream.index,
        codec=codec.name,
        rate=codec.sample_rate,
        channels=len(codec.layout.channels),
        language=stream.metadata.get("language"),
        start=seconds(stream.start_time),
        duration=seconds(stream.duration),
    )
