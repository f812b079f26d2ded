"""The encoded frames of segments, with the timestamps of the video that they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import MediaError
from .container import open_video
from .index import VideoIndex


@dataclass(frozen=True)
class _Segment:
    """One segment: for each packet, in decoding order, the position of its frame in the video."""

    path: Path
    positions: list[int]


class SegmentPackets:
    """The packets of all segments with their timestamps in the video.

    Args:
        paths: the segments, in order.
        index: the video's.
        target: the file they are for, for errors.

    Attributes:
        paths: the segments, in order.

    Raises:
        MediaError: a segment is missing, damaged or was encoded with other settings, or the
            segments have not as many frames as the index.
    """

    def __init__(self, paths: Sequence[Path], index: VideoIndex, target: Path) -> None:
        self.paths, self._index = list(paths), index
        self._segments: list[_Segment] = []
        self._format: Any = None
        count = 0
        for path in self.paths:
            positions = self._positions(path, count)
            self._segments.append(_Segment(path, positions))
            count += len(positions)
        if count != len(index):
            what = f"its segments have {count} frames, the video has {len(index)}"
            raise MediaError(target, what)
        decoding_order = [at for segment in self._segments for at in segment.positions]
        delay = max(rank - position for rank, position in enumerate(decoding_order))
        self._dts = _decoding_times(index.pts, delay)

    def __iter__(self) -> Iterator[Any]:
        """All packets in decoding order."""
        index, rank = self._index, 0
        ends = (*index.pts[1:], index.stop_pts)
        for segment in self._segments:
            with open_video(segment.path) as (container, stream):
                packets = demux(segment.path, container, stream)
                for position, packet in zip(segment.positions, packets, strict=True):
                    duration = ends[position] - index.pts[position]
                    if rank + 1 == len(index):  # the stated length, and the rate, are the source's
                        decoded = self._dts[-1] - self._dts[0]
                        duration = (index.stop_pts - index.pts[0]) - decoded
                    pts = index.pts[position] - index.timestamp_offset
                    dts = self._dts[rank] - index.timestamp_offset
                    _set_times(packet, index, pts, dts, duration)
                    rank += 1
                    yield packet

    def _positions(self, path: Path, offset: int) -> list[int]:
        """Check a segment; the positions of its frames in the video, in decoding order."""
        with open_video(path) as (container, stream):
            codec = stream.codec_context
            # The pixel format is in the extradata.
            extradata = bytes(codec.extradata or b"")
            settings = (codec.name, codec.width, codec.height, extradata)
            self._format = self._format or settings
            if settings != self._format:
                what = f"was encoded with other settings than {self.paths[0].name}"
                raise MediaError(path, what)
            times: list[int] = []
            for packet in demux(path, container, stream):
                if not times and not packet.is_keyframe:
                    raise MediaError(path, "does not begin with a key frame")
                times.append(packet.pts)
        ranks = {time: rank for rank, time in enumerate(sorted(times))}
        return [offset + ranks[time] for time in times]


def demux(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """The packets of an open stream, without empty ones.

    Raises:
        MediaError: a packet is damaged.
    """
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise MediaError(path, "is truncated or damaged")
        if packet.size:
            yield packet


def _set_times(packet: Any, index: VideoIndex, pts: int, dts: int, duration: int) -> None:
    """Set the timestamps of a packet, in ticks of the index.

    PyAV 12 cannot set a duration. There the packet keeps its own, in its own ticks, if the index's
    ticks are multiples of them; a `SegmentWriter` makes sure of that in ``.mp4``.
    """
    scale = index.time_base / Fraction(packet.time_base)
    if scale.denominator != 1:
        packet.time_base, scale = index.time_base, Fraction(1)
    packet.pts, packet.dts = pts * scale.numerator, dts * scale.numerator
    with contextlib.suppress(AttributeError):
        packet.duration = duration * scale.numerator


def _decoding_times(pts: Sequence[int], delay: int) -> list[int]:
    """Ascending decoding timestamps, none after its presentation timestamp.

    Each one is the presentation timestamp of the frame `delay` frames earlier. At the beginning,
    they go back in steps of the first frame's duration, or smaller ones if the last frames are
    shorter, so that nothing is decoded after the video's end.
    """
    if not delay:
        return list(pts)
    step = max(1, min(pts[1] - pts[0], (pts[-1] - pts[-1 - delay]) // delay))
    return [pts[0] - step * count for count in range(delay, 0, -1)] + list(pts[:-delay])
