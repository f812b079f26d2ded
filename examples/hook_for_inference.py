"""The smallest change to a host: two lines before the loop, one line after the decode.

This file is MuseTalk's loop in miniature, runnable as it stands:

    python examples/hook_for_inference.py --enable_gfpgan --gfpgan_model lite

In MuseTalk's scripts/inference.py the same three lines go where the comments say.
"""

from __future__ import annotations

import argparse

import numpy as np

from musetalk_enhance import GFPGANEnhancer, add_gfpgan_arguments


class StandInVAE:
    """Hands out what ``VAE.decode_latents`` hands out: BGR uint8 (N, 256, 256, 3), as a
    negative-stride view."""

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """`latents` are ignored; a soft grey ramp per frame."""
        ramp = np.linspace(0, 255, 256).astype(np.uint8)
        return np.broadcast_to(ramp[:, None], (len(latents), 256, 256, 3))[..., ::-1]


def main() -> None:
    """Decode three batches and restore each."""
    parser = argparse.ArgumentParser()
    add_gfpgan_arguments(parser)  # beside the host's own arguments
    args = parser.parse_args()
    vae = StandInVAE()

    # before the loop (cfg=inference_config adds a YAML section `gfpgan:`)
    enhancer = GFPGANEnhancer.from_args(args)
    enhancer.reset()
    for batch in range(3):
        recon = vae.decode_latents(np.zeros((4, 4, 32, 32), np.float32))
        recon = enhancer(recon)  # the one line after the decode
        print(f"batch {batch}: {recon.shape} {recon.dtype}")
    print(enhancer.stats.summary())
    # where most faces were left alone: why, and which option changes it
    warning = enhancer.stats.warning()
    if warning is not None:
        print(warning)


if __name__ == "__main__":
    main()
