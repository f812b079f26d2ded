"""Weight files: a pinned table, one cache folder, downloads that resume, loading without running a pickle."""

from __future__ import annotations

from .cache import VerifyResult, cache_dir, find, verify
from .download import fetch
from .importing import import_file
from .load import Weight, open_file, own_or_published, require
from .table import WEIGHTS, WeightEntry

__all__ = [
    "WEIGHTS",
    "VerifyResult",
    "Weight",
    "WeightEntry",
    "cache_dir",
    "fetch",
    "find",
    "import_file",
    "open_file",
    "own_or_published",
    "require",
    "verify",
]
