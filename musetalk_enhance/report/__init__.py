"""The report: how restoration changed a clip, in numbers, plots and images, against limits."""

from __future__ import annotations

from .builder import ReportBuilder
from .document import Report
from .files import compare
from .recorder import Recorder
from .verdicts import Limits, Verdict

__all__ = ["Limits", "Recorder", "Report", "ReportBuilder", "Verdict", "compare"]
