"""Decisions and computations before the network: scene cuts, skipped frames, network inputs.

Frames that have the same bits as the one before, that are sharp already, that are covered
altogether, and all frames with ``strength: 0``, never reach the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..frames.hints import Hints
from ..frames.resize import resize
from .compose import visibility
from .outcome import Cause
from .scene_cuts import scene_cuts, thumbnails

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ..config.settings import EnhancerSettings
    from ..faces.align import Aligner, Alignment
    from ..faces.occlusion import Occluder
    from .stability.motion import Motion, MotionEstimator
    from .stability.sharpness import SharpnessMeter
    from .stream import StreamState


@dataclass(frozen=True)
class Prepared:
    """Frames of one stream and size, before the network.

    Attributes:
        faces: float32 (N, 3, H, W), RGB, 0..1.
        hints: of each frame.
        cuts: whether a scene begins with a frame.
        needs: how much restoring each frame needs, 0..1.
        shares: of the strength that each frame may get, 0..1.
        left_alone: why a frame need not go through the network; None where it must.
        sharpness: of each frame, averaged over time; empty where the gate is off.
        motion_images: as the motions are measured, uint8 (h, w, 3), RGB; empty where nothing is
            kept steady.
        thumbnail: of the last frame, (1, 3, 32, 32), on the CPU.
        visibility: (N, 1, H, W), 0..1, where the faces are seen; None where nothing covers them.
    """

    faces: torch.Tensor
    hints: Hints
    cuts: list[bool]
    needs: list[float]
    shares: list[float]
    left_alone: list[Cause | None]
    sharpness: list[float]
    motion_images: list[NDArray[np.uint8]]
    thumbnail: torch.Tensor
    visibility: torch.Tensor | None

    @property
    def active(self) -> list[int]:
        """Places of the frames that go through the network."""
        return [place for place, cause in enumerate(self.left_alone) if cause is None]


class Preparer:
    """Prepares the frames of an engine; holds no state of a stream.

    Args:
        settings: of the engine.
        aligner: brings faces to the network's template; None where ``align: none``.
        occluder: finds what covers a face; None without one.
    """

    def __init__(
        self,
        settings: EnhancerSettings,
        aligner: Aligner | None = None,
        occluder: Occluder | None = None,
    ) -> None:
        self.settings, self.aligner, self.occluder = settings, aligner, occluder
        self._meter: SharpnessMeter | None = None
        self._estimator: MotionEstimator | None = None

    def unload(self) -> None:
        """Free what is on a GPU; it is created again on demand."""
        self._meter = None

    def close(self) -> None:
        """Free everything."""
        self._meter = self._estimator = None
        if self.occluder is not None:
            self.occluder.close()

    def prepare(
        self,
        faces: torch.Tensor,
        hints: Hints,
        repeated: Sequence[bool],
        state: StreamState,
        shares: Sequence[float] | None = None,
    ) -> Prepared:
        """Decide what each frame needs.

        Args:
            faces: frames that follow one another, float32 (N, 3, H, W), RGB, 0..1.
            hints: of each of them.
            repeated: whether a frame has the same bits and hints as the one before.
            state: of the stream; not changed.
            shares: of the strength that each frame may get, 0..1; None: all of it.
        """
        shares = [1.0] * len(faces) if shares is None else list(shares)
        small = self._thumbnails(faces)
        cuts = [
            bool(cut) or declared
            for cut, declared in zip(
                scene_cuts(small, state.thumbnail).tolist(), hints.cuts, strict=True
            )
        ]
        visible = visibility(hints.occlusion, faces, self.occluder)
        left_alone: list[Cause | None] = [None] * len(faces)
        needs, sharpness = self._needs(faces, state.sharpness, cuts)
        covered = (
            [False] * len(faces) if visible is None else (visible.amax((1, 2, 3)) <= 0).tolist()
        )
        for place in range(len(faces)):
            if repeated[place]:
                left_alone[place] = Cause.UNCHANGED
            elif shares[place] <= 0:
                left_alone[place] = Cause.DEADLINE
            elif self.settings.strength == 0:
                left_alone[place] = Cause.STRENGTH
            elif needs[place] <= 0:
                left_alone[place] = Cause.SHARP
            elif covered[place]:
                left_alone[place] = Cause.COVERED
        images = self._motion_images(faces)
        return Prepared(
            faces, hints, cuts, needs, shares, left_alone, sharpness, images, small[-1:], visible
        )

    def _thumbnails(self, faces: torch.Tensor) -> torch.Tensor:
        return thumbnails(faces).cpu()

    def _needs(
        self, faces: torch.Tensor, sharpness: float | None, cuts: Sequence[bool]
    ) -> tuple[list[float], list[float]]:
        """How much restoring each frame needs, 0..1, and how sharp it and those before it are."""
        if not self.settings.sharpness_gate_on:
            return [1.0] * len(faces), []
        import torch

        from .stability.sharpness import FORGETTING, SharpnessMeter, needed

        if self._meter is None or self._meter.device != faces.device:
            self._meter = SharpnessMeter(faces.device)
        averages: list[float] = []
        single = not self.settings.stability_amount  # every frame by itself
        for value, cut in zip(self._meter.measure(faces).tolist(), cuts, strict=True):
            if sharpness is None or cut or single:
                sharpness = value
            else:
                sharpness = FORGETTING * sharpness + (1 - FORGETTING) * value
            averages.append(sharpness)
        return needed(torch.tensor(averages, device="cpu")).tolist(), averages

    def _motion_images(self, faces: torch.Tensor) -> list[NDArray[np.uint8]]:
        if not self.settings.stability_amount:
            return []
        from .stability.motion import working_size

        small = resize(faces, working_size(int(faces.shape[2]), int(faces.shape[3])))
        # a bicubic may leave the range, and what is under 0 would turn white
        levels = small.mul(255).round_().clamp_(0, 255).byte()
        return list(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def motions(
        self, prepared: Prepared, previous: NDArray[np.uint8] | None
    ) -> list[Motion | None]:
        """The motion into each frame that goes through the network.

        Args:
            prepared: the frames.
            previous: the motion image of the frame before the first; None where that was not
                restored.

        Returns:
            One motion for each; None where the frame before it was not restored, or a scene begins.
            Empty where nothing is kept steady.
        """
        images = prepared.motion_images
        if not images:
            return []
        if self._estimator is None:
            from .stability.motion import MotionEstimator

            self._estimator = MotionEstimator()
        motions: list[Motion | None] = []
        for place, image in enumerate(images):
            if prepared.left_alone[place] is None:
                motion = None
                if previous is not None and previous.shape == image.shape:
                    if not prepared.cuts[place]:
                        motion = self._estimator.between(previous, image)
                motions.append(motion)
                previous = image
            elif prepared.left_alone[place] is not Cause.UNCHANGED:
                previous = None
        return motions

    def inputs(
        self, faces: torch.Tensor, side: int | None, hints: Hints
    ) -> tuple[torch.Tensor, tuple[list[int], Alignment] | None]:
        """The network's inputs, and which of them are aligned to the template.

        Args:
            faces: float32 (N, 3, H, W), RGB, 0..1.
            side: of the network's input, in pixels; None where it takes any size.
            hints: of these faces, landmarks filled in.
        """
        if self.aligner is None:
            return (
                faces if side is None else resize(faces, (side, side), enlarge="bilinear")
            ), None
        size = (int(faces.shape[2]), int(faces.shape[3]))
        usable = [
            index
            for index, points in enumerate(hints.landmarks)
            if points is not None and not self.aligner.problems(points[None], size)
        ]
        inputs = resize(faces, (self.aligner.side, self.aligner.side), enlarge="bilinear")
        if not usable:
            return inputs, None
        import numpy as np

        points = np.array([hints.landmarks[index] for index in usable])
        aligned, alignment = self.aligner.warp(faces[usable], points)
        inputs = inputs.clone()
        inputs[usable] = aligned
        return inputs, (usable, alignment)
