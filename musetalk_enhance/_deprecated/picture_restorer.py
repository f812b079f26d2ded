"""Deprecated: `PictureRestorer` is in `musetalk_enhance.jobs`."""

from __future__ import annotations

import sys

from musetalk_enhance.errors import warn_renamed
from musetalk_enhance.jobs import image_restorer

warn_renamed("musetalk_enhance.picture_restorer", "musetalk_enhance.jobs")
sys.modules[__name__] = image_restorer
