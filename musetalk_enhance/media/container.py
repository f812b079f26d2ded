"""Opening video files with PyAV."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import EnhanceError, MediaError
from ..runtime.files import PathLike, open_regular

_ATTACHED_PICTURE = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC
_PLAYLISTS = {"hls", "concat", "dash", "imf"}  # FFmpeg's formats that name other files
_MAX_RATE = 300  # frames per second; above, a rate is a clock (60000, 90000) and not one of frames


def url(path: PathLike) -> str:
    """FFmpeg's address of a file: a name with a colon is not taken for a protocol."""
    return f"file:{Path(path)}"


def error_types() -> tuple[type[Exception], ...]:
    """Every class of error that PyAV and the operating system raise for a file."""
    import av

    return av.error.FFmpegError, OSError, ValueError, LookupError


@contextlib.contextmanager
def media_errors(path: PathLike, what: str) -> Iterator[None]:
    """Turn every error of PyAV and of the operating system in the block into a `MediaError`.

    Args:
        path: the file, for the message.
        what: what happened to it; the reason follows in brackets.
    """
    try:
        yield
    except EnhanceError:
        raise
    except error_types() as error:
        text = getattr(error, "strerror", None) or error
        raise MediaError(path, f"{what} ({text})") from error


@contextlib.contextmanager
def open_video(path: PathLike) -> Iterator[tuple[Any, Any]]:
    """PyAV's open container and its first video stream, cover art aside; both close with the block.

    Tags that are not UTF-8 are read by `tags_of`. A playlist is refused: it would read other files.

    Raises:
        MediaError: missing, unreadable, a playlist, or without a video stream that can be decoded.
    """
    import av

    try:
        open_regular(path).close()
    except FileNotFoundError as error:
        raise MediaError(path, "does not exist") from error
    except (OSError, ValueError) as error:
        raise MediaError(path, f"is not a readable video ({error})") from error
    options = {"protocol_whitelist": "file"}
    with media_errors(path, "is not a readable video"):
        container: Any = av.open(
            url(path), container_options=options, metadata_errors="surrogateescape"
        )
    with container:
        if _PLAYLISTS & set(container.format.name.split(",")):
            what = f"is a playlist ({container.format.name}), which names other files"
            raise MediaError(path, f"{what}; open the video itself")
        streams = [stream for stream in container.streams.video if not is_cover(stream)]
        if not streams:
            raise MediaError(path, "has no video stream")
        stream = streams[0]
        if stream.codec_context is None:
            what = f"its video codec, {_codec_words(container, stream)}, has no decoder"
            raise MediaError(path, f"{what} in this build of FFmpeg; convert it to H.264 first")
        stream.thread_type = "AUTO"
        yield container, stream


def _codec_words(container: Any, stream: Any) -> str:
    """What FFmpeg says about a codec without a decoder: its four letters, or its number."""
    import av

    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # the description is written to FFmpeg's log
    try:
        lines = container.dumps_format().splitlines()
    finally:
        av.logging.set_level(level)
    line = next((line for line in lines if f"#0:{stream.index}" in line), "")
    match = re.search(r"Video: (\w+)(?: \((\S+) / 0x\w+\))?", line)
    return repr((match[2] or match[1]) if match else "unknown")


def tags_of(opened: Any) -> dict[str, str]:
    """The tags of a container or stream of `open_video`, see `as_utf8`."""
    return as_utf8(opened.metadata)


def as_utf8(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as valid text; those that are not UTF-8 (old AVI and ASF files) count as Latin-1."""
    texts = {}
    for key, text in tags.items():
        raw = text.encode("utf-8", "surrogateescape")
        is_utf8 = not any("\udc80" <= character <= "\udcff" for character in text)
        texts[key] = raw.decode("utf-8" if is_utf8 else "latin-1")
    return texts


def frame_rate(path: PathLike, stream: Any) -> Fraction:
    """The average frames per second of a video stream, exact; a clock's rate is not taken for it.

    Where the file states none (WebM of a browser), it is measured on the timestamps.

    Raises:
        MediaError: the file does not state it, and has no two timestamps.
    """
    names = ("average_rate", "guessed_rate", "base_rate")
    rates = [Fraction(rate) for name in names if (rate := getattr(stream, name, None))]
    plausible = [rate for rate in rates if 0 < rate <= _MAX_RATE]
    if plausible:
        return plausible[0]
    measured = _measured_rate(path)
    if 0 < measured <= _MAX_RATE:
        return measured
    stated = f" that can be one ({rates[0]} per second)" if rates else ""
    raise MediaError(path, f"states no frame rate{stated}")


def _measured_rate(path: PathLike) -> Fraction:
    """Frames per second by the timestamps of the packets; 0 where there are none."""
    with open_video(path) as (container, stream), media_errors(path, "cannot be read"):
        stamps = {packet.pts for packet in container.demux(stream) if packet.pts is not None}
        if len(stamps) < 2:
            return Fraction(0)
        seconds = Fraction((max(stamps) - min(stamps)) * Fraction(stream.time_base))
        return (Fraction(len(stamps) - 1) / seconds).limit_denominator(1001)


def disposition(stream: Any) -> int:
    """FFmpeg's bits for the role of a stream (``AV_DISPOSITION_*``); 0 before PyAV 14.1.

    PyAV returns a number from 17.1 on, and before that a flag with a number as its value.
    """
    flags = getattr(stream, "disposition", 0)
    return int(getattr(flags, "value", flags))


def is_cover(stream: Any) -> bool:
    """Whether a video stream is one image that belongs to the audio; False before PyAV 14.1."""
    return bool(disposition(stream) & _ATTACHED_PICTURE)
