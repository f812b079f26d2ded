"""The page at ``/``: plain files of this package, which load nothing from elsewhere."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from ..errors import ServiceError

ASSETS = Path(__file__).with_name("assets")
_TYPES = {"page.js": "text/javascript", "page.css": "text/css"}
router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """The page."""
    return FileResponse(ASSETS / "index.html")


@router.get("/assets/{name}")
async def asset(name: str) -> Response:
    """Its script and its style."""
    if name not in _TYPES:
        raise ServiceError(404, "not_found", "there is no such file")
    return FileResponse(ASSETS / name, media_type=_TYPES[name])


@router.get("/example.jpg")
async def example() -> Response:
    """The demo's portrait, if the extra ``demo`` is installed."""
    data = await asyncio.to_thread(_example)
    if data is None:
        raise ServiceError(404, "not_found", "the extra demo is not installed")
    return Response(data, media_type="image/jpeg")


@cache
def _example() -> bytes | None:
    """scikit-image's astronaut, which is in the public domain, softened as by a decoder."""
    import cv2
    import numpy as np

    try:
        from skimage import data
    except ImportError:
        return None
    bgr = np.ascontiguousarray(data.astronaut()[..., ::-1])  # type: ignore[no-untyped-call]
    soft = cv2.GaussianBlur(bgr, (0, 0), 1.6)
    return bytes(cv2.imencode(".jpg", soft)[1])
