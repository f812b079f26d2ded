"""Traced graphs, stored in the user's cache folder: tracing GFPGAN takes longer than loading it.

A file is used only if everything that decides its content is the same (the weight, the source code
of the network's layers, the versions of what writes it) and its own hash is in its name and right.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from .._version import __version__
from ..errors import WeightError
from ..runtime.files import AtomicFile
from ..weights import cache_dir
from .base import NetworkSpec

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

SWITCH = "MUSETALK_ENHANCE_GRAPHS"
"""Environment variable; ``off`` stores and uses no graphs."""
MAX_BYTES = 2 * 2**30
"""Size of the folder beyond which the graphs that were not used for longest are removed."""
_STALE_S = 24 * 3600.0  # age of an incomplete file, of a process that was killed


def folder() -> Path:
    """Where the graphs are stored.

    Raises:
        CacheError: there is no folder for caches.
    """
    return cache_dir() / "graphs"


def get(spec: NetworkSpec, trace: Callable[[], bytes], variant: str) -> Path | bytes:
    """The stored graph of `spec`; one that is traced now if there is none.

    Args:
        spec: the network; without an `identity` it is traced every time.
        trace: makes the graph.
        variant: what else decides its content.
    """
    switch = os.environ.get(SWITCH, "on").lower()
    if spec.identity is None or switch in ("off", "0", "no", "false"):
        return trace()
    try:
        key = _key(spec, variant)
        path = _find(key)
    except (OSError, TypeError, WeightError) as error:  # TypeError: source code without a file
        logger.debug("the graph of %s is not stored: %s", spec.name, error)
        return trace()
    if path is not None:
        return path
    logger.info("tracing the graph of %s, once; it is stored in %s", spec.name, folder())
    return _store(key, trace())


def _key(spec: NetworkSpec, variant: str) -> str:
    facts = {
        "identity": spec.identity,
        "network": spec.key,
        "shape": spec.input_shape,
        "variant": variant,
        "source": "" if spec.module is None else _source_digest(spec.module),
        "versions": [__version__, *(_version(name) for name in ("torch", "onnx"))],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _source_digest(module: torch.nn.Module) -> str:
    """Of the files that define the layers of `module`, and of the operations they use."""
    from . import onnx_export, ops, polyphase

    files = {inspect.getfile(kind) for kind in map(type, module.modules())}
    files |= {str(each.__file__) for each in (onnx_export, ops, polyphase)}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _find(key: str) -> Path | None:
    """A stored file with the hash that is in its name; a damaged one is removed."""
    from ..weights.cache import sha256_of

    for path in folder().glob(f"{key}-*.onnx"):
        if path.stem == f"{key}-{sha256_of(path)}":
            os.utime(path)  # used now
            return path
        logger.warning("%s is damaged and is removed", path)
        path.unlink(missing_ok=True)
    return None


def _store(key: str, graph: bytes) -> Path | bytes:
    """Store `graph`; it is handed back if there is no room for it."""
    path = folder() / f"{key}-{hashlib.sha256(graph).hexdigest()}.onnx"
    try:
        folder().mkdir(parents=True, exist_ok=True)
        if len(graph) > MAX_BYTES or shutil.disk_usage(folder()).free < 2 * len(graph):
            return graph
        with AtomicFile(path) as part:
            part.write_bytes(graph)
        _remove_old()
    except OSError as error:
        logger.debug("%s cannot be written: %s", path, error)
        return graph
    return path


def _remove_old() -> None:
    """Remove the graphs used longest ago beyond `MAX_BYTES`, and what a killed process left."""
    for part in folder().glob(".*.part"):
        if time.time() - part.stat().st_mtime > _STALE_S:
            part.unlink(missing_ok=True)
    graphs = sorted(folder().glob("*.onnx"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in graphs:
        total += path.stat().st_size
        if total > MAX_BYTES:
            path.unlink(missing_ok=True)
