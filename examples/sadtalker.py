"""SadTalker with restored faces, from Python; run it in SadTalker's folder.

    python .../examples/sadtalker.py --driven_audio voice.wav --source_image face.png ...

The arguments are those of SadTalker's ``inference.py``, which stays as it is and needs no GFPGAN of
its own. In code of your own, and in Linly-Talker, the line with ``attach`` goes before the host's
modules are imported.
"""

from __future__ import annotations

import os
import runpy
import sys

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.hosts.sadtalker import attach


def main() -> None:
    """Run the host's script while this library stands in for its enhancer."""
    sys.path[0] = os.getcwd()  # where the host's script has its modules
    sys.argv[0] = "inference.py"  # beside which the host looks for its configuration
    enhancer = GFPGANEnhancer(model="lite", upscale=2)
    with attach(enhancer):
        runpy.run_path("inference.py", run_name="__main__")
    print(enhancer.stats.summary())


if __name__ == "__main__":
    main()
