"""Which part of an aligned face is pasted back into its picture: skin, features and hair, no neck and no hat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import CheckpointError, FrameError, OutOfMemoryError, RestorerError

if TYPE_CHECKING:
    import torch

    from ..weights import Weight

SIDE = 512
"""Side of the faces that ParseNet takes, and of the masks, in pixels."""
CLASSES = 19
"""What ParseNet tells apart, in the order of CelebAMask-HQ."""

_LEFT_OUT = (0, 14, 16, 17, 18)  # background, hat, necklace, neck, clothes
_TAPS, _SIGMA, _BORDER = 101, 11, 10  # of the blur, which runs twice, and the edge that is never pasted; pixels


class FaceParser:
    """ParseNet (Chen et al., "Progressive Semantic-Aware Style Transformation for Blind Face Restoration", CVPR
    2021) through facexlib, which the extra ``gfpgan`` brings.

    Its weight comes from our cache, or from `path`, and is read as every weight is; facexlib downloads nothing.
    The published weight is for non-commercial use (``WEIGHTS.get("ParseNet").license``). Safe to call from several
    threads.

    Args:
        path: a checkpoint of the user's own; None takes ``ParseNet`` from the cache of weights.
        device: where the network runs; None is the CPU.
        download: fetch a missing weight now.
        trust_unpinned: open a ``.pth`` at `path` that is not in the table of published weights.

    Raises:
        MissingDependencyError: facexlib is not installed.
        WeightError: the weight is missing (says how to fetch it), damaged, not to be trusted, or another network.
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

        weight = weights.resolve(path, self.weight_name, download=download, trust_unpinned=trust_unpinned)
        import torch

        self.device = torch.device(device or "cpu")
        self._net: Any = _parsenet(weight).to(self.device)

    def mask(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """How much of each pixel is pasted, as facexlib's ``FaceRestoreHelper.paste_faces_to_input_image`` has it.

        The likeliest class of every pixel, 0 for background, hat, necklace, neck and clothes and 1 for the rest;
        blurred twice with a Gaussian of sigma 11 px cut at 101 px; 0 on the outermost 10 px. Faces go through the
        network one at a time: a mask does not depend on the others of its batch, nor does the memory needed.

        Args:
            faces_rgb: float32 (n, 3, H, W), RGB, 0..1, faces aligned to ``FFHQ_512``; another size than 512x512 is
                resized.

        Returns:
            float32 (n, 1, 512, 512), 0..1, 1 where the face is pasted, on the device of `faces_rgb`.

        Raises:
            FrameError: `faces_rgb` has another form, or NaN.
            RestorerError: the network failed, or the parser was closed.
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
            masks[index, 0] = pasted(self._classes(face_rgb))
        return torch.from_numpy(masks).to(faces_rgb.device)

    def close(self) -> None:
        """Give the network back; the parser is not used afterwards."""
        self._net = None

    def _classes(self, face_rgb: torch.Tensor) -> np.ndarray:
        """Likeliest class of every pixel, uint8 (512, 512), of one face (3, H, W)."""
        import torch

        from ..imaging import resize
        from ..memory import is_out_of_memory
        from ..precision import without_autocast

        if self._net is None:
            raise RestorerError("the face parser was closed")
        face = resize(face_rgb[None].to(self.device, torch.float32), (SIDE, SIDE), enlarge="bilinear")
        try:
            with torch.no_grad(), without_autocast(self.device):
                scores = self._net((face.clamp(0, 1) - 0.5) / 0.5)[0]
        except Exception as error:
            kind = OutOfMemoryError if is_out_of_memory(error) else RestorerError
            raise kind(f"the face parser failed: {type(error).__name__}: {error}") from error
        if not bool(torch.isfinite(scores).all()):
            raise RestorerError("the face parser answered with NaN or infinite values")
        classes: np.ndarray = scores[0].argmax(0).to(torch.uint8).cpu().numpy()
        return classes


def pasted(classes: np.ndarray) -> np.ndarray:
    """The soft mask of what is pasted, of one face; see `FaceParser.mask`.

    Args:
        classes: uint8 (H, W), 0 to 18, in the order of CelebAMask-HQ.

    Returns:
        float32 (H, W), 0..1.
    """
    import cv2

    mask = np.isin(classes, _LEFT_OUT, invert=True).astype(np.float32)
    for _ in range(2):
        mask = np.asarray(cv2.GaussianBlur(mask, (_TAPS, _TAPS), _SIGMA), np.float32)
    inside = (slice(_BORDER, -_BORDER), slice(_BORDER, -_BORDER))
    framed = np.zeros_like(mask)
    framed[inside] = mask[inside].clip(0, 1)
    return framed


def _parsenet(weight: Weight) -> torch.nn.Module:
    """facexlib's network with the tensors of `weight`, on the CPU."""
    from ..precision import as_if_alone
    from ..restorers.official_stack import import_official

    module = import_official("facexlib.parsing.parsenet", "face parsing")
    state_dict = weight.state_dict()
    with as_if_alone():
        net: torch.nn.Module = module.ParseNet(in_size=SIDE, out_size=SIDE, parsing_ch=CLASSES)
    try:
        net.load_state_dict(state_dict)
    except RuntimeError as error:
        raise CheckpointError(weight.path, "tensors that do not fit it", "ParseNet") from error
    return net.eval().requires_grad_(False)
