"""LatentSync with restored faces, from Python; run it in LatentSync's folder.

    python .../examples/run_latentsync.py --unet_config_path configs/unet/stage2_512.yaml ...

The arguments are those of LatentSync's ``scripts/inference.py``, which stays as it is. In code of
your own, the two lines with ``attach`` are all: they go before the first call of the pipeline.
"""

from __future__ import annotations

import os
import runpy
import sys

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.hosts.latentsync import attach


def main() -> None:
    """Run the host's script while an enhancer is attached to its pipeline."""
    sys.path[0] = os.getcwd()  # where the host's script has its modules
    enhancer = GFPGANEnhancer(model="lite")
    with attach(enhancer):
        runpy.run_path("scripts/inference.py", run_name="__main__")
    print(enhancer.stats.summary())


if __name__ == "__main__":
    main()
