"""Reading a range of a video: the same pixels as when it is played from the beginning."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from ..errors import ConfigError, MediaError
from ..runtime.files import PathLike
from .arrays import Image
from .container import error_types, open_video
from .index import VideoIndex
from .pixel_converter import PixelConverter


class DecodedFrame:
    """One decoded frame of a video.

    Attributes:
        index: its position in `VideoIndex.pts`.
        pts: its presentation timestamp, in ticks of `VideoIndex.time_base`.
        frame: PyAV's decoded frame, in its own pixel format, not rotated; read-only.
        damage: ``"concealed"`` (by the decoder), ``"repeated"`` (it cannot be decoded, and this is
            its neighbor) or ``"scaled"`` (it has another size or format than the first one); None
            for an intact frame.
    """

    __slots__ = ("_bgr", "_converter", "damage", "frame", "index", "pts")

    def __init__(
        self,
        index: int,
        pts: int,
        frame: Any,
        converter: PixelConverter,
        damage: str | None = None,
    ) -> None:
        self.index, self.pts, self.frame, self.damage = index, pts, frame, damage
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
    Unless `VideoIndex.strict`, damage is no error: see `DecodedFrame.damage`.

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
    position, last = first, None
    converter = PixelConverter((index.quarter_turns, index.flipped))
    with open_video(path) as (container, stream):
        try:
            if seek_to is not None:
                container.seek(seek_to, stream=stream)
            for number, frame in enumerate(_decode(container, stream, index.strict)):
                distance = _distance(index, position, number, frame.pts)
                if distance > 0 and last is None and seek_to is None:
                    last = _fitted(path, index, frame, position, converter)[0]
                while distance > 0 and last is not None and not index.strict:
                    yield DecodedFrame(position, index.pts[position], last, converter, "repeated")
                    position += 1
                    if position == stop:
                        return
                    distance = _distance(index, position, number, frame.pts)
                if distance > 0:
                    break
                if distance < 0:
                    last = frame
                    continue
                last, damage = _fitted(path, index, frame, position, converter)
                yield DecodedFrame(position, index.pts[position], last, converter, damage)
                position += 1
                if position == stop:
                    return
        except error_types() as error:
            if isinstance(error, MediaError):
                raise
            raise _missing(path, position, f" ({error})") from error
        if last is not None and not index.strict:
            last = _fitted(path, index, last, position, converter)[0]
            for rest in range(position, stop):
                yield DecodedFrame(rest, index.pts[rest], last, converter, "repeated")
            return
    if position > first:
        raise _missing(path, position)


def _decode(container: Any, stream: Any, strict: bool) -> Iterator[Any]:
    """The frames of an open stream; unless `strict`, without those that cannot be decoded."""
    for packet in container.demux(stream):
        if packet.is_corrupt and strict:
            raise ValueError("a packet is truncated")
        try:
            frames = packet.decode()
        except error_types():
            if strict:
                raise
            continue
        yield from frames


def _distance(index: VideoIndex, position: int, number: int, pts: int | None) -> int:
    """How far the `number`-th decoded frame is from `position`: < 0 before, > 0 after it."""
    if index.counted:
        return number - index.skipped - position
    return -1 if pts is None else pts - index.pts[position]


def _fitted(
    path: PathLike, index: VideoIndex, frame: Any, position: int, converter: PixelConverter
) -> tuple[Any, str | None]:
    """A frame in the size and format of the first one, and what had to be done for it."""
    if frame.is_corrupt and index.strict:
        raise _missing(path, position)
    actual = (frame.width, frame.height, frame.format.name)
    expected = (*index.source_wh, index.pix_fmt)
    if actual in (expected, (*index.source_wh, index.out_pix_fmt)):
        return frame, "concealed" if frame.is_corrupt else None
    if index.strict:
        sizes = "{} x {} {}; the first one was {} x {} {}".format(*actual, *expected)
        raise MediaError(path, f"frame {position} is {sizes}")
    format_name = index.out_pix_fmt
    matrix = index.matrix_and_range
    return converter.to_size(frame, *matrix, format_name, index.source_wh), "scaled"


def _missing(path: PathLike, position: int, reason: str = "") -> MediaError:
    where = f"after frame {position - 1}" if position else "before the first frame"
    return MediaError(path, f"is truncated or damaged {where}{reason}")
