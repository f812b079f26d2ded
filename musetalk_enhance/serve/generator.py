"""A local text-to-image pipeline of diffusers."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from ..errors import ServiceError
from ..media.arrays import Image
from ..runtime.devices import pick_device
from .runner import Ticket
from .schemas import Fields, Weight
from .settings import ServeSettings

logger = logging.getLogger("musetalk_enhance")

HIRES_SCALE, HIRES_STRENGTH = 1.5, 0.5
"""Size of the second pass, and how much of the first image it changes."""
_MULTIPLE = 8  # of a side, in pixels: the latents' grid


class GenerateFields(Fields):
    """The body of `POST /generate`."""

    prompt: str = Field(min_length=1, max_length=4000)
    negative_prompt: str = Field("", max_length=4000)
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed gives the same image.")
    width: int = Field(512, ge=64, le=2048, multiple_of=_MULTIPLE)
    height: int = Field(512, ge=64, le=2048, multiple_of=_MULTIPLE)
    num_inference_steps: int = Field(30, ge=1, le=150)
    guidance_scale: float = Field(7.5, ge=0, le=30, allow_inf_nan=False)
    hires_fix: bool = Field(False, description="A second pass at 1.5 times the size.")
    use_face_restoration: bool = True
    face_restoration_weight: Weight | None = None


class Generator:
    """A text-to-image pipeline, loaded with the first request; one image at a time.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._pipelines: tuple[Any, Any] | None = None

    def generate(self, fields: GenerateFields, ticket: Ticket) -> Image:
        """An image, BGR uint8 (height, width, 3), 1.5 times as large with `hires_fix`.

        Raises:
            ServiceError: there is no model, or it cannot be loaded.
            CancelledError: the ticket was cancelled.
        """
        import torch

        with self._lock:
            ticket.check()
            first, second = self._loaded()

            def check(pipeline: Any, step: int, moment: Any, values: Any) -> Any:
                ticket.check()
                return values

            common: dict[str, Any] = {
                "prompt": fields.prompt,
                "negative_prompt": fields.negative_prompt,
                "num_inference_steps": fields.num_inference_steps,
                "guidance_scale": fields.guidance_scale,
                "callback_on_step_end": check,
                "output_type": "pil",
            }
            seed = torch.Generator("cpu").manual_seed(fields.seed)
            image = first(
                width=fields.width, height=fields.height, generator=seed, **common
            ).images[0]
            if fields.hires_fix:
                size = tuple(_rounded(side * HIRES_SCALE) for side in image.size)
                large = image.resize(size, 1)  # Lanczos
                image = second(
                    image=large, strength=HIRES_STRENGTH, generator=seed, **common
                ).images[0]
        return np.ascontiguousarray(np.asarray(image.convert("RGB"), np.uint8)[..., ::-1])

    def _loaded(self) -> tuple[Any, Any]:
        """The pipelines for text and for images, which share their networks."""
        if self._pipelines is None:
            folder = self._settings.diffusers_model
            if folder is None:
                text = "no text-to-image model: start the server with --diffusers-model FOLDER"
                raise ServiceError(501, "no_model", text)
            try:
                from diffusers import AutoPipelineForImage2Image, AutoPipelineForText2Image
            except ImportError as error:
                text = "diffusers is not installed: pip install 'musetalk_enhance[diffusers]'"
                raise ServiceError(501, "no_model", text) from error
            try:
                path = str(Path(folder).expanduser())
                auto: Any = AutoPipelineForText2Image
                first = auto.from_pretrained(path, local_files_only=True)
            except Exception as error:
                logger.exception("the text-to-image model cannot be loaded")
                text = "the server's text-to-image model cannot be loaded"
                raise ServiceError(501, "no_model", text) from error
            first.to(pick_device(self._settings.device, self._settings.allow_cpu))
            first.set_progress_bar_config(disable=True)
            second = AutoPipelineForImage2Image.from_pipe(first)
            second.set_progress_bar_config(disable=True)
            self._pipelines = first, second
        return self._pipelines


def _rounded(side: float) -> int:
    return round(side / _MULTIPLE) * _MULTIPLE
