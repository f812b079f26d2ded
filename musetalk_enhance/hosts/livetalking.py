"""LiveTalking: recognized by its base class of avatars."""

from __future__ import annotations

from .base import Host

LIVETALKING = Host(
    name="livetalking",
    title="LiveTalking",
    imports=("avatars.base_avatar",),
    scripts="app.py",
    is_service=True,
)
