"""Writing H.264 videos that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ..errors import ConfigError, FrameError, MediaError
from ..runtime.files import AtomicFile, PathLike
from .arrays import Image, pad_to
from .container import error_types, media_errors, url
from .pixel_converter import PixelConverter

X264_PARAMS = "cpu-independent=1"
"""Parameters of every H.264 encoder besides quality and speed.

Without it x264's output depends on the processor, and with AVX-512 also on what lay in memory
before: its `mbtree_propagate_list` handles 8 macroblocks at once, reads past the end of a row
where their number is not a multiple of 8 (widths of 96, 208, 720 or 854 pixels; not 640, 1280 or
1920), and adds what it reads there to the weight of the neighbors. x264 core 165 made 15 different
streams of the same 100 frames of 96 x 64 in 300 runs; the number of threads does not matter. With
it x264 uses its portable code in the places that differ; encoding takes up to 8 % longer.
"""

_Writer = TypeVar("_Writer", bound="H264Writer")


class H264Writer:
    """Base of the video writers, a context manager.

    The file appears under its name only when the block ends normally: until then it has a temporary
    name beside it. After an exception in the block, which propagates, nothing is left and an
    existing file of that name is unchanged.

    Attributes:
        path: the path of the finished file.
        count: frames written so far.
    """

    def __init__(self, path: PathLike) -> None:
        self.path, self.count = Path(path), 0
        self._file = AtomicFile(self.path, keep_extension=True)
        self._container: Any = None
        self._stream: Any = None

    def _begin(
        self,
        rate: Fraction,
        coded_wh: tuple[int, int],
        pix_fmt: str,
        codec_options: Mapping[str, str],
    ) -> None:
        """Open the file and its encoder; timestamps count in ticks of ``1 / rate``."""
        import av

        if not self.path.parent.is_dir():
            raise MediaError(self.path, "its folder does not exist")
        container = None
        try:
            options = {"movflags": "+faststart"}
            container = av.open(url(self._file.path), "w", options=options)
            stream: Any = container.add_stream("libx264", rate=rate)
            stream.width, stream.height = coded_wh
            stream.pix_fmt = pix_fmt
            stream.options = {"x264-params": X264_PARAMS, **codec_options}
            stream.codec_context.time_base = 1 / rate
        except error_types() as error:
            if container is not None:
                container.close()
            self._file.discard()
            raise MediaError(self.path, f"cannot be written ({error})") from error
        self._container, self._stream = container, stream

    def _mux(self, frame: Any) -> None:
        """Encode one frame, or with None the rest that the encoder holds."""
        with media_errors(self.path, "cannot be written"):
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    def close(self) -> None:
        """Finish the file and give it its name; a second call does nothing.

        Raises:
            MediaError: no frame was written, or the disk failed; then no file is left.
        """
        if self._container is None:
            return
        try:
            if self.count == 0:
                raise MediaError(self.path, "no frame was written to it")
            self._mux(None)
            self._container.close()
            self._container = None
            self._file.commit()
        except error_types() as error:
            self.abort()
            if isinstance(error, MediaError):
                raise
            raise MediaError(self.path, f"cannot be written ({error})") from error

    def abort(self) -> None:
        """Close and remove the unfinished file; a file that was finished earlier stays."""
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(*error_types()):  # what it cannot flush is discarded
                container.close()
        self._file.discard()

    def __enter__(self: _Writer) -> _Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class VideoWriter(H264Writer):
    """Write an H.264 video (yuv420p, BT.709, limited range): a context manager.

    The file appears under its name only when the block ends normally: until then it has a temporary
    name beside it. After an exception in the block, which propagates, nothing is left and an
    existing file of that name is unchanged.

    >>> with VideoWriter("out.mp4", Fraction(30000, 1001), (640, 480)) as writer:  # doctest: +SKIP
    ...     writer.write(frame_bgr)

    Attributes:
        count: frames written so far.
        coded_wh: size in the file: `size_wh` made even. An odd last column or row is written twice,
            because yuv420p halves the color; nothing of a frame is lost.
    """

    def __init__(
        self, path: PathLike, fps: Fraction | float, size_wh: tuple[int, int], crf: int = 18
    ) -> None:
        """Open the file.

        Args:
            path: where to; the extension gives the container, ``.mp4`` or ``.mkv``. The folder must
                exist.
            fps: frames per second; a fraction is exact, for a float see `exact_fps`.
            size_wh: width and height of every frame, in pixels.
            crf: x264's constant rate factor, 0 (lossless) to 51; 18 is visually almost lossless.

        Raises:
            ConfigError: an invalid `fps`, `size_wh` or `crf`.
            MediaError: the file cannot be opened.
        """
        rate = exact_fps(fps)
        if min(size_wh) < 2:
            raise ConfigError("size_wh", size_wh, "two numbers of pixels, each at least 2")
        check_crf(crf)
        super().__init__(path)
        self.fps, self.size_wh = rate, size_wh
        self.coded_wh = (size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2)
        self._converter = PixelConverter()
        names = ("colorspace", "color_primaries", "color_trc")
        options = {"crf": str(crf), **dict.fromkeys(names, "bt709"), "color_range": "tv"}
        self._begin(rate, self.coded_wh, "yuv420p", options)

    def write(self, frame_bgr: Image) -> None:
        """Append one frame, which is not modified.

        Args:
            frame_bgr: BGR uint8 ``(height, width, 3)`` of the writer's size, any strides.

        Raises:
            FrameError: another shape or dtype.
            MediaError: the encoder or the disk failed, or the writer is closed.
        """
        if self._container is None:
            raise MediaError(self.path, "is already closed")
        width, height = self.size_wh
        if frame_bgr.shape != (height, width, 3) or frame_bgr.dtype != np.uint8:
            actual = f"{frame_bgr.dtype} {frame_bgr.shape}"
            raise FrameError("size", actual, f"uint8 {(height, width, 3)}", self.count)
        frame = self._converter.to_yuv(pad_to(frame_bgr, self.coded_wh))
        frame.pts, frame.time_base = self.count, 1 / self.fps
        self._mux(frame)
        self.count += 1


def check_crf(crf: int) -> None:
    """Check x264's constant rate factor.

    Raises:
        ConfigError: it is not from 0 to 51.
    """
    if not 0 <= crf <= 51:
        raise ConfigError("crf", crf, "an integer from 0 to 51")


def exact_fps(fps: Fraction | float) -> Fraction:
    """A frame rate as an exact fraction: 29.97 and the like are n * 1000/1001.

    Other floats are rounded to the nearest fraction with a denominator of at most 1001.

    >>> exact_fps(29.97), exact_fps(12.5)
    (Fraction(30000, 1001), Fraction(25, 2))

    Raises:
        ConfigError: not a finite number over 0.
    """
    try:
        rate = Fraction(fps)
    except (ValueError, OverflowError, TypeError):  # NaN, infinity, not a number
        rate = Fraction(0)
    if isinstance(fps, float):
        ntsc = Fraction(1000 * round(rate), 1001)
        is_ntsc = rate.denominator > 1 and abs(rate - ntsc) < Fraction(1, 1000)
        rate = ntsc if is_ntsc else rate.limit_denominator(1001)
    if rate <= 0:
        raise ConfigError("fps", fps, "a number over 0")
    return rate
