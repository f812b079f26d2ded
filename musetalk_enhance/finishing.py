"""From what a network made to what a host gets: held still, in the host's colours, only where it may change.

Every batch is finished frame by frame in the order of the stream, and what the stream must remember is handed on
as a value: a batch that fails and is tried again begins where the last good one ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import FrameError
from .hints import Hints
from .imaging import mean_change, residual_of, resize

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from .faces.align import Aligner, Alignment
    from .faces.occlusion import Occluder
    from .faces.places import PlaceFinder
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

    def to(self, device: torch.device) -> Stream:
        """The same on another device: a stream outlives the network's move to the CPU."""
        held, ratio = self.held, self.ratio
        if (held is None or held.residual.device == device) and (ratio is None or ratio.device == device):
            return self
        return replace(self, held=held and held.to(device), ratio=None if ratio is None else ratio.to(device))


@dataclass(frozen=True)
class FrameNote:
    """What was done to one frame.

    Attributes:
        strength: how much of the restored face it got, 0..1, all told.
        guard: ``"mouth"``, ``"eyes"`` or ``"identity"`` where the guard lowered it, ``"recovery"`` where it is
            still lowered from before; None where the guard did nothing.
        sharp: whether it was sharp already, so that some or all of the restoring was left out.
        cut: whether a scene began with it.
        aligned: False where ``align: ffhq`` found no landmarks that can be used, so that the network saw the crop
            as it came.
        lowered: why it got less than the option `strength`; the guard's or the sharpness gate's reason,
            whichever took more. None where it got all of it.
        change: mean absolute change of the pixels that may change, in 1/255, rounded as 8-bit frames
            are; 0 means that no value changed. None where it was not measured.
    """

    strength: float = 1.0
    guard: str | None = None
    sharp: bool = False
    cut: bool = False
    aligned: bool = True
    lowered: str | None = None
    change: float | None = field(default=None, compare=False)

    @property
    def left(self) -> str | None:
        """Why the frame is as it came; None where some of the restored face is in it."""
        if self.strength > 0:
            return "unchanged" if self.change == 0 else None
        if self.guard is not None and self.guard != "recovery":  # which only lowers, and never to nothing
            return f"held back: {self.guard}"
        return "sharp already" if self.sharp else "strength 0"

    def as_dict(self) -> dict[str, Any]:
        """As plain values, in the words of reports."""
        return {
            "strength": self.strength,
            "guard": self.guard,
            "sharp already": self.sharp,
            "cut": self.cut,
            "not aligned": not self.aligned,
            "change": self.change,
            "left alone": self.left,
        }


@dataclass(frozen=True)
class Work:
    """One batch on its way.

    Attributes:
        faces: the host's frames, float32 (N, 3, H, W), RGB, 0..1.
        inputs: what the network was given, (N, 3, S, S).
        restored: what it made, (N, 3, T, T).
        size_hw: height and width to hand back.
        hints: what is known of each frame, landmarks filled in where they are needed.
        laid: which faces were laid on the template, and how; None where none was.
        motions: into each frame from the one before it; empty where nothing is held still.
        pictures: as the motions were looked at; empty likewise.
    """

    faces: torch.Tensor
    inputs: torch.Tensor
    restored: torch.Tensor
    size_hw: tuple[int, int]
    hints: Hints
    laid: tuple[list[int], Alignment] | None = None
    motions: list[Motion | None] = field(default_factory=list)
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)


@dataclass(frozen=True)
class Finished:
    """A batch to hand back.

    Attributes:
        faces: float32 (N, 3, *size_hw), RGB, about 0..1.
        touched: bool (1 or N, 1, *size_hw): where a pixel may differ from the host's. None: everywhere.
        stream: what is remembered now.
        notes: what was done to each frame, but for how much it changed.
        changes: float32 (N,), on the device of the faces; see `FrameNote.change`.
    """

    faces: torch.Tensor
    touched: torch.Tensor | None
    stream: Stream
    notes: list[FrameNote]
    changes: torch.Tensor

    def complete_notes(self) -> list[FrameNote]:
        """The notes with the changes, which are fetched once a batch: call it after the faces were."""
        changes = self.changes.tolist()
        return [replace(note, change=change) for note, change in zip(self.notes, changes, strict=True)]


class Finisher:
    """Finishes the batches of one enhancer; what it keeps itself does not depend on the stream."""

    def __init__(self, settings: EnhancerSettings) -> None:
        """Args:
        settings: stability, color_match, guard, sharpness_gate and strength are looked at.
        """
        self.settings = settings
        self._finder: MotionFinder | None = None
        self._guard: Guard | None = None
        self._aligner: Aligner | None = None
        self._places: PlaceFinder | None = None
        self._occluder: Occluder | None = None

    def open(self, side: int | None) -> None:
        """Load what the settings ask for, so that what is missing is known before a long run.

        Args:
            side: of the network's input, in pixels; None where it takes any.

        Raises:
            MissingWeightError: the detector's or occluder's file is not there.
            MissingDependencyError: a package is not installed.
            CheckpointError: the occluder's file is another graph.
        """
        settings = self.settings
        if settings.align == "ffhq":
            from .faces.align import TEMPLATE_SIDE, Aligner

            self._aligner = Aligner(side or TEMPLATE_SIDE)
        if settings.align == "ffhq" or settings.region == "mouth":
            from .faces.places import PlaceFinder

            self._places = PlaceFinder(settings.landmarks)
        if settings.occluder is not None:
            from .faces.occlusion import Occluder

            self._occluder = Occluder(settings.occluder)

    def reset(self) -> None:
        """Begin another stream."""
        if self._places is not None:
            self._places.reset()

    def unload(self) -> None:
        """Give back what lies on a GPU; what is needed again is made again."""
        self._guard = None
        if self._places is not None:
            self._places.unload()

    def close(self) -> None:
        """Give everything back."""
        if self._occluder is not None:
            self._occluder.close()
        self._finder = self._guard = self._aligner = self._places = self._occluder = None

    @property
    def needs_places(self) -> bool:
        """Whether `places` has anything to do."""
        return self._places is not None

    def places(self, faces: torch.Tensor, hints: Hints) -> list[Any]:
        """The landmarks of faces that follow one another in the stream; call it once for each frame."""
        assert self._places is not None
        return self._places.fill(faces, hints)

    def inputs(
        self, faces: torch.Tensor, side: int | None, hints: Hints
    ) -> tuple[torch.Tensor, tuple[list[int], Alignment] | None]:
        """What the network is given, and which of it was laid on the template.

        Args:
            faces: float32 (N, 3, H, W), RGB, 0..1.
            side: of the network's input, in pixels; None where it takes any.
            hints: of these faces, filled in by `places`.
        """
        if self._aligner is None:
            return (faces if side is None else resize(faces, (side, side), enlarge="bilinear")), None
        size = (int(faces.shape[2]), int(faces.shape[3]))
        usable = [
            index
            for index, points in enumerate(hints.landmarks)
            if points is not None and not self._aligner.problems(points[None], size)
        ]
        inputs = resize(faces, (self._aligner.side, self._aligner.side), enlarge="bilinear")
        if not usable:
            return inputs, None
        import numpy as np

        points = np.array([hints.landmarks[index] for index in usable])
        aligned, alignment = self._aligner.warp(faces[usable], points)
        inputs = inputs.clone()
        inputs[usable] = aligned
        return inputs, (usable, alignment)

    def pictures(self, faces: torch.Tensor) -> list[NDArray[np.uint8]]:
        """The faces as the motion is looked at; nothing where nothing is held still."""
        if not self.settings.stability_amount:
            return []
        from .stability.motion import working_size

        small = resize(faces, working_size(int(faces.shape[2]), int(faces.shape[3])))
        # a bicubic may leave the range, and what is under 0 would turn white
        return list(small.mul(255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy())

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
        residual = self._residual(work, base).clamp_(-1, 1)  # more means nothing, and would stay in the stream
        seen = [motion is not None and motion.cut for motion in work.motions] or [False] * len(base)
        cuts = [cut or told for cut, told in zip(seen, work.hints.cuts, strict=True)]
        if settings.color_match_on:
            from .stability.colour import without_tint

            residual = without_tint(residual, mask)
        residual, stream = self._held(residual, work, mask, stream)
        if mask is not None:
            residual = residual * mask
        needs, stream = self._needs(work.faces, stream, cuts)
        weights = [settings.strength * need for need in needs]
        residual = _weighted(residual, weights)
        reasons: list[str | None] = [None] * len(weights)
        if settings.guard_on:
            guarded = self._guarded(base, residual, stream, cuts)
            residual = _weighted(residual, guarded.weights)
            weights = [weight * share for weight, share in zip(weights, guarded.weights, strict=True)]
            reasons, stream = guarded.reasons, replace(stream, guard=guarded.weights[-1])
        aligned = None if self._aligner is None else set((work.laid or ([],))[0])
        notes = [
            FrameNote(
                weight,
                reason,
                need < 1 and settings.strength > 0,  # with strength 0 that alone is the reason
                cut,
                aligned is None or index in aligned,
                _lowered_by(reason, need, weight, settings.strength),
            )
            for index, (weight, reason, need, cut) in enumerate(
                zip(weights, reasons, needs, cuts, strict=True)
            )
        ]
        touched = None if mask is None else mask > 0
        finished = base + residual
        changes = mean_change(base, finished, touched)
        if min(weights) <= 0:
            some = torch.tensor([weight > 0 for weight in weights], device=residual.device).view(-1, 1, 1, 1)
            touched = some if touched is None else touched & some
        return Finished(finished, touched, stream, notes, changes)

    def _mask(self, work: Work) -> torch.Tensor | None:
        """Where the faces may change: in the region, and not where something covers them."""
        mask = self._region(work)
        seen = self._visibility(work)
        if seen is not None:
            mask = seen if mask is None else mask * seen
        return mask

    def _region(self, work: Work) -> torch.Tensor | None:
        from .faces.regions import region_mask

        height, width = work.faces.shape[2:]
        places = [None if points is None else points / (width, height) for points in work.hints.landmarks]
        return region_mask(self.settings.region, work.size_hw, places, work.faces.device)

    def _visibility(self, work: Work) -> torch.Tensor | None:
        """Where the face is seen, (N, 1, *size_hw), 0..1; None where nothing says that anything covers it."""
        import torch

        height, width = int(work.faces.shape[2]), int(work.faces.shape[3])
        seen = None if self._occluder is None else self._occluder.mask(work.faces)
        if any(mask is not None for mask in work.hints.occlusion):
            from .faces.occlusion import host_mask

            try:
                told = [
                    work.faces.new_ones(1, 1, height, width)
                    if mask is None
                    else host_mask(mask, 1, (height, width), device=work.faces.device)
                    for mask in work.hints.occlusion
                ]
            except FrameError as error:
                raise FrameError("occlusion", error.actual, error.expected) from error
            seen = torch.cat(told) if seen is None else torch.minimum(seen, torch.cat(told))
        return None if seen is None else _shrunk_mask(seen, work.size_hw)

    def _residual(self, work: Work, base: torch.Tensor) -> torch.Tensor:
        """What the network adds to the host's frames."""
        if work.laid is None:
            return residual_of(work.faces, work.inputs, work.restored, work.size_hw, base)
        import torch

        assert self._aligner is not None
        usable, alignment = work.laid
        added = work.restored[usable] - resize(
            work.inputs[usable], (int(work.restored.shape[2]), int(work.restored.shape[3]))
        )
        laid, coverage = self._aligner.unwarp(added, alignment, work.size_hw)
        residual = torch.empty_like(base)
        residual[usable] = laid * coverage
        rest = [index for index in range(len(base)) if index not in set(usable)]
        if rest:
            faces, inputs, restored = work.faces[rest], work.inputs[rest], work.restored[rest]
            residual[rest] = residual_of(faces, inputs, restored, work.size_hw, base[rest])
        return residual

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
            known = None if work.hints.cuts[index] else motion
            one, held = hold(residual[index : index + 1], known, held, amount, support)
            done.append(one)
        return torch.cat(done), replace(stream, held=held, picture=work.pictures[-1])

    def _needs(self, faces: torch.Tensor, stream: Stream, cuts: list[bool]) -> tuple[list[float], Stream]:
        """How much restoring each frame needs, 0..1, from how sharp it and those before it are."""
        if not self.settings.sharpness_gate_on:
            return [1.0] * len(faces), stream
        import torch

        from .stability.sharpness import FORGETTING, detail_ratio, needed

        mean, means = stream.ratio, []
        for ratio, cut in zip(detail_ratio(faces), cuts, strict=True):
            mean = ratio if mean is None or cut else FORGETTING * mean + (1 - FORGETTING) * ratio
            means.append(mean)
        return needed(torch.stack(means)).tolist(), replace(stream, ratio=mean)

    def _guarded(self, base: torch.Tensor, residual: torch.Tensor, stream: Stream, cuts: list[bool]) -> Any:
        if self._guard is None or self._guard.gauge.device != base.device:
            from .stability.guard import Guard

            self._guard = Guard(base.device)
        return self._guard.look(base, (base + residual).clamp_(0, 1), stream.guard, cuts)


def _lowered_by(reason: str | None, need: float, weight: float, strength: float) -> str | None:
    """Why a frame got `weight` of `strength`: the guard's `reason`, or the gate's `need` of less than 1."""
    if strength == 0:
        return None
    if reason is not None and (need >= 1 or weight < strength * need * need):
        return f"held back: {reason}"
    return "sharp already" if need < 1 else None


def _weighted(residual: torch.Tensor, weights: list[float]) -> torch.Tensor:
    if all(weight == 1 for weight in weights):
        return residual
    return residual * residual.new_tensor(weights).view(-1, 1, 1, 1)


def _shrunk_mask(seen: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """A visibility in another size: a pixel of which any part is covered stays 0."""
    if tuple(seen.shape[2:]) == size_hw:
        return seen
    from torch.nn.functional import adaptive_max_pool2d

    covered = adaptive_max_pool2d((seen <= 0).to(seen.dtype), size_hw)
    return resize(seen, size_hw, enlarge="bilinear").clamp(0, 1) * (1 - covered)
