"""Images, folders and videos: restored in units, resumable, here or on a cluster."""

from __future__ import annotations

from .image_restorer import PictureRestorer
from .images import ImagesResult, restore_images
from .local import LocalEngine
from .options import FaceSettings, ImageSettings, VideoSettings
from .video import VideoResult, restore_video

__all__ = [
    "FaceSettings",
    "ImageSettings",
    "ImagesResult",
    "LocalEngine",
    "PictureRestorer",
    "VideoResult",
    "VideoSettings",
    "restore_images",
    "restore_video",
]
