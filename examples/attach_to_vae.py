"""Without touching the host's files: wrap its VAE from Python, and take the wrapper off again.

    python examples/attach_to_vae.py

With MuseTalk: ``vae, unet, pe = load_all_model(...)``, then ``with attach(vae, enhancer): ...``
around the loop.
"""

from __future__ import annotations

import numpy as np
from hook_for_inference import StandInVAE

from musetalk_enhance import GFPGANEnhancer, attach


def main() -> None:
    """Decode once with the enhancer attached and once without."""
    vae = StandInVAE()
    enhancer = GFPGANEnhancer(model="lite", color="bgr", output_size="native")
    with attach(vae, enhancer):
        print("attached:", vae.decode_latents(np.zeros((2, 4, 32, 32))).shape)
    print("detached:", vae.decode_latents(np.zeros((2, 4, 32, 32))).shape)
    print(enhancer.stats.summary())


if __name__ == "__main__":
    main()
