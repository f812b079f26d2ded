"""Wav2Lip in your own code: wrap the network that ``load_model`` returns.

    python examples/wav2lip.py

The host's own script needs no code: ``musetalk-enhance run inference.py --enable_gfpgan ...``.
"""

from __future__ import annotations

import torch

from musetalk_enhance import FaceEnhancer, wrap


class StandInNetwork(torch.nn.Module):
    """Wav2Lip's shapes: (N, 1, 80, 16) and (N, 6, 96, 96) to (N, 3, 96, 96), BGR, 0..1."""

    def forward(self, audio: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """The second three channels are the face."""
        return images[:, 3:]


def main() -> None:
    """Faces of 96 pixels come back as large as the restorer makes them; the host resizes them."""
    enhancer = FaceEnhancer(model="lite")
    model = StandInNetwork().eval()
    generate = wrap(
        model, enhancer, color="bgr", value_range="0..1", layout="NCHW", output_size="native"
    )
    ramp = torch.linspace(0, 1, 96).expand(4, 6, 96, 96)
    with torch.no_grad():
        faces = generate(torch.zeros(4, 1, 80, 16), ramp)
    print(tuple(faces.shape), faces.dtype)


if __name__ == "__main__":
    main()
