"""The boundary: what a host hands over is checked here, taken apart, and put together again.

Inside, faces are float32 (N, 3, H, W), RGB, 0..1. Outside they are whatever the host uses, and go
back so.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError
from ..runtime.threads import for_each

if TYPE_CHECKING:
    import torch

MIN_SIDE, MAX_SIDE = 16, 8192
"""Sides of a face crop that make sense, in pixels."""

RANGES = {"0..1": (0.0, 1.0), "0..255": (0.0, 255.0), "-1..1": (-1.0, 1.0)}
OVERSHOOT = 0.05
"""A decoder may overshoot its range by this share of it; such values are clamped, not refused."""

Extent = tuple[float, float]
"""Lowest and highest value of a frame."""

FEW = 0.01
"""Share of a frame's values that may lie outside its range and are clamped."""
WHOLE_FRAME_WH = (1280, 720)
"""Sides from which on a frame looks like a whole video frame, not like a face crop, in pixels."""

_NEEDED = "a (H, W, 3) uint8 or float array, or a (3, H, W) tensor"


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_frame(value: object) -> bool:
    """Whether `value` is an array or a tensor at all."""
    return isinstance(value, np.ndarray) or is_tensor(value)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays or tensors have one type and the same values; None equals None only."""
    if not is_frame(one) or not is_frame(other):
        return one is other
    if (
        is_tensor(one) is not is_tensor(other)
        or one.dtype != other.dtype
        or one.shape != other.shape
    ):
        return False
    if is_tensor(one):
        import torch

        return one.device == other.device and torch.equal(one, other)
    return bool(np.array_equal(one, other))


@dataclass
class FrameBatch:
    """A host's batch, frame by frame, with what is wrong with each.

    Attributes:
        source: the host's frames, taken out of a container of another type.
        kind: ``"array"``, ``"tensor"``, ``"list"`` or ``"tuple"``.
        frames: views of the single frames.
        problems: index to error of the frames that cannot be restored.
        value_range: lowest and highest value of float frames, None when there are none.
        previous_range: what the stream's float frames have shown before; None at its beginning.
        range_shown: False where the frames are black, so that the range is a guess that the stream
            forgets.
        color: order of the channels, where the container decides it: PIL images are RGB. None
            elsewhere.
    """

    source: Any
    kind: str
    frames: Sequence[Any]
    problems: dict[int, FrameError] = field(default_factory=dict)
    value_range: tuple[float, float] | None = None
    previous_range: tuple[float, float] | None = None
    range_shown: bool = True
    color: str | None = None
    _pack: Callable[[Any], Any] | None = None

    @classmethod
    def open(
        cls, source: Any, value_range: str = "auto", previous: tuple[float, float] | None = None
    ) -> FrameBatch:
        """Take a batch apart and check every frame.

        Args:
            source: (N, H, W, 3) array, (N, 3, H, W) or (N, H, W, 3) tensor, a list or tuple of
                frames; a single frame as array, tensor or PIL image; a list or tuple of PIL images;
                or a (B, F, 3, H, W) tensor.
            value_range: a key of `RANGES`, or ``"auto"``.
            previous: range that earlier frames of the same stream have shown.

        Raises:
            FrameError: `source` is none of these, so that nothing of it can be restored.
        """
        source, pack, color = unpacked(source)
        if isinstance(source, np.ndarray):
            kind = "array"
        elif is_tensor(source):
            kind = "tensor"
        else:
            kind = "tuple" if isinstance(source, tuple) else "list"
        if is_tensor(source) and (problem := _storage_problem(source)):
            raise FrameError(*problem)
        batch = cls(source, kind, source, previous_range=previous, color=color, _pack=pack)
        batch._check(value_range)
        return batch

    def warn(self, warn_once: Callable[..., None]) -> None:
        """Say, once a stream, what is odd about frames that are restored all the same."""
        previous, current = self.previous_range, self.value_range
        if previous is not None and current is not None and previous != current:
            warn_once(
                f"range {current}",
                "float frames were in %g..%g and are now in %g..%g; set value_range explicitly",
                *previous,
                *current,
            )
        sizes = {self.size_hw(index) for index in range(len(self)) if index not in self.problems}
        for height, width in sizes:
            if max(height, width) >= WHOLE_FRAME_WH[0] and min(height, width) >= WHOLE_FRAME_WH[1]:
                warn_once(
                    "whole frame",
                    "frames of %dx%d pixels look like whole video frames, but each is restored "
                    "as one face crop; use `musetalk-enhance video` or restore_images for whole "
                    "frames",
                    width,
                    height,
                )

    def __len__(self) -> int:
        return len(self.frames)

    def _check(self, value_range: str) -> None:
        floats = []
        for index, frame in enumerate(self.frames):
            problem = _form_problem(frame)
            if problem:
                self.problems[index] = FrameError(*problem, index=index)
            elif _is_float(frame):
                floats.append(index)
        extents: dict[int, Extent] = {}
        for index, extent in zip(
            floats, _extents([self.frames[index] for index in floats]), strict=True
        ):
            if isinstance(extent, Exception):
                actual = f"values that cannot be read ({extent})"
                self.problems[index] = FrameError("unreadable", actual, _NEEDED, index=index)
            elif not np.isfinite(extent).all():
                actual = "NaN or infinite values"
                self.problems[index] = FrameError("nonfinite", actual, "finite values", index=index)
            else:
                extents[index] = extent
        if extents:
            self._check_range(extents, value_range)

    def _check_range(self, extents: dict[int, Extent], value_range: str) -> None:
        self.value_range = RANGES.get(value_range) or self._range_told_by(extents)
        for index, extent in extents.items():
            if self.value_range is None or not self._within(index, extent, self.value_range):
                expected = (
                    f"{self.value_range[0]:g}..{self.value_range[1]:g}"
                    if self.value_range
                    else "0..1"
                )
                self.problems[index] = FrameError(
                    "range",
                    f"float values from {extent[0]:g} to {extent[1]:g}",
                    f"values in {expected}, or another value_range ({' | '.join(RANGES)})",
                    index=index,
                )

    def _range_told_by(self, extents: dict[int, Extent]) -> tuple[float, float] | None:
        """The stream's previous range, unless most frames are outside; else the guess."""
        if self.previous_range is not None:
            fitting = sum(
                self._within(index, extent, self.previous_range)
                for index, extent in extents.items()
            )
            if 2 * fitting >= len(extents):
                return self.previous_range
        unit = RANGES["0..1"]
        typical = [
            unit if self._within(index, extent, unit) else extent
            for index, extent in extents.items()
        ]
        self.range_shown = any(
            extent[1] > OVERSHOOT or extent[0] < -OVERSHOOT for extent in extents.values()
        )
        return _guess_range(typical) or self.previous_range

    def _within(self, index: int, extent: Extent, value_range: tuple[float, float]) -> bool:
        """Whether all values of a frame but a `FEW` are in a range."""
        if _fits(extent, value_range):
            return True
        low, high = value_range
        if extent[0] < low - 2 * (high - low) or extent[1] > high + 2 * (high - low):
            return False
        slack = OVERSHOOT * (high - low)
        frame: Any = self.frames[index]
        frame = _wide(frame.detach()) if is_tensor(frame) else frame
        outside = (frame < low - slack) | (frame > high + slack)
        return bool(
            float(outside.sum()) <= FEW * (frame.numel() if is_tensor(frame) else frame.size)
        )

    def groups(self) -> list[list[int]]:
        """Indices of the good frames, those of one size and type together, in order."""
        if self.kind in ("array", "tensor"):
            good = [index for index in range(len(self)) if index not in self.problems]
            return [good] if good else []
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, frame in enumerate(self.frames):
            if index not in self.problems:
                key = (
                    is_tensor(frame),
                    tuple(frame.shape),
                    frame.dtype,
                    getattr(frame, "device", None),
                )
                groups.setdefault(key, []).append(index)
        return list(groups.values())

    def runs(self) -> list[list[int]]:
        """Like `groups`, but each run holds consecutive good frames, for work in order of time."""
        kinds = {index: kind for kind, group in enumerate(self.groups()) for index in group}
        return [list(run) for _, run in groupby(sorted(kinds), key=kinds.__getitem__)]

    def size_hw(self, index: int) -> tuple[int, int]:
        """Height and width of a good frame, in pixels."""
        shape = self.frames[index].shape
        return (shape[1], shape[2]) if _is_chw(self.frames[index]) else (shape[0], shape[1])

    def to_network(self, indices: Sequence[int], device: torch.device, color: str) -> torch.Tensor:
        """Frames of one group as float32 (n, 3, H, W), RGB, 0..1, on `device`."""
        import torch

        first = self.frames[indices[0]]
        whole = len(indices) == len(self) and self.kind in ("array", "tensor")
        if is_tensor(first):
            stacked = self.source if whole else torch.stack([self.frames[i] for i in indices])
            stacked = stacked.detach().to(device)
            faces = stacked if _is_chw(first) else stacked.permute(0, 3, 1, 2)
        else:
            array = self.source if whole else np.stack([self.frames[i] for i in indices])
            # torch takes no negative stride, nothing read-only, no foreign order of bytes
            array = np.require(_native(array), requirements=("C", "W"))
            faces = _sent(torch.from_numpy(array), device).permute(0, 3, 1, 2)
        if color == "bgr":
            faces = faces.flip(1)
        low, high = self._range_of(first)
        faces = faces.float()
        return (faces - low).div_(high - low).clamp_(0, 1)

    def from_network(
        self,
        rows_rgb: torch.Tensor,
        indices: Sequence[int],
        color: str,
        touched: torch.Tensor | None = None,
        first_row: int = 0,
    ) -> Any:
        """Restored frames in the layout, dtype, range, color order and device of their inputs.

        Args:
            rows_rgb: float32 (n, 3, R, W), RGB, 0..1: the frames from `first_row` down.
            indices: the frames of one group that they were made from.
            color: order of the channels to return.
            touched: bool (1 or n, 1, R, W); elsewhere the frame's own values are returned bit
                for bit, where it has that size. None: everywhere in the rows.
            first_row: above it the frame's own values are returned.

        Returns:
            An array (n, H, W, 3), or a tensor in the layout of the frames; C-contiguous.
        """
        rows = self._converted(rows_rgb, indices[0], color)
        size_hw = (first_row + int(rows_rgb.shape[2]), int(rows_rgb.shape[3]))
        if (touched is None and not first_row) or self.size_hw(indices[0]) != size_hw:
            return rows
        first = self.frames[indices[0]]
        if not is_tensor(first):
            whole = np.stack([self.frames[index] for index in indices])
            whole = whole.astype(first.dtype, copy=False)  # its order of bytes, too
            if touched is None:
                whole[:, first_row:] = rows
            else:
                where = np.broadcast_to(touched.permute(0, 2, 3, 1).cpu().numpy(), rows.shape)
                np.copyto(whole[:, first_row:], rows, where=where)
            return whole
        import torch

        out = torch.stack([self.frames[index].detach() for index in indices])
        chw = _is_chw(first)
        place = out[:, :, first_row:] if chw else out[:, first_row:]
        if touched is None:
            place.copy_(rows)
        else:
            mask = (touched if chw else touched.permute(0, 2, 3, 1)).to(out.device)
            place.copy_(torch.where(mask, rows, place))
        return out

    def _converted(self, faces_rgb: torch.Tensor, index: int, color: str) -> Any:
        import torch

        first = self.frames[index]
        low, high = self._range_of(first)
        if faces_rgb.device.type == "cpu" and not is_tensor(first) and first.dtype == np.uint8:
            return _to_uint8(faces_rgb, color)
        faces = faces_rgb.flip(1) if color == "bgr" else faces_rgb
        faces = faces.clamp(0, 1)
        if not _is_float(first):
            faces = faces.mul(255).round_().to(torch.uint8)
        else:
            faces = faces.mul(high - low).add_(low)
        if is_tensor(first):
            faces = faces if _is_chw(first) else faces.permute(0, 2, 3, 1)
            return faces.to(device=first.device, dtype=first.dtype).contiguous()
        return faces.permute(0, 2, 3, 1).contiguous().cpu().numpy().astype(first.dtype, copy=False)

    def repeats(self, indices: Sequence[int], previous: Any) -> list[bool]:
        """Whether each frame of one group has the same bits as the one before it.

        Args:
            indices: frames that follow one another.
            previous: the frame before the first, of any kind; None where there is none.
        """
        earlier = [previous, *(self.frames[index] for index in indices[:-1])]
        frames = [self.frames[index] for index in indices]
        if not is_tensor(frames[0]) or not frames[0].is_cuda:
            pairs = zip(frames, earlier, strict=True)
            return [other is not None and same_bits(frame, other) for frame, other in pairs]
        import torch

        first = previous is not None and _same_form(frames[0], previous)
        start = 0 if first else 1
        same = [(a == b).all() for a, b in zip(frames[start:], earlier[start:], strict=True)]
        # one wait for the GPU, not one a frame
        answers = torch.stack(same).tolist() if same else []
        return answers if first else [False, *answers]

    def own(self, index: int) -> Any:
        """A copy of frame `index`."""
        frame = self.frames[index]
        return frame.detach().clone() if is_tensor(frame) else np.array(frame)

    def _range_of(self, frame: Any) -> tuple[float, float]:
        return self.value_range if _is_float(frame) and self.value_range else RANGES["0..255"]

    def has_size(self, index: int) -> bool:
        """Whether frame `index` is an image with three channels, so that it can be resized."""
        return _form_problem(self.frames[index]) is None

    def copy(self) -> Any:
        """A copy of the host's frames; C-contiguous if it is an array."""
        if self.kind == "array":
            copy = np.array(self.source, order="C")
        else:
            copy = self.source.detach().clone() if self.kind == "tensor" else self.source[:]
        return copy if self._pack is None else self._pack(copy)

    def passthrough(self, index: int, size_hw: tuple[int, int] | None) -> Any:
        """A C-contiguous copy of input frame `index`, resized to `size_hw` unless that is None."""
        frame = self.frames[index]
        if not is_frame(frame):
            return frame
        frame = frame.detach() if is_tensor(frame) else frame
        if size_hw is not None:
            frame = _resized(frame, size_hw)
        if not is_tensor(frame):
            return np.array(frame, order="C")
        return frame.clone() if _storage_problem(frame) else frame.contiguous().clone()

    def close(self, results: Sequence[Any]) -> Any:
        """One result per frame, in the container the host used."""
        results = self._in_sequence(results)
        return results if self._pack is None else self._pack(results)

    def _in_sequence(self, results: Sequence[Any]) -> Any:
        if self.kind == "list":
            return list(results)
        if self.kind == "tuple":
            return tuple(results)
        if self.kind == "tensor":
            import torch

            return torch.stack(list(results))
        # stacking forgets the order of the bytes
        return np.stack(results).astype(self.source.dtype, copy=False)


def unpacked(source: Any) -> tuple[Any, Callable[[Any], Any] | None, str | None]:
    """Frames from another container, the function that restores it, and its color order.

    Raises:
        FrameError: it holds no frames.
    """
    if _is_pil(source):
        return [np.asarray(source)], lambda frames: _to_pil(frames[0]), "rgb"
    if isinstance(source, (list, tuple)) and source and all(_is_pil(each) for each in source):
        kind = type(source)
        return (
            [np.asarray(each) for each in source],
            lambda frames: kind(_to_pil(each) for each in frames),
            "rgb",
        )
    if isinstance(source, (list, tuple)):
        return source, None, None
    if not is_frame(source):
        expected = "an array, tensor, list or tuple of frames, or PIL images"
        raise FrameError("container", type(source).__name__, expected)
    if source.ndim == 4:
        return source, None, None
    channels = (source.shape[0], source.shape[-1]) if is_tensor(source) else source.shape[-1:]
    if source.ndim == 3 and any(number in (1, 3, 4) for number in channels):
        return source[None], lambda frames: frames[0], None
    if is_tensor(source) and source.ndim == 5 and source.shape[2] == 3:
        batch, frames = source.shape[:2]
        return source.flatten(0, 1), lambda results: results.unflatten(0, (batch, frames)), None
    axes = "(N, 3, H, W) or (B, F, 3, H, W)" if is_tensor(source) else "(N, H, W, 3)"
    shape = f"{source.ndim} axes, shape {tuple(source.shape)}"
    raise FrameError("shape", shape, f"a batch of shape {axes}, or one frame")


def _is_pil(value: object) -> bool:
    image = sys.modules.get("PIL.Image")
    return image is not None and isinstance(value, image.Image)


def _to_pil(frame: Any) -> Any:
    from PIL import Image

    return Image.fromarray(np.asarray(frame))


def _same_form(frame: Any, other: Any) -> bool:
    return is_tensor(other) and (frame.dtype, frame.shape, frame.device) == (
        other.dtype,
        other.shape,
        other.device,
    )


def _sent(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Pixels on `device`; copied to a GPU from pinned memory, without waiting."""
    if device.type == "cuda" and not pixels.is_cuda:
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


def _is_float(frame: Any) -> bool:
    if is_tensor(frame):
        return bool(frame.is_floating_point())
    return bool(np.issubdtype(frame.dtype, np.floating))


def _is_chw(frame: Any) -> bool:
    return is_tensor(frame) and frame.shape[0] == 3


def _form_problem(frame: Any) -> tuple[str, str, str] | None:
    """(reason, actual, expected) of a frame whose form is wrong, None of a good one."""
    if not is_frame(frame):
        return "type", type(frame).__name__, _NEEDED
    try:
        return _storage_problem(frame) or _shape_problem(frame) or _dtype_problem(frame)
    except Exception as error:  # a tensor of a kind that does not even tell its shape
        return "unreadable", f"{type(frame).__name__} ({error})", _NEEDED


def _storage_problem(frame: Any) -> tuple[str, str, str] | None:
    if not is_tensor(frame):
        return None
    if frame.is_meta:
        return "storage", "a tensor on the meta device, without values", _NEEDED
    if str(frame.layout) != "torch.strided":
        return "storage", f"a tensor of layout {frame.layout}", "a dense tensor (to_dense())"
    return None


def _shape_problem(frame: Any) -> tuple[str, str, str] | None:
    shape = tuple(frame.shape)
    if len(shape) == 2:
        return "channels", f"a gray image of shape {shape}", "three color channels"
    if len(shape) != 3:
        return "shape", f"shape {shape}", _NEEDED
    chw = _is_chw(frame)
    channels = shape[0] if chw else shape[2]
    if channels != 3:
        name = {1: "a gray image", 4: "an image with alpha"}.get(channels, f"{channels} channels")
        return "channels", f"{name} of shape {shape}", "three color channels"
    height, width = shape[1:] if chw else shape[:2]
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        return "size", f"{width}x{height} pixels", f"sides from {MIN_SIDE} to {MAX_SIDE} pixels"
    return None


def _dtype_problem(frame: Any) -> tuple[str, str, str] | None:
    if not is_tensor(frame) and _is_float(frame) and frame.dtype.itemsize > 8:
        return "dtype", f"values of type {frame.dtype}", "uint8, or float of at most 64 bits"
    if not _is_float(frame) and str(frame.dtype).removeprefix("torch.") != "uint8":
        return "dtype", f"values of type {frame.dtype}", "uint8 or float"
    return None


def _extents(frames: Sequence[Any]) -> list[Extent | Exception]:
    """Minimum and maximum of each frame (NaN if it has one), or the error on reading it.

    Those of tensors come to the CPU together: each figure asked for singly would wait for the GPU.
    """
    extents: dict[int, Extent | Exception] = {}
    pending: dict[object, list[int]] = {}
    for position, frame in enumerate(frames):
        if is_tensor(frame):
            pending.setdefault((frame.device, frame.dtype), []).append(position)
        else:
            extents[position] = float(frame.min()), float(frame.max())
    for positions in pending.values():
        extents |= dict(
            zip(positions, _tensor_extents([frames[i] for i in positions]), strict=True)
        )
    return [extents[position] for position in range(len(frames))]


def _tensor_extents(frames: Sequence[torch.Tensor]) -> list[Extent | Exception]:
    """Extents of tensors of one type on one device: together, or singly where that fails."""
    import torch

    try:
        both = torch.stack([torch.stack(_wide(frame.detach()).aminmax()) for frame in frames])
        return [(low, high) for low, high in both.tolist()]
    except Exception as error:
        if len(frames) == 1:
            return [error]
    return [extent for frame in frames for extent in _tensor_extents([frame])]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Floats below 32 bits as float32: torch cannot compare all of them."""
    return tensor if tensor.element_size() >= 4 else tensor.float()


def _fits(extent: tuple[float, float], value_range: tuple[float, float]) -> bool:
    slack = OVERSHOOT * (value_range[1] - value_range[0])
    return extent[0] >= value_range[0] - slack and extent[1] <= value_range[1] + slack


def _guess_range(extents: list[tuple[float, float]]) -> tuple[float, float] | None:
    """The range that most frames indicate; None if they indicate none.

    Values well below 0, down to -1, mean -1..1, values over 8 mean 0..255. What stays within 0..1
    (a decoder may undershoot a little) fits all three and follows the others; values that end
    between 1 and 8 speak for nothing.
    """
    votes: Counter[str] = Counter()
    for low, high in extents:
        if _fits((low, high), RANGES["0..1"]):
            votes["0..1"] += 1
        elif _fits((low, high), RANGES["-1..1"]):
            votes["-1..1"] += 1
        elif high >= 8 and _fits((low, high), RANGES["0..255"]):
            votes["0..255"] += 1
    if votes["-1..1"] and votes["-1..1"] + votes["0..1"] > votes["0..255"]:
        return RANGES["-1..1"]
    best = max(votes, key=lambda name: (votes[name], name == "0..255"), default=None)
    return RANGES[best] if best else None


def levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 (..., W), 0..1, as uint8 of the same shape: rounded half to even, saturated."""
    import cv2

    add: Any = cv2.add
    scaled = np.multiply(values, np.float32(255)).reshape(-1, values.shape[-1])
    return np.asarray(add(scaled, 0, dtype=cv2.CV_8U), np.uint8).reshape(values.shape)


def _to_uint8(faces_rgb: torch.Tensor, color: str) -> NDArray[np.uint8]:
    """float32 (N, 3, H, W), RGB, 0..1 to uint8 (N, H, W, 3), rounded half to even."""
    import cv2

    number, _, height, width = faces_rgb.shape
    result = np.empty((number, height, width, 3), np.uint8)
    order = (2, 1, 0) if color == "bgr" else (0, 1, 2)

    def convert(face: Any, out: Any) -> None:
        cv2.merge([levels(face[channel]) for channel in order], dst=out)

    for_each(convert, faces_rgb.numpy(), result)
    return result


def _native(array: np.ndarray) -> np.ndarray:
    """`array` with its bytes in the machine's own order, the only one torch takes."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _resized(frame: Any, size_hw: tuple[int, int]) -> Any:
    import torch
    from torch.nn.functional import interpolate

    shape = tuple(frame.shape)
    if (shape[1:] if _is_chw(frame) else shape[:2]) == tuple(size_hw):
        return frame
    tensor = frame if is_tensor(frame) else torch.from_numpy(np.ascontiguousarray(_native(frame)))
    chw = tensor if _is_chw(frame) else tensor.permute(2, 0, 1)
    enlarged = interpolate(chw[None].float(), size=size_hw, mode="bicubic", antialias=True)[0]
    if not _is_float(frame):
        enlarged = enlarged.round().clamp(0, 255)
    enlarged = (enlarged if _is_chw(frame) else enlarged.permute(1, 2, 0)).to(tensor.dtype)
    return (
        enlarged
        if is_tensor(frame)
        else enlarged.contiguous().numpy().astype(frame.dtype, copy=False)
    )
