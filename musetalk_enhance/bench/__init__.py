"""Deprecated: `overlapped` has moved to `musetalk_enhance.hosts.overlap`.

The benchmark rig that was here is ``scripts/benchmarks`` in the repository.
"""

from __future__ import annotations

import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("Plan", "run"):
        moved = "has moved to the repository's scripts/benchmarks/suite.py"
        raise AttributeError(f"musetalk_enhance.bench.{name} {moved}")
    if name != "overlapped":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..hosts.overlap import overlapped

    warnings.warn(
        "musetalk_enhance.bench.overlapped is deprecated; "
        "import overlapped from musetalk_enhance.hosts.overlap",
        DeprecationWarning,
        stacklevel=2,
    )
    return overlapped
