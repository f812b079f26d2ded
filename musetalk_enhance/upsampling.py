"""Enlarging what is around the faces of a picture: Real-ESRGAN, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, OutOfMemoryError, RestorerError
from .media.arrays import as_bgr_image

if TYPE_CHECKING:
    import torch

TILE = 400
"""Side of the tiles, in pixels of the picture that is enlarged."""
SCALES = (0.25, 8.0)
"""Least and largest ``scale`` of `BackgroundUpsampler.enlarge`."""

_LEAST_TILE = 32
_Picture = NDArray[np.uint8]


class BackgroundUpsampler:
    """Real-ESRGAN (Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data",
    ICCVW 2021) through ``realesrgan.RealESRGANer``, which the extra ``gfpgan`` brings.

    The tiles are RealESRGANer's, and so is every bit of the answer. It is driven from here because its own loop
    prints, goes on with another tile's pixels where the network failed, and holds several float copies of the
    enlarged picture: here one tile at a time is float, whatever the size of the picture. Safe to call from several
    threads.

    Args:
        path: a checkpoint of the user's own, of RealESRGAN_x2plus's or RealESRGAN_x4plus's form; None takes
            ``RealESRGAN_x2plus`` from the cache of weights.
        device: where the network runs; None is the CPU.
        tile: side of the tiles in pixels, an even number; 0 takes a picture in one piece, whatever memory that needs.
        half: compute in float16; not on a CPU.
        download: fetch a missing weight now.
        trust_unpinned: open a ``.pth`` at `path` that is not in the table of published weights.

    Attributes:
        factor: enlargement of the network itself, 2 or 4.

    Raises:
        ConfigError: an impossible `tile`, or `half` on a CPU.
        MissingDependencyError: realesrgan or basicsr is not installed.
        WeightError: the weight is missing (says how to fetch it), damaged, not to be trusted, or another network.
    """

    weight_name: ClassVar[str] = "RealESRGAN_x2plus"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        device: torch.device | str | None = None,
        tile: int = TILE,
        half: bool = False,
        download: bool = False,
        trust_unpinned: bool = False,
    ) -> None:
        from . import weights

        if tile != 0 and (tile < _LEAST_TILE or tile % 2):
            raise ConfigError("tile", tile, f"an even number of pixels, {_LEAST_TILE} or more, or 0 for no tiles")
        weight = weights.resolve(path, self.weight_name, download=download, trust_unpinned=trust_unpinned)
        import torch

        from .official import build_realesrganer

        self.device = torch.device(device or "cpu")
        if half and self.device.type == "cpu":
            raise ConfigError("half", half, "False on a CPU")
        self._upsampler: Any = build_realesrganer(
            weight.path, weight.state_dict(), tile=tile, half=half, device=self.device
        )
        self._upsampler.model.requires_grad_(False)
        self.factor: int = self._upsampler.scale

    def enlarge(self, picture_bgr: _Picture, scale: float) -> _Picture:
        """Enlarge a picture with the network, then bring it to the size that was asked for.

        The second step is RealESRGANer's ``outscale``: OpenCV's Lanczos, left out where `scale` is the network's
        own `factor`. So ``scale=1`` gives a picture of the same size, cleaned by the network.

        Args:
            picture_bgr: BGR uint8 (H, W, 3), in any memory layout; it is not changed.
            scale: 0.25 to 8.

        Returns:
            BGR uint8 (round(H * scale), round(W * scale), 3), C-contiguous; no side is below 1.

        Raises:
            ConfigError: an impossible `scale`.
            FrameError: `picture_bgr` is something else, or empty.
            RestorerError: the network failed or answered with NaN, or the upsampler was closed.
            OutOfMemoryError: one tile, or the enlarged picture, does not fit into memory.
        """
        from .runtime.memory import is_out_of_memory

        if not SCALES[0] <= scale <= SCALES[1]:
            raise ConfigError("scale", scale, f"{SCALES[0]:g} to {SCALES[1]:g}")
        picture_bgr = as_bgr_image(picture_bgr)
        if self._upsampler is None:
            raise RestorerError("the background upsampler was closed")
        height, width = picture_bgr.shape[:2]
        try:
            enlarged = self._tiled(picture_bgr)
            return _resized(enlarged, (max(1, round(width * scale)), max(1, round(height * scale))))
        except RestorerError:
            raise
        except Exception as error:
            kind = OutOfMemoryError if is_out_of_memory(error) else RestorerError
            raise kind(f"Real-ESRGAN failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Give the network back; the upsampler is not used afterwards."""
        self._upsampler = None

    def _tiled(self, picture_bgr: _Picture) -> _Picture:
        """The picture enlarged by `factor`."""
        import cv2

        height, width = picture_bgr.shape[:2]
        factor, step = self.factor, 2 if self.factor == 2 else 1  # the x2 network works on pairs of pixels
        odd = (-height % step, -width % step)
        padded = cv2.copyMakeBorder(picture_bgr, 0, odd[0], 0, odd[1], cv2.BORDER_REFLECT_101)
        enlarged = np.empty(((height + odd[0]) * factor, (width + odd[1]) * factor, 3), np.uint8)
        tile, pad = self._upsampler.tile_size, self._upsampler.tile_pad
        for rows in _spans(height + odd[0], tile, pad):
            for columns in _spans(width + odd[1], tile, pad):
                answer = self._run(np.asarray(padded, np.uint8)[rows.read, columns.read])
                enlarged[rows.written(factor), columns.written(factor)] = answer[
                    rows.kept(factor), columns.kept(factor)
                ]
        return enlarged[: height * factor, : width * factor]

    def _run(self, tile_bgr: _Picture) -> _Picture:
        """One tile through the network, rounded to 8 bits as RealESRGANer does."""
        import torch

        from .runtime.precision import without_autocast

        values = tile_bgr[..., ::-1].astype(np.float32) / 255
        inputs = torch.from_numpy(values).permute(2, 0, 1)[None].to(self.device)
        with torch.no_grad(), without_autocast(self.device):
            found = self._upsampler.model(inputs.half() if self._upsampler.half else inputs)[0].float()
        if not bool(torch.isfinite(found).all()):
            raise RestorerError("Real-ESRGAN answered with NaN or infinite values")
        answer: _Picture = (found.clamp_(0, 1) * 255.0).round_().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return answer[..., ::-1]


@dataclass(frozen=True)
class _Span:
    """Along one axis, in pixels of the picture: a tile, and what the network is shown of it.

    Attributes:
        start, end: the tile.
        first, last: the same with pixels around it, as far as the picture goes.
    """

    start: int
    end: int
    first: int
    last: int

    @property
    def read(self) -> slice:
        return slice(self.first, self.last)

    def written(self, factor: int) -> slice:
        return slice(self.start * factor, self.end * factor)

    def kept(self, factor: int) -> slice:
        return slice((self.start - self.first) * factor, (self.end - self.first) * factor)


def _spans(length: int, tile: int, pad: int) -> Iterator[_Span]:
    """Tiles over `length` pixels, `pad` more around each; a single one where `tile` is 0."""
    side = tile or length
    for index in range(math.ceil(length / side)):
        start, end = index * side, min((index + 1) * side, length)
        yield _Span(start, end, max(start - pad, 0), min(end + pad, length))


def _resized(picture_bgr: _Picture, size_wh: tuple[int, int]) -> _Picture:
    import cv2

    picture_bgr = np.ascontiguousarray(picture_bgr)
    if picture_bgr.shape[1::-1] == size_wh:
        return picture_bgr
    return np.asarray(cv2.resize(picture_bgr, size_wh, interpolation=cv2.INTER_LANCZOS4), np.uint8)
