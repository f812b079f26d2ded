"""Writing a range of a video: unchanged pixels reach the encoder exactly as they were."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import numpy as np

from ..errors import ConfigError, FrameError, MediaError
from ..runtime.files import PathLike
from .arrays import Image, pad_to
from .index import VideoIndex
from .pixel_converter import PixelConverter
from .segment_reader import DecodedFrame
from .writer import X264_PARAMS, H264Writer, check_crf

PRESETS = tuple(
    "ultrafast superfast veryfast faster fast medium slow slower veryslow placebo".split()
)
_THREADS = 4  # x264's output depends on their number, so it must not follow the machine's
_Box = tuple[int, int, int, int]


class SegmentWriter(H264Writer):
    """Write consecutive frames of a video as an H.264 file of their own: a context manager.

    The file begins with a key frame, refers to nothing outside and can be played by itself; frame n
    of it is displayed n / fps seconds after the beginning. It has the frames as in the source's
    file, not rotated, with the source's matrix, range, primaries, transfer, chroma grid, field
    order and pixel aspect ratio. Captions in the video stream (EIA-608) are dropped. The same
    frames give the same bytes on every machine with the same x264.

    The file appears under its name only when the block ends normally; see `H264Writer`.

    >>> with SegmentWriter("0001.mp4", index) as writer:  # doctest: +SKIP
    ...     for frame in read_segment("talk.mp4", index, 0, 250):
    ...         writer.write(frame, restored(frame.bgr), box_xyxy=(200, 120, 440, 400))

    Attributes:
        path: the path of the finished file.
        count: frames written so far.
        index: the video's.
    """

    def __init__(
        self, path: PathLike, index: VideoIndex, crf: int = 18, preset: str = "medium"
    ) -> None:
        """Open the file.

        Args:
            path: where to; the extension gives the container, ``.mp4`` or ``.mkv``. The folder must
                exist.
            index: of the video that the frames come from.
            crf: x264's constant rate factor, 0 (lossless) to 51; 18 is visually almost lossless.
            preset: one of `PRESETS`; a slower one makes smaller files.

        Raises:
            ConfigError: an invalid `crf` or `preset`.
            MediaError: the file cannot be opened.
        """
        check_crf(crf)
        if preset not in PRESETS:
            raise ConfigError("preset", preset, ", ".join(PRESETS))
        super().__init__(path)
        self.index, self._converter, self._next = index, PixelConverter(), -1
        self._fields = PixelConverter()
        options = {"crf": str(crf), "preset": preset, "a53cc": "0", "flags": "+cgop"}
        options |= _color_options(index)
        if index.interlaced:
            options["x264-params"] = f"{X264_PARAMS}:{index.interlaced}=1"
        self._begin(index.fps, index.coded_wh, index.out_pix_fmt, options)
        self._container.options["fflags"] = "+bitexact"
        # A clock in which both the frame rate and the source's ticks are whole numbers.
        ticks = lcm(index.fps.numerator, index.time_base.denominator)
        if self.path.suffix.lower() != ".mkv" and ticks < 2**31:
            self._container.options["video_track_timescale"] = str(ticks)
        codec = self._stream.codec_context
        codec.thread_count, codec.thread_type = _THREADS, "FRAME"
        if index.sample_aspect_ratio:
            codec.sample_aspect_ratio = index.sample_aspect_ratio

    def write(
        self,
        frame: DecodedFrame,
        bgr: Image | None = None,
        box_xyxy: _Box | Sequence[_Box] | None = None,
    ) -> None:
        """Append one frame; neither `frame` nor `bgr` is modified.

        Without `bgr` the encoder gets the source's own pixels (through one conversion unless the
        source is 8-bit planar YUV). With it, only the pixels in the box are taken from `bgr`; all
        others keep the source's values exactly. An odd last column or row is doubled where the
        chroma needs it.

        Args:
            frame: the frame after the one that was written last.
            bgr: the whole changed image, upright: BGR uint8 ``(index.height, index.width, 3)``, any
                strides.
            box_xyxy: where it changed: left, top, right, bottom in pixels of the upright image,
                right and bottom exclusive; or several such boxes. Each is clipped to the image and
                extended to the chroma grid; None is the whole image.

        Raises:
            FrameError: another shape or dtype, an empty box, or a frame out of order.
            MediaError: the encoder or the disk failed, or the writer is closed.
        """
        if self._container is None:
            raise MediaError(self.path, "is already closed")
        if self._next not in (-1, frame.index):
            raise FrameError("order", f"frame {frame.index}", f"frame {self._next}", frame.index)
        coded = self._unchanged(frame)
        if bgr is not None:
            coded = self._composite(coded, frame.index, bgr, box_xyxy)
        if self.index.interlaced:
            coded = self._fields.with_fields(coded, self.index.interlaced)
        coded.pts, coded.time_base, coded.pict_type = self.count, 1 / self.index.fps, 0
        self._mux(coded)
        self.count, self._next = self.count + 1, frame.index + 1

    def _unchanged(self, frame: DecodedFrame) -> Any:
        """The source's frame in the copy's format and size."""
        source, index = frame.frame, self.index
        if source.format.name != index.out_pix_fmt:
            source = self._converter.to_format(source, *index.matrix_and_range, index.out_pix_fmt)
        return source if index.coded_wh == index.source_wh else _copy(source, index.coded_wh)

    def _composite(self, coded: Any, number: int, bgr: Image, box_xyxy: Any) -> Any:
        """A copy of the frame `coded` with the boxes from `bgr`."""
        index, expected = self.index, (self.index.height, self.index.width, 3)
        if bgr.shape != expected or bgr.dtype != np.uint8:
            raise FrameError("size", f"{bgr.dtype} {bgr.shape}", f"uint8 {expected}", number)
        whole = (0, 0, index.width, index.height)
        if box_xyxy is None:
            boxes = [whole]
        else:
            boxes = [box_xyxy] if np.ndim(box_xyxy) == 1 else list(box_xyxy)
        boxes = [_coded_box(index, _clip(box, whole, number)) for box in boxes]
        changed = self._converter.to_yuv(
            _coded_image(index, bgr),
            *index.matrix_and_range,
            index.out_pix_fmt,
            bool(index.interlaced),
        )
        result = _copy(coded, index.coded_wh)
        across, down = index.chroma_grid
        planes = zip(_planes(result), _planes(changed), strict=True)
        for plane_index, (target, source) in enumerate(planes):
            x, y = (across, down) if plane_index else (1, 1)
            for left, top, right, bottom in boxes:
                inside = np.s_[top // y : bottom // y, left // x : right // x]
                target[inside] = source[inside]
        return result


def _color_options(index: VideoIndex) -> dict[str, str]:
    return {
        "colorspace": str(index.colorspace),
        "color_primaries": str(index.color_primaries),
        "color_trc": str(index.color_trc),
        "color_range": str(index.color_range),
    }


def _planes(frame: Any) -> list[Image]:
    """The planes of an 8-bit planar frame, uint8 ``(H, W)``, not copied."""
    rows = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    pairs = zip(rows, frame.planes, strict=True)
    return [row[: plane.height, : plane.width] for row, plane in pairs]


def _copy(frame: Any, size_wh: tuple[int, int]) -> Any:
    """A copy, extended on the right and at the bottom by its last values if `size_wh` is larger."""
    import av

    copy = av.VideoFrame(*size_wh, frame.format.name)
    for target, source in zip(_planes(copy), _planes(frame), strict=True):
        (rows, columns), (height, width) = target.shape, source.shape
        target[:height, :width] = source
        target[:height, width:columns] = source[:, -1:]
        target[height:rows] = target[height - 1 : height]
    return copy


def _coded_image(index: VideoIndex, bgr: Image) -> Image:
    """An upright image as in the file: rotated back, and extended to the coded size."""
    rotated = np.rot90(bgr, -index.quarter_turns)
    return pad_to(rotated[:, ::-1] if index.flipped else rotated, index.coded_wh)


def _clip(box_xyxy: _Box, whole: _Box, number: int) -> _Box:
    left, top = (max(int(value), 0) for value in box_xyxy[:2])
    right, bottom = min(int(box_xyxy[2]), whole[2]), min(int(box_xyxy[3]), whole[3])
    if right <= left or bottom <= top:
        expected = f"a box (left, top, right, bottom) that overlaps {whole}"
        raise FrameError("box", str(box_xyxy), expected, number)
    return left, top, right, bottom


def _coded_box(index: VideoIndex, box_xyxy: _Box) -> _Box:
    """A box of the upright image in the file's frame, extended to the chroma grid."""
    (left, top, right, bottom), width, height = box_xyxy, index.width, index.height
    for _ in range(-index.quarter_turns % 4):  # a quarter turn: (x, y) becomes (y, width - 1 - x)
        left, top, right, bottom = top, width - right, bottom, width - left
        width, height = height, width
    if index.flipped:
        left, right = width - right, width - left
    across, down = index.box_grid
    return (
        left // across * across,
        top // down * down,
        min(-(-right // across) * across, index.coded_wh[0]),
        min(-(-bottom // down) * down, index.coded_wh[1]),
    )
