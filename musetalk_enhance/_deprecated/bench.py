"""Deprecated: `overlapped` is in `musetalk_enhance.hosts.overlap`."""

from __future__ import annotations

import sys

from musetalk_enhance.errors import warn_renamed
from musetalk_enhance.hosts import overlap

warn_renamed("musetalk_enhance.bench", "musetalk_enhance.hosts.overlap")
sys.modules[__name__] = sys.modules[f"{__name__}.overlap"] = overlap
