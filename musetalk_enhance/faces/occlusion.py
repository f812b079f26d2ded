"""What covers a face: a hand, a microphone. A restorer paints nothing over it.

Inside, a *visibility* is float32 (n, 1, H, W): 1 where the face is seen and may be restored, 0 where something covers
it. Hosts hand over the opposite: a mask that is not zero where the face is covered, see `host_mask`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, ConfigError, FrameError, RestorerError
from ..frames.batch import is_tensor

if TYPE_CHECKING:
    import torch

SIDE = 256
"""Side of the faces that an occluder takes where its graph leaves that open, in pixels."""
FEATHER = 5 / 512
"""Standard deviation of the blur of a visibility's edges, as a share of the face's longer side."""

_BATCH = 8  # faces in one run of a graph that takes any number
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FLOAT = "tensor(float)"
_WANTED = "an occluder: one float32 input (N, H, W, 3) or (N, 3, H, W), one output with a single channel"


class Occluder:
    """Finds what covers a face, with an ONNX graph of the ``dfl_xseg.onnx`` kind (the ``xseg_1`` to ``xseg_3`` of
    FaceFusion, from DeepFaceLab's XSeg).

    The interface is FaceFusion's: a face, BGR, 0..1, 256x256, as float32 (N, 256, 256, 3) goes in; a mask with one
    channel comes out, 1 where the face is seen and 0 where it is covered. The input is bound by whatever name it has,
    its layout and size are read from the graph, and its batch may be fixed or free.

    Args:
        path: the .onnx file; there is none in the table of weights (DeepFaceLab's are under GPL-3.0).
        provider: ``"cpu"``, or ``"cuda"`` where the installed onnxruntime has it.

    Attributes:
        channels_last: whether the graph takes (N, H, W, 3).
        size_hw: height and width that it takes, in pixels.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        MissingWeightError: there is no file at `path`.
        CheckpointError: the file is another graph, or none.
        ConfigError: `provider` is neither.
        RestorerError: onnxruntime does not have the provider, or it does not start.
    """

    def __init__(self, path: str | Path, *, provider: str = "cpu") -> None:
        from ..backends.exporting import runtime
        from ..weights import open_file

        if provider not in _PROVIDERS:
            raise ConfigError("provider", provider, " | ".join(_PROVIDERS))
        self._runtime: Any = runtime("onnxruntime", "an occlusion mask")
        self.path = open_file(path).path
        if self.path.suffix.lower() != ".onnx":
            raise CheckpointError(self.path, f"a {self.path.suffix} file", "an .onnx file")
        self._session = self._open(_PROVIDERS[provider])
        inputs = self._session.get_inputs()
        shape: list[Any] = list(inputs[0].shape) if len(inputs) == 1 else []
        if len(shape) != 4 or inputs[0].type != _FLOAT or (shape[1] == 3) == (shape[3] == 3):
            told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs) or "no input"
            raise CheckpointError(self.path, f"a graph with the input {told}", _WANTED)
        self._input: str = inputs[0].name
        self._outputs: list[str] = [one.name for one in self._session.get_outputs()]
        self.channels_last: bool = shape[3] == 3
        height, width = shape[1:3] if self.channels_last else shape[2:]
        self.size_hw = (height if isinstance(height, int) else SIDE, width if isinstance(width, int) else SIDE)
        self._batch: int | None = shape[0] if isinstance(shape[0], int) else None
        self._try()

    def mask(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Where faces are seen.

        The graph's mask is cut to 0..1, brought to the faces' size and feathered (`feathered`).

        Args:
            faces_rgb: float32 (n, 3, H, W), RGB, 0..1, each filled by a face, as a host's crop or an aligned face is.

        Returns:
            The visibility: float32 (n, 1, H, W), 1 seen, 0 covered, same device.

        Raises:
            FrameError: `faces_rgb` has another form.
            RestorerError: the graph failed, or answered with NaN.
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
        inputs = resize(faces_rgb.detach().float(), self.size_hw, enlarge="bilinear").flip(1).clamp(0, 1).cpu()
        if self.channels_last:
            inputs = inputs.permute(0, 2, 3, 1)
        found = torch.from_numpy(self._run(inputs.contiguous().numpy())).to(faces_rgb.device)
        seen = interpolate(found, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        return feathered(seen.clamp_(0, 1))

    def close(self) -> None:
        """Give the graph's memory back; the occluder is not used afterwards."""
        self._session = None

    def _open(self, provider: str) -> Any:
        import torch

        there = self._runtime.get_available_providers()
        if provider not in there:
            raise RestorerError(f"the occluder: onnxruntime has no {provider} (it has {', '.join(there)})")
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 4  # what matters comes as an exception
        try:
            session = self._runtime.InferenceSession(str(self.path), options, [provider])
        except Exception as error:
            raise CheckpointError(self.path, f"what onnxruntime cannot load ({error})", "an ONNX graph") from error
        if session.get_providers()[0] != provider:  # one that does not start is left out without an error
            raise RestorerError(f"the occluder: {provider} does not start; provider cpu does")
        return session

    def _try(self) -> None:
        """Run the graph once: what it answers is known only then."""
        count = self._batch or 1
        shape = (count, *self.size_hw, 3) if self.channels_last else (count, 3, *self.size_hw)
        try:
            self._run(np.full(shape, 0.5, np.float32))
        except RestorerError as error:
            raise CheckpointError(self.path, f"a graph that does not run as one ({error})", _WANTED) from error

    def _run(self, inputs: np.ndarray) -> np.ndarray:
        """(n, 1, h, w) float32 for all inputs, in batches that the graph takes."""
        size = self._batch or _BATCH
        found = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            count = len(part)
            if self._batch and count < self._batch:
                part = np.concatenate((part, part[-1:].repeat(self._batch - count, axis=0)))
            try:
                answers = self._session.run(self._outputs, {self._input: part})
            except Exception as error:
                raise RestorerError(f"the occluder failed: {type(error).__name__}: {error}") from error
            found.append(self._one_channel(answers, len(part))[:count])
        return np.concatenate(found)

    def _one_channel(self, answers: list[Any], count: int) -> np.ndarray:
        """The first output with one channel, as float32 (count, 1, h, w)."""
        for answer in answers:
            if not isinstance(answer, np.ndarray) or answer.ndim not in (3, 4) or len(answer) != count:
                continue
            if answer.ndim == 3:
                answer = answer[:, None]
            elif answer.shape[1] != 1 and answer.shape[3] == 1:
                answer = answer.transpose(0, 3, 1, 2)
            if answer.shape[1] == 1:
                if not np.isfinite(answer).all():
                    raise RestorerError("the occluder answered with NaN or infinite values")
                return np.ascontiguousarray(answer, np.float32)
        shapes = ", ".join(str(getattr(answer, "shape", type(answer).__name__)) for answer in answers)
        raise RestorerError(f"the occluder answered {shapes}, not ({count}, height, width, 1)")


def feathered(visibility: torch.Tensor, feather: float = FEATHER) -> torch.Tensor:
    """Soften the edges of a visibility towards the side that is seen: what is covered stays so entirely.

    ``min(v, max(0, 1 - 2 blur(1 - v)))``: the blur is 1/2 on a straight edge, which therefore becomes 0 there.
    FaceFusion ends its masks in the same way; the minimum keeps thin things, which a blur would wash away. Far from
    what is covered, 1 stays exactly 1.

    Args:
        visibility: float32 (n, 1, H, W), 1 seen, 0 covered.
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
    blurred = conv2d(pad(1 - visibility, (radius, radius, 0, 0), mode="replicate"), weights[None, None, None])
    blurred = conv2d(pad(blurred, (0, 0, radius, radius), mode="replicate"), weights[None, None, :, None])
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
    """A host's mask of what covers its faces as a visibility.

    In the host's mask **a value that is not zero means covered**: nothing is ever painted there. So bool masks, uint8
    masks of 0 and 1 and of 0 and 255, and float masks of 0 and 1 all mean the same. With `soft` the values are shares
    instead: 255 (1.0 in a float mask) is covered, half of it is painted over by half.

    Args:
        mask: array or tensor, bool, uint8 0..255 or float 0..1; (H, W) for all faces, or (N, H, W), (N, H, W, 1) or
            (N, 1, H, W) with N = `count`.
        count: number of faces, n.
        size_hw: height and width of the faces, in pixels; the mask has the same.
        device: where the result shall be; None is the tensor's own, or the CPU.
        soft: whether values between are shares.
        feather: softens the edges towards the side that is seen, see `feathered`.

    Returns:
        The visibility: float32 (count, 1, H, W), 1 seen, 0 covered. The mask is not changed.

    Raises:
        FrameError: the mask has another type, shape or size, NaN, or float values outside 0..1.
    """
    import torch

    if is_tensor(mask):
        tensor = mask.detach()
    elif isinstance(mask, np.ndarray) and (mask.dtype in (np.bool_, np.uint8) or mask.dtype.kind == "f"):
        tensor = torch.from_numpy(np.array(mask, np.float32 if mask.dtype.kind == "f" else mask.dtype))
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
    wanted = f"({height}, {width}), or ({count}, {height}, {width}) for {count} faces, with or without an axis of 1"
    raise FrameError("shape", f"a mask of shape {shape}", wanted)


def _share_covered(planes: torch.Tensor, soft: bool) -> torch.Tensor:
    """float32, 1 where covered."""
    import torch

    if planes.is_floating_point():
        planes = planes.float()
        if not bool(torch.isfinite(planes).all()):
            raise FrameError("nonfinite", "a mask with NaN or infinite values", "finite values")
        if planes.numel() and (float(planes.min()) < 0 or float(planes.max()) > 1):
            actual = f"a mask with values from {float(planes.min()):g} to {float(planes.max()):g}"
            raise FrameError("range", actual, "float values in 0..1, or uint8 0..255")
        return planes if soft else (planes != 0).float()
    if planes.dtype not in (torch.bool, torch.uint8):
        raise FrameError("dtype", f"a mask of {planes.dtype}", "an array or tensor of bool, uint8 or float")
    if soft and planes.dtype == torch.uint8:
        return planes.float() / 255
    return (planes != 0).float()
