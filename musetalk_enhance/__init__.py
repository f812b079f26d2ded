"""Sharp, stable faces for talking-head pipelines.

Importing this package is quick and touches neither the network nor torch: names are handed on when
used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .config.flags import add_gfpgan_arguments
    from .config.settings import EnhancerSettings
    from .enhancer import FaceEnhancer, GFPGANEnhancer
    from .errors import EnhanceError
    from .hosts.musetalk import Attachment, attach
    from .hosts.wrap import wrap
    from .pipeline.outcome import Outcome
    from .pipeline.stats import EnhancerStats
    from .pipeline.stream import Stream
    from .restorers.catalog import model_names
    from .runtime.memory import monitor_gpu_memory

__path__.append(f"{__path__[0]}/_deprecated")
_HOMES = {
    "Attachment": ".hosts.musetalk",
    "EnhanceError": ".errors",
    "EnhancerSettings": ".config.settings",
    "EnhancerStats": ".pipeline.stats",
    "FaceEnhancer": ".enhancer",
    "GFPGANEnhancer": ".enhancer",
    "Outcome": ".pipeline.outcome",
    "Stream": ".pipeline.stream",
    "add_gfpgan_arguments": ".config.flags",
    "attach": ".hosts.musetalk",
    "model_names": ".restorers.catalog",
    "monitor_gpu_memory": ".runtime.memory",
    "wrap": ".hosts.wrap",
}

__all__ = [
    "Attachment",
    "EnhanceError",
    "EnhancerSettings",
    "EnhancerStats",
    "FaceEnhancer",
    "GFPGANEnhancer",
    "Outcome",
    "Stream",
    "__version__",
    "add_gfpgan_arguments",
    "attach",
    "model_names",
    "monitor_gpu_memory",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
