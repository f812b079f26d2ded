"""The HTTP service: images, live streams, videos and a page over one engine for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .settings import ServeSettings

if TYPE_CHECKING:
    from .app import create_app

__all__ = ["ServeSettings", "create_app"]


def __getattr__(name: str) -> Any:
    """`create_app`, which needs the packages of the extra ``serve``."""
    if name == "create_app":
        from ..errors import MissingDependencyError

        try:
            from .app import create_app
        except ImportError as error:
            package = error.name or "fastapi"
            purpose = "the HTTP service"
            raise MissingDependencyError(package, "serve", purpose, str(error)) from error
        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
