"""One pass through the packets of a video: the timestamps of its frames."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import MediaError
from ..runtime.files import PathLike
from .container import error_types
from .mp4_boxes import unlisted_frames


class PacketScan:
    """The timestamps of a video's frames, without decoding them.

    Args:
        path: the file, for errors.
        container: PyAV's open container, at its beginning.
        stream: its video stream.
        decoded_first: timestamp of the first frame that can be decoded, None if it has none.
        strict: whether a packet that the container marks as damaged is an error.

    Attributes:
        time_base: of the video stream.
        times: the presentation timestamp of each frame, ascending and unique.
        keyframes: (presentation, decoding) timestamps of the key frames.
        timeless: some frames have no timestamp, so `times` is 0, 1, 2, ...
        counted: `timeless`, or two frames had one timestamp, or the file is an AVI with frames out
            of order, which has no field for presentation timestamps.
        damaged: number of packets that the container marks as damaged.
        unlisted: number of frames of an MP4 file that its table of times (stts) lacks. It is
            damaged then, and frames are shown too early or not at all.

    Raises:
        MediaError: the file is truncated, damaged or has no frames.
    """

    def __init__(
        self,
        path: PathLike,
        container: Any,
        stream: Any,
        decoded_first: int | None,
        strict: bool = True,
    ) -> None:
        self._strict, self.damaged, self.unlisted = strict, 0, 0
        self.time_base = Fraction(stream.time_base)
        self.keyframes: list[tuple[int, int]] = []
        count, stamps = 0, array("q")
        for pts, duration in self._displayed(path, container, stream):
            count += 1
            if pts is not None:
                stamps.extend((pts, duration))
        if not count:
            raise MediaError(path, "has no frames")
        self.timeless = decoded_first is None or len(stamps) < 2 * count
        if decoded_first is None or self.timeless:
            self.times, self.counted, self._last_duration = list(range(count)), True, 1
            return
        invented = container.format.name == "avi" and bool(stream.codec_context.has_b_frames)
        pairs = np.array(stamps, np.int64).reshape(-1, 2)
        pairs = pairs[np.lexsort(pairs.T[::-1])]
        pairs = pairs if invented else pairs[pairs[:, 0] >= decoded_first]
        times = pairs[:, 0].tolist()
        self.times = _strictly_ascending(list(times))
        self.counted = invented or self.times != times
        self._last_duration = int(pairs[-1, 1])

    def stop(self, fps: Fraction) -> int:
        """The end of the last frame, in ticks."""
        duration = self._last_duration or max(round(1 / fps / self.time_base), 1)
        return self.times[-1] + duration

    def _displayed(
        self, path: PathLike, container: Any, stream: Any
    ) -> Iterator[tuple[int | None, int]]:
        """Timestamp and duration of each displayed frame; key frames are recorded."""
        audio = [each for each in container.streams.audio if each.codec_context is not None]
        streams = [stream, *audio]
        counts = dict.fromkeys((each.index for each in streams), 0)
        try:
            for packet in container.demux(streams):
                if packet.is_corrupt and self._strict:
                    what = f"is truncated or damaged after about {counts[stream.index]} frames"
                    raise MediaError(path, what)
                self.damaged += packet.is_corrupt
                if not packet.size:
                    continue
                counts[packet.stream_index] += 1
                if packet.stream_index == stream.index:
                    if packet.is_keyframe and packet.pts is not None:
                        dts = packet.pts if packet.dts is None else packet.dts
                        self.keyframes.append((packet.pts, dts))
                    if not _is_hidden(packet, stream):
                        yield packet.pts, packet.duration or 0
        except MediaError:
            raise
        except error_types() as error:
            what = f"cannot be read after frame {counts[stream.index]} ({error})"
            raise MediaError(path, what) from error
        if "mp4" not in container.format.name:
            return
        for each in streams:
            if counts[each.index] < len(getattr(each, "index_entries", ())):
                raise MediaError(path, f"is truncated after about {counts[stream.index]} frames")
        with open(path, "rb") as file:
            self.unlisted = unlisted_frames(file)
        if self.unlisted and self._strict:
            raise MediaError(path, f"lists no times of {self.unlisted} of its frames")


def _is_hidden(packet: Any, stream: Any) -> bool:
    """Whether a frame is only for reference. VP8 marks it in bit 4 of its frame tag (RFC 6386)."""
    if packet.is_discard:
        return True
    return stream.codec_context.name == "vp8" and not bytes(packet)[0] & 16


def _strictly_ascending(times: list[int]) -> list[int]:
    """Ascending times, moved so that there is at least one tick between any two."""
    for position in range(1, len(times)):
        times[position] = max(times[position], times[position - 1] + 1)
    return times
