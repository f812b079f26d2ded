"""`PictureRestorer`: restores every face in whole images.

Faces are detected, cropped on the network's template, restored together whatever image they come
from, and pasted back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import ConfigError, EnhanceError, FrameError
from ..faces.detect import Face, FaceDetector, NetworkDetector, WholeImage
from ..faces.identity import ReferenceFaces
from ..faces.paste import FaceCrop, Paste, paste_faces, without_added_color
from ..faces.rotated import RotatedFaces
from ..media.arrays import Image
from ..pipeline.engine import Request, Restored
from ..pipeline.outcome import Outcome, Status

if TYPE_CHECKING:
    import torch

    from ..enhancer import GFPGANEnhancer

RESTORED, TOO_SMALL, NOT_CENTER = "restored", "too small", "not the center face"
NOT_ALIGNED, NOT_SELECTED = "landmarks do not fit a face", "not selected"
FACES_AT_ONCE = 32
"""Most faces passed to the enhancer in one call; it splits them into batches itself."""


class Parser(Protocol):
    """Segments the face in an aligned crop; see `faces.parsing.FaceParser`."""

    def mask(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """float32 (n, 3, 512, 512), RGB, 0..1 to float32 (n, 1, 512, 512), 0..1."""


class Background(Protocol):
    """Enlarges an image; see `BackgroundUpsampler`."""

    def enlarge(self, picture_bgr: Image, scale: float) -> Image:
        """BGR uint8 (H, W, 3) to (round(H * scale), round(W * scale), 3)."""


@dataclass(frozen=True)
class FaceNote:
    """The outcome of one face.

    Attributes:
        box_xyxy: left, top, right, bottom in pixels of the input image, to a tenth.
        score: confidence of the detector, 0..1.
        state: ``"restored"`` if pixels changed, ``"too small"``, ``"not the center face"``,
            ``"sharp already"``, or another reason why it was left unchanged.
        strength: weight of the restored face, 0..1.
        lowered: why it is below the option `strength`; None if it is not, or if the face was
            left unchanged.
        change: mean absolute change in 1/255 of the face crop, before it is pasted; None if the
            face did not go through the network.
        failed: whether restoring it failed, which is neither a decision nor the fault of the
            image.
    """

    box_xyxy: tuple[float, float, float, float]
    score: float
    state: str = RESTORED
    strength: float = 0.0
    lowered: str | None = None
    change: float | None = None
    failed: bool = field(default=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return {
            "box_xyxy": list(self.box_xyxy),
            "score": self.score,
            "state": self.state,
            "strength": self.strength,
            "lowered": self.lowered,
            "change": self.change,
        }


@dataclass(frozen=True, eq=False)
class RestoredImage:
    """One image.

    Attributes:
        bgr: BGR uint8 (round(H * upscale), round(W * upscale), 3).
        faces: outcome of each face, the largest first.
        error: what failed: the detector or the background, which leaves the image unchanged, or
            the network at some of its faces; None if nothing did.
    """

    bgr: Image
    faces: tuple[FaceNote, ...] = ()
    error: str | None = None

    @property
    def restored(self) -> int:
        """Number of restored faces."""
        return sum(face.state == RESTORED for face in self.faces)


@dataclass
class Item:
    """An image between two steps.

    Attributes:
        image: the input.
        faces: detected faces.
        notes: outcome of each.
        crops: index of a face to its crop.
        pastes: index of a face to the restored face.
        whole: the restored image, if it is a single face crop.
        error: why the image is left unchanged.
    """

    image: Image
    faces: list[Face] = field(default_factory=list)
    notes: list[FaceNote] = field(default_factory=list)
    crops: dict[int, FaceCrop] = field(default_factory=dict)
    pastes: dict[int, Paste] = field(default_factory=dict)
    whole: Image | None = None
    error: str | None = None


class PictureRestorer:
    """Restores the faces of images with a given enhancer and detector.

    Images are independent of one another: the same faces in the same order give the same bits.

    Args:
        enhancer: restores faces; its `color`, `output_size` and `upscale` are ignored.
        detector: detects the faces, of a `NetworkDetector` in every rotation (see `RotatedFaces`);
            `WholeImage` takes each image as one face crop, neither cropped nor pasted.
        upscale: scale factor of the output.
        min_face: a face whose box is smaller than this on both sides, in pixels, is left
            unchanged.
        only_center_face: restore only the face nearest to the center.
        parser: limits the paste to the face itself; None: the whole template, feathered at its
            border.
        reference: restore only the faces of people on these photos; None: all.
        background: enlarges, or restores at scale 1, what surrounds the faces; None:
            interpolation.
        run: restores the frames of one request; None: the enhancer's engine, which then must not
            be used for anything else meanwhile.

    Raises:
        ConfigError: a value is invalid.
    """

    def __init__(
        self,
        enhancer: GFPGANEnhancer,
        detector: FaceDetector,
        *,
        upscale: float = 1,
        min_face: float = 0,
        only_center_face: bool = False,
        reference: ReferenceFaces | None = None,
        parser: Parser | None = None,
        background: Background | None = None,
        run: Callable[[Request], Restored] | None = None,
    ) -> None:
        self._whole = isinstance(detector, WholeImage)
        if not upscale >= 1:
            raise ConfigError("upscale", upscale, "1 or more")
        if min_face < 0:
            raise ConfigError("min_face", min_face, "0 or more pixels")
        self._detector = detector
        if isinstance(detector, NetworkDetector):
            self._detector = RotatedFaces(detector)
        self._enhancer, self._upscale = enhancer, upscale
        self._min_face, self._only_center_face = min_face, only_center_face
        self._reference = reference
        self._parser, self._background = parser, background
        self._size = "upscale" if self._whole else "same"
        self._stream = enhancer.engine.stream(
            enhancer.settings.replace(output_size=self._size, upscale=upscale, color="bgr")
        )
        self._run = run or (lambda request: enhancer.engine.restore([request])[0])

    def restore(self, pictures_bgr: Sequence[Image]) -> list[RestoredImage]:
        """Restore the faces of some images.

        Args:
            pictures_bgr: BGR uint8 (H, W, 3), of any sizes; not modified.

        Returns:
            As many images in the same order. One without a face is returned unchanged,
                enlarged.

        Raises:
            EnhanceError: only with ``on_error="raise"`` in the enhancer's settings: errors that
                are otherwise reported in `RestoredImage.error` or in a `FaceNote`.
        """
        return self.paste(self.restore_faces(self.find(pictures_bgr)))

    def find(self, pictures_bgr: Sequence[Image]) -> list[Item]:
        """The first of the three steps of `restore`: detect the faces and crop them.

        Each step may run in a thread of its own, so that neighbors overlap; of each step, one call
        at a time.
        """
        items = [Item(image) for image in pictures_bgr]
        for item in items if not self._whole else ():
            self._find(item)
        return items

    def restore_faces(self, items: list[Item]) -> list[Item]:
        """The second step: restore the crops of all images together. Returns `items`."""
        if self._whole:
            self._restore_whole(items)
        order = [(item, index) for item in items for index in item.crops]
        for start in range(0, len(order), FACES_AT_ONCE):
            self._restore_faces(order[start : start + FACES_AT_ONCE])
        return items

    def paste(self, items: list[Item]) -> list[RestoredImage]:
        """The last step: paste the faces back."""
        return [self._composite(item) for item in items]

    def lay(self, items: list[Item]) -> list[RestoredImage]:
        """Deprecated name of `paste`."""
        warnings.warn("PictureRestorer.lay is now called paste", DeprecationWarning, stacklevel=2)
        return self.paste(items)

    def _restore_whole(self, items: list[Item]) -> None:
        frames, outcomes = self._enhanced([item.image for item in items])
        for item, frame, outcome in zip(items, frames, outcomes, strict=True):
            height, width = item.image.shape[:2]
            face = _judged(FaceNote((0.0, 0.0, float(width), float(height)), 1.0), outcome)
            item.notes = [face]
            restored = without_added_color(item.image, frame) if face.state == RESTORED else None
            item.whole = self._enlarged(item.image) if restored is None else restored

    def _enhanced(self, frames: Any) -> tuple[Any, list[Outcome]]:
        """Run frames through the network, each as a still image; returns frames and outcomes."""
        if self._stream.last is not None:  # a reset waits for the engine, which may be busy
            self._stream.reset()
        hints = (None, None, None, [True] * len(frames))
        restored = self._run(Request(self._stream, frames, hints, self._size))
        return restored.frames, restored.outcomes

    def _find(self, item: Item) -> None:
        """Detect, select and crop."""
        try:
            item.faces = self._detector.detect(item.image)
            others = self._others(item)
        except Exception as error:  # of any class: detectors are also made by others
            self._failed(item, "the face detector", error)
            return
        height, width = item.image.shape[:2]
        center = _center_face(item.faces, width, height) if self._only_center_face else None
        for index, face in enumerate(item.faces):
            x1, y1, x2, y2 = (round(float(side), 1) for side in face.box_xyxy)
            note = FaceNote((x1, y1, x2, y2), round(face.score, 4))
            if max(face.size_wh) < self._min_face:
                note = replace(note, state=TOO_SMALL)
            elif center is not None and index != center:
                note = replace(note, state=NOT_CENTER)
            elif not face.aligned:
                note = replace(note, state=NOT_ALIGNED)
            elif index in others:
                note = replace(note, state=NOT_SELECTED)
            else:
                note = self._crop(item, index, note)
            item.notes.append(note)

    def _others(self, item: Item) -> set[int]:
        """Indices of the faces that are not those of people on the reference photos."""
        if self._reference is None:
            return set()
        return {
            index
            for index, face in enumerate(item.faces)
            if not self._reference.is_same_person(item.image, face)
        }

    def _failed(self, item: Item, who: str, error: Exception) -> None:
        if self._enhancer.settings.on_error == "raise":
            raise error
        item.error = str(error) if isinstance(error, EnhanceError) else f"{who} failed: {error!r}"

    def _crop(self, item: Item, index: int, note: FaceNote) -> FaceNote:
        try:
            points = item.faces[index].landmarks
            item.crops[index] = self._enhancer.engine.crop_face(item.image, points)
        except FrameError as error:
            if self._enhancer.settings.on_error == "raise":
                raise
            return replace(note, state=f"cannot be aligned: {error.reason}")
        return note

    def _restore_faces(self, batch: list[tuple[Item, int]]) -> None:
        """Restore the crops of several images together."""
        faces, outcomes = self._enhanced(
            np.stack([item.crops[index].aligned for item, index in batch])
        )
        for (item, index), face, outcome in zip(batch, faces, outcomes, strict=True):
            note = _judged(item.notes[index], outcome)
            try:
                if note.state == RESTORED:  # one by one: a mask must not depend on its neighbours
                    crop = item.crops[index]
                    colored = without_added_color(crop.aligned, face)
                    item.pastes[index] = Paste(crop, colored, self._mask(face))
            except EnhanceError as error:
                if self._enhancer.settings.on_error == "raise":
                    raise
                note = _failed_note(note, str(error))
            item.notes[index] = note

    def _mask(self, face_bgr: Image) -> Any:
        if self._parser is None:
            return None
        import torch

        rgb = (
            torch.from_numpy(np.ascontiguousarray(face_bgr[..., ::-1]))
            .permute(2, 0, 1)[None]
            .float()
            / 255
        )
        return self._parser.mask(rgb)[0, 0].cpu().numpy()

    def _composite(self, item: Item) -> RestoredImage:
        if item.whole is not None:
            return RestoredImage(item.whole, tuple(item.notes), _fault(item.notes))
        canvas = self._restored_background(item)
        replaced = canvas is not None
        if canvas is None:
            canvas = self._enlarged(item.image)
        paste_faces(canvas, [item.pastes[index] for index in sorted(item.pastes)], replace=replaced)
        return RestoredImage(canvas, tuple(item.notes), item.error or _fault(item.notes))

    def _restored_background(self, item: Item) -> Image | None:
        """The restored canvas for the faces; if that fails, the image is left unchanged."""
        if self._background is None:
            return None
        try:
            large = self._background.enlarge(item.image, self._upscale)
            return np.ascontiguousarray(without_added_color(item.image, large))
        except EnhanceError as error:
            self._failed(item, "the background upsampler", error)
        item.pastes.clear()
        item.notes = [_failed_note(note, str(item.error)) for note in item.notes]
        return None

    def _enlarged(self, image: Image) -> Image:
        """The canvas for the faces, a new array: the image, enlarged by interpolation."""
        import cv2

        if self._upscale == 1:
            return np.array(image, np.uint8, order="C")
        height, width = (max(1, round(side * self._upscale)) for side in image.shape[:2])
        large = cv2.resize(image, (width, height), interpolation=cv2.INTER_LANCZOS4)
        return np.asarray(large, np.uint8)


def _fault(notes: Sequence[FaceNote]) -> str | None:
    """Which faces failed, and why; None if every unrestored face was a decision."""
    states = [note.state for note in notes if note.failed]
    return (
        f"{len(states)} of {len(notes)} faces: {', '.join(sorted(set(states)))}" if states else None
    )


def _failed_note(note: FaceNote, reason: str) -> FaceNote:
    return replace(
        note, state=f"failed: {reason}", strength=0.0, lowered=None, change=None, failed=True
    )


def _judged(note: FaceNote, outcome: Outcome) -> FaceNote:
    if outcome.status is Status.PASSED_THROUGH:
        return replace(note, state=f"handed back: {outcome.reason}", failed=outcome.failed)
    return replace(
        note,
        state=RESTORED if outcome.restored else str(outcome.reason),
        strength=round(outcome.strength, 4),
        lowered=outcome.reason if outcome.restored else None,
        change=round(outcome.change, 3),
    )


def _center_face(faces: Sequence[Face], width: int, height: int) -> int | None:
    """The face whose box center is nearest to the center of the image."""

    def distance(index: int) -> float:
        x1, y1, x2, y2 = faces[index].box_xyxy
        return float(np.hypot((x1 + x2 - width) / 2, (y1 + y2 - height) / 2))

    return min(range(len(faces)), key=distance, default=None)


def __getattr__(name: str) -> Any:
    """`RestoredPicture`, the old name of `RestoredImage`, for one release."""
    if name == "RestoredPicture":
        warnings.warn(
            "RestoredPicture is now called RestoredImage", DeprecationWarning, stacklevel=2
        )
        return RestoredImage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
