r"""Ditto with restored faces, by `wrap`; run it in Ditto's folder.

    python .../examples/ditto.py --data_root checkpoints/ditto_pytorch \
        --cfg_pkl checkpoints/ditto_cfg/v0.4_hubert_cfg_pytorch.pkl \
        --audio_path example/audio.wav --source_path example/image.png --output_path out.mp4

The arguments are those of Ditto's ``inference.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import Any

from musetalk_enhance import FaceEnhancer, Stream, wrap

ARGUMENTS = ("data_root", "cfg_pkl", "audio_path", "source_path", "output_path")


def restore_faces(sdk: Any, enhancer: FaceEnhancer) -> Stream:
    """Let a ``StreamSDK`` return restored faces, for one video; returns their stream.

    Its decoder makes RGB float32 (512, 512, 3), 0..255, one frame a call, which the host warps into
    the picture with a matrix for 512 pixels.
    """
    stream = enhancer.stream(color="rgb", value_range="0..255", output_size="same")
    sdk.decode_f3d = wrap(sdk.decode_f3d, enhancer, stream=stream)
    return stream


def main() -> None:
    """Make one video as the host's ``inference.py`` does."""
    sys.path[0] = os.getcwd()  # where the host has its modules
    host = import_module("inference")
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ARGUMENTS:
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    sdk = host.StreamSDK(args.cfg_pkl, args.data_root)
    stream = restore_faces(sdk, FaceEnhancer(model="lite"))
    host.run(sdk, args.audio_path, args.source_path, args.output_path)
    print(stream.stats.summary())


if __name__ == "__main__":
    main()
