"""Stable Diffusion web UI's endpoints for face restoration, so that its clients keep working."""

from __future__ import annotations

import base64
from typing import Annotated

import cv2
import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from .. import weights
from ..errors import ServiceError
from ..media.image import StillImage, encode_image
from ..restorers.catalog import AUTO_ORDER, get_model
from .body import decode_base64, read_json
from .images import Timer
from .runner import Ticket
from .schemas import RestoreFields, Weight, json_body
from .service import Service, service_of

MAX_IMAGES = 64
"""Most images of a batch."""
router = APIRouter(prefix="/sdapi/v1", tags=["sdapi"])


class ExtraFields(BaseModel):
    """The options of that API that concern faces and size; others are ignored, as there."""

    model_config = ConfigDict(extra="ignore")

    gfpgan_visibility: Weight = 0
    codeformer_visibility: Weight = 0
    codeformer_weight: Weight = Field(0, description="CodeFormer's fidelity.")
    upscaling_resize: Annotated[float, Field(ge=1, le=4, allow_inf_nan=False)] = 2
    resize_mode: int = Field(0, ge=0, le=0, description="Only 0: by a factor.")


class ExtraSingle(ExtraFields):
    """One image."""

    image: str


class NamedImage(BaseModel):
    """One image of a batch."""

    data: str
    name: str = ""


class ExtraBatch(ExtraFields):
    """Several images."""

    imageList: list[NamedImage] = Field(min_length=1, max_length=MAX_IMAGES)


class SingleAnswer(BaseModel):
    """The restored image, as a PNG in base64."""

    html_info: str
    image: str


class BatchAnswer(BaseModel):
    """The restored images, as PNGs in base64."""

    html_info: str
    images: list[str]


class FaceRestorer(BaseModel):
    """A restorer by that API's name."""

    name: str
    cmd_dir: str | None = None


@router.get("/face-restorers", summary="The restorers, by that API's names")
async def face_restorers() -> list[FaceRestorer]:
    """CodeFormer and GFPGAN; the latter stands for the server's own model if it is absent."""
    return [FaceRestorer(name="CodeFormer"), FaceRestorer(name="GFPGAN")]


@router.post(
    "/extra-single-image",
    summary="Restore and enlarge one image",
    openapi_extra={"requestBody": json_body(ExtraSingle)},
)
async def extra_single_image(request: Request) -> SingleAnswer:
    """As that API: `gfpgan_visibility` and `codeformer_visibility` blend over the input."""
    service = service_of(request)
    with service.runner.slot() as slot:
        fields = await slot.within_limit(read_json(request, ExtraSingle))
        image, words = await slot.run(
            request, lambda ticket: _restored(service, fields.image, fields, ticket)
        )
    return SingleAnswer(html_info=words, image=image)


@router.post(
    "/extra-batch-images",
    summary="Restore and enlarge several images",
    openapi_extra={"requestBody": json_body(ExtraBatch)},
)
async def extra_batch_images(request: Request) -> BatchAnswer:
    """As `extra-single-image`, one after the other."""
    service = service_of(request)
    with service.runner.slot() as slot:
        fields = await slot.within_limit(read_json(request, ExtraBatch))
        answers = await slot.run(
            request,
            lambda ticket: [
                _restored(service, one.data, fields, ticket) for one in fields.imageList
            ],
        )
    words = "; ".join(dict.fromkeys(text for _, text in answers))
    return BatchAnswer(html_info=words, images=[image for image, _ in answers])


def _restored(service: Service, text: str, fields: ExtraFields, ticket: Ticket) -> tuple[str, str]:
    """One image in base64, and what was done in words."""
    scale = fields.upscaling_resize
    image = service.images.decode(decode_base64(text), scale)
    words = []
    for model, weight, visibility in _steps(service, fields):
        options = RestoreFields.model_validate(
            {"model": model, "face_restoration_weight": weight, "upscale_factor": scale}
        )
        pixels, answer = service.images.process(image, options, ticket, Timer())
        if visibility < 1:
            source = cv2.resize(
                image.bgr, (pixels.shape[1], pixels.shape[0]), interpolation=cv2.INTER_LANCZOS4
            )
            mixed = cv2.addWeighted(source, 1 - visibility, pixels, visibility, 0)
            pixels = np.asarray(mixed, np.uint8)
        image, scale = image.replace_pixels(pixels), 1
        count = sum(face.state == "restored" for face in answer.faces)
        words.append(f"{count} of {len(answer.faces)} faces restored by {answer.model}")
    if not words:
        options = RestoreFields.model_validate(
            {"use_face_restoration": False, "upscale_factor": scale}
        )
        image = image.replace_pixels(service.images.process(image, options, ticket, Timer())[0])
    ticket.check()
    data = encode_image(StillImage(image.bgr, image.alpha, icc=image.icc), ".png")
    return base64.b64encode(data).decode(), ", ".join(words)


def _steps(service: Service, fields: ExtraFields) -> list[tuple[str | None, float, float]]:
    """Model, its weight, and the visibility of its result, for each step.

    Raises:
        ServiceError: no model for a step is on this server.
    """
    steps: list[tuple[str | None, float, float]] = []
    if fields.gfpgan_visibility:
        entries = {name: get_model(name).info.weight or "" for name in AUTO_ORDER}
        present = (name for name, entry in entries.items() if weights.find(entry) is not None)
        model = next(present, None)
        if model is None and service.pool.default.has_fidelity:
            raise ServiceError(409, "unavailable", "no GFPGAN weight is installed on this server")
        steps.append((model, fields.gfpgan_visibility, 1.0))
    if fields.codeformer_visibility:
        steps.append(("codeformer", fields.codeformer_weight, fields.codeformer_visibility))
    return steps
