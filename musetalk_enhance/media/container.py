"""Opening video files with PyAV."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from ..errors import MediaError
from ..runtime.files import PathLike, open_regular

_ATTACHED_PICTURE = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC


@contextlib.contextmanager
def open_video(path: PathLike) -> Iterator[tuple[Any, Any]]:
    """PyAV's open container and its first video stream, cover art aside; both close with the block.

    Raises:
        MediaError: missing, unreadable or without a video stream.
    """
    import av

    try:
        open_regular(path).close()
        container: Any = av.open(str(path))
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"is not a readable video ({error})"
        raise MediaError(path, what) from error
    with container:
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            raise MediaError(path, "has no video stream")
        stream = streams[0]
        stream.thread_type = "AUTO"
        yield container, stream


def frame_rate(path: PathLike, stream: Any) -> Fraction:
    """The average frames per second of a video stream, exact.

    Raises:
        MediaError: the file does not state it.
    """
    rate = stream.average_rate or getattr(stream, "guessed_rate", None)
    if not rate:
        raise MediaError(path, "states no frame rate")
    return Fraction(rate)


def disposition(stream: Any) -> int:
    """FFmpeg's bits for the role of a stream (``AV_DISPOSITION_*``); 0 before PyAV 14.1.

    PyAV returns a number from 17.1 on, and before that a flag with a number as its value.
    """
    flags = getattr(stream, "disposition", 0)
    return int(getattr(flags, "value", flags))


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is one image that belongs to the audio; False before PyAV 14.1."""
    return bool(disposition(stream) & _ATTACHED_PICTURE)
