"""The application: the routes for images, the state, and errors."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from .. import weights
from .._version import __version__
from ..errors import (
    ConfigError,
    EnhanceError,
    FrameError,
    MediaError,
    OutOfMemoryError,
    ServiceError,
)
from ..restorers.catalog import get_model, model_names
from . import generate, live, page, sdapi, videos
from .body import read_body
from .images import face_size_of
from .middleware import Guard, error_body
from .runner import CancelledError
from .schemas import ErrorAnswer, ModelAnswer, RestoreAnswer, RestoreFields, body_schema
from .service import Service, service_of
from .settings import ServeSettings

logger = logging.getLogger("musetalk_enhance")

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "malformed",
        401: "no or a wrong token",
        403: "host or origin not allowed",
        409: "the model is not on this server",
        413: "too large",
        415: "content type not supported",
        422: "an option or the image is invalid",
        429: "busy; see Retry-After",
        503: "took too long, or the server is stopping",
    }.items()
}
_CLIENT_GONE = 499
router = APIRouter()


def create_app(settings: ServeSettings | None = None) -> FastAPI:
    """The ASGI application; its networks are loaded when it starts.

    Args:
        settings: None uses the defaults.
    """
    settings = settings or ServeSettings()
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.lifespan():
            yield

    app = FastAPI(
        title="musetalk_enhance",
        version=__version__,
        description="Face restoration for images, live streams and videos.",
        lifespan=lifespan,
        docs_url=None,  # it loads its scripts from a CDN
        redoc_url=None,
        responses=_ERRORS,
    )
    app.state.service = service
    for part in (generate, live, sdapi, videos, page):
        app.include_router(part.router)
    app.include_router(router)
    for kind in (EnhanceError, HTTPException, RequestValidationError, CancelledError):
        app.add_exception_handler(kind, _answer_error)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "range"],
            expose_headers=["x-face-restoration", "retry-after"],
        )
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    """The JSON answer of an error; paths and values of this server stay out of it."""
    status, code, message, headers = 500, "internal", "internal error; see the server's log", {}
    if isinstance(error, ServiceError):
        status, code, message = error.status, error.code, str(error)
        if error.retry_after is not None:
            headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, HTTPException):
        status, code, message = error.status_code, "http", str(error.detail)
        headers = dict(error.headers or {})
    elif isinstance(error, RequestValidationError):
        status, code, message = 422, "invalid", str(error.errors()[:3])
    elif isinstance(error, MediaError):
        status, code, message = 422, "image", str(error)
    elif isinstance(error, (ConfigError, FrameError)):
        status, code, message = 422, "invalid", str(error)
    elif isinstance(error, OutOfMemoryError):
        status, code, message = 503, "memory", "not enough memory for this request now"
        headers["Retry-After"] = "5"
    elif isinstance(error, CancelledError):
        status, code, message = _CLIENT_GONE, "gone", "the client closed the connection"
    if status == 500:
        logger.error("%s failed: %s", request.url.path, error)
    return Response(error_body(code, message), status, headers, "application/json")


@router.get("/health", tags=["state"], summary="Whether the process is alive")
async def health() -> dict[str, str]:
    """For restarts: alive as long as it answers."""
    return {"status": "ok", "version": __version__}


@router.get("/ready", tags=["state"], summary="Whether requests are accepted")
async def ready(request: Request) -> dict[str, str]:
    """For load balancers: 503 while the server starts or stops."""
    service = service_of(request)
    if not service.is_ready or service.is_stopping():
        raise ServiceError(503, "not_ready", "the server is starting or stopping", 5)
    return {"status": "ready", "model": service.pool.default.name}


@router.get(
    "/metrics",
    tags=["state"],
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, durations, batches, frames of live streams."""
    text = service_of(request).metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/models", tags=["state"], summary="The models that a request may name")
async def models(request: Request) -> list[ModelAnswer]:
    """Every restorer of the library, and whether its weight is on this server."""
    return await asyncio.to_thread(_model_answers, service_of(request))


def _model_answers(service: Service) -> list[ModelAnswer]:
    loaded, default = service.pool.loaded(), service.pool.default
    infos = {default.name: default}
    answers = []
    for name in model_names():
        try:
            infos.setdefault(name, get_model(name).info)
        except EnhanceError:
            answers.append(
                ModelAnswer(name=name, status="broken", summary="a plug-in that cannot be loaded")
            )
    for name, info in infos.items():
        installed = info.weight is None or weights.find(info.weight) is not None
        status: Any = "loaded" if name in loaded else "ready" if installed else "no weight"
        answers.append(
            ModelAnswer(
                name=name,
                status=status,
                summary=info.summary,
                license=info.license,
                commercial=info.commercial,
                has_fidelity=info.has_fidelity,
                face_size=face_size_of(info),
                default=name == default.name,
            )
        )
    return sorted(answers, key=lambda answer: answer.name)


@router.post(
    "/restore",
    tags=["images"],
    summary="Restore the faces in an image",
    response_model=RestoreAnswer,
    openapi_extra={"requestBody": body_schema(RestoreFields, "image")},
)
async def restore(request: Request) -> Response:
    """The image with its faces restored; unchanged, byte for byte, if there is none."""
    service = service_of(request)
    with service.runner.slot() as slot:
        fields, data = await slot.within_limit(read_body(request, RestoreFields, "image"))
        result = await slot.run(
            request, lambda ticket: service.images.restore(data, fields, ticket)
        )
    if fields.response == "image":
        answer = json.dumps(result.answer.model_dump(exclude={"image"}))  # in ASCII
        headers = {"X-Face-Restoration": answer}
        return Response(result.data, media_type=result.answer.media_type, headers=headers)
    body = await asyncio.to_thread(lambda: result.as_json().model_dump_json().encode())
    return Response(body, media_type="application/json")
