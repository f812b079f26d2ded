"""OpenAvatarChat with restored faces, from Python; run it in OpenAvatarChat's folder.

    python .../examples/openavatarchat.py --config config/chat_with_..._musetalk.yaml

The arguments are those of the host's ``src/demo.py``, which stays as it is. In a copy of your own,
the line with ``attach`` goes to its top.
"""

from __future__ import annotations

import os
import runpy
import sys

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.hosts.openavatarchat import attach


def main() -> None:
    """Run the host's service while an enhancer is attached to its avatar."""
    sys.path[0] = os.path.abspath("src")  # where the host's script has its modules
    enhancer = GFPGANEnhancer(model="lite")
    try:
        with attach(enhancer):
            runpy.run_path("src/demo.py", run_name="__main__")
    except KeyboardInterrupt:
        pass
    print(enhancer.stats.summary())


if __name__ == "__main__":
    main()
