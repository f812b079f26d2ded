"""LivePortrait with restored faces, by `wrap`; run it in LivePortrait's folder.

    python .../examples/liveportrait.py -s assets/examples/source/s9.jpg -d driving.mp4

The arguments are those of LivePortrait's ``inference.py``.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from musetalk_enhance import FaceEnhancer, Stream, wrap


def restore_faces(owner: Any, enhancer: FaceEnhancer) -> Stream:
    """Let a ``LivePortraitWrapper``, or its class, return restored faces; returns their stream.

    ``parse_output`` makes RGB uint8 (1, 512, 512, 3), one frame a call, which the host pastes back
    with a matrix for that size.
    """
    stream = enhancer.stream(color="rgb", output_size="same")
    owner.parse_output = wrap(owner.parse_output, enhancer, stream=stream)
    return stream


def main() -> None:
    """Make one video as the host's ``inference.py`` does."""
    sys.path[0] = os.getcwd()  # where the host has its modules
    module = import_module("src.live_portrait_wrapper")
    stream = restore_faces(module.LivePortraitWrapper, FaceEnhancer(model="lite"))
    import_module("inference").main()
    print(stream.stats.summary())


if __name__ == "__main__":
    main()
