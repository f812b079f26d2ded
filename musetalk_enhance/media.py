"""Reading and writing videos and pictures: PyAV and OpenCV, no ffmpeg binary.

Frames are BGR uint8 ``(H, W, 3)``, C-contiguous. Frame rates are exact fractions: 29.97 is 30000/1001.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, FrameError, MediaError
from .files import open_regular

Image = NDArray[np.uint8]
PathLike = str | Path
_File = TypeVar("_File", bound="PictureFile")

_BT709, _UNSPECIFIED, _BT601, _FULL_RANGE = 1, 2, 5, 2  # AVCOL_SPC_BT709, _UNSPECIFIED, _BT470BG; AVCOL_RANGE_JPEG
_MATRICES = {_BT709: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_ATTACHED_PICTURE = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC
_ANY_TIME = Fraction(1, 1000)  # a filter graph wants a clock; nothing here reads it

X264_PARAMS = "cpu-independent=1"
"""Parameters of every H.264 encoder besides quality and speed.

Without it x264's output depends on the processor, and with AVX-512 also on what lay in memory
before: its `mbtree_propagate_list` handles 8 macroblocks at once, reads past the end of a row
where their number is not a multiple of 8 (widths of 96, 208, 720 or 854 pixels; not 640, 1280 or
1920), and adds what it reads there to the weight of the neighbors. x264 core 165 made 15 different
streams of the same 100 frames of 96 x 64 in 300 runs; the number of threads does not matter. With
it x264 uses its portable code in the places that differ; encoding takes up to 8 % longer.
"""


@dataclass(frozen=True)
class VideoInfo:
    """Facts of a video's first picture stream.

    Attributes:
        width: of an upright frame, in pixels.
        height: of an upright frame, in pixels.
        fps: average frames per second, exact.
        frames: number of frames as the container states it, None where it does not.
        duration: length in seconds, None where the container does not state it.
    """

    width: int
    height: int
    fps: Fraction
    frames: int | None
    duration: float | None


def probe(path: PathLike) -> VideoInfo:
    """The facts of a video; one frame is decoded for them.

    Raises:
        MediaError: missing, unreadable, without pictures or without a frame rate.
    """
    with opened(path) as (container, stream):
        rate = stream.average_rate or getattr(stream, "guessed_rate", None)
        if not rate:
            raise MediaError(path, "states no frame rate")
        seconds = None
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / 1e6  # in AV_TIME_BASE units
        first = next(_decoded(path, container, stream), None)
        if first is None:
            raise MediaError(path, "holds no picture that can be decoded")
        height, width = first.shape[:2]
        return VideoInfo(width, height, Fraction(rate), stream.frames or None, seconds)


def read_frames(path: PathLike) -> Iterator[Image]:
    """Yield the frames of a video one by one, upright, in the order of showing; memory stays flat.

    The file is closed at the end, on an error, and when the consumer stops early. The matrix and range of the
    stream are honoured; where it states none, BT.709 is assumed from 720 lines on and BT.601 below.

    >>> for frame_bgr in read_frames("talk.mp4"):  # doctest: +SKIP
    ...     show(frame_bgr)

    Raises:
        MediaError: missing or unreadable (on the first `next`), or damaged further on. No frame is skipped.
    """
    with opened(path) as (container, stream):
        yield from _decoded(path, container, stream)


class PictureFile:
    """An H.264 file in the making, a context manager: what every writer of pictures here shares.

    The file appears under its name only when the block ends well: until then it has a temporary name beside
    it, and after an exception inside the block (which goes on) nothing is left and an older file of that name
    is untouched.

    Attributes:
        path: where to.
        count: frames written so far.
    """

    def __init__(self, path: PathLike) -> None:
        self.path, self.count = Path(path), 0
        self._part = temporary_name(self.path)
        self._container: Any = None
        self._stream: Any = None

    def _begin(
        self,
        rate: Fraction,
        coded_wh: tuple[int, int],
        pix_fmt: str,
        codec_options: Mapping[str, str],
    ) -> None:
        """Open the file and its encoder; time stamps count in ticks of ``1 / rate``."""
        import av

        if not self.path.parent.is_dir():
            raise MediaError(self.path, "its folder does not exist")
        container = None
        try:
            container = av.open(str(self._part), "w", options={"movflags": "+faststart"})
            stream: Any = container.add_stream("libx264", rate=rate)
            stream.width, stream.height = coded_wh
            stream.pix_fmt = pix_fmt
            stream.options = {"x264-params": X264_PARAMS, **codec_options}
            stream.codec_context.time_base = 1 / rate
        except (OSError, ValueError) as error:  # PyAV's own errors are also one of these
            if container is not None:
                container.close()
            self._part.unlink(missing_ok=True)
            raise MediaError(self.path, f"cannot be written ({error})") from error
        self._container, self._stream = container, stream

    def _mux(self, picture: Any) -> None:
        """Encode one picture, or with None what the encoder still holds."""
        try:
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except (OSError, ValueError) as error:
            raise MediaError(self.path, f"cannot be written ({error})") from error

    def close(self) -> None:
        """Finish the file and give it its name; a second call does nothing.

        Raises:
            MediaError: no frame was written, or the disk refused; no file is left then.
        """
        if self._container is None:
            return
        try:
            if self.count == 0:
                raise MediaError(self.path, "no frame was written to it")
            self._mux(None)
            self._container.close()
            self._container = None
            os.replace(self._part, self.path)
        except OSError as error:
            self.abort()
            if isinstance(error, MediaError):
                raise
            raise MediaError(self.path, f"cannot be written ({error})") from error

    def abort(self) -> None:
        """Give up: close and remove the unfinished file; a file finished before stays."""
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(OSError, ValueError):  # what it could not flush is thrown away anyway
                container.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self: _File) -> _File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class VideoWriter(PictureFile):
    """Write an H.264 video (yuv420p, BT.709, limited range): a context manager.

    The file appears under its name only when the block ends well: until then it has a temporary name beside
    it, and after an exception inside the block (which goes on) nothing is left and an older file of that name
    is untouched.

    >>> with VideoWriter("out.mp4", Fraction(30000, 1001), (640, 480)) as writer:  # doctest: +SKIP
    ...     writer.write(frame_bgr)

    Attributes:
        count: frames written so far.
        coded_wh: size in the file: `size_wh` made even. An odd last column or row is written twice, because
            yuv420p halves the colour; nothing of the picture is cut off.
    """

    def __init__(self, path: PathLike, fps: Fraction | float, size_wh: tuple[int, int], crf: int = 18) -> None:
        """Args:
            path: where to; the ending tells the container, ``.mp4`` or ``.mkv``. The folder must exist.
            fps: frames per second; a fraction is exact, of a float see `exact_fps`.
            size_wh: width and height of every frame to come, in pixels.
            crf: x264's constant rate factor, 0 (lossless) to 51; 18 is hardly told from the original.

        Raises:
            ConfigError: `fps`, `size_wh` or `crf` is impossible.
            MediaError: the file cannot be begun.
        """
        rate = exact_fps(fps)
        if min(size_wh) < 2:
            raise ConfigError("size_wh", size_wh, "two numbers of pixels, 2 at least")
        if not 0 <= crf <= 51:
            raise ConfigError("crf", crf, "a whole number from 0 to 51")
        super().__init__(path)
        self.fps, self.size_wh = rate, size_wh
        self.coded_wh = (size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2)
        self._converter = PixelConverter()
        colour = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}
        self._begin(rate, self.coded_wh, "yuv420p", {"crf": str(crf), **colour})

    def write(self, frame_bgr: Image) -> None:
        """Append one frame: BGR uint8 ``(height, width, 3)`` of the size told, any strides; not modified.

        Raises:
            FrameError: another shape or dtype.
            MediaError: the encoder or the disk refused, or the writer is closed.
        """
        if self._container is None:
            raise MediaError(self.path, "is closed already")
        width, height = self.size_wh
        if frame_bgr.shape != (height, width, 3) or frame_bgr.dtype != np.uint8:
            actual = f"{frame_bgr.dtype} {frame_bgr.shape}"
            raise FrameError("size", actual, f"uint8 {(height, width, 3)}", self.count)
        pads = [(0, self.coded_wh[1] - height), (0, self.coded_wh[0] - width), (0, 0)]
        even = np.ascontiguousarray(np.pad(frame_bgr, pads, mode="edge") if any(map(any, pads)) else frame_bgr)
        picture = self._converter.to_yuv(even)
        picture.pts, picture.time_base = self.count, 1 / self.fps
        self._mux(picture)
        self.count += 1


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else uses, with the same ending."""
    return path.with_name(f".{path.stem}.part-{uuid4().hex}{path.suffix}")


def exact_fps(fps: Fraction | float) -> Fraction:
    """A frame rate as an exact fraction: 29.97 and its kin are n * 1000/1001, other floats what they read as.

    >>> exact_fps(29.97), exact_fps(12.5)
    (Fraction(30000, 1001), Fraction(25, 2))

    Raises:
        ConfigError: not a finite number over 0.
    """
    try:
        rate = Fraction(fps)
    except (ValueError, OverflowError, TypeError):  # NaN, infinity, no number
        rate = Fraction(0)
    if isinstance(fps, float):
        ntsc = Fraction(1000 * round(rate), 1001)
        rate = ntsc if rate.denominator > 1 and abs(rate - ntsc) < Fraction(1, 1000) else rate.limit_denominator(1001)
    if rate <= 0:
        raise ConfigError("fps", fps, "a number over 0")
    return rate


def read_image(path: PathLike) -> Image:
    """A picture file as BGR uint8 ``(H, W, 3)``, upright; alpha is dropped, 16 bits become 8.

    Raises:
        MediaError: missing, or no picture that OpenCV knows.
    """
    import cv2

    try:
        packed = np.fromfile(path, np.uint8)
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror or error})") from error
    image = cv2.imdecode(packed, cv2.IMREAD_COLOR) if packed.size else None
    if image is None:
        raise MediaError(path, "is no picture that can be read")
    return np.asarray(image, np.uint8)


def write_image(path: PathLike, image_bgr: Image) -> None:
    """Write BGR uint8 ``(H, W, 3)`` to a file whose ending tells the format (``.png``, ``.jpg``, ...).

    Raises:
        FrameError: another shape or dtype.
        MediaError: unknown ending, or the file cannot be written.
    """
    import cv2

    if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.dtype != np.uint8 or not image_bgr.size:
        raise FrameError("shape", f"{image_bgr.dtype} {image_bgr.shape}", "uint8 (H, W, 3)")
    target = Path(path)
    try:
        done, packed = cv2.imencode(target.suffix, np.ascontiguousarray(image_bgr))
    except cv2.error as error:
        raise MediaError(path, f"cannot be written: no picture format ends with {target.suffix!r}") from error
    if not done:
        raise MediaError(path, "cannot be encoded")
    try:
        target.write_bytes(packed.tobytes())
    except OSError as error:
        raise MediaError(path, f"cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def opened(path: PathLike) -> Iterator[tuple[Any, Any]]:
    """PyAV's open container and its first picture stream, cover art aside; both close with the block.

    Raises:
        MediaError: missing, unreadable or without pictures.
    """
    import av

    try:
        open_regular(path).close()
        container: Any = av.open(str(path))
    except (OSError, ValueError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"is no readable video ({error})"
        raise MediaError(path, what) from error
    with container:
        films = [each for each in container.streams.video if not _is_cover(each)]
        if not films:
            raise MediaError(path, "has no picture stream")
        stream = films[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _is_cover(stream: Any) -> bool:
    """Whether a picture stream is one still picture that belongs to the sound; PyAV before 14.1 cannot tell."""
    return bool(disposition(stream) & _ATTACHED_PICTURE)


def disposition(stream: Any) -> int:
    """FFmpeg's bits of what a stream is for (``AV_DISPOSITION_*``); 0 before PyAV 14.1.

    PyAV states a number from 17.1 on; before, a flag that has one as its value.
    """
    flags = getattr(stream, "disposition", 0)
    return int(getattr(flags, "value", flags))


def _decoded(path: PathLike, container: Any, stream: Any) -> Iterator[Image]:
    """The frames of an open stream; PyAV's errors become `MediaError`."""
    converter, count = PixelConverter(), 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError(path, f"is cut off or damaged after about {count} frames")
            for frame in packet.decode():
                picture = converter.to_bgr(frame)
                count += 1
                yield picture
    except MediaError:
        raise
    except (OSError, ValueError) as error:
        raise MediaError(path, f"cannot be decoded after frame {count} ({error})") from error


def display_matrix(frame: Any) -> tuple[int, ...] | None:
    """The nine numbers of a decoded frame's display matrix, as in the file; None where it has none.

    Not through ``frame.side_data``: with that, frame and side data hold each other, and the picture stays in memory
    until Python happens to collect such cycles, hundreds of frames later.
    """
    try:
        from av.sidedata.sidedata import SideDataContainer

        side_data: Any = SideDataContainer(frame)  # type: ignore[call-arg]
    except (ImportError, TypeError):  # its place is not documented
        side_data = frame.side_data
    matrix = side_data.get("DISPLAYMATRIX")
    return None if matrix is None else tuple(map(int, np.frombuffer(bytes(matrix), np.int32)))


def orientation(frame: Any) -> tuple[int, bool]:
    """How a decoded frame comes to stand upright, from its display matrix: (quarter turns to the left, mirrored).

    A mirrored frame is mirrored from left to right first, then turned. The angle is that of ffmpeg's
    ``av_display_rotation_get``; PyAV's own ``rotation`` is missing before 14.1.
    """
    matrix = display_matrix(frame)
    if matrix is None:
        return 0, False
    a, b, _, c, d = map(float, matrix[:5])
    mirrored = a * d - b * c < 0
    angle = np.degrees(np.arctan2(-b, -a) if mirrored else np.arctan2(b, a))
    return round(-float(angle) / 90) % 4, mirrored


def matrix_and_range(colorspace: int, color_range: int, pix_fmt: str, height: int) -> tuple[str, str]:
    """swscale's words for a YUV matrix (``"bt709"``) and range (``"tv"`` or ``"pc"``), from ffmpeg's numbers.

    Where the stream states no matrix, BT.709 is assumed from 720 coded lines on and BT.601 below.
    """
    space = colorspace if colorspace != _UNSPECIFIED else _BT709 if height >= 720 else _BT601
    full = color_range == _FULL_RANGE or pix_fmt.startswith("yuvj")
    return _MATRICES.get(space, "bt601"), "pc" if full else "tv"


class PixelConverter:
    """Colour conversion that rounds as it should; swscale's default is off by up to 4/255.

    One filter graph, made anew when the size, format or colour of the frames changes. Not for two threads at
    once. A frame that goes in loses its time stamp.
    """

    _EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"

    def __init__(self) -> None:
        self._graph: Any = None
        self._key: tuple[Any, ...] = ()

    def to_bgr(self, frame: Any) -> Image:
        """A decoded frame as BGR uint8 ``(H, W, 3)``, upright, C-contiguous."""
        matrix, range_ = matrix_and_range(
            int(frame.colorspace), int(frame.color_range), frame.format.name, frame.height
        )
        picture = self._run(frame, f"in_color_matrix={matrix}:in_range={range_}:out_range=pc", "bgr24").to_ndarray()
        turns, mirrored = orientation(frame)
        return np.ascontiguousarray(np.rot90(picture[:, ::-1] if mirrored else picture, turns))

    def to_yuv(self, image_bgr: Image, matrix: str = "bt709", range_: str = "tv", pix_fmt: str = "yuv420p") -> Any:
        """A BGR picture, of a size that `pix_fmt` can hold, as a frame of that format.

        Of a ``yuvj`` format it is the plain one with the same values: FFmpeg 7.0 takes no matrix for the others.
        """
        import av

        frame = av.VideoFrame.from_ndarray(image_bgr, format="bgr24")
        plain = pix_fmt.replace("yuvj", "yuv")
        return self._run(frame, f"out_color_matrix={matrix}:out_range={range_}", plain)

    def to_format(self, frame: Any, matrix: str, range_: str, pix_fmt: str) -> Any:
        """A decoded frame in another pixel format, with the same matrix and range."""
        colour = f"in_color_matrix={matrix}:in_range={range_}:out_color_matrix={matrix}:out_range={range_}"
        return self._run(frame, colour, pix_fmt)

    def _run(self, frame: Any, colour: str, out: str) -> Any:
        key = (frame.width, frame.height, frame.format.name, colour, out)
        if key != self._key:
            self._graph, self._key = self._build(frame, colour, out), key
        frame.pts, frame.time_base = None, _ANY_TIME
        self._graph.push(frame)
        return self._graph.pull()

    def _build(self, frame: Any, colour: str, out: str) -> Any:
        from av.filter import Graph

        graph: Any = Graph()
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=_ANY_TIME),
            graph.add("scale", f"{colour}:{self._EXACT}"),
            graph.add("format", f"pix_fmts={out}"),
            graph.add("buffersink"),
        ]
        for before, after in zip(nodes, nodes[1:], strict=False):
            before.link_to(after)
        graph.configure()
        return graph
