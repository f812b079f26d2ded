"""Color conversion between decoded frames and BGR images, through FFmpeg's swscale."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Image
from .display_matrix import orientation

# AVCOL_SPC_BT709, _UNSPECIFIED, _BT470BG; AVCOL_RANGE_JPEG
_BT709, _UNSPECIFIED, _BT601, _FULL_RANGE = 1, 2, 5, 2
_MATRICES = {_BT709: "bt709", 4: "fcc", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_ANY_TIME = Fraction(1, 1000)  # a filter graph needs a clock; nothing here reads it


def matrix_and_range(
    colorspace: int, color_range: int, pix_fmt: str, height: int
) -> tuple[str, str]:
    """swscale's names of a YUV matrix (``"bt709"``) and range (``"tv"`` or ``"pc"``).

    Where the stream states no matrix, BT.709 is assumed from 720 coded lines on and BT.601 below.

    Args:
        colorspace: FFmpeg's number, ``AVCOL_SPC_*``.
        color_range: FFmpeg's number, ``AVCOL_RANGE_*``.
        pix_fmt: FFmpeg's name of the pixel format.
        height: coded lines.
    """
    default = _BT709 if height >= 720 else _BT601
    space = default if colorspace == _UNSPECIFIED else colorspace
    full = color_range == _FULL_RANGE or pix_fmt.startswith("yuvj")
    return _MATRICES.get(space, "bt601"), "pc" if full else "tv"


def field_order(frame: Any) -> str | None:
    """``"tff"`` or ``"bff"`` for an interlaced decoded frame, top or bottom field first; else None.

    PyAV does not say which; FFmpeg's filter ``separatefields`` gives the first field first. A frame
    whose fields are the same is ``"tff"``, the order of nearly all but DV.
    """
    if not frame.interlaced_frame:
        return None
    pts, time_base = frame.pts, frame.time_base
    frame.pts, frame.time_base = None, _ANY_TIME
    fields = _graph(frame, [("separatefields", "")])
    fields.push(frame)
    first = _first_plane(fields.pull())
    frame.pts, frame.time_base = pts, time_base
    lines = _first_plane(frame)
    bottom = not np.array_equal(first, lines[::2]) and np.array_equal(first, lines[1::2])
    return "bff" if bottom else "tff"


def _first_plane(frame: Any) -> NDArray[np.uint8]:
    """The bytes of the lines of a frame's first plane, without padding."""
    plane = frame.planes[0]
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width]


def _graph(frame: Any, filters: Sequence[tuple[str, str]]) -> Any:
    """A filter graph for frames like this one."""
    from av.filter import Graph

    graph: Any = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=_ANY_TIME
    )
    nodes = [source, *(graph.add(name, options) for name, options in filters)]
    nodes.append(graph.add("buffersink"))
    for node, following in zip(nodes, nodes[1:], strict=False):
        node.link_to(following)
    graph.configure()
    return graph


class PixelConverter:
    """Color conversion with accurate rounding; swscale's default is off by up to 4/255.

    It holds one filter graph, which is rebuilt when the size, format or color of the frames
    changes. Not thread-safe. An input frame loses its timestamp.

    Args:
        rotation_and_flip: what `to_bgr` does with every frame, as `orientation` returns it; None
            takes it from the first frame.
    """

    _EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"

    def __init__(self, rotation_and_flip: tuple[int, bool] | None = None) -> None:
        self._graph: Any = None
        self._key: tuple[Any, ...] = ()
        self._rotation_and_flip = rotation_and_flip

    def to_bgr(self, frame: Any) -> Image:
        """A decoded frame as BGR uint8 ``(H, W, 3)``, upright, C-contiguous.

        All frames of a video are rotated alike: a raw H.264 stream states its orientation only in
        some frames, and FFmpeg's decoding threads do not tell one another.
        """
        if self._rotation_and_flip is None:
            self._rotation_and_flip = orientation(frame)
        matrix, color_range = matrix_and_range(
            int(frame.colorspace), int(frame.color_range), frame.format.name, frame.height
        )
        options = f"in_color_matrix={matrix}:in_range={color_range}:out_range=pc"
        options += ":interl=1" if frame.interlaced_frame else ""
        image = self._run(frame, options, "bgr24").to_ndarray()
        quarter_turns, flipped = self._rotation_and_flip
        return np.ascontiguousarray(np.rot90(image[:, ::-1] if flipped else image, quarter_turns))

    def to_yuv(
        self,
        image_bgr: Image,
        matrix: str = "bt709",
        color_range: str = "tv",
        pix_fmt: str = "yuv420p",
        interlaced: bool = False,
    ) -> Any:
        """A BGR image as a frame of format `pix_fmt`, whose chroma grid its size must fit.

        The chroma of `interlaced` frames is shared within a field.

        For a ``yuvj`` format the result has the plain one with the same values: FFmpeg 7.0 accepts
        no matrix for the others.
        """
        import av

        frame = av.VideoFrame.from_ndarray(image_bgr, format="bgr24")
        options = f"out_color_matrix={matrix}:out_range={color_range}:interl={int(interlaced)}"
        return self._run(frame, options, pix_fmt.replace("yuvj", "yuv"))

    def to_format(self, frame: Any, matrix: str, color_range: str, pix_fmt: str) -> Any:
        """A decoded frame in another pixel format, with the same matrix and range."""
        options = f"in_color_matrix={matrix}:in_range={color_range}"
        options += f":out_color_matrix={matrix}:out_range={color_range}"
        options += ":interl=1" if frame.interlaced_frame else ""
        return self._run(frame, options, pix_fmt)

    def to_size(
        self, frame: Any, matrix: str, color_range: str, pix_fmt: str, size_wh: tuple[int, int]
    ) -> Any:
        """A decoded frame in another size, format, matrix and range."""
        of_source = matrix_and_range(
            int(frame.colorspace), int(frame.color_range), frame.format.name, frame.height
        )
        options = "w={}:h={}:in_color_matrix={}:in_range={}".format(*size_wh, *of_source)
        options += f":out_color_matrix={matrix}:out_range={color_range}"
        return self._run(frame, options, pix_fmt)

    def with_fields(self, frame: Any, order: str) -> Any:
        """A frame marked as interlaced, ``"tff"`` or ``"bff"``, for the encoder."""
        return self._filtered(frame, [("setfield", f"mode={order}")])

    def _run(self, frame: Any, options: str, pix_fmt: str) -> Any:
        scale = ("scale", f"{options}:{self._EXACT}")
        return self._filtered(frame, [scale, ("format", f"pix_fmts={pix_fmt}")])

    def _filtered(self, frame: Any, filters: list[tuple[str, str]]) -> Any:
        key = (frame.width, frame.height, frame.format.name, *filters)
        if key != self._key:
            self._graph, self._key = _graph(frame, filters), key
        frame.pts, frame.time_base = None, _ANY_TIME
        self._graph.push(frame)
        return self._graph.pull()
