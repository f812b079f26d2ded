"""Face parsing: which part of an aligned face is pasted into its image.

Skin, features and hair are pasted; neck, clothes and hat are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import CheckpointError, FrameError, OutOfMemoryError, RestorerError

if TYPE_CHECKING:
    import torch

    from ..weights import Weight

SIDE = 512
"""Side of ParseNet's input, and of the masks, in pixels."""
CLASSES = 19
"""Number of ParseNet's classes, in the order of CelebAMask-HQ."""

_EXCLUDED = (0, 14, 16, 17, 18)  # background, hat, necklace, neck, clothes
_TAPS, _SIGMA = 101, 11  # of the blur, which runs twice; pixels
_BORDER = 10  # of the template, which is never pasted; pixels


class FaceParser:
    """ParseNet through facexlib, which the extra ``gfpgan`` installs.

    Chen et al., "Progressive Semantic-Aware Style Transformation for Blind Face Restoration", CVPR
    2021. The weight comes from this library's cache, or from `path`, and is read like every weight;
    facexlib downloads nothing. The published weight is for non-commercial use
    (``WEIGHTS.get("ParseNet").license``). Safe to call from several threads.

    Args:
        path: a checkpoint of the user's own; None uses ``ParseNet`` from the cache of weights.
        device: where the network runs; None is the CPU.
        download: download a missing weight now.
        trust_unpinned: open a ``.pth`` at `path` that is not in the table of published weights.

    Raises:
        MissingDependencyError: facexlib is not installed.
        WeightError: the weight is missing (the message tells how to fetch it), corrupt, untrusted,
            or another network's.
    """

    weight_name: ClassVar[str] = "ParseNet"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: torch.device | str | None = None,
        download: bool = False,
        trust_unpinned: bool = False,
    ) -> None:
        from .. import weights

        weight = weights.resolve(
            path, self.weight_name, download=download, trust_unpinned=trust_unpinned
        )
        import torch

        self.device = torch.device(device or "cpu")
        self._net: Any = _parsenet(weight).to(self.device)

    def mask(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """The paste mask, as in facexlib's ``FaceRestoreHelper.paste_faces_to_input_image``.

        From the most probable class of every pixel: 0 for background, hat, necklace, neck and
        clothes and 1 for the rest; blurred twice with a Gaussian of sigma 11 px, 101 px wide; 0 on
        the outermost 10 px. Faces go through the network one at a time, so that a mask does not
        depend on its batch, nor does the memory needed.

        Args:
            faces_rgb: float32 (n, 3, H, W), RGB, 0..1, faces aligned to ``FFHQ_512``; sizes other
                than 512x512 are resized.

        Returns:
            float32 (n, 1, 512, 512), 0..1, 1 where the face is pasted, on the device of
            `faces_rgb`.

        Raises:
            FrameError: `faces_rgb` has another dtype or shape, or NaN.
            RestorerError: the network failed, or the parser is closed.
            OutOfMemoryError: one face does not fit into memory.
        """
        import torch

        if faces_rgb.ndim != 4 or faces_rgb.shape[1] != 3 or not faces_rgb.is_floating_point():
            actual = f"{faces_rgb.dtype} of shape {tuple(faces_rgb.shape)}"
            raise FrameError("shape", actual, "a float tensor (n, 3, H, W)")
        masks = np.empty((len(faces_rgb), 1, SIDE, SIDE), np.float32)
        for index, face_rgb in enumerate(faces_rgb.detach()):
            if not bool(torch.isfinite(face_rgb).all()):
                raise FrameError("nonfinite", "NaN or infinite values", "finite values", index)
            masks[index, 0] = paste_mask(self._classes(face_rgb))
        return torch.from_numpy(masks).to(faces_rgb.device)

    def close(self) -> None:
        """Free the network; the parser cannot be used afterwards."""
        self._net = None

    def _classes(self, face_rgb: torch.Tensor) -> np.ndarray:
        """Most probable class of every pixel, uint8 (512, 512), of one face (3, H, W)."""
        import torch

        from ..frames.resize import resize
        from ..runtime.memory import is_out_of_memory
        from ..runtime.precision import without_autocast

        if self._net is None:
            raise RestorerError("the face parser is closed")
        inputs = face_rgb[None].to(self.device, torch.float32)
        face = resize(inputs, (SIDE, SIDE), enlarge="bilinear")
        try:
            with torch.no_grad(), without_autocast(self.device):
                scores = self._net((face.clamp(0, 1) - 0.5) / 0.5)[0]
        except Exception as error:
            kind = OutOfMemoryError if is_out_of_memory(error) else RestorerError
            raise kind(f"the face parser failed: {type(error).__name__}: {error}") from error
        if not bool(torch.isfinite(scores).all()):
            raise RestorerError("the face parser returned NaN or infinite values")
        classes: np.ndarray = scores[0].argmax(0).to(torch.uint8).cpu().numpy()
        return classes


def paste_mask(classes: np.ndarray) -> np.ndarray:
    """The soft paste mask of one face; see `FaceParser.mask`.

    Args:
        classes: uint8 (H, W), 0 to 18, in the order of CelebAMask-HQ.

    Returns:
        float32 (H, W), 0..1.
    """
    import cv2

    mask = np.isin(classes, _EXCLUDED, invert=True).astype(np.float32)
    for _ in range(2):
        mask = np.asarray(cv2.GaussianBlur(mask, (_TAPS, _TAPS), _SIGMA), np.float32)
    inside = (slice(_BORDER, -_BORDER), slice(_BORDER, -_BORDER))
    framed = np.zeros_like(mask)
    framed[inside] = mask[inside].clip(0, 1)
    return framed


def _parsenet(weight: Weight) -> torch.nn.Module:
    """facexlib's network with the tensors of `weight`, on the CPU."""
    from ..restorers.official_stack import import_official
    from ..runtime.precision import as_if_alone

    module = import_official("facexlib.parsing.parsenet", "face parsing")
    state_dict = weight.state_dict()
    with as_if_alone():
        net: torch.nn.Module = module.ParseNet(in_size=SIDE, out_size=SIDE, parsing_ch=CLASSES)
    try:
        net.load_state_dict(state_dict)
    except RuntimeError as error:
        raise CheckpointError(weight.path, "tensors that do not fit it", "ParseNet") from error
    return net.eval().requires_grad_(False)
