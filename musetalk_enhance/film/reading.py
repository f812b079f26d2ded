"""Reading a stretch of a film: the same pixels as if it were played from the beginning."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from ..errors import ConfigError, MediaError
from ..media import Image, PathLike, PixelConverter, opened
from .index import FilmIndex


class Shot:
    """One decoded frame of a film.

    Attributes:
        index: its place in `FilmIndex.pts`.
        pts: when it is shown, in ticks of `FilmIndex.time_base`.
        frame: PyAV's decoded frame, in its own pixel format, not turned; not to be modified.
    """

    __slots__ = ("_bgr", "_converter", "frame", "index", "pts")

    def __init__(self, index: int, pts: int, frame: Any, converter: PixelConverter) -> None:
        self.index, self.pts, self.frame = index, pts, frame
        self._converter = converter
        self._bgr: Image | None = None

    @property
    def bgr(self) -> Image:
        """The picture, upright: BGR uint8 ``(height, width, 3)``, C-contiguous; converted on first use.

        The stream's own matrix and range are honoured, as in `media.read_frames`. All shots of one
        `read_segment` share a converter, so not from two threads at once.
        """
        if self._bgr is None:
            self._bgr = self._converter.to_bgr(self.frame)
        return self._bgr


def read_segment(path: PathLike, index: FilmIndex, first: int, stop: int) -> Iterator[Shot]:
    """Yield the frames `first` to `stop` - 1 of a film one by one; memory stays flat.

    Decoding begins at the key frame before `first` and falls back to the film's beginning where the frame is
    not reached from there. A `counted` film is always decoded from its beginning, so read it in one go. The
    file is closed at the end, on an error, and when the consumer stops early.

    >>> index = index_film("talk.mp4")  # doctest: +SKIP
    >>> for shot in read_segment("talk.mp4", index, 0, len(index)):  # doctest: +SKIP
    ...     show(shot.bgr)

    Raises:
        ConfigError: there are no such frames (on the first `next`).
        MediaError: a frame is missing or damaged, or the file is not the one that was indexed.
    """
    if not 0 <= first < stop <= len(index):
        raise ConfigError("frames", (first, stop), f"a first and a later one of 0 to {len(index)}")
    for entry in _entries(index, first):
        with contextlib.closing(_from(path, index, entry, first, stop)) as shots:
            head = next(shots, None)
            if head is None and entry is not None:
                continue  # the seek landed too late
            if head is None:
                raise _missing(path, first)
            yield head
            yield from shots
            return


def _entries(index: FilmIndex, first: int) -> list[int | None]:
    """Where to begin decoding: times to seek to, best first; None is the film's beginning."""
    before = [decoded for shown, decoded in index.key_times if shown <= index.pts[first]]
    return [before[-1], None] if len(before) > 1 else [None]


def _from(path: PathLike, index: FilmIndex, entry: int | None, first: int, stop: int) -> Generator[Shot, None, None]:
    """The wanted frames, decoded from `entry` on; none at all where the first of them does not come."""
    converter, at = PixelConverter(), first
    with opened(path) as (container, stream):
        try:
            if entry is not None:
                container.seek(entry, stream=stream)
            for number, frame in enumerate(_decoded(container, stream)):
                ahead = _ahead(index, at, number, frame.pts)
                if ahead > 0:
                    break
                if ahead < 0:
                    continue
                _check(path, index, frame, at)
                yield Shot(at, index.pts[at], frame, converter)
                at += 1
                if at == stop:
                    return
        except (OSError, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            raise _missing(path, at, f" ({error})") from error
    if at > first:
        raise _missing(path, at)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError("a packet is cut off")
        yield from packet.decode()


def _ahead(index: FilmIndex, at: int, number: int, time: int | None) -> int:
    """Whether the `number`-th decoded frame is before (< 0), at (0) or after (> 0) place `at` of the index."""
    if index.counted:
        return number - index.left_out - at
    return -1 if time is None else time - index.pts[at]


def _check(path: PathLike, index: FilmIndex, frame: Any, at: int) -> None:
    if frame.is_corrupt:
        raise _missing(path, at)
    actual = (frame.width, frame.height, frame.format.name)
    if actual != (*index.source_wh, index.pix_fmt):
        needed = "{} x {} {}".format(*index.source_wh, index.pix_fmt)
        raise MediaError(path, "frame {} is {} x {} {}; the first one was {}".format(at, *actual, needed))


def _missing(path: PathLike, at: int, why: str = "") -> MediaError:
    where = f"after frame {at - 1}" if at else "before the first frame"
    return MediaError(path, f"is cut off or damaged {where}{why}")
