"""Occlusions: what covers a face, such as a hand or a microphone, is never restored.

Internally, a *visibility* is float32 (n, 1, H, W): 1 where the face is visible and may be restored,
0 where it is covered. Hosts pass the opposite: a mask that is nonzero where the face is covered,
see `host_mask`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, FrameError, RestorerError
from ..frames.batch import is_tensor
from ..runtime.onnx_session import open_session

if TYPE_CHECKING:
    import torch

SIDE = 256
"""Side of an occluder's input where its graph has a dynamic size, in pixels."""
FEATHER = 5 / 512
"""Standard deviation of the blur of a visibility's edges, as a share of the face's longer side."""

_BATCH = 8  # faces in one run of a graph with a dynamic batch
_FLOAT = "tensor(float)"
_EXPECTED = (
    "an occluder: one float32 input (N, H, W, 3) or (N, 3, H, W), one output with a single channel"
)


class Occluder:
    """Detects occlusions with an ONNX graph like ``dfl_xseg.onnx``.

    FaceFusion's ``xseg_1`` to ``xseg_3`` are such graphs, from DeepFaceLab's XSeg. The interface is
    FaceFusion's: the input is a face, BGR, 0..1, 256x256, as float32 (N, 256, 256, 3); the output
    is a mask with one channel, 1 where the face is visible and 0 where it is covered. The input is
    bound by its own name, its layout and size are read from the graph, and its batch may be fixed
    or dynamic.

    Args:
        path: the .onnx file; the table of weights has none (DeepFaceLab's are under GPL-3.0).
        provider: see `open_session`; ``"auto"`` is ``"cuda"`` where `device` is a GPU and it
            starts.
        device: where the faces are.
        execution: further arguments of `open_session`.

    Attributes:
        channels_last: whether the graph takes (N, H, W, 3).
        size_hw: height and width of its input, in pixels.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        MissingWeightError: there is no file at `path`.
        CheckpointError: the file is not an ONNX graph, or not an occluder.
        ConfigError: an unknown provider.
        RestorerError: onnxruntime does not have the provider, or it does not start.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        provider: str = "cpu",
        device: torch.device | None = None,
        **execution: Any,
    ) -> None:
        from ..weights import open_file

        self.path = open_file(path).path
        if self.path.suffix.lower() != ".onnx":
            raise CheckpointError(self.path, f"a {self.path.suffix} file", "an .onnx file")
        is_gpu = device is not None and device.type == "cuda"
        if provider == "auto":
            provider, execution["allow_cpu"] = "cuda" if is_gpu else "cpu", True
        if device is not None and is_gpu:
            execution["device_id"] = device.index or 0
        self._session = open_session(self.path, provider, **execution)
        inputs = self._session.get_inputs()
        shape: list[Any] = list(inputs[0].shape) if len(inputs) == 1 else []
        if len(shape) != 4 or inputs[0].type != _FLOAT or (shape[1] == 3) == (shape[3] == 3):
            signature = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            actual = f"a graph with the input {signature or 'no input'}"
            raise CheckpointError(self.path, actual, _EXPECTED)
        self._input: str = inputs[0].name
        self._outputs: list[str] = [one.name for one in self._session.get_outputs()]
        self.channels_last: bool = shape[3] == 3
        height, width = shape[1:3] if self.channels_last else shape[2:]
        self.size_hw = (
            height if isinstance(height, int) else SIDE,
            width if isinstance(width, int) else SIDE,
        )
        self._batch: int | None = shape[0] if isinstance(shape[0], int) else None
        self._try()

    def mask(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """The visibility of each face.

        The graph's mask is clamped to 0..1, resized to the faces and feathered (`feathered`).

        Args:
            faces_rgb: float32 (n, 3, H, W), RGB, 0..1, each filled by a face, as a host's crop or
                an aligned face is.

        Returns:
            float32 (n, 1, H, W), 1 visible, 0 covered, same device.

        Raises:
            FrameError: `faces_rgb` has another dtype or shape.
            RestorerError: the graph failed, or returned NaN.
        """
        import torch
        from torch.nn.functional import interpolate

        from ..frames.resize import resize

        if faces_rgb.ndim != 4 or faces_rgb.shape[1] != 3 or not faces_rgb.is_floating_point():
            actual = f"{faces_rgb.dtype} of shape {tuple(faces_rgb.shape)}"
            raise FrameError("shape", actual, "a float tensor (n, 3, H, W)")
        height, width = faces_rgb.shape[2:]
        if len(faces_rgb) == 0:
            return faces_rgb.new_empty((0, 1, height, width), dtype=torch.float32)
        resized = resize(faces_rgb.detach().float(), self.size_hw, enlarge="bilinear")
        faces_bgr = resized.flip(1).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        mask = torch.from_numpy(self.masks(faces_bgr)).to(faces_rgb.device)
        visibility = interpolate(
            mask, size=(height, width), mode="bilinear", align_corners=False, antialias=True
        )
        return feathered(visibility.clamp_(0, 1))

    def masks(self, faces_bgr: np.ndarray) -> np.ndarray:
        """The graph's own masks, without torch: float32 (n, 1, h, w), 1 visible, 0 covered.

        Args:
            faces_bgr: float32 (n, *size_hw, 3), BGR, 0..1.

        Raises:
            RestorerError: the graph failed, or returned NaN.
        """
        inputs = faces_bgr if self.channels_last else faces_bgr.transpose(0, 3, 1, 2)
        return self._run(np.ascontiguousarray(inputs))

    def close(self) -> None:
        """Free the graph; the occluder cannot be used afterwards."""
        self._session = None

    def _try(self) -> None:
        """Run the graph once, which is the only way to know the shape of its output."""
        count = self._batch or 1
        shape = (count, *self.size_hw, 3) if self.channels_last else (count, 3, *self.size_hw)
        try:
            self._run(np.full(shape, 0.5, np.float32))
        except RestorerError as error:
            actual = f"a graph that does not run as one ({error})"
            raise CheckpointError(self.path, actual, _EXPECTED) from error

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        """The masks (n, 1, h, w) float32 of all inputs, in batches of the graph's size."""
        size = self._batch or _BATCH
        masks = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            count = len(part)
            if self._batch and count < self._batch:
                part = np.concatenate((part, part[-1:].repeat(self._batch - count, axis=0)))
            try:
                outputs = self._session.run(self._outputs, {self._input: part})
            except Exception as error:
                message = f"the occluder failed: {type(error).__name__}: {error}"
                raise RestorerError(message) from error
            masks.append(self._one_channel(outputs, len(part))[:count])
        return np.concatenate(masks)

    def _one_channel(self, outputs: list[Any], count: int) -> np.ndarray:
        """The first output with one channel, as float32 (count, 1, h, w)."""
        for array in outputs:
            if not isinstance(array, np.ndarray) or array.ndim not in (3, 4) or len(array) != count:
                continue
            if array.ndim == 3:
                array = array[:, None]
            elif array.shape[1] != 1 and array.shape[3] == 1:
                array = array.transpose(0, 3, 1, 2)
            if array.shape[1] == 1:
                if not np.isfinite(array).all():
                    raise RestorerError("the occluder returned NaN or infinite values")
                return np.ascontiguousarray(array, np.float32)
        shapes = ", ".join(str(getattr(array, "shape", type(array).__name__)) for array in outputs)
        raise RestorerError(f"the occluder returned {shapes}; expected ({count}, height, width, 1)")


def feathered(visibility: torch.Tensor, feather: float = FEATHER) -> torch.Tensor:
    """Feather the edges of a visibility on their visible side: covered pixels stay fully covered.

    ``min(v, max(0, 1 - 2 blur(1 - v)))``: the blur is 1/2 on a straight edge, so the result is 0
    there. FaceFusion ends its masks in the same way; the minimum keeps thin objects, which a blur
    would wash away. Far from covered pixels, 1 stays exactly 1.

    Args:
        visibility: float32 (n, 1, H, W), 1 visible, 0 covered.
        feather: standard deviation of the blur as a share of the longer side; 0 changes nothing.

    Returns:
        A new tensor of the same shape, nowhere larger.
    """
    import torch
    from torch.nn.functional import conv2d, pad

    sigma = feather * max(visibility.shape[2:])
    radius = int(np.ceil(3 * sigma))
    if radius < 1:
        return visibility.clone()
    steps = torch.arange(-radius, radius + 1, device=visibility.device, dtype=torch.float32)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    blurred = pad(1 - visibility, (radius, radius, 0, 0), mode="replicate")
    blurred = conv2d(blurred, weights[None, None, None])
    blurred = pad(blurred, (0, 0, radius, radius), mode="replicate")
    blurred = conv2d(blurred, weights[None, None, :, None])
    return (1 - 2 * blurred).clamp_(0, 1).minimum(visibility)


def host_mask(
    mask: Any,
    count: int,
    size_hw: tuple[int, int],
    *,
    device: torch.device | str | None = None,
    soft: bool = False,
    feather: float = FEATHER,
) -> torch.Tensor:
    """Convert a host's occlusion mask to a visibility.

    In the host's mask **a nonzero value means covered**: that pixel is never restored. So bool
    masks, uint8 masks of 0 and 1 or of 0 and 255, and float masks of 0 and 1 all mean the same.
    With `soft` the values are shares instead: 255 (1.0 in a float mask) is covered, half of it is
    restored by half.

    Args:
        mask: array or tensor, bool, uint8 0..255 or float 0..1; (H, W) for all faces, or (N, H, W),
            (N, H, W, 1) or (N, 1, H, W) with N = `count`.
        count: number of faces, n.
        size_hw: height and width of the faces and of the mask, in pixels.
        device: device of the result; None is the tensor's own, or the CPU.
        soft: whether intermediate values are shares.
        feather: softens the edges on their visible side, see `feathered`.

    Returns:
        The visibility: float32 (count, 1, H, W), 1 visible, 0 covered. The mask is not modified.

    Raises:
        FrameError: the mask has another dtype, shape or size, NaN, or float values outside 0..1.
    """
    import torch

    if is_tensor(mask):
        tensor = mask.detach()
    elif isinstance(mask, np.ndarray) and (
        mask.dtype in (np.bool_, np.uint8) or mask.dtype.kind == "f"
    ):
        dtype = np.float32 if mask.dtype.kind == "f" else mask.dtype
        tensor = torch.from_numpy(np.array(mask, dtype))
    else:
        actual = f"a mask of {getattr(mask, 'dtype', type(mask).__name__)}"
        raise FrameError("dtype", actual, "an array or tensor of bool, uint8 or float")
    share = _share_covered(_planes(tensor, count, size_hw), soft)
    visibility = 1 - share.to(device or share.device)
    return feathered(visibility.expand(count, -1, -1, -1), feather)


def _planes(tensor: torch.Tensor, count: int, size_hw: tuple[int, int]) -> torch.Tensor:
    """The mask as (n, 1, H, W), or (1, 1, H, W) for all faces."""
    shape, size = tuple(tensor.shape), tuple(size_hw)
    if shape == size:
        return tensor[None, None]
    if shape == (count, *size):
        return tensor[:, None]
    if shape == (count, *size, 1):
        return tensor.permute(0, 3, 1, 2)
    if shape == (count, 1, *size):
        return tensor
    height, width = size
    expected = (
        f"({height}, {width}), or ({count}, {height}, {width}) for {count} faces, "
        "with or without an axis of 1"
    )
    raise FrameError("shape", f"a mask of shape {shape}", expected)


def _share_covered(planes: torch.Tensor, soft: bool) -> torch.Tensor:
    """float32, 1 where covered."""
    import torch

    if planes.is_floating_point():
        planes = planes.float()
        if not bool(torch.isfinite(planes).all()):
            raise FrameError("nonfinite", "a mask with NaN or infinite values", "finite values")
        if planes.numel() and (float(planes.min()) < 0 or float(planes.max()) > 1):
            low, high = float(planes.min()), float(planes.max())
            actual = f"a mask with values from {low:g} to {high:g}"
            raise FrameError("range", actual, "float values in 0..1, or uint8 0..255")
        return planes if soft else (planes != 0).float()
    if planes.dtype not in (torch.bool, torch.uint8):
        actual = f"a mask of {planes.dtype}"
        raise FrameError("dtype", actual, "an array or tensor of bool, uint8 or float")
    if soft and planes.dtype == torch.uint8:
        return planes.float() / 255
    return (planes != 0).float()
