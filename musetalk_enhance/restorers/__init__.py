"""Network families that turn a face crop into a sharper one, one per file; see `catalog`."""

from __future__ import annotations

from typing import Any

from . import base
from .base import LoadRequest, ModelInfo, Restorer

__all__ = ["LoadRequest", "ModelInfo", "Restorer"]


def __getattr__(name: str) -> Any:
    if name == "RestorerRecord":
        return base.RestorerRecord
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
