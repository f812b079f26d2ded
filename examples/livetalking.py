"""LiveTalking, without a change in its files: run this in its folder, with its arguments.

    python .../examples/livetalking.py --transport webrtc --model wav2lip --avatar_id NAME

The same two lines of `main`, `attach` and its import, work at the top of LiveTalking's ``app.py``.
``musetalk-enhance run app.py --enable_gfpgan ...`` does it without Python.
"""

from __future__ import annotations

import os
import runpy
import sys

from musetalk_enhance import FaceEnhancer
from musetalk_enhance.hosts.livetalking import attach


def main() -> None:
    """Restore the faces of every session; count them when the service ends."""
    sys.path.insert(0, os.getcwd())
    enhancer = FaceEnhancer(model="lite")
    try:
        with attach(enhancer, fade_frames=4):
            runpy.run_path("app.py", run_name="__main__")
    except KeyboardInterrupt:
        pass
    print(enhancer.stats.summary())


if __name__ == "__main__":
    main()
