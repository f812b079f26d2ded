"""Reading a range of a video: the same pixels as when it is played from the beginning."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from ..errors import ConfigError, MediaError
from ..runtime.files import PathLike
from .arrays import Image
from .container import open_video
from .index import VideoIndex
from .pixel_converter import PixelConverter


class DecodedFrame:
    """One decoded frame of a video.

    Attributes:
        index: its position in `VideoIndex.pts`.
        pts: its presentation timestamp, in ticks of `VideoIndex.time_base`.
        frame: PyAV's decoded frame, in its own pixel format, not rotated; read-only.
    """

    __slots__ = ("_bgr", "_converter", "frame", "index", "pts")

    def __init__(self, index: int, pts: int, frame: Any, converter: PixelConverter) -> None:
        self.index, self.pts, self.frame = index, pts, frame
        self._converter = converter
        self._bgr: Image | None = None

    @property
    def bgr(self) -> Image:
        """The upright image, BGR uint8 ``(height, width, 3)``, converted on first use.

        The stream's own matrix and range are used, as in `read_frames`. All frames of one
        `read_segment` share a converter, which is not thread-safe. C-contiguous.
        """
        if self._bgr is None:
            self._bgr = self._converter.to_bgr(self.frame)
        return self._bgr


def read_segment(
    path: PathLike, index: VideoIndex, first: int, stop: int
) -> Iterator[DecodedFrame]:
    """Yield the frames `first` to `stop` - 1 of a video one by one; memory use is constant.

    Decoding starts at the key frame before `first`, or at the beginning of the video if the frame
    is not reached from there. A `counted` video is always decoded from its beginning, so it is best
    read at once. The file is closed at the end, on an error, and when the consumer stops early.

    >>> index = index_video("talk.mp4")  # doctest: +SKIP
    >>> for frame in read_segment("talk.mp4", index, 0, len(index)):  # doctest: +SKIP
    ...     show(frame.bgr)

    Raises:
        ConfigError: there are no such frames (on the first `next`).
        MediaError: a frame is missing or damaged, or the file is not the one that was indexed.
    """
    if not 0 <= first < stop <= len(index):
        allowed = f"a first frame and a later one from 0 to {len(index)}"
        raise ConfigError("frames", (first, stop), allowed)
    for seek_to in _seek_positions(index, first):
        with contextlib.closing(_frames_from(path, index, seek_to, first, stop)) as frames:
            head = next(frames, None)
            if head is None and seek_to is not None:
                continue  # the decoder started after the first frame
            if head is None:
                raise _missing(path, first)
            yield head
            yield from frames
            return


def _seek_positions(index: VideoIndex, first: int) -> list[int | None]:
    """Where to start decoding: timestamps to seek to, best first; None is the beginning."""
    positions = [dts for pts, dts in index.keyframes if pts <= index.pts[first]]
    return [positions[-1], None] if len(positions) > 1 else [None]


def _frames_from(
    path: PathLike, index: VideoIndex, seek_to: int | None, first: int, stop: int
) -> Generator[DecodedFrame, None, None]:
    """The frames from `first` on, decoded from `seek_to` on; none if `first` is not reached."""
    converter, position = PixelConverter(), first
    with open_video(path) as (container, stream):
        try:
            if seek_to is not None:
                container.seek(seek_to, stream=stream)
            for number, frame in enumerate(_decode(container, stream)):
                distance = _distance(index, position, number, frame.pts)
                if distance > 0:
                    break
                if distance < 0:
                    continue
                _check(path, index, frame, position)
                yield DecodedFrame(position, index.pts[position], frame, converter)
                position += 1
                if position == stop:
                    return
        except (OSError, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            raise _missing(path, position, f" ({error})") from error
    if position > first:
        raise _missing(path, position)


def _decode(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError("a packet is truncated")
        yield from packet.decode()


def _distance(index: VideoIndex, position: int, number: int, pts: int | None) -> int:
    """How far the `number`-th decoded frame is from `position`: < 0 before, > 0 after it."""
    if index.counted:
        return number - index.skipped - position
    return -1 if pts is None else pts - index.pts[position]


def _check(path: PathLike, index: VideoIndex, frame: Any, position: int) -> None:
    if frame.is_corrupt:
        raise _missing(path, position)
    actual = (frame.width, frame.height, frame.format.name)
    expected = (*index.source_wh, index.pix_fmt)
    if actual != expected:
        sizes = "{} x {} {}; the first one was {} x {} {}".format(*actual, *expected)
        raise MediaError(path, f"frame {position} is {sizes}")


def _missing(path: PathLike, position: int, reason: str = "") -> MediaError:
    where = f"after frame {position - 1}" if position else "before the first frame"
    return MediaError(path, f"is truncated or damaged {where}{reason}")
