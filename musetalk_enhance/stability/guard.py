"""What must not change: how far the mouth and the eyes are open, and who it is. Where a restorer moves them beyond
a limit, less of it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..faces.gauge import FaceGauge
from ..imaging import resize

if TYPE_CHECKING:
    import torch

REASONS = ("mouth", "eyes", "identity")
MOUTH_LIMIT, EYES_LIMIT = 0.04, 0.06
"""What the openings may move, in units of `Gauged`. Between a soft face and the sharp one it was made from they move
by 0.007 and 0.024 at most; a mouth that is painted shut moves by 0.03 to 0.4."""
SHIFT_LIMIT = 0.03
"""What the eyes or the corners of the mouth may shift, as a share of the distance from the eyes to the mouth: 3 to 4
pixels of 256. Soft and sharp differ by 0.013 at most."""
IDENTITY_LIMIT = 0.5
"""What the coarse structure may move, see `structure_moved`. Soft and sharp differ by 0.35 at most; eyes that are
shifted by 5 pixels of 256 by 0.9 and more."""
NONE_LEFT = 2.0
"""At the limit the restorer still has its full strength, at this multiple of it none."""
RECOVERY = 0.1
"""Strength is lowered at once, because the frame at hand must be right, and given back by this much a frame."""
SURE = 0.8
"""The gauge must be this confident that it looks at a face, in both pictures."""
LEAST_SIDE = 48
"""Faces smaller than this, in pixels, show the gauge nothing: the guard leaves them alone."""
SIDE = 64
_SEEN = 128


@dataclass(frozen=True)
class Guarded:
    """What the guard found in a batch.

    Attributes:
        weights: how much of the restorer each frame may have, 0..1.
        reasons: which of `REASONS` lowered it most; ``"recovery"`` where only a frame before did; None where
            nothing did.
        excess: per frame the movement of mouth, eyes and identity, in units of their limits.
    """

    weights: list[float]
    reasons: list[str | None]
    excess: list[tuple[float, float, float]]


class Guard:
    """Compares what was given with what would be handed back."""

    def __init__(self, device: torch.device) -> None:
        """Args:
        device: where the faces will be.
        """
        self.gauge = FaceGauge(device)

    def look(self, given: torch.Tensor, restored: torch.Tensor, before: float, cuts: Sequence[bool] = ()) -> Guarded:
        """How much of the restorer each frame may have.

        Args:
            given: the host's faces, float32 (N, 3, H, W), RGB, 0..1.
            restored: what would be handed back, the same form.
            before: the weight of the frame before the first, 1.0 at the beginning of a stream.
            cuts: whether a scene begins with a frame: the one before is no reason to hold it back. Empty: none does.
        """
        rows = moved(self.gauge, given, restored).tolist()
        weights: list[float] = []
        reasons: list[str | None] = []
        for row, cut in zip(rows, cuts or [False] * len(rows), strict=True):
            before = 1.0 if cut else before
            wanted = min(1.0, max(0.0, (NONE_LEFT - max(row)) / (NONE_LEFT - 1)))
            before = min(wanted, round(before + RECOVERY, 6))
            weights.append(before)
            reasons.append(REASONS[row.index(max(row))] if max(row) > 1 else "recovery" if before < 1 else None)
        return Guarded(weights, reasons, [(row[0], row[1], row[2]) for row in rows])


def moved(gauge: FaceGauge, given: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """How far mouth, eyes and identity of each face have moved, in units of their limits; float32 (N, 3)."""
    import torch

    if min(given.shape[2:]) < LEAST_SIDE:
        return given.new_zeros(len(given), len(REASONS))
    pair = torch.cat([resize(given, (_SEEN, _SEEN)), resize(restored, (_SEEN, _SEEN))])
    seen, count = gauge.measure(pair), len(given)
    sure = (torch.minimum(seen.confidence[:count], seen.confidence[count:]) > SURE).float()
    mouth = (seen.mouth[count:] - seen.mouth[:count]).abs() / MOUTH_LIMIT
    eyes = (seen.eyes[count:] - seen.eyes[:count]).abs().amax(1) / EYES_LIMIT
    before, after = seen.landmarks[:count], seen.landmarks[count:]
    length = (before[:, 3:].mean(1) - before[:, :2].mean(1)).norm(dim=1).clamp(min=1)
    shift = (after - before).norm(dim=2) / length[:, None] / SHIFT_LIMIT
    mouth = torch.maximum(mouth, shift[:, 3:].amax(1)) * sure
    eyes = torch.maximum(eyes, shift[:, :2].amax(1)) * sure
    return torch.stack([mouth, eyes, structure_moved(pair[:count], pair[count:]) / IDENTITY_LIMIT], dim=1)


def structure_moved(given: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """How much the coarse structure of a face has changed where it changed most; float32 (N,).

    Both are shrunk to 64 pixels, where a soft face has all it ever had and a restored one must have the same. In
    windows of 7 pixels the root mean square of the difference is set against the contrast of what was given.
    A brightness that moves as a whole counts too.

    Args:
        given: float32 (N, 3, H, W), 0..1.
        restored: the same form.
    """
    from torch.nn.functional import avg_pool2d

    before, after = (resize(each, (SIDE, SIDE)).mean(1, keepdim=True) for each in (given, restored))
    change = avg_pool2d((after - before).square(), 7, 2).sqrt()
    contrast = (avg_pool2d(before.square(), 7, 2) - avg_pool2d(before, 7, 2).square()).clamp(min=0).sqrt()
    return (change / (contrast + 0.03)).flatten(1).amax(1)
