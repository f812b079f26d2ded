"""MuseTalk's ``decode_latents`` in two parts, to restore faces before they leave the GPU.

MuseTalk decodes on its device, copies the floats to the CPU, and makes BGR bytes of them there with
numpy. Restoring those bytes on the GPU would bring them back up and down again. `Decoder` does the
same arithmetic on the device, and only after `verify` has seen that it gives the very bytes the
host gives.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime import memory

if TYPE_CHECKING:
    import torch


class Decoder:
    """The decoder inside one of MuseTalk's VAEs.

    Attributes:
        vae: MuseTalk's ``VAE``, with ``vae.vae`` (diffusers' AutoencoderKL) and
            ``vae.scaling_factor``.
    """

    def __init__(self, vae: Any) -> None:
        """Take apart `vae`; see `Decoder.fits`."""
        self.vae = vae

    @staticmethod
    def fits(vae: Any) -> bool:
        """Whether `vae` has the structure of MuseTalk's; `verify` checks its results."""
        inner, factor = getattr(vae, "vae", None), getattr(vae, "scaling_factor", None)
        remembered = isinstance(vae, Hashable) and type(vae).__weakrefoffset__ != 0
        return (
            remembered
            and callable(getattr(inner, "decode", None))
            and isinstance(factor, (float, int))
        )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (N, 4, h, w) to frames: uint8 (N, 3, H, W), BGR, on the decoder's device."""
        return host_frames(self.vae.vae.decode(self._scaled(latents)).sample)

    def _scaled(self, latents: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = ((1 / self.vae.scaling_factor) * latents).to(self.vae.vae.dtype)
        return scaled

    def verify(self, original: Callable[..., Any], latents: torch.Tensor) -> tuple[Any, str | None]:
        """Run the host's own method once and compare what it did with what `decode` would do.

        Returns:
            The host's frames, and the type of the device its tensor was on, ``"cpu"`` or
            ``"cuda"``; None instead where a single bit differs, so that `decode` must not stand in
            for `original`.
        """
        import torch

        with _recorded(self.vae.vae) as calls:
            frames = original(latents)
        try:
            ((scaled, image),) = calls  # fmt: skip - one call, or this is no decoder of MuseTalk's
            same = torch.equal(scaled, self._scaled(latents)) and np.array_equal(
                to_array(host_frames(image)), frames
            )
        except Exception:  # whatever else it is, MuseTalk's it is not
            return frames, None
        return frames, image.device.type if same else None


@contextmanager
def _recorded(inner: Any) -> Iterator[list[tuple[Any, Any]]]:
    """While inside, ``inner.decode`` notes what it was given and the tensor it made."""
    calls: list[tuple[Any, Any]] = []
    original = vars(inner).get("decode")
    decode = inner.decode

    def noting(latents: Any, *args: Any, **kwargs: Any) -> Any:
        answer = decode(latents, *args, **kwargs)
        calls.append((latents, getattr(answer, "sample", None)))
        return answer

    inner.decode = noting
    try:
        yield calls
    finally:
        if original is None:
            del inner.decode
        else:
            inner.decode = original


def host_frames(image: torch.Tensor) -> torch.Tensor:
    """What MuseTalk makes of the decoder's answer, on its device.

    Args:
        image: float (N, 3, H, W), RGB, -1..1.

    Returns:
        uint8 (N, 3, H, W), BGR, on the device of `image`; on the CPU where that has no memory left
        for it.
    """
    import torch

    with torch.no_grad():
        try:
            return _quantised(image)
        except Exception as error:
            if image.device.type == "cpu" or not memory.is_out_of_memory(error):
                raise
            memory.forget_locals(error)
        return _quantised(image.cpu())


def _quantised(image: torch.Tensor) -> torch.Tensor:
    import torch

    # in the decoder's own precision, as the host does
    unit = (image.detach() / 2 + 0.5).clamp(0, 1)
    # both torch and numpy round half to even
    return (unit.float() * 255).round().to(torch.uint8).flip(1)


def to_array(frames: torch.Tensor) -> np.ndarray:
    """(N, 3, H, W) on any device to (N, H, W, 3) C-contiguous, in one copy."""
    array: np.ndarray = frames.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array
