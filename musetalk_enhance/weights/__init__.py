"""Weight files: a pinned table, one cache folder, resumable downloads, loading without pickles."""

from __future__ import annotations

from .cache import VerifyResult, cache_dir, find, verify
from .download import fetch
from .importer import import_file
from .load import Weight, find_onnx, open_file, require, resolve
from .table import WEIGHTS, WeightEntry

__all__ = [
    "WEIGHTS",
    "VerifyResult",
    "Weight",
    "WeightEntry",
    "cache_dir",
    "fetch",
    "find",
    "find_onnx",
    "import_file",
    "open_file",
    "require",
    "resolve",
    "verify",
]
