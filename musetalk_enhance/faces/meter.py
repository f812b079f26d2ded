"""How far the mouth and the eyes of a face crop are open, and its landmarks, without a download.

A small embedded network runs in two passes: first on the whole crop, for five rough landmarks, then
on the mouth and on each eye in the frame that those landmarks span. It measures geometry and not
sharpness: its input is reduced to 96 px and normalized for brightness, contrast and tint.
``assets/meter.md`` gives its accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FrameError
from ..runtime.precision import as_if_alone

ASSET = Path(__file__).with_name("assets") / "meter.safetensors"
"""The embedded weights."""

SIDE, ROUGH_SIDE = 96, 48
"""Side of a reduced crop, and of the first pass's input; pixels."""
MOUTH_HW, EYE_HW = (36, 40), (24, 32)
"""Height and width of the second pass's inputs, pixels."""
MOUTH_SPAN, EYE_SPAN = (-0.62, 0.62, -0.4, 0.72), (-0.42, 0.42, -0.28, 0.22)
"""Left, right, top, bottom of what they show, as shares of the vector from eye to eye (left, right)
and of the one from the eyes to the mouth (top, bottom)."""
MIN_SIDE = 16

_Pair = tuple[int, int]
_Span = tuple[float, float, float, float]


@dataclass(frozen=True)
class FaceMeasurement:
    """The measurements of N face crops.

    Attributes:
        landmarks: float32 (N, 5, 2), x and y in pixels of the crop, pixel centers at half: left
            eye, right eye, nose, left and right corner of the mouth, left and right in the image.
            An eye is the midpoint of its corners.
        mouth: float32 (N,), gap between the inner lips as a share of the distance between the
            midpoint of the eyes and the midpoint of the mouth's corners; 0 or more.
        eyes: float32 (N, 2), gap between the lids as a share of that eye's width in the crop, left
            and right in the image; 0 or more.
        confidence: float32 (N,), 0..1, that the crop shows a face. Under about 0.5 the other values
            are meaningless.
    """

    landmarks: Tensor
    mouth: Tensor
    eyes: Tensor
    confidence: Tensor

    def numpy(self) -> FaceMeasurementArrays:
        """The same as arrays, in one transfer."""
        values = torch.cat(
            [self.landmarks.flatten(1), self.eyes, self.mouth[:, None], self.confidence[:, None]], 1
        )
        array = values.cpu().numpy()
        landmarks = array[:, :10].reshape(-1, 5, 2)
        return FaceMeasurementArrays(landmarks, array[:, 12], array[:, 10:12], array[:, 13])


@dataclass(frozen=True)
class FaceMeasurementArrays:
    """`FaceMeasurement` as float32 arrays."""

    landmarks: NDArray[np.float32]
    mouth: NDArray[np.float32]
    eyes: NDArray[np.float32]
    confidence: NDArray[np.float32]


class FaceMeter:
    """The embedded face meter on one device.

    Args:
        device: where it runs; the CPU by default.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        from safetensors.torch import load_file

        self.device = torch.device(device or "cpu")
        with as_if_alone():  # the host's random state and default dtype must not change
            self.network = MeterNetwork()
        state = {name: tensor.float() for name, tensor in load_file(ASSET).items()}
        self.network.load_state_dict(state)
        self.network.eval().requires_grad_(False).to(self.device)

    def to(self, device: torch.device | str) -> FaceMeter:
        """Move to another device; returns itself."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    @torch.no_grad()
    def measure(self, faces_rgb: Tensor) -> FaceMeasurement:
        """Measure each crop independently; the same crops give the same values.

        Args:
            faces_rgb: float (N, 3, H, W), RGB, 0..1, on any device; H and W 16 or more, N may be 0.

        Returns:
            The measurements, on the meter's device.

        Raises:
            FrameError: another shape.
        """
        shape = tuple(faces_rgb.shape)
        if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < MIN_SIDE:
            expected = f"(N, 3, H, W), H and W {MIN_SIDE} or more"
            raise FrameError("shape", f"shape {shape}", expected)
        if not shape[0]:
            empty = [torch.zeros(0, *rest, device=self.device) for rest in ((5, 2), (), (2,), ())]
            return FaceMeasurement(*empty)
        small = shrink(faces_rgb.to(self.device, torch.float32), SIDE)
        reading = self.network(small.nan_to_num().clamp(0, 1))
        size_wh = small.new_tensor([shape[3], shape[2]])
        return FaceMeasurement(
            landmarks=reading.landmarks * size_wh,
            mouth=reading.mouth.clamp_min(0),
            eyes=reading.eye_shares(size_wh).clamp_min(0),
            confidence=reading.logit.sigmoid(),
        )


def shrink(faces: Tensor, side: int) -> Tensor:
    """Resize (N, C, H, W) to (N, C, side, side): bilinear, antialiased where it shrinks."""
    return functional.interpolate(
        faces, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )


def standardize(faces: Tensor) -> Tensor:
    """Every channel of every image to mean 0 and deviation 1; flat ones stay flat."""
    return functional.layer_norm(faces, faces.shape[2:], eps=4e-4)


@dataclass(frozen=True)
class Reading:
    """The network's output for N crops, in shares of the crop's sides, before it is clamped to 0.

    Attributes:
        logit: (N,), of the confidence.
        rough: (N, 5, 2), landmarks of the first pass.
        landmarks: (N, 5, 2), the same with eyes and mouth refined by the second pass.
        mouth: (N,), gap between the lips as a share of the eye-to-mouth distance.
        lips: (N, 2), the gap as a vector.
        lids: (N, 2, 2), gaps between the lids as vectors, by eye.
        corners: (N, 2, 2, 2), corners of the eyes: eye, corner (left, then right), x and y.
    """

    logit: Tensor
    rough: Tensor
    landmarks: Tensor
    mouth: Tensor
    lips: Tensor
    lids: Tensor
    corners: Tensor

    def eye_shares(self, size_wh: Tensor) -> Tensor:
        """Lid gaps as shares of the eyes' widths, (N, 2), for crops of `size_wh` pixels.

        May be negative.
        """
        widths = ((self.corners[:, :, 1] - self.corners[:, :, 0]) * size_wh).norm(dim=2)
        lids = self.lids * size_wh
        smallest = 0.02 * float(size_wh.max())
        shares: Tensor = lids.norm(dim=2).copysign(lids[..., 1]) / widths.clamp_min(smallest)
        return shares


def axes(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frame of landmarks (N, 5, 2): eye to eye, eyes to mouth, mouth center, each (N, 2)."""
    mouth = landmarks[:, 3:].mean(1)
    return landmarks[:, 1] - landmarks[:, 0], mouth - landmarks[:, :2].mean(1), mouth


def mouth_share(lips: Tensor, landmarks: Tensor) -> Tensor:
    """The gap `lips` (N, 2) along the vector from the eyes to the mouth, as its share (N,)."""
    down = axes(landmarks)[1]
    return (lips * down).sum(1) / down.square().sum(1).clamp_min(4e-4)


def _sample(
    images: Tensor, origin: Tensor, right: Tensor, down: Tensor, span: _Span, hw: _Pair
) -> Tensor:
    """Sample (N, 3, h, w) around `origin` along `right` and `down`.

    Each of the three is (N, 2), in shares of the crop's sides.
    """
    affine = torch.stack([right, down, origin], 2) @ _view(span, images.device)
    affine[:, :, 2] -= 1
    grid = functional.affine_grid(affine, [len(images), 3, *hw], align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


@lru_cache(maxsize=8)
def _view(span: _Span, device: torch.device) -> Tensor:
    """What takes right, down and origin to the columns of `affine_grid`'s matrices, but for -1."""
    left, end, top, bottom = span
    columns = [[end - left, 0, left + end], [0, bottom - top, top + bottom], [0, 0, 2]]
    return torch.tensor(columns, dtype=torch.float32, device=device)


def _points(origins: Tensor, offsets: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """``origin + x * right + y * down`` for offsets (N, P, 2); (N, P, 2)."""
    return torch.baddbmm(origins[:, None], offsets, torch.stack([right, down], 1))


def _trunk(
    widths: tuple[int, ...], strides: tuple[int, ...], squeezed: int, cells: int, sizes: _Pair
) -> nn.Sequential:
    """3x3 convolutions, a 1x1 to `squeezed` channels, two linear layers of `sizes` over `cells`."""
    layers: list[nn.Module] = []
    for fan_in, fan_out, stride in zip((3, *widths), widths, strides, strict=False):
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride, 1), nn.LeakyReLU(0.1)]
    layers += [nn.Conv2d(widths[-1], squeezed, 1), nn.LeakyReLU(0.1), nn.Flatten()]
    layers += [nn.Linear(squeezed * cells, sizes[0]), nn.LeakyReLU(0.1), nn.Linear(*sizes)]
    return nn.Sequential(*layers)


class MeterNetwork(nn.Module):
    """The networks of the first pass and of the second at the mouth and at an eye.

    The right eye is mirrored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rough = _trunk((16, 24, 40, 40), (2, 2, 2, 1), 16, 36, (48, 11))
        self.mouth = _trunk((16, 24, 32, 40, 48), (2, 1, 2, 1, 2), 24, 25, (48, 5))
        self.eye = _trunk((16, 24, 32, 40), (2, 1, 2, 2), 24, 12, (40, 5))

    def first(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Rough landmarks (N, 5, 2), in shares of the sides, and the confidence's logit (N,)."""
        outputs = self.rough(standardize(functional.avg_pool2d(images, SIDE // ROUGH_SIDE)))
        return 0.5 + 0.25 * outputs[:, :10].reshape(-1, 5, 2), outputs[:, 10]

    def forward(self, images: Tensor) -> Reading:
        """Read images (N, 3, `SIDE`, `SIDE`), RGB, 0..1, as returned by `shrink`."""
        rough, logit = self.first(images)
        return self.second(images, rough, rough, logit)

    def second(self, images: Tensor, frame: Tensor, rough: Tensor, logit: Tensor) -> Reading:
        """Refine in the frame of the landmarks `frame` (N, 5, 2).

        `rough` and `logit` are the first pass's.
        """
        right, down, origin = axes(frame)

        mouths = standardize(_sample(images, origin, right, down, MOUTH_SPAN, MOUTH_HW))
        outputs = 0.25 * self.mouth(mouths)
        mouth = _points(origin, outputs[:, :4].reshape(-1, 2, 2), right, down)
        lips = outputs[:, 4:] * down

        # both eyes in one batch, (2N, ...): the left ones, then the right ones mirrored
        origins = torch.cat([frame[:, 0], frame[:, 1]])
        inward, down = torch.cat([right, -right]), torch.cat([down, down])
        twice = images.repeat(2, 1, 1, 1)
        eyes = standardize(_sample(twice, origins, inward, down, EYE_SPAN, EYE_HW))
        outputs = 0.25 * self.eye(eyes)
        corners = _points(origins, outputs[:, :4].reshape(-1, 2, 2), inward, down)
        left_corners, right_corners = corners.chunk(2)
        corners = torch.stack([left_corners, right_corners.flip(1)], 1)
        lids = torch.stack((outputs[:, 4:] * down).chunk(2), 1)

        landmarks = torch.cat([corners.mean(2), rough[:, 2:3], mouth], 1)
        share = mouth_share(lips, landmarks)
        return Reading(logit, rough, landmarks, share, lips, lids, corners)
