"""From the network's output to the host's frames: steady, in their colors, inside the masks.

A batch is composed together, in the rows that may change, and what the stream must remember is
returned as a value: a batch that fails and is tried again begins where the last good one ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import FrameError
from ..frames.resize import empty, kept_rows, mean_change, residual_of, resize
from .outcome import Cause, Outcome, Status

if TYPE_CHECKING:
    import torch

    from ..config.settings import EnhancerSettings
    from ..faces.align import Aligner, Alignment
    from ..frames.hints import Hints
    from .match import Source
    from .stability.guard import Guard
    from .stability.motion import Motion
    from .stream import StreamState

REASONS = {
    "mouth": Cause.MOUTH,
    "eyes": Cause.EYES,
    "identity": Cause.IDENTITY,
    "recovery": Cause.RECOVERY,
}


@dataclass(frozen=True)
class ComposeInput:
    """Frames of one stream and size that went through the network.

    Attributes:
        faces: the host's frames, float32 (N, 3, H, W), RGB, 0..1.
        inputs: what the network was given, (N, 3, S, S).
        restored: what it made, (N, 3, T, T).
        size_hw: height and width of the result.
        hints: of each frame, landmarks filled in where they are needed.
        motions: into each frame from the one before it; None where nothing of that may be used.
            Empty where nothing is kept steady.
        cuts: whether a scene begins with a frame.
        needs: how much restoring each frame needs, 0..1.
        shares: of the strength that each frame may get, 0..1; empty: all of it.
        visibility: (N, 1, H, W), 0..1, where the face is seen; None where nothing covers it.
        alignment: which frames were aligned to the template, and how; None where none was.
        sources: the host's original of each frame; None where it has none. Empty: of no frame.
    """

    faces: torch.Tensor
    inputs: torch.Tensor
    restored: torch.Tensor
    size_hw: tuple[int, int]
    hints: Hints
    motions: list[Motion | None]
    cuts: list[bool]
    needs: list[float]
    visibility: torch.Tensor | None = None
    alignment: tuple[list[int], Alignment] | None = None
    sources: Sequence[Source | None] = ()
    shares: Sequence[float] = ()


@dataclass(frozen=True)
class Composed:
    """A composed batch.

    Attributes:
        rows: float32 (N, 3, R, W), RGB, about 0..1: from `first_row` down.
        first_row: of the rows that may change; 0 if the result has another size than the input.
        touched: bool (1 or N, 1, R, W): where a pixel may differ from the host's. None: everywhere
            in `rows`.
        state: what the stream remembers now.
        outcomes: of each frame, but for how much it changed.
        changes: float32 (N,), on the device of the faces; see `Outcome.change`.
    """

    rows: torch.Tensor
    first_row: int
    touched: torch.Tensor | None
    state: StreamState
    outcomes: list[Outcome]
    changes: torch.Tensor

    def finished_outcomes(self) -> list[Outcome]:
        """The outcomes with `changes`, fetched once a batch: call it after fetching the frames."""
        finished = []
        for outcome, change in zip(self.outcomes, self.changes.tolist(), strict=True):
            if outcome.restored and change == 0:
                cause = outcome.cause if outcome.strength == 0 else Cause.UNCHANGED
                outcome = replace(outcome, status=Status.LEFT_ALONE, cause=cause)
            finished.append(replace(outcome, change=change))
        return finished


class Compositor:
    """Composes the batches of an engine; remembers nothing of any stream.

    Args:
        settings: of the engine.
        aligner: that aligned the inputs; None where ``align: none``.
    """

    def __init__(self, settings: EnhancerSettings, aligner: Aligner | None = None) -> None:
        self.settings = settings
        self._aligner = aligner
        self._guard: Guard | None = None

    def unload(self) -> None:
        """Free what is on a GPU; it is created again on demand."""
        self._guard = None

    def compose(self, batch: ComposeInput, state: StreamState) -> Composed:
        """Put what the network made over the host's frames.

        Args:
            batch: the frames.
            state: what the stream remembers of the frame before the first; not changed.
        """
        settings = self.settings
        height = batch.size_hw[0]
        first_row = kept_rows(settings.region, height).start
        base = resize(batch.faces, batch.size_hw)
        mask = self._mask(batch, first_row)
        # more is meaningless, and would stay
        residual = self._residual(batch, base, first_row).clamp_(-1, 1)
        if settings.color_match_on:
            from .stability.color import without_tint

            residual = without_tint(residual, mask)
        residual, state = self._steady(residual, batch, mask, state, first_row)
        matched = None
        if settings.match == "source":
            residual, matched, state = self._matched(residual, base, batch, state, first_row)
        if mask is not None:  # not before: around the mouth is measured, too
            residual.mul_(mask)
        shares = batch.shares or [1.0] * len(batch.needs)
        weights = [
            settings.strength * need * share
            for need, share in zip(batch.needs, shares, strict=True)
        ]
        residual = _weighted(residual, weights)
        causes: list[Cause | None] = [None] * len(weights)
        if settings.guard_on:
            residual, weights, causes, state = self._guarded(
                residual, batch, first_row, weights, causes, state
            )
        if matched is not None:
            matched = matched if mask is None else matched.mul_(mask)
            residual.add_(_weighted(matched, weights))
        outcomes = self._outcomes(batch, weights, causes)
        rows = base[:, :, first_row:]
        restored_rows = residual.add_(rows)
        touched = None if mask is None else mask > 0
        changes = mean_change(rows, restored_rows, touched)
        if min(weights) <= 0:
            touched = _only(touched, [weight > 0 for weight in weights], residual)
        if first_row and tuple(batch.faces.shape[2:]) != batch.size_hw:
            base[:, :, first_row:] = restored_rows  # another size: `base` is our own
            return Composed(base, 0, None, state, outcomes, changes)
        return Composed(restored_rows, first_row, touched, state, outcomes, changes)

    def _outcomes(
        self, batch: ComposeInput, weights: Sequence[float], causes: Sequence[Cause | None]
    ) -> list[Outcome]:
        aligned = None if self._aligner is None else set((batch.alignment or ([],))[0])
        outcomes = []
        shares = batch.shares or [1.0] * len(weights)
        for index, (weight, guard, need, share) in enumerate(
            zip(weights, causes, batch.needs, shares, strict=True)
        ):
            cause = _greater_cause(guard, need, weight, self.settings.strength * share)
            if cause is None and share < 1:
                cause = Cause.DEADLINE
            outcomes.append(
                Outcome(
                    strength=weight,
                    cause=cause,
                    guard=guard,
                    sharp=need < 1,
                    cut=batch.cuts[index],
                    aligned=aligned is None or index in aligned,
                )
            )
        return outcomes

    def _mask(self, batch: ComposeInput, first_row: int) -> torch.Tensor | None:
        """Where the faces may change, in the kept rows: in the region and not occluded."""
        mask = self._region(batch)
        if batch.visibility is not None:
            visible = _shrunk_mask(batch.visibility, batch.size_hw)
            mask = visible if mask is None else mask * visible
        return None if mask is None else mask[:, :, first_row:]

    def _region(self, batch: ComposeInput) -> torch.Tensor | None:
        from ..faces.regions import region_mask

        height, width = batch.faces.shape[2:]
        places = [
            None if points is None else points / (width, height) for points in batch.hints.landmarks
        ]
        return region_mask(self.settings.region, batch.size_hw, places, batch.faces.device)

    def _residual(self, batch: ComposeInput, base: torch.Tensor, first_row: int) -> torch.Tensor:
        """What the network adds to the host's frames, in the kept rows."""
        if batch.alignment is None:
            return residual_of(
                batch.faces, batch.inputs, batch.restored, batch.size_hw, base, first_row
            )

        assert self._aligner is not None
        usable, alignment = batch.alignment
        size = (int(batch.restored.shape[2]), int(batch.restored.shape[3]))
        added = batch.restored[usable] - resize(batch.inputs[usable], size)
        unaligned, coverage = self._aligner.unwarp(added, alignment, batch.size_hw)
        residual = empty(tuple(base.shape), base.device)
        residual[usable] = unaligned * coverage
        rest = [index for index in range(len(base)) if index not in set(usable)]
        if rest:
            faces, inputs, restored = batch.faces[rest], batch.inputs[rest], batch.restored[rest]
            residual[rest] = residual_of(faces, inputs, restored, batch.size_hw, base[rest])
        return residual[:, :, first_row:]

    def _steady(
        self,
        residual: torch.Tensor,
        batch: ComposeInput,
        mask: torch.Tensor | None,
        state: StreamState,
        first_row: int,
    ) -> tuple[torch.Tensor, StreamState]:
        if not batch.motions:
            return residual, state
        from .stability.temporal import steady

        amount, height = self.settings.stability_amount, batch.size_hw[0]
        residual, temporal = steady(
            residual, batch.motions, state.temporal, amount, first_row, height, mask
        )
        return residual, replace(state, temporal=temporal)

    def _matched(
        self,
        residual: torch.Tensor,
        base: torch.Tensor,
        batch: ComposeInput,
        state: StreamState,
        first_row: int,
    ) -> tuple[torch.Tensor, torch.Tensor, StreamState]:
        from .match import match

        height, width = batch.faces.shape[2:]
        landmarks = [
            None if points is None else points / (width, height) for points in batch.hints.landmarks
        ]
        single = not self.settings.stability_amount  # every frame by itself
        cuts = [True] * len(base) if single else batch.cuts
        sources = batch.sources or [None] * len(base)
        residual, added, matching = match(
            base, residual, sources, landmarks, cuts, first_row, state.match
        )
        return residual, added, replace(state, match=matching)

    def _guarded(
        self,
        residual: torch.Tensor,
        batch: ComposeInput,
        first_row: int,
        weights: list[float],
        causes: list[Cause | None],
        state: StreamState,
    ) -> tuple[torch.Tensor, list[float], list[Cause | None], StreamState]:
        from .stability.guard import Guard

        if self._guard is None or self._guard.device != residual.device:
            self._guard = Guard(residual.device)
        single = not self.settings.stability_amount  # every frame by itself
        cuts = [True] * len(weights) if single else batch.cuts
        result = self._guard.check(batch.faces, residual, first_row, state.guard, cuts)
        weights = [weight * share for weight, share in zip(weights, result.weights, strict=True)]
        causes = [None if reason is None else REASONS[reason] for reason in result.reasons]
        return (
            _weighted(residual, result.weights),
            weights,
            causes,
            replace(state, guard=result.weights[-1]),
        )


def _greater_cause(
    guard: Cause | None, need: float, weight: float, strength: float
) -> Cause | None:
    """Why a frame got `weight` of `strength`: the guard, or the gate's `need` if that took more."""
    if guard is not None and (need >= 1 or weight < strength * need * need):
        return guard
    return Cause.SHARP if need < 1 else None


def _weighted(residual: torch.Tensor, weights: list[float]) -> torch.Tensor:
    if all(weight == 1 for weight in weights):
        return residual
    return residual.mul_(residual.new_tensor(weights).view(-1, 1, 1, 1))


def _only(touched: torch.Tensor | None, some: list[bool], like: torch.Tensor) -> torch.Tensor:
    import torch

    frames = torch.tensor(some, device=like.device).view(-1, 1, 1, 1)
    return frames if touched is None else touched & frames


def _shrunk_mask(visibility: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """A visibility in another size: a pixel of which any part is covered stays 0."""
    if tuple(visibility.shape[2:]) == size_hw:
        return visibility
    from torch.nn.functional import adaptive_max_pool2d

    covered = adaptive_max_pool2d((visibility <= 0).to(visibility.dtype), size_hw)
    return resize(visibility, size_hw, enlarge="bilinear").clamp(0, 1) * (1 - covered)


def visibility(
    masks: Sequence[Any], faces: torch.Tensor, occluder: Any = None
) -> torch.Tensor | None:
    """Where faces are seen, (N, 1, H, W), 0..1; None where nothing covers them.

    Args:
        masks: the host's masks of what covers each face; None where it has none.
        faces: float32 (N, 3, H, W), RGB, 0..1.
        occluder: finds what covers a face; or None.

    Raises:
        FrameError: a mask has another shape or type.
        RestorerError: the occluder failed.
    """
    import torch

    height, width = int(faces.shape[2]), int(faces.shape[3])
    visible = None if occluder is None else occluder.mask(faces)
    if any(mask is not None for mask in masks):
        from ..faces.occlusion import host_mask

        try:
            parts = [
                faces.new_ones(1, 1, height, width)
                if mask is None
                else host_mask(mask, 1, (height, width), device=faces.device)
                for mask in masks
            ]
        except FrameError as error:
            raise FrameError("occlusion", error.actual, error.expected) from error
        hosts = torch.cat(parts)
        visible = hosts if visible is None else torch.minimum(visible, hosts)
    return visible
