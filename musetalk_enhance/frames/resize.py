"""Sizes of faces and of the rows that may change. float32 (N, 3, H, W), 0..1, in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FrameError
from ..runtime.threads import for_each
from .batch import is_tensor, levels

if TYPE_CHECKING:
    import torch

LOWER_FROM, LOWER_FULL = 7 / 16, 15 / 32
"""``region: lower`` as shares of a frame's height: nothing changes above the first, all may change
below the second, with a ramp between. MuseTalk keeps what is below 1/2 and blurs that edge by up to
0.0375."""


def kept_rows(region: str, height: int) -> range:
    """Rows of a frame of `height` pixels that `region` may change; ``mouth`` is in ``lower``."""
    return range(0 if region == "full" else int(height * LOWER_FROM), height)


def lower_weights(height: int) -> list[float]:
    """How much of the restored face each row gets with ``region: lower``, 0..1."""
    start, full = height * LOWER_FROM, height * LOWER_FULL
    return [min(1.0, max(0.0, (row + 0.5 - start) / (full - start))) for row in range(height)]


def resize(faces: torch.Tensor, size_hw: tuple[int, int], enlarge: str = "bicubic") -> torch.Tensor:
    """Bring faces to `size_hw` (height, width).

    Shrinking averages areas (exactly the box average where the factor is whole, an antialiased
    bicubic elsewhere). Enlarging is bilinear or bicubic, pixel centers at half, as OpenCV's
    INTER_LINEAR.

    Args:
        faces: float32 (N, 3, H, W).
        size_hw: height and width wanted, in pixels.
        enlarge: ``"bilinear"`` or ``"bicubic"``.
    """
    from torch.nn.functional import interpolate

    height, width = faces.shape[2:]
    target_h, target_w = size_hw
    if (height, width) == (target_h, target_w):
        return faces
    if target_h <= height and target_w <= width:
        if height % target_h == 0 and width % target_w == 0:
            return pooled(faces, size_hw)
        return interpolate(faces, size=size_hw, mode="bicubic", align_corners=False, antialias=True)
    antialias = target_h < height or target_w < width
    if not antialias and _on_cpu(faces):
        return _enlarged_on_cpu(faces, size_hw, enlarge)
    mode = "bicubic" if antialias else enlarge
    return interpolate(faces, size=size_hw, mode=mode, align_corners=False, antialias=antialias)


def pooled(values: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Means of (N, C, H, W) over a grid of (rows, columns); fast where the grid divides it."""
    from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

    rows, columns = cells
    if values.shape[2] % rows or values.shape[3] % columns:
        return adaptive_avg_pool2d(values, cells)
    if _on_cpu(values):
        return _pooled_on_cpu(values, cells)
    return avg_pool2d(values, (values.shape[2] // rows, values.shape[3] // columns))


def _on_cpu(values: torch.Tensor) -> bool:
    """Whether OpenCV may do the work: it takes a tenth of torch's time for the same values."""
    plain = values.device.type == "cpu" and str(values.dtype) == "torch.float32"
    return plain and not values.requires_grad and values.numel() > 0


def _enlarged_on_cpu(
    faces: torch.Tensor, size_hw: tuple[int, int], enlarge: str
) -> torch.Tensor:
    import cv2

    number, channels, height, width = faces.shape
    result = empty((number, channels, *size_hw), faces.device)
    planes = faces.numpy().reshape(-1, height, width)
    kernel = cv2.INTER_CUBIC if enlarge == "bicubic" else cv2.INTER_LINEAR
    enlarged = result.numpy().reshape(-1, *size_hw)

    def enlarge_plane(source: Any, target: Any) -> None:
        cv2.resize(np.ascontiguousarray(source), size_hw[::-1], dst=target, interpolation=kernel)

    for_each(enlarge_plane, planes, enlarged)
    return result


def _pooled_on_cpu(values: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """All channels of all images as one tall image in OpenCV: one pass on one thread."""
    import cv2
    import torch

    number, channels, _, width = values.shape
    planes = values.contiguous().numpy().reshape(-1, width)
    size_wh = (cells[1], number * channels * cells[0])
    means = np.asarray(cv2.resize(planes, size_wh, interpolation=cv2.INTER_AREA), np.float32)
    return torch.from_numpy(means.reshape(number, channels, *cells))


def empty(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """A float32 tensor without values.

    On the CPU the memory is numpy's, which asks for huge pages: with small ones, the first touch of
    a batch takes several times as long as the work on it.
    """
    import torch

    if device.type == "cpu":
        return torch.from_numpy(np.empty(shape, np.float32))
    return torch.empty(shape, dtype=torch.float32, device=device)


def residual_of(
    faces: torch.Tensor,
    inputs: torch.Tensor,
    restored: torch.Tensor,
    size_hw: tuple[int, int],
    base: torch.Tensor,
    first_row: int = 0,
) -> torch.Tensor:
    """What a restorer adds to the host's frames, at the output size, from `first_row` down.

    Detail of a frame that is larger than the network's input is lost on the way; what shrinking
    took off is no part of the difference.

    Args:
        faces: the host's frames, (N, 3, H, W).
        inputs: what the network was given, (N, 3, S, S).
        restored: what it made, (N, 3, T, T).
        size_hw: height and width of the result.
        base: `faces` in that size.

    Returns:
        float32 (N, 3, H - first_row, W), a tensor of its own.
    """
    import torch

    result = resize(restored, size_hw)[:, :, first_row:]
    height, width = faces.shape[2:]
    if inputs.shape[2] < height or inputs.shape[3] < width:
        result = result + resize(faces - resize(inputs, (height, width)), size_hw)[:, :, first_row:]
    residual = empty(tuple(result.shape), result.device)
    return torch.sub(result, base[:, :, first_row:], out=residual)


def mean_change(
    faces: torch.Tensor, restored: torch.Tensor, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """How much each face differs from what it was, in levels of 8 bits.

    Both are rounded as a host's uint8 frames are, so 0 means that not one value changes.

    Args:
        faces: float32 (N, 3, H, W), 0..1.
        restored: the same faces, restored; equal to `faces` outside `allowed`.
        allowed: bool (1 or N, 1, H, W): the pixels that may change. None: all.

    Returns:
        float32 (N,): mean absolute difference over the pixels that may change, 0..255.
    """
    import torch

    if restored.device.type == "cpu":
        changes = for_each(_total_change_on_cpu, faces.numpy(), restored.numpy())
        total = torch.from_numpy(np.array(changes, np.float32))
    else:
        levels = restored.clamp(0, 1).mul_(255).round_()
        levels.sub_(faces.clamp(0, 1).mul_(255).round_())
        total = torch.linalg.vector_norm(levels, 1, dim=(1, 2, 3))
    if allowed is None:
        return total / restored[0].numel()
    return total / (allowed.sum(dim=(1, 2, 3)).clamp(min=1) * restored.shape[1])


def _total_change_on_cpu(face: Any, restored: Any) -> float:
    """Of one face as float32 arrays (3, H, W): all of it stays in the caches."""
    import cv2

    return float(cv2.norm(levels(face).ravel(), levels(restored).ravel(), cv2.NORM_L1))


def resize_image(image: Any, size_wh: tuple[int, int]) -> Any:
    """Bring an image to (width, height) with OpenCV: area when shrinking, Lanczos when enlarging.

    Args:
        image: (H, W, 1 to 4) uint8 or float array, or (1 to 4, H, W) tensor.
        size_wh: (width, height) in pixels.

    Returns:
        An array or tensor of the same dtype and on the same device, C-contiguous.

    Raises:
        FrameError: `image` is neither, or empty; or a side is below 1.
    """
    width, height = (int(side) for side in size_wh)
    if width < 1 or height < 1:
        raise FrameError(
            "size", f"a size of {width}x{height}", "(width, height) in pixels, each at least 1"
        )
    if not is_tensor(image):
        return _resized_array(image, (width, height))
    if image.is_floating_point() and image.element_size() < 4:
        return resize_image(image.float(), size_wh).to(image.dtype)
    if image.ndim != 3:
        raise FrameError("shape", f"shape {tuple(image.shape)}", "a (3, H, W) tensor")
    import torch

    resized = _resized_array(image.detach().permute(1, 2, 0).cpu().numpy(), (width, height))
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous().to(image.device)


def _resized_array(image: Any, size_wh: tuple[int, int]) -> np.ndarray:
    import cv2

    if not isinstance(image, np.ndarray) or image.ndim != 3:
        actual = str(getattr(image, "shape", type(image).__name__))
        raise FrameError("shape", actual, "an (H, W, 3) array or a (3, H, W) tensor")
    if not image.size or image.shape[2] > 4:
        raise FrameError("shape", f"shape {image.shape}", "a non-empty image of 1 to 4 channels")
    if image.dtype.newbyteorder("=") not in (np.uint8, np.float16, np.float32, np.float64):
        raise FrameError(
            "dtype", f"values of type {image.dtype}", "uint8, float16, float32 or float64"
        )
    width, height = size_wh
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    dtype = image.dtype.newbyteorder("=") if image.dtype.itemsize != 2 else np.dtype(np.float32)
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    resized = cv2.resize(np.ascontiguousarray(image, dtype), size_wh, interpolation=mode)
    # Lanczos overshoots; a host's own conversion to bytes would wrap around
    if image.dtype.kind == "f":
        resized = np.clip(resized, image.min(), image.max())
    return resized.reshape(height, width, image.shape[2]).astype(image.dtype, copy=False)
