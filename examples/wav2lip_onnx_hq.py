"""wav2lip-onnx-HQ in your own code: an enhancer with the method that its script calls.

    python examples/wav2lip_onnx_hq.py

The host's own script needs no code:
``musetalk-enhance run inference_onnxModel.py --enable_gfpgan ...``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_enhance import FaceEnhancer


class Enhancer:
    """``enhance(aligned_face)``, as the host's own enhancers have it: BGR uint8 (256, 256, 3)."""

    def __init__(self, model: str = "lite") -> None:
        """Load a model by its name or path."""
        self.faces = FaceEnhancer(model, color="bgr")

    def enhance(self, face: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The face, restored, in its own size."""
        restored: NDArray[np.uint8] = self.faces(face)
        return restored


def main() -> None:
    """Restore one aligned face."""
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    face = np.broadcast_to(ramp[:, None, None], (256, 256, 3)).copy()
    enhancer = Enhancer()
    print(enhancer.enhance(face).shape, enhancer.faces.stats.summary())


if __name__ == "__main__":
    main()
