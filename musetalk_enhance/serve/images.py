"""`POST /restore`: one image, in the steps decode, detect, network, paste, encode."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ..errors import ServiceError
from ..faces.detect import WholeImage
from ..faces.templates import TEMPLATE_SIDE
from ..jobs.image_restorer import PictureRestorer, RestoredImage
from ..media.arrays import Image
from ..media.image import StillImage, decode_image, encode_image
from ..pipeline.engine import Request, Restored
from ..pipeline.outcome import Outcome
from ..restorers.base import ModelInfo
from .networks import Network, NetworkPool
from .runner import Ticket
from .schemas import FaceAnswer, RestoreAnswer, RestoreFields
from .settings import ServeSettings

MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".tiff": "image/tiff",
}


@dataclass(frozen=True)
class ImageResult:
    """A restored image.

    Attributes:
        data: the file.
        answer: what was done, without the image.
    """

    data: bytes
    answer: RestoreAnswer

    def as_json(self) -> RestoreAnswer:
        """The answer with the image in base64."""
        return self.answer.model_copy(update={"image": base64.b64encode(self.data).decode()})


class ImageService:
    """Restores the images of requests.

    Args:
        settings: of the service.
        pool: the models.
    """

    def __init__(self, settings: ServeSettings, pool: NetworkPool) -> None:
        self._settings, self._pool = settings, pool

    def restore(self, data: bytes, fields: RestoreFields, ticket: Ticket) -> ImageResult:
        """Restore one image.

        Args:
            data: the file.
            fields: the options.
            ticket: of the request.

        Raises:
            MediaError: it is not a readable image, or too large.
            ConfigError: there is no such model.
            ServiceError: the model is not available, or has another `face_size`.
            CancelledError: the ticket was cancelled.
        """
        timer = Timer()
        with timer.step("decode"):
            image = self.decode(data, fields.upscale_factor)
        ticket.check()
        restored, answer = self.process(image, fields, ticket, timer)
        ticket.check()
        with timer.step("encode"):
            extension = _extension_of(image) or ".png"
            if fields.format != "keep":
                extension = f".{fields.format}"
            is_same = restored.shape == image.bgr.shape and not answer.face_restoration_applied
            if is_same and extension == _extension_of(image):
                result = data  # byte for byte
            else:
                result = encode_image(image.replace_pixels(restored), extension)
        answer.media_type, answer.timings_ms = MEDIA_TYPES[extension], timer.total()
        return ImageResult(result, answer)

    def process(
        self, image: StillImage, fields: RestoreFields, ticket: Ticket, timer: Timer
    ) -> tuple[Image, RestoreAnswer]:
        """The pixels of a restored image, BGR uint8, and what was done; see `restore`."""
        settings = self._settings
        weight = fields.face_restoration_weight
        weight = settings.strength if weight is None else weight
        info = self._pool.info(fields.model)
        is_fidelity = info.has_fidelity
        if fields.face_size not in (None, face_size_of(info)):
            text = f"face_size: {fields.face_size}; {info.name} has {face_size_of(info)}"
            raise ServiceError(422, "invalid", text)
        with self._pool.use(fields.model, weight if is_fidelity else None) as network:
            strength = 1.0 if is_fidelity else weight
            restored = self._restored(image.bgr, fields, network, strength, ticket, timer)
            name, fidelity = network.info.name, network.fidelity
        return restored.bgr, RestoreAnswer(
            face_restoration_applied=bool(restored.restored),
            face_restoration_weight=weight if fidelity is None else fidelity,
            weight_is="strength" if fidelity is None else "fidelity",
            model=name,
            det_model="none" if fields.has_aligned else self._pool.detector_name(fields.det_model),
            faces=[FaceAnswer(**note.as_dict()) for note in restored.faces],
            size_wh=(restored.bgr.shape[1], restored.bgr.shape[0]),
            media_type="",
            timings_ms={},
            error=restored.error,
        )

    def decode(self, data: bytes, scale: float = 1) -> StillImage:
        """An image within the limit of pixels, also after it is enlarged.

        Raises:
            MediaError: it is not a readable image, or too large.
        """
        return decode_image(data, "image", max_pixels=int(self._settings.max_pixels / scale**2))

    def close(self) -> None:
        """Nothing is held beside the models, which are the pool's."""

    def _restored(
        self,
        bgr: Image,
        fields: RestoreFields,
        network: Network,
        strength: float,
        ticket: Ticket,
        timer: Timer,
    ) -> RestoredImage:
        detector = WholeImage() if fields.has_aligned else self._pool.detector(fields.det_model)

        def run(request: Request) -> Restored:
            restored = ticket.restore(network.batcher, network.stills.engine, request)
            return blended(request, restored, strength)

        whole = isinstance(detector, WholeImage)
        restorer = PictureRestorer(
            network.stills,
            detector,
            upscale=fields.upscale_factor,
            min_face=0 if whole else self._settings.min_face,
            only_center_face=fields.only_center_face and not whole,
            run=run,
        )
        with timer.step("detect"):
            items = restorer.find([bgr])
        if not fields.use_face_restoration:
            for item in items:
                item.crops.clear()
                item.notes = [replace(note, state="not requested") for note in item.notes]
        ticket.check()
        with timer.step("network"):
            if fields.use_face_restoration:
                items = restorer.restore_faces(items)
        ticket.check()
        with timer.step("paste"):
            return restorer.paste(items)[0]


def face_size_of(info: ModelInfo) -> int:
    """Side in pixels of the faces that a network gets; a template's, where it takes any."""
    return info.input_size or TEMPLATE_SIDE


def blended(request: Request, restored: Restored, strength: float) -> Restored:
    """The result of an engine that runs at full strength, at a request's own.

    Frames of the request are uint8 (H, W, 3); they are enlarged where the result is larger.
    """
    if strength >= 1:
        return restored
    frames, outcomes = [], []
    for source, frame, outcome in zip(
        request.frames, restored.frames, restored.outcomes, strict=True
    ):
        if outcome.restored:
            frame, outcome = blend(source, frame, outcome, strength)
        frames.append(frame)
        outcomes.append(outcome)
    return Restored(frames, outcomes)


def blend(source: Image, frame: Image, outcome: Outcome, strength: float) -> tuple[Image, Outcome]:
    """A restored frame over its source, with `strength` 0..1; both are uint8 (H, W, 3)."""
    size_wh = frame.shape[1], frame.shape[0]
    if source.shape != frame.shape:
        source = np.asarray(cv2.resize(source, size_wh, interpolation=cv2.INTER_LANCZOS4), np.uint8)
    mixed = cv2.addWeighted(source, 1 - strength, frame, strength, 0)
    weakened = replace(
        outcome, strength=outcome.strength * strength, change=outcome.change * strength
    )
    return np.asarray(mixed, np.uint8), weakened


def _extension_of(image: StillImage) -> str | None:
    """The extension of the image's own format; None where it is not written."""
    extension = {"JPEG": ".jpg", "TIFF": ".tiff"}.get(image.format, f".{image.format.lower()}")
    return extension if extension in MEDIA_TYPES else None


class Timer:
    """Milliseconds of each step."""

    def __init__(self) -> None:
        self._ms: dict[str, float] = {}
        self._begin = time.perf_counter()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._ms[name] = round((time.perf_counter() - begin) * 1e3, 2)

    def add(self, other: Timer) -> None:
        """Take over the steps of another process."""
        self._ms |= other._ms

    def total(self) -> dict[str, float]:
        """Of each step, and since the beginning."""
        return {**self._ms, "total": round((time.perf_counter() - self._begin) * 1e3, 2)}


__all__ = [
    "MEDIA_TYPES",
    "ImageResult",
    "ImageService",
    "Timer",
    "blend",
    "blended",
    "face_size_of",
]
