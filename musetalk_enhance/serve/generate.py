"""`POST /generate`: text to image with a local diffusers model, then face restoration."""

from __future__ import annotations

import base64
import time

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from ..media.image import StillImage, encode_image
from .body import read_json
from .generator import GenerateFields
from .images import Timer
from .runner import Ticket
from .schemas import RestoreAnswer, RestoreFields, json_body
from .service import Service, service_of

router = APIRouter(tags=["images"])


class GenerateAnswer(BaseModel):
    """The answer of `POST /generate`."""

    image: str = Field(description="a PNG in base64")
    seed: int
    size_wh: tuple[int, int]
    restoration: RestoreAnswer
    timings_ms: dict[str, float]


@router.post(
    "/generate",
    summary="Text to image, with restored faces",
    openapi_extra={"requestBody": json_body(GenerateFields)},
    responses={501: {"description": "the server has no text-to-image model"}},
)
async def generate(request: Request) -> GenerateAnswer:
    """With the diffusers model of the server's option `diffusers_model`."""
    service = service_of(request)
    with service.runner.slot() as slot:
        fields = await slot.within_limit(read_json(request, GenerateFields))
        return await slot.run(request, lambda ticket: _generated(service, fields, ticket))


def _generated(service: Service, fields: GenerateFields, ticket: Ticket) -> GenerateAnswer:
    begin = time.perf_counter()
    image = StillImage(service.generator.generate(fields, ticket))
    timer = Timer()
    options = RestoreFields.model_validate(
        fields.model_dump(include={"use_face_restoration", "face_restoration_weight"})
    )
    pixels, answer = service.images.process(image, options, ticket, timer)
    answer.media_type, answer.timings_ms = "image/png", timer.total()
    generated_ms = (time.perf_counter() - begin) * 1e3 - answer.timings_ms["total"]
    return GenerateAnswer(
        image=base64.b64encode(encode_image(image.replace_pixels(pixels), ".png")).decode(),
        seed=fields.seed,
        size_wh=(pixels.shape[1], pixels.shape[0]),
        restoration=answer,
        timings_ms={"generate": round(generated_ms, 1), **answer.timings_ms},
    )
