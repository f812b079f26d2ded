"""Wav2Lip and wav2lip-onnx-HQ.

Wav2Lip's network returns float tensors (N, 3, 96, 96), BGR, 0..1, which ``inference.py`` scales to
bytes, resizes to the face box and pastes without a mask. wav2lip-onnx-HQ pastes the mouth into an
aligned face of 256 pixels, uint8, BGR, and hands that to an enhancer of its own choice, whose
result it scales back to 256: there the class of its GFPGAN is replaced, whose weight it then does
not need.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..errors import HostError
from .base import Hook, Host, HostRun, argument_of
from .wrap import Wrapper


def original_faces(network: Any, audio: Any, images: Any) -> Any:
    """The whole faces in Wav2Lip's input, (N, 3, 96, 96).

    Its images are (N, 6, 96, 96): the face with its lower half black, then the whole face.
    """
    return images[:, 3:] if images.ndim == 4 else None


WAV2LIP = Host(
    name="wav2lip",
    title="Wav2Lip",
    imports=("models.Wav2Lip", "models.wav2lip"),
    scripts="inference.py",
    hooks=(Hook("models.wav2lip", "Wav2Lip.forward", original_faces),),
    value_range="0..1",
    layout="NCHW",
    output_size="native",  # of 96 pixels little is left to see; the host resizes to the face box
)

ENHANCER_FLAG = "--enhancer"
ENHANCER = "gfpgan"
"""The host's own enhancer that is replaced, as its flag names it."""


def _install_enhancer(run: HostRun) -> None:
    """Choose the host's GFPGAN, and replace its class."""
    if not run.enhancer.settings.enabled:
        return
    choice = argument_of(run.arguments, ENHANCER_FLAG)
    if choice is None:
        run.arguments += [ENHANCER_FLAG, ENHANCER]
    elif choice != ENHANCER:
        raise HostError(
            f"{ENHANCER_FLAG} {choice} is wav2lip-onnx-HQ's own; leave it out, or set "
            f"{ENHANCER_FLAG} {ENHANCER}, for faces that musetalk_enhance restores"
        )

    class Replacement:
        """Stands in for the host's GFPGAN: ``enhance(face)``, BGR uint8 (H, W, 3)."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            """Take the host's path of a weight and device, which are not used."""

        # the face around the mouth that the host pasted is the original's own
        enhance = Wrapper(
            lambda self, face: face,
            lambda *_: run.enhancer,
            hints=lambda self, face: {"sources": [face]},
        )

    def replace(module: ModuleType) -> None:
        run.patches.replace(module, "GFPGAN", Replacement)

    run.patches.when_imported("enhancers.GFPGAN.GFPGAN", replace)


WAV2LIP_ONNX_HQ = Host(
    name="wav2lip-onnx-hq",
    title="wav2lip-onnx-HQ",
    imports=("enhancers.GFPGAN",),
    scripts="inference_onnxModel.py",
    install=_install_enhancer,
)

__all__ = ["WAV2LIP", "WAV2LIP_ONNX_HQ"]
