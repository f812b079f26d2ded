"""Deprecated: the metrics are in `musetalk_enhance.report.metrics`."""

from __future__ import annotations

import sys

from musetalk_enhance.errors import warn_renamed
from musetalk_enhance.report import metrics

warn_renamed("musetalk_enhance.metrics", "musetalk_enhance.report.metrics")
sys.modules[__name__] = metrics
