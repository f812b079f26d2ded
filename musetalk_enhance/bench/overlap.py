"""Deprecated: this module has moved to `musetalk_enhance.hosts.overlap`."""

from __future__ import annotations

import warnings

from ..hosts.overlap import overlapped

__all__ = ["overlapped"]

warnings.warn(
    "musetalk_enhance.bench.overlap is deprecated; "
    "import overlapped from musetalk_enhance.hosts.overlap",
    DeprecationWarning,
    stacklevel=2,
)
