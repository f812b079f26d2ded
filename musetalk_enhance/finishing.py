"""From what a network made to what a host gets: held still, in the host's colours, only where it may change.

Every batch is finished frame by frame in the order of the stream, and what the stream must remember is handed on
as a value: a batch that fails and is tried again begins where the last good one ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .hints import Hints
from .imaging import resize, residual_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from .settings import EnhancerSettings
    from .stability.guard import Guard
    from .stability.motion import Motion, MotionFinder
    from .stability.temporal import Held


@dataclass(frozen=True)
class Stream:
    """What is remembered of a stream of frames, all of it of the last frame that was finished.

    Attributes:
        picture: as the motion is looked at, uint8 (h, w, 3), RGB.
        held: its restored detail.
        ratio: how sharp the faces have been; see `stability.sharpness`.
        guard: how much of the restorer it got.
    """

    picture: NDArray[np.uint8] | None = None
    held: Held | None = None
    ratio: torch.Tensor | None = None
    guard: float = 1.0


@dataclass(frozen=True)
class FrameNote:
    """What was done to one frame.

    Attributes:
        strength: how much of the restored face it got, 0..1, all told.
        guard: ``"mouth"``, ``"eyes"`` or ``"identity"`` where the guard lowered it, ``"recovery"`` where it is
            still lowered from before; None where the guard did nothing.
        sharp: whether it was sharp already, so that some or all of the restoring was left out.
        cut: whether a scene began with it.
    """

    strength: float = 1.0
    guard: str | None = None
    sharp: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Work:
    """One batch on its way.

    Attributes:
        faces: the host's frames, float32 (N, 3, H, W), RGB, 0..1.
        inputs: what the network was given, (N, 3, S, S).
        restored: what it made, (N, 3, T, T).
        size_hw: height and width to hand back.
        hints: what the host knows of each frame.
        motions: into each frame from the one before it; empty where nothing is held still.
        pictures: as the motions were looked at; empty likewise.
    """

    faces: torch.Tensor
    inputs: torch.Tensor
    restored: torch.Tensor
    size_hw: tuple[int, int]
    hints: Hints
    motions: list[Motion | None] = field(default_factory=list)
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)


@dataclass(frozen=True)
class Finished:
    """A batch to hand back.

    Attributes:
        faces: float32 (N, 3, *size_hw), RGB, about 0..1.
        touched: bool (1 or N, 1, *size_hw): where a pixel may differ from the host's. None: everywhere.
        stream: what is remembered now.
        notes: what was done to each frame.
    """

    faces: torch.Tensor
    touched: torch.Tensor | None
    stream: Stream
    notes: list[FrameNote]


class Finisher:
    """Finishes the batches of one enhancer; what it keeps itself does not depend on the stream."""

    def __init__(self, settings: EnhancerSettings) -> None:
        """Args:
            settings: stability, color_match, guard, sharpness_gate and strength are looked at.
        """
        self.settings = settings
        self._finder: MotionFinder | None = None
        self._guard: Guard | None = None

    def reset(self) -> None:
        """Forget what was found of the stream."""

    def pictures(self, faces: torch.Tensor) -> list[NDArray[np.uint8]]:
        """The faces as the motion is looked at; nothing where nothing is held still."""
        if not self.settings.stability_amount:
            return []
        from .stability.motion import working_size

        small = resize(faces, working_size(int(faces.shape[2]), int(faces.shape[3])))
        return list(small.mul(255).round_().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def motions(self, pictures: list[NDArray[np.uint8]], stream: Stream) -> list[Motion | None]:
        """The motion into each picture; on the CPU, while a GPU may still be at work on the network."""
        if not pictures:
            return []
        if self._finder is None:
            from .stability.motion import MotionFinder

            self._finder = MotionFinder()
        return self._finder.all(stream.picture, pictures)

    def finish(self, work: Work, stream: Stream) -> Finished:
        """Lay what the network made over the host's frames.

        Args:
            work: the batch.
            stream: what is remembered of the frames before; not changed.
        """
        import torch

        settings, mask = self.settings, self._mask(work)
        base = resize(work.faces, work.size_hw)
        residual = residual_of(work.faces, work.inputs, work.restored, work.size_hw, base)
        if settings.color_match_on:
            from .stability.colour import without_tint

            residual = without_tint(residual, mask)
        residual, stream = self._held(residual, work, mask, stream)
        if mask is not None:
            residual = residual * mask
        needs, stream = self._needs(work.faces, stream)
        weights = [settings.strength * need for need in needs]
        residual = _weighted(residual, weights)
        reasons: list[str | None] = [None] * len(weights)
        if settings.guard_on:
            guarded = self._guarded(base, residual, stream)
            residual = _weighted(residual, guarded.weights)
            weights = [weight * share for weight, share in zip(weights, guarded.weights, strict=True)]
            reasons, stream = guarded.reasons, replace(stream, guard=guarded.weights[-1])
        cuts = [motion is not None and motion.cut for motion in work.motions] or [False] * len(weights)
        notes = [
            FrameNote(weight, reason, need < 1, cut)
            for weight, reason, need, cut in zip(weights, reasons, needs, cuts, strict=True)
        ]
        touched = None if mask is None else mask > 0
        if min(weights) <= 0:
            some = torch.tensor([weight > 0 for weight in weights], device=residual.device).view(-1, 1, 1, 1)
            touched = some if touched is None else touched & some
        return Finished(base + residual, touched, stream, notes)

    def _mask(self, work: Work) -> torch.Tensor | None:
        """Where the faces may change: in the region, and not where something covers them."""
        from .faces.regions import region_mask

        height, width = work.faces.shape[2:]
        places: list[Any] = []
        if self.settings.region == "mouth":
            places = [None if points is None else points / (width, height) for points in work.hints.landmarks]
        mask = region_mask(self.settings.region, work.size_hw, places, work.faces.device)
        return mask

    def _held(
        self, residual: torch.Tensor, work: Work, mask: torch.Tensor | None, stream: Stream
    ) -> tuple[torch.Tensor, Stream]:
        """The residuals held still, one after the other."""
        if not work.pictures:
            return residual, stream
        import torch

        from .stability.temporal import hold

        held, done = stream.held, []
        for index, motion in enumerate(work.motions):
            support = None if mask is None else mask[index % len(mask)][None]
            amount = self.settings.stability_amount
            one, held = hold(residual[index : index + 1], motion, held, amount, support)
            done.append(one)
        return torch.cat(done), replace(stream, held=held, picture=work.pictures[-1])

    def _needs(self, faces: torch.Tensor, stream: Stream) -> tuple[list[float], Stream]:
        """How much restoring each frame needs, 0..1, from how sharp it and those before it are."""
        if not self.settings.sharpness_gate_on:
            return [1.0] * len(faces), stream
        import torch

        from .stability.sharpness import FORGETTING, detail_ratio, needed

        mean, means = stream.ratio, []
        for ratio in detail_ratio(faces):
            mean = ratio if mean is None else FORGETTING * mean + (1 - FORGETTING) * ratio
            means.append(mean)
        return needed(torch.stack(means)).tolist(), replace(stream, ratio=mean)

    def _guarded(self, base: torch.Tensor, residual: torch.Tensor, stream: Stream) -> Any:
        if self._guard is None or self._guard.gauge.device != base.device:
            from .stability.guard import Guard

            self._guard = Guard(base.device)
        return self._guard.look(base, (base + residual).clamp(0, 1), stream.guard)


def _weighted(residual: torch.Tensor, weights: list[float]) -> torch.Tensor:
    if all(weight == 1 for weight in weights):
        return residual
    return residual * residual.new_tensor(weights).view(-1, 1, 1, 1)
