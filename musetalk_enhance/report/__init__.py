"""The report: what restoring did to a clip, in figures, plots and pictures, and whether that is within bounds."""

from __future__ import annotations

from .builder import ReportBuilder
from .document import Report
from .files import compare
from .recorder import Recorder
from .verdicts import Limits, Verdict

__all__ = ["Limits", "Recorder", "Report", "ReportBuilder", "Verdict", "compare"]
