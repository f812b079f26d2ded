"""Writing a stretch of a film: what was not changed goes to the encoder as it was."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import numpy as np

from ..errors import ConfigError, FrameError, MediaError
from ..media import Image, PathLike, PictureFile, PixelConverter
from .index import FilmIndex
from .reading import Shot

PRESETS = tuple("ultrafast superfast veryfast faster fast medium slow slower veryslow placebo".split())
_THREADS = 4  # x264's result depends on their number, so it must not follow the machine's
_Box = tuple[int, int, int, int]


class SegmentWriter(PictureFile):
    """Write consecutive frames of a film as an H.264 file of their own: a context manager.

    The file begins with a key frame, refers to nothing outside, and can be played alone; frame n of it is
    shown n / fps seconds after the beginning. It holds the pictures as the source's file does, not turned, with
    the source's matrix, range, primaries, transfer, chroma grid and pixel shape. Captions hidden in the picture
    stream (EIA-608) are left out. The same frames give the same bytes on every machine with the same x264.

    The file appears under its name only when the block ends well; see `media.PictureFile`.

    >>> with SegmentWriter("0001.mp4", index) as writer:  # doctest: +SKIP
    ...     for shot in read_segment("talk.mp4", index, 0, 250):
    ...         writer.write(shot, restored(shot.bgr), box_xyxy=(200, 120, 440, 400))

    Attributes:
        path: where to.
        count: frames written so far.
        index: the film's.
    """

    def __init__(self, path: PathLike, index: FilmIndex, crf: int = 18, preset: str = "medium") -> None:
        """Args:
            path: where to; the ending tells the container, ``.mp4`` or ``.mkv``. The folder must exist.
            index: the film that the frames come from.
            crf: x264's constant rate factor, 0 (lossless) to 51; 18 is hardly told from the original.
            preset: one of `PRESETS`; a slower one makes smaller files.

        Raises:
            ConfigError: `crf` or `preset` is impossible.
            MediaError: the file cannot be begun.
        """
        if not 0 <= crf <= 51:
            raise ConfigError("crf", crf, "a whole number from 0 to 51")
        if preset not in PRESETS:
            raise ConfigError("preset", preset, ", ".join(PRESETS))
        super().__init__(path)
        self.index, self._converter, self._next = index, PixelConverter(), -1
        options = {"crf": str(crf), "preset": preset, "a53cc": "0", "flags": "+cgop", **_colour_options(index)}
        self._begin(index.fps, index.coded_wh, index.out_pix_fmt, options)
        self._container.options["fflags"] = "+bitexact"
        ticks = lcm(index.fps.numerator, index.time_base.denominator)  # so that both clocks have whole numbers
        if self.path.suffix.lower() != ".mkv" and ticks < 2**31:
            self._container.options["video_track_timescale"] = str(ticks)
        codec = self._stream.codec_context
        codec.thread_count, codec.thread_type = _THREADS, "FRAME"
        if index.sample_aspect_ratio:
            codec.sample_aspect_ratio = index.sample_aspect_ratio

    def write(self, shot: Shot, bgr: Image | None = None, box_xyxy: _Box | Sequence[_Box] | None = None) -> None:
        """Append one frame; neither `shot` nor `bgr` is modified.

        Without `bgr` the source's own pixels go to the encoder (through one conversion where the source is not
        8-bit planar YUV). With it, only what lies in the box comes from `bgr`; everything else keeps the
        source's values exactly. An odd last column or row is doubled where the chroma needs it.

        Args:
            shot: the frame after the one written last.
            bgr: the whole changed picture, upright: BGR uint8 ``(index.height, index.width, 3)``, any strides.
            box_xyxy: where it changed: left, top, right, bottom in pixels of the upright picture, right and
                bottom exclusive; or several such boxes. Each is cut at the picture's edges and grown to the chroma
                grid; None is the whole picture.

        Raises:
            FrameError: another shape or dtype, a box without area, or a frame out of order.
            MediaError: the encoder or the disk refused, or the writer is closed.
        """
        if self._container is None:
            raise MediaError(self.path, "is closed already")
        if self._next not in (-1, shot.index):
            raise FrameError("order", f"frame {shot.index}", f"frame {self._next}", shot.index)
        picture = self._own(shot)
        if bgr is not None:
            picture = self._changed(picture, shot, bgr, box_xyxy)
        picture.pts, picture.time_base, picture.pict_type = self.count, 1 / self.index.fps, 0
        self._mux(picture)
        self.count, self._next = self.count + 1, shot.index + 1

    def _own(self, shot: Shot) -> Any:
        """The source's picture in the copy's format and size."""
        frame, index = shot.frame, self.index
        if frame.format.name != index.out_pix_fmt:
            frame = self._converter.to_format(frame, *index.matrix_and_range, index.out_pix_fmt)
        return frame if index.coded_wh == index.source_wh else _copied(frame, index.coded_wh)

    def _changed(self, picture: Any, shot: Shot, bgr: Image, box_xyxy: Any) -> Any:
        """A copy of `picture` with the boxes from `bgr`."""
        index, expected = self.index, (self.index.height, self.index.width, 3)
        if bgr.shape != expected or bgr.dtype != np.uint8:
            raise FrameError("size", f"{bgr.dtype} {bgr.shape}", f"uint8 {expected}", shot.index)
        whole = (0, 0, index.width, index.height)
        boxes = [whole] if box_xyxy is None else [box_xyxy] if np.ndim(box_xyxy) == 1 else list(box_xyxy)
        coded = [_coded_box(index, _cut(box, whole, shot.index)) for box in boxes]
        new = self._converter.to_yuv(_as_coded(index, bgr), *index.matrix_and_range, index.out_pix_fmt)
        result = _copied(picture, index.coded_wh)
        across, down = index.chroma_grid
        for at, (target, source) in enumerate(zip(_planes(result), _planes(new), strict=True)):
            x, y = (across, down) if at else (1, 1)
            for left, top, right, bottom in coded:
                inside = np.s_[top // y : bottom // y, left // x : right // x]
                target[inside] = source[inside]
        return result


def _colour_options(index: FilmIndex) -> dict[str, str]:
    return {
        "colorspace": str(index.colorspace),
        "color_primaries": str(index.color_primaries),
        "color_trc": str(index.color_trc),
        "color_range": str(index.color_range),
    }


def _planes(frame: Any) -> list[Image]:
    """The planes of an 8-bit planar frame, uint8 ``(H, W)``, not copied."""
    rows = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    return [row[: plane.height, : plane.width] for row, plane in zip(rows, frame.planes, strict=True)]


def _copied(frame: Any, size_wh: tuple[int, int]) -> Any:
    """A copy, its planes continued on the right and below by their last values where `size_wh` is larger."""
    import av

    copy = av.VideoFrame(*size_wh, frame.format.name)
    for target, source in zip(_planes(copy), _planes(frame), strict=True):
        (rows, columns), (height, width) = target.shape, source.shape
        target[:height, :width] = source
        target[:height, width:columns] = source[:, -1:]
        target[height:rows] = target[height - 1 : height]
    return copy


def _as_coded(index: FilmIndex, bgr: Image) -> Image:
    """An upright picture as the file holds it: turned back, and continued to the coded size."""
    turned = np.rot90(bgr, -index.turns)
    turned = turned[:, ::-1] if index.mirrored else turned
    pads = [(0, index.coded_wh[1] - turned.shape[0]), (0, index.coded_wh[0] - turned.shape[1]), (0, 0)]
    return np.ascontiguousarray(np.pad(turned, pads, mode="edge") if any(map(any, pads)) else turned)


def _cut(box_xyxy: _Box, whole: _Box, at: int) -> _Box:
    left, top = (max(int(value), 0) for value in box_xyxy[:2])
    right, bottom = min(int(box_xyxy[2]), whole[2]), min(int(box_xyxy[3]), whole[3])
    if right <= left or bottom <= top:
        raise FrameError("box", str(box_xyxy), f"a box (left, top, right, bottom) that touches {whole}", at)
    return left, top, right, bottom


def _coded_box(index: FilmIndex, box_xyxy: _Box) -> _Box:
    """A box of the upright picture in the file's picture, grown to the chroma grid."""
    (left, top, right, bottom), width, height = box_xyxy, index.width, index.height
    for _ in range(-index.turns % 4):  # turned left once, (x, y) becomes (y, width - 1 - x)
        left, top, right, bottom = top, width - right, bottom, width - left
        width, height = height, width
    if index.mirrored:
        left, right = width - right, width - left
    across, down = index.chroma_grid
    grown = (left // across * across, top // down * down, -(-right // across) * across, -(-bottom // down) * down)
    return grown[0], grown[1], min(grown[2], index.coded_wh[0]), min(grown[3], index.coded_wh[1])
