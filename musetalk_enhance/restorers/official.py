"""``engine: official``: ``gfpgan.GFPGANer``, frame by frame, as the packages come.

It looks for the face itself, aligns it, restores it, parses it and pastes it back, and draws fresh noise for
each call. It is the reference to compare with, not the quick way.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, NoFaceError, RestorerError
from .base import LoadRequest, Restorer, RestorerRecord

if TYPE_CHECKING:
    import numpy as np
    import torch

RECORD = RestorerRecord(
    name="official",
    summary="gfpgan.GFPGANer: detects, aligns, restores and pastes back, one frame at a time",
    input_size=None,
    output_size=None,
    value_range=(-1.0, 1.0),
    licence="Apache-2.0 (names StyleGAN2 and DFDNet parts: non-commercial)",
    landmark_template="ffhq_512",
    bytes_per_face=1200 * 2**20,
    batch_limit=1,
)


class OfficialRestorer(Restorer):
    """Runs ``GFPGANer.enhance(has_aligned=False, only_center_face=True, paste_back=True)``."""

    record = RECORD

    def __init__(self, request: LoadRequest) -> None:
        """Build GFPGANer with ``settings.upscale``, ``arch``, ``channel_multiplier`` and ``bg_upsampler``.

        Raises:
            MissingDependencyError: the extra gfpgan is not installed.
            MissingWeightError: facexlib's detector or parser is not in the cache (``settings.download``
                fetches them).
            CheckpointError: there is no weight, or it holds another network; says which options fit.
        """
        super().__init__(request)
        from ..official import build_gfpganer, import_official
        from .convert import check

        settings, weight = request.settings, request.weight
        if weight is None:
            raise CheckpointError(None, "nothing", f"a checkpoint for {request.record.name}")
        import_official("gfpgan.utils")  # said before anything is read
        state_dict = weight.state_dict()
        check(state_dict, settings.arch, settings.channel_multiplier, weight.path)
        self._lock = threading.Lock()  # facexlib keeps the current picture in its helper
        self.gfpganer = build_gfpganer(
            weight.path,
            state_dict,
            upscale=int(settings.upscale) if settings.upscale == int(settings.upscale) else settings.upscale,
            arch=settings.arch,
            channel_multiplier=settings.channel_multiplier,
            bg_upsampler=settings.bg_upsampler,
            device=request.device,
            download=settings.download,
        )
        _let_errors_through(self.gfpganer.gfpgan, settings.arch)

    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Restore one picture and enlarge it.

        Args:
            faces_rgb: float32 (1, 3, H, W), RGB, 0..1; rounded to 8 bits, which is all GFPGANer takes.

        Returns:
            float32 (1, 3, int(H * upscale), int(W * upscale)), RGB, 0..1, same device.

        Raises:
            NoFaceError: the detector found no face.
            RestorerError: more than one picture; or OpenCV gave up on the face.
        """
        import cv2

        if len(faces_rgb) != 1:
            raise RestorerError(f"engine: official takes one picture at a time, not {len(faces_rgb)}")
        picture_bgr = _to_bgr(faces_rgb[0])
        with self._lock:
            try:
                faces, _, restored_bgr = self.gfpganer.enhance(
                    picture_bgr, has_aligned=False, only_center_face=True, paste_back=True
                )
            except _NetworkError as failed:
                raise failed.error from None
            except cv2.error as error:
                raise RestorerError(f"GFPGANer failed: {error}") from error
        if not faces:
            height, width = picture_bgr.shape[:2]
            raise NoFaceError(f"GFPGANer's detector found no face in a picture of {width}x{height}")
        return _to_rgb(restored_bgr, faces_rgb.device)

    def to(self, device: torch.device) -> None:
        """Move the restorer, the detector and the parser to `device`."""
        helper = self.gfpganer.face_helper
        for network in (self.gfpganer.gfpgan, helper.face_det, helper.face_parse):
            network.to(device)
        helper.face_det.mean_tensor = helper.face_det.mean_tensor.to(device)
        for owner in (self.gfpganer, helper, helper.face_det, self):
            owner.device = device

    def close(self) -> None:
        """Give the networks back."""
        self.gfpganer = None


class _NetworkError(Exception):
    """Carries a RuntimeError of the network past GFPGANer, which would print it and go on without restoring."""

    def __init__(self, error: RuntimeError) -> None:
        self.error = error


def _let_errors_through(network: Any, arch: str) -> None:
    """Wrap a network's forward so that running out of memory is not taken for a restored face.

    ``GFPGANBilinear`` does not know the argument ``weight`` that GFPGANer hands to every arch (it means nothing
    to any of them); it is dropped there.
    """
    forward = network.forward

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if arch == "bilinear":
            kwargs.pop("weight", None)
        try:
            return forward(*args, **kwargs)
        except RuntimeError as error:
            raise _NetworkError(error) from error

    network.forward = guarded


def _to_bgr(picture_rgb: torch.Tensor) -> np.ndarray:
    """float (3, H, W) RGB 0..1 to uint8 (H, W, 3) BGR."""
    import numpy as np

    bytes_rgb = (picture_rgb.clamp(0, 1) * 255).round().permute(1, 2, 0).cpu().numpy().astype(np.uint8)
    return np.ascontiguousarray(bytes_rgb[..., ::-1])


def _to_rgb(picture_bgr: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (H, W, 3) BGR to float32 (1, 3, H, W) RGB 0..1."""
    import torch

    picture = torch.from_numpy(picture_bgr[..., ::-1].copy()).to(device)
    return picture.permute(2, 0, 1).unsqueeze(0).float() / 255
