"""Linly-Talker's copy of SadTalker; see `sadtalker`."""

from .sadtalker import check

__all__ = ["check"]
