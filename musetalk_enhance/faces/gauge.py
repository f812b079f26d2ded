"""How far the mouth and the eyes of a face crop are open, and where its landmarks are, without a download.

A small embedded network looks twice: once at the whole crop, for five rough landmarks, then at the mouth and
at either eye in the frame that those landmarks span. It reads geometry and not sharpness: everything it sees
is shrunk to 96 px first and freed of brightness, contrast and tint. ``assets/gauge.md`` says how well it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import FrameError
from ..runtime.precision import as_if_alone

ASSET = Path(__file__).with_name("assets") / "gauge.safetensors"
"""The embedded weights."""

SIDE, ROUGH_SIDE = 96, 48
"""What a crop is shrunk to, and what the first look gets; pixels."""
MOUTH_HW, EYE_HW = (36, 40), (24, 32)
"""Height and width of the second looks, pixels."""
MOUTH_SPAN, EYE_SPAN = (-0.62, 0.62, -0.4, 0.72), (-0.42, 0.42, -0.28, 0.22)
"""What they show, left, right, top, bottom: shares of the way from eye to eye, and from the eyes to the mouth."""
SMALLEST_SIDE = 16

_Pair = tuple[int, int]
_Span = tuple[float, float, float, float]


@dataclass(frozen=True)
class Gauged:
    """What was measured on N face crops.

    Attributes:
        landmarks: float32 (N, 5, 2), x and y in pixels of the crop, pixel centres at half: left eye, right eye,
            nose, left and right corner of the mouth, as seen in the picture. An eye is the middle of its corners.
        mouth: float32 (N,), gap between the inner lips as a share of the distance between the middle of the eyes
            and the middle of the mouth's corners; 0 or more.
        eyes: float32 (N, 2), gap between the lids as a share of that eye's width in the crop, left and right in
            the picture; 0 or more.
        confidence: float32 (N,), 0..1, that this is a face crop at all. Under about 0.5 the rest means nothing.
    """

    landmarks: Tensor
    mouth: Tensor
    eyes: Tensor
    confidence: Tensor


class FaceGauge:
    """The embedded gauge on one device.

    Args:
        device: where it computes; the CPU by default.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        from safetensors.torch import load_file

        self.device = torch.device(device or "cpu")
        with as_if_alone():  # a host's random numbers and its default dtype are its own
            self.network = GaugeNetwork()
        self.network.load_state_dict({name: tensor.float() for name, tensor in load_file(ASSET).items()})
        self.network.eval().requires_grad_(False).to(self.device)

    def to(self, device: torch.device | str) -> FaceGauge:
        """Move to another device; returns itself."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    @torch.no_grad()
    def measure(self, faces_rgb: Tensor) -> Gauged:
        """Measure every crop by itself; the same crops give the same numbers.

        Args:
            faces_rgb: float (N, 3, H, W), RGB, 0..1, on any device; H and W 16 or more, N may be 0.

        Returns:
            The measures, on the gauge's device.

        Raises:
            FrameError: another shape.
        """
        shape = tuple(faces_rgb.shape)
        if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < SMALLEST_SIDE:
            raise FrameError("shape", f"shape {shape}", f"(N, 3, H, W), H and W {SMALLEST_SIDE} or more")
        small = shrink(faces_rgb.to(self.device, torch.float32), SIDE)
        reading = self.network(small.nan_to_num().clamp(0, 1))
        size_wh = small.new_tensor([shape[3], shape[2]])
        return Gauged(
            landmarks=reading.landmarks * size_wh,
            mouth=reading.mouth.clamp_min(0),
            eyes=reading.eye_shares(size_wh).clamp_min(0),
            confidence=reading.logit.sigmoid(),
        )


def shrink(faces: Tensor, side: int) -> Tensor:
    """(N, C, H, W) to (N, C, side, side): bilinear, over an area as wide as the step where it shrinks."""
    return functional.interpolate(faces, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def standardise(faces: Tensor) -> Tensor:
    """Every channel of every picture to mean 0 and deviation 1; flat ones stay flat."""
    centred = faces - faces.mean((2, 3), keepdim=True)
    scaled: Tensor = centred / (centred.square().mean((2, 3), keepdim=True) + 4e-4).sqrt()
    return scaled


@dataclass(frozen=True)
class Reading:
    """What the network says of N crops, in shares of the crop's sides, before it is cut off at 0.

    Attributes:
        logit: (N,), of the confidence.
        rough: (N, 5, 2), landmarks of the first look.
        landmarks: (N, 5, 2), the same with eyes and mouth looked at again.
        mouth: (N,), gap between the lips as a share of the eye-to-mouth distance.
        lips: (N, 2), the gap as a vector.
        lids: (N, 2, 2), gaps between the lids as vectors, by eye.
        corners: (N, 2, 2, 2), corners of the eyes: eye, corner (left before right), x and y.
    """

    logit: Tensor
    rough: Tensor
    landmarks: Tensor
    mouth: Tensor
    lips: Tensor
    lids: Tensor
    corners: Tensor

    def eye_shares(self, size_wh: Tensor) -> Tensor:
        """(N, 2): lid gaps as shares of the eyes' widths, for crops of `size_wh` pixels; may be under 0."""
        widths = ((self.corners[:, :, 1] - self.corners[:, :, 0]) * size_wh).norm(dim=2)
        lids = self.lids * size_wh
        shares: Tensor = lids.norm(dim=2).copysign(lids[..., 1]) / widths.clamp_min(0.02 * float(size_wh.max()))
        return shares


def axes(landmarks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frame that landmarks (N, 5, 2) span: eye to eye, eyes to mouth, middle of the mouth, each (N, 2)."""
    mouth = landmarks[:, 3:].mean(1)
    return landmarks[:, 1] - landmarks[:, 0], mouth - landmarks[:, :2].mean(1), mouth


def mouth_share(lips: Tensor, landmarks: Tensor) -> Tensor:
    """(N,): the gap `lips` (N, 2) along the way from the eyes to the mouth, as a share of it."""
    down = axes(landmarks)[1]
    return (lips * down).sum(1) / down.square().sum(1).clamp_min(4e-4)


def _look(pictures: Tensor, origin: Tensor, right: Tensor, down: Tensor, span: _Span, hw: tuple[int, int]) -> Tensor:
    """Sample (N, 3, h, w) around `origin` along `right` and `down`, each (N, 2) in shares of the crop's sides."""
    left, end, top, bottom = span
    columns, rows = (torch.arange(n, device=pictures.device, dtype=pictures.dtype) + 0.5 for n in hw[::-1])
    across = left + (end - left) * columns / hw[1]
    along = top + (bottom - top) * rows / hw[0]
    grid = across[None, None, :, None] * right[:, None, None] + along[None, :, None, None] * down[:, None, None]
    grid = 2 * (grid + origin[:, None, None]) - 1
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def _trunk(
    widths: tuple[int, ...], strides: tuple[int, ...], squeezed: int, cells: int, sizes: _Pair
) -> nn.Sequential:
    """3x3 convolutions, one 1x1 to `squeezed` channels, then over all `cells` to `sizes`: hidden, outputs."""
    layers: list[nn.Module] = []
    for before, after, stride in zip((3, *widths), widths, strides, strict=False):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.LeakyReLU(0.1)]
    layers += [nn.Conv2d(widths[-1], squeezed, 1), nn.LeakyReLU(0.1), nn.Flatten()]
    layers += [nn.Linear(squeezed * cells, sizes[0]), nn.LeakyReLU(0.1), nn.Linear(*sizes)]
    return nn.Sequential(*layers)


class GaugeNetwork(nn.Module):
    """The networks of the first look and of the second one at the mouth and at an eye (the right one mirrored)."""

    def __init__(self) -> None:
        super().__init__()
        self.rough = _trunk((16, 24, 40, 40), (2, 2, 2, 1), 16, 36, (48, 11))
        self.mouth = _trunk((16, 24, 32, 40, 48), (2, 1, 2, 1, 2), 24, 25, (48, 5))
        self.eye = _trunk((16, 24, 32, 40), (2, 1, 2, 2), 24, 12, (40, 5))

    def first(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Rough landmarks (N, 5, 2), in shares of the sides, and the logit (N,) of the confidence."""
        found = self.rough(standardise(functional.avg_pool2d(pictures, SIDE // ROUGH_SIDE)))
        return 0.5 + 0.25 * found[:, :10].reshape(-1, 5, 2), found[:, 10]

    def forward(self, pictures: Tensor) -> Reading:
        """Read pictures (N, 3, `SIDE`, `SIDE`), RGB, 0..1, as `shrink` makes them."""
        rough, logit = self.first(pictures)
        return self.second(pictures, rough, rough, logit)

    def second(self, pictures: Tensor, frame: Tensor, rough: Tensor, logit: Tensor) -> Reading:
        """Look again, where the landmarks `frame` (N, 5, 2) say; `rough` and `logit` come from the first look."""
        right, down, origin = axes(frame)

        found = 0.25 * self.mouth(standardise(_look(pictures, origin, right, down, MOUTH_SPAN, MOUTH_HW)))
        offsets = found[:, :4].reshape(-1, 2, 2)
        mouth = origin[:, None] + offsets[..., :1] * right[:, None] + offsets[..., 1:] * down[:, None]
        lips = found[:, 4:] * down

        # both eyes in one batch, (2N, ...): the left ones, then the right ones mirrored
        origins = torch.cat([frame[:, 0], frame[:, 1]])
        inward, down = torch.cat([right, -right]), torch.cat([down, down])
        found = 0.25 * self.eye(
            standardise(_look(pictures.repeat(2, 1, 1, 1), origins, inward, down, EYE_SPAN, EYE_HW))
        )
        offsets = found[:, :4].reshape(-1, 2, 2)
        corners = origins[:, None] + offsets[..., :1] * inward[:, None] + offsets[..., 1:] * down[:, None]
        left_corners, right_corners = corners.chunk(2)
        corners = torch.stack([left_corners, right_corners.flip(1)], 1)
        lids = torch.stack((found[:, 4:] * down).chunk(2), 1)

        landmarks = torch.cat([corners.mean(2), rough[:, 2:3], mouth], 1)
        return Reading(logit, rough, landmarks, mouth_share(lips, landmarks), lips, lids, corners)
