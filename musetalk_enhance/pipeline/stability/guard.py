"""What must not change: how far the mouth and the eyes are open, and who it is. Where a restorer
moves them beyond a limit, less of it is used.

The limits are set on two kinds of softness, because a latent decoder moves what is measured more
than a resize does: with a face that was resized to 96 px and with one decoded at a blend of 0.35
and noise of 0.1 (docs/stability.md), the sharp original itself keeps its full strength, and planted
failures do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...faces.meter import FaceMeter
from ...frames.resize import resize

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]

REASONS = ("mouth", "eyes", "identity")
MOUTH_LIMIT, EYES_LIMIT = 0.04, 0.06
"""What the openings may change, in units of `FaceMeasurement`. Between a soft face and the sharp
original they change by 0.017 and 0.010 (resized to 96 px), 0.076 and 0.034 (decoder, blend 0.5) at
most; a mouth that is painted shut changes by 0.03 to 0.4. So the mouth's opening alone does not
decide, see `MOUTH_STRUCTURE`."""
SHIFT_LIMIT = 0.03
"""What the eyes or the corners of the mouth may shift, as a share of the distance from the eyes to
the mouth: 3 to 4 pixels of 256. For the eyes soft and sharp differ by 0.009 (96 px) and 0.046
(decoder, 0.5) at most, typically 0.013; eyes that are shifted by 5 pixels by 0.045 to 0.065."""
EYES_NONE_LEFT = 1.67
"""Multiple of their limits at which eyes leave no strength; 2 for the mouth."""
MOUTH_STRUCTURE = (0.65, 0.95)
"""Coarse structure of the mouth that may change, see `structure_change`: below the first, landmarks
that say that the mouth has moved are wrong, because smeared teeth mislead them; above the second,
they are believed."""
MOUTH_CHANGED = (0.85, 1.15)
"""The same whatever the landmarks say: full strength below, none above. Soft and sharp differ at
the mouth by 0.14 (96 px), 0.64 (decoder, 0.35) and 0.93 (0.5) at most; lips closed by a tenth of
the eye-to-mouth distance by 0.9 to 1.9, teeth painted on by 2.8 and more."""
IDENTITY_LIMIT, IDENTITY_NONE_LEFT = 0.75, 1.5
"""The same anywhere in the face. Soft and sharp differ by 0.26 (96 px), 0.68 (decoder, 0.35) and
0.93 (0.5) at most, another face by 4 and more."""
RECOVERY = 0.1
"""Share of the strength that returns each frame; it falls at once, to correct the frame at hand."""
STRENGTHS = 64
"""Steps of the strength. The measuring network's convolutions differ by up to 3e-5 of a pixel with
the number of faces in a batch, and a stream must be the same in any batches."""
CONFIDENT = 0.8
"""Minimum confidence of the face meter in both images."""
LEAST_SIDE = 48
"""Faces smaller than this, in pixels, are too small for the face meter; the guard ignores them."""
MEASURED_SIDE, STRUCTURE_SIDE = 128, 64
_WINDOW, _STEP = 7, 2
_MOUTH_REACH = (0.6, 0.4)  # across and down, in units of the eye-to-mouth distance


@dataclass(frozen=True)
class GuardResult:
    """What the guard decided for a batch.

    Attributes:
        weights: how much of the restorer each frame may have, 0..1.
        reasons: which of `REASONS` lowered it most; ``"recovery"`` where only a frame before did;
            None where nothing did.
        allowed: per frame what mouth, eyes and identity would allow, each by itself, 0..1.
    """

    weights: list[float]
    reasons: list[str | None]
    allowed: list[tuple[float, float, float]]


class Guard:
    """Compares the input with the result."""

    def __init__(self, device: torch.device) -> None:
        """Args:
        device: where the faces will be.
        """
        self.meter = FaceMeter(device)

    @property
    def device(self) -> torch.device:
        """Where the faces are."""
        return self.meter.device

    def check(
        self,
        faces: torch.Tensor,
        residual: torch.Tensor,
        first_row: int = 0,
        weight: float = 1.0,
        cuts: Sequence[bool] = (),
    ) -> GuardResult:
        """How much of the restorer each frame may have.

        Args:
            faces: the host's, float32 (N, 3, H, W), RGB, 0..1.
            residual: what would be added to them, in any size, from `first_row` down, (N, 3, R, S).
            first_row: of the rows that may change.
            weight: of the frame before the first, 1.0 at the beginning of a stream.
            cuts: whether a scene begins with a frame: the previous one is no reason to hold it
                back. Empty: none does.
        """
        originals = resize(faces, (MEASURED_SIDE, MEASURED_SIDE))
        height = first_row + int(residual.shape[2])
        restored = _restored(originals, residual, first_row, height)
        side = min(height, int(residual.shape[3]))
        allowed = (
            strength_allowed(self.meter, originals, restored).tolist() if side >= LEAST_SIDE else []
        )
        weights: list[float] = []
        reasons: list[str | None] = []
        for index in range(len(faces)):
            row = allowed[index] if allowed else [1.0] * len(REASONS)
            limit, previous = min(row), 1.0 if cuts and cuts[index] else weight
            weight = min(limit, round(previous + RECOVERY, 6))
            weights.append(weight)
            reasons.append(
                REASONS[row.index(limit)] if limit < 1 else "recovery" if weight < 1 else None
            )
        return GuardResult(weights, reasons, [(row[0], row[1], row[2]) for row in allowed])


def _restored(
    faces: torch.Tensor, residual: torch.Tensor, first_row: int, height: int
) -> torch.Tensor:
    """The result at the measured size: resizing is linear, so only the residual is resized."""
    start = round(first_row * MEASURED_SIDE / height)
    restored = faces.clone()
    restored[:, :, start:] += resize(residual, (MEASURED_SIDE - start, MEASURED_SIDE))
    return restored.clamp_(0, 1)


def strength_allowed(meter: FaceMeter, originals: torch.Tensor, restored: torch.Tensor) -> Floats:
    """Strength that mouth, eyes and identity of each face leave, each by itself.

    Args:
        meter: on the device of the faces.
        originals: float32 (N, 3, `MEASURED_SIDE`, `MEASURED_SIDE`), RGB, 0..1.
        restored: the same form.

    Returns:
        float32 (N, 3), 0..1.
    """
    import torch

    count = len(originals)
    measured = meter.measure(torch.cat([originals, restored])).numpy()
    change = structure_change(originals, restored).cpu().numpy()
    landmarks, moved = measured.landmarks[:count], measured.landmarks[count:]
    faces = measured.confidence > CONFIDENT
    confident = faces[:count] & faces[count:]
    mouths = landmarks[:, 3:].mean(1)
    length = np.maximum(np.linalg.norm(mouths - landmarks[:, :2].mean(1), axis=1), 1)
    shift = np.linalg.norm(moved - landmarks, axis=2) / length[:, None] / SHIFT_LIMIT
    mouth = np.abs(measured.mouth[count:] - measured.mouth[:count]) / MOUTH_LIMIT
    mouth = np.maximum(mouth, shift[:, 3:].max(1)) * confident
    eyes = np.abs(measured.eyes[count:] - measured.eyes[:count]).max(1) / EYES_LIMIT
    eyes = np.maximum(eyes, shift[:, :2].max(1)) * confident

    at_mouth = _greatest_at_mouth(change, mouths, length) * faces[:count]
    believed = np.maximum(_ramp(mouth, 1, 2), _ramp(at_mouth, *MOUTH_STRUCTURE))
    allowed = [
        np.minimum(believed, _ramp(at_mouth, *MOUTH_CHANGED)),
        _ramp(eyes, 1, EYES_NONE_LEFT),
        _ramp(change.max((1, 2)), IDENTITY_LIMIT, IDENTITY_NONE_LEFT),
    ]
    steps = np.round(np.stack(allowed, axis=1) * STRENGTHS)
    return np.asarray(steps / STRENGTHS, np.float32)


def structure_change(originals: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """How much the coarse structure of a face has changed, window by window; float32 (N, 29, 29).

    Both are shrunk to 64 pixels, where a soft face has all it ever had and a restored one must have
    the same. In windows of 7 pixels, 2 apart, the root mean square of the difference is set against
    the contrast of what was given. A brightness that moves as a whole counts too.

    Args:
        originals: float32 (N, 3, H, W), 0..1.
        restored: the same form.
    """
    from torch.nn.functional import avg_pool2d

    size = (STRUCTURE_SIDE, STRUCTURE_SIDE)
    gray, restored_gray = (
        resize(each, size).mean(1, keepdim=True) for each in (originals, restored)
    )
    change = avg_pool2d((restored_gray - gray).square(), _WINDOW, _STEP).sqrt()
    mean = avg_pool2d(gray, _WINDOW, _STEP)
    contrast = (avg_pool2d(gray.square(), _WINDOW, _STEP) - mean.square()).clamp(min=0).sqrt()
    return (change / (contrast + 0.03))[:, 0]


def _greatest_at_mouth(change: Floats, mouths: Floats, length: Floats) -> Floats:
    """The largest change in the windows around the mouth.

    Args:
        change: of each face, (N, 29, 29).
        mouths: their middles, (N, 2), in pixels of `MEASURED_SIDE`.
        length: from the eyes to the mouth, (N,), in the same pixels.

    Returns:
        float32 (N,).
    """
    scale = MEASURED_SIDE / STRUCTURE_SIDE
    middles = scale * (_WINDOW / 2 + _STEP * np.arange(change.shape[1]))
    offsets = np.abs(middles[None, None] - mouths[..., None]) / length[:, None, None]
    rows, columns = offsets[:, 1] < _MOUTH_REACH[1], offsets[:, 0] < _MOUTH_REACH[0]
    inside = rows[:, :, None] & columns[:, None]
    return np.asarray((change * inside).max((1, 2)), np.float32)


def _ramp(values: Floats, full: float, none: float) -> Floats:
    """1 up to `full`, 0 from `none` on."""
    return np.asarray(np.clip((none - values) / (none - full), 0, 1), np.float32)
