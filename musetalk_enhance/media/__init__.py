"""Images and videos: decoding, encoding, frame-exact copies, contact sheets. No ffmpeg binary.

- Images: `decode_image` and `encode_image` keep alpha, ICC profile, EXIF and other metadata;
  `read_image` and `write_image` do not.
- Videos: `read_frames` and `VideoWriter`, for a video that is written from nothing.
- Frame-exact copies of a video: `index_video` lists its frames, `read_segment` reads some of them,
  `SegmentWriter` writes them to a file, and `concat_segments` joins such files with the video's own
  timestamps and its audio. Whatever is not changed on purpose stays as it is: pixels outside a box,
  colors, variable frame rates, rotation, audio packets.

Frames and images are BGR uint8 ``(H, W, 3)``.
"""

from .arrays import Image
from .concat import check_output, concat_segments
from .image import (
    IMAGE_EXTENSIONS,
    StillImage,
    decode_image,
    encode_image,
    image_size,
    losses_in,
    readable_extensions,
)
from .image_file import read_image, write_image
from .index import AudioStream, VideoIndex, index_video
from .reader import VideoInfo, probe, read_frames
from .segment_reader import DecodedFrame, read_segment
from .segment_writer import PRESETS, SegmentWriter
from .writer import VideoWriter, exact_fps

__all__ = [
    "IMAGE_EXTENSIONS",
    "PRESETS",
    "AudioStream",
    "DecodedFrame",
    "Image",
    "SegmentWriter",
    "StillImage",
    "VideoIndex",
    "VideoInfo",
    "VideoWriter",
    "check_output",
    "concat_segments",
    "decode_image",
    "encode_image",
    "exact_fps",
    "image_size",
    "index_video",
    "losses_in",
    "probe",
    "read_frames",
    "read_image",
    "read_segment",
    "readable_extensions",
    "write_image",
]
