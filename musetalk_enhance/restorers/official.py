"""``engine: official``: ``gfpgan.GFPGANer``, frame by frame, as the packages come.

It detects the face itself, aligns it, restores it, parses it and pastes it back, with new random
noise in each call. It is the reference for comparisons, not the fast implementation.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, NoFaceError, RestorerError
from .architecture import check_architecture
from .base import LoadRequest, ModelInfo, Restorer
from .gfpgan import LICENSE

if TYPE_CHECKING:
    import torch

    from ..media.arrays import Image

INFO = ModelInfo(
    name="official",
    summary="gfpgan.GFPGANer: detects, aligns, restores and pastes back, one frame at a time",
    input_size=None,
    output_size=None,
    value_range=(-1.0, 1.0),
    license=LICENSE,
    landmark_template="ffhq_512",
    bytes_per_face=1200 * 2**20,
    batch_limit=1,
)


class OfficialRestorer(Restorer):
    """Runs ``GFPGANer.enhance(has_aligned=False, only_center_face=True, paste_back=True)``."""

    info = INFO

    def __init__(self, request: LoadRequest) -> None:
        """Build GFPGANer.

        It gets ``upscale``, ``arch``, ``channel_multiplier`` and ``bg_upsampler`` of the settings.

        Raises:
            MissingDependencyError: the extra gfpgan is not installed.
            MissingWeightError: facexlib's detector or parser is not in the cache
                (``settings.download`` fetches them).
            CheckpointError: there is no weight, or it holds another network; the message has the
                options for it.
        """
        super().__init__(request)
        from .official_stack import build_gfpganer, import_official

        settings, weight = request.settings, request.weight
        if weight is None:
            raise CheckpointError(None, "nothing", f"a checkpoint for {request.info.name}")
        import_official("gfpgan.utils")  # fails before anything is read
        state_dict = weight.state_dict()
        check_architecture(state_dict, settings.arch, settings.channel_multiplier, weight.path)
        self._lock = threading.Lock()  # facexlib stores the current image in its helper
        upscale = settings.upscale
        self.gfpganer = build_gfpganer(
            weight.path,
            state_dict,
            upscale=int(upscale) if upscale == int(upscale) else upscale,
            arch=settings.arch,
            channel_multiplier=settings.channel_multiplier,
            bg_upsampler=settings.bg_upsampler,
            device=request.device,
            download=settings.download,
        )
        _propagate_errors(self.gfpganer.gfpgan, settings.arch)

    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Restore one frame and enlarge it.

        Args:
            faces_rgb: float32 (1, 3, H, W), RGB, 0..1; rounded to 8 bits for GFPGANer.

        Returns:
            float32 (1, 3, int(H * upscale), int(W * upscale)), RGB, 0..1, same device.

        Raises:
            NoFaceError: the detector found no face.
            RestorerError: more than one frame, or OpenCV failed on the face.
        """
        import cv2

        if len(faces_rgb) != 1:
            raise RestorerError(f"engine: official takes one frame at a time, not {len(faces_rgb)}")
        frame_bgr = _to_bgr(faces_rgb[0])
        with self._lock:
            try:
                faces, _, restored_bgr = self.gfpganer.enhance(
                    frame_bgr, has_aligned=False, only_center_face=True, paste_back=True
                )
            except _NetworkError as error:
                raise error.cause from None
            except cv2.error as error:
                raise RestorerError(f"GFPGANer failed: {error}") from error
        if not faces:
            height, width = frame_bgr.shape[:2]
            raise NoFaceError(f"GFPGANer's detector found no face in a frame of {width}x{height}")
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
        """Release the networks."""
        self.gfpganer = None


class _NetworkError(Exception):
    """Carries a RuntimeError of the network past GFPGANer, which would print it and not restore."""

    def __init__(self, cause: RuntimeError) -> None:
        self.cause = cause


def _propagate_errors(network: Any, arch: str) -> None:
    """Wrap a network's forward so that running out of memory does not pass for a restored face.

    GFPGANer passes the argument ``weight`` to every arch, and all of them ignore it, but
    ``GFPGANBilinear`` does not accept it; it is dropped there.
    """
    forward = network.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if arch == "bilinear":
            kwargs.pop("weight", None)
        try:
            return forward(*args, **kwargs)
        except RuntimeError as error:
            raise _NetworkError(error) from error

    network.forward = wrapped


def _to_bgr(frame_rgb: torch.Tensor) -> Image:
    """float (3, H, W) RGB 0..1 to uint8 (H, W, 3) BGR."""
    import numpy as np

    values = (frame_rgb.clamp(0, 1) * 255).round().permute(1, 2, 0)
    return np.ascontiguousarray(values.cpu().numpy().astype(np.uint8)[..., ::-1])


def _to_rgb(frame_bgr: Image, device: torch.device) -> torch.Tensor:
    """uint8 (H, W, 3) BGR to float32 (1, 3, H, W) RGB 0..1."""
    import torch

    frame = torch.from_numpy(frame_bgr[..., ::-1].copy()).to(device)
    return frame.permute(2, 0, 1).unsqueeze(0).float() / 255
