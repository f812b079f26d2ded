"""Reading a video frame by frame.

Frames are BGR uint8 ``(H, W, 3)``, C-contiguous. Frame rates are exact fractions: 29.97 is
30000/1001.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import MediaError
from ..runtime.files import PathLike
from .arrays import Image
from .container import error_types, frame_rate, open_video
from .pixel_converter import PixelConverter


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video's first video stream.

    Attributes:
        width: of an upright frame, in pixels.
        height: of an upright frame, in pixels.
        fps: average frames per second, exact.
        frames: number of frames as the container states it, None if it does not.
        duration: length in seconds, None if the container does not state it.
    """

    width: int
    height: int
    fps: Fraction
    frames: int | None
    duration: float | None


def probe(path: PathLike) -> VideoInfo:
    """The properties of a video; one frame is decoded for them.

    Raises:
        MediaError: missing, unreadable, without a decodable frame or without a frame rate.
    """
    with open_video(path) as (container, stream):
        fps = frame_rate(path, stream)
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1e6  # in AV_TIME_BASE units
        first = next(_decode(path, container, stream), None)
        if first is None:
            raise MediaError(path, "has no decodable frame")
        height, width = first.shape[:2]
        return VideoInfo(width, height, fps, stream.frames or None, duration)


def read_frames(path: PathLike) -> Iterator[Image]:
    """Yield the frames of a video one by one, upright, in display order; memory use is constant.

    The file is closed at the end, on an error, and when the consumer stops early. The matrix and
    range of the stream are used; if it states none, BT.709 is assumed from 720 lines on and BT.601
    below.

    >>> for frame_bgr in read_frames("talk.mp4"):  # doctest: +SKIP
    ...     show(frame_bgr)

    Raises:
        MediaError: missing or unreadable (on the first `next`), or damaged further on. No frame is
            skipped.
    """
    with open_video(path) as (container, stream):
        yield from _decode(path, container, stream)


def _decode(path: PathLike, container: Any, stream: Any) -> Iterator[Image]:
    """The frames of an open stream; PyAV's errors become `MediaError`."""
    converter, count = PixelConverter(), 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError(path, f"is truncated or damaged after about {count} frames")
            for frame in packet.decode():
                frame_bgr = converter.to_bgr(frame)
                count += 1
                yield frame_bgr
    except MediaError:
        raise
    except error_types() as error:
        raise MediaError(path, f"cannot be decoded after frame {count} ({error})") from error
