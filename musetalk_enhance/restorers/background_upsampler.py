"""Real-ESRGAN for the background of an image, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import weights
from ..errors import ConfigError, OutOfMemoryError, RestorerError
from ..media.arrays import Image, as_bgr_image

if TYPE_CHECKING:
    import torch

TILE = 400
"""Side of the tiles, in pixels of the image before enlargement."""
SCALES = (0.25, 8.0)
"""Lowest and highest ``scale`` of `BackgroundUpsampler.enlarge`."""

_MIN_TILE = 32


class BackgroundUpsampler:
    """Real-ESRGAN through ``realesrgan.RealESRGANer``, which the extra ``gfpgan`` installs.

    Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data",
    ICCVW 2021.

    The tiles are RealESRGANer's, and the result is bit-identical to its. The loop over the tiles is
    not: RealESRGANer's own prints, continues with another tile's pixels where the network failed,
    and holds several float copies of the enlarged image; here only one tile at a time is float,
    whatever the size of the image. Thread-safe.

    Args:
        path: a user's own checkpoint, of the form of RealESRGAN_x2plus or RealESRGAN_x4plus; None
            uses ``RealESRGAN_x2plus`` from the cache of weights.
        device: where the network runs; None is the CPU.
        tile: side of the tiles in pixels, an even number; 0 processes an image in one piece,
            however much memory that needs.
        half: compute in float16; not on a CPU.
        download: fetch a missing weight now.
        trust_unpinned: open a ``.pth`` at `path` that is not in the table of published weights.

    Attributes:
        factor: the network's own scale, 2 or 4.

    Raises:
        ConfigError: an invalid `tile`, or `half` on a CPU.
        MissingDependencyError: realesrgan or basicsr is not installed.
        WeightError: the weight is missing (the message has the command that fetches it), damaged,
            not trusted, or another network.
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
        if tile != 0 and (tile < _MIN_TILE or tile % 2):
            allowed = f"an even number of pixels, {_MIN_TILE} or more, or 0 for no tiles"
            raise ConfigError("tile", tile, allowed)
        weight = weights.resolve(
            path, self.weight_name, download=download, trust_unpinned=trust_unpinned
        )
        import torch

        from .official_stack import build_realesrganer

        self.device = torch.device(device or "cpu")
        if half and self.device.type == "cpu":
            raise ConfigError("half", half, "False on a CPU")
        self._upsampler: Any = build_realesrganer(
            weight.path, weight.state_dict(), tile=tile, half=half, device=self.device
        )
        self._upsampler.model.requires_grad_(False)
        self.factor: int = self._upsampler.scale

    def enlarge(self, image_bgr: Image, scale: float) -> Image:
        """Enlarge an image with the network, then resize it to the requested size.

        The second step is RealESRGANer's ``outscale``: OpenCV's Lanczos, skipped where `scale` is
        the network's own `factor`. So ``scale=1`` gives an image of the same size, cleaned by the
        network.

        Args:
            image_bgr: BGR uint8 (H, W, 3), in any memory layout; not modified.
            scale: 0.25 to 8.

        Returns:
            BGR uint8 (round(H * scale), round(W * scale), 3), C-contiguous; no side is below 1.

        Raises:
            ConfigError: an invalid `scale`.
            FrameError: `image_bgr` is something else, or empty.
            RestorerError: the network failed or returned NaN, or the upsampler is closed.
            OutOfMemoryError: one tile, or the enlarged image, does not fit into memory.
        """
        from ..runtime.memory import is_out_of_memory

        if not SCALES[0] <= scale <= SCALES[1]:
            raise ConfigError("scale", scale, f"{SCALES[0]:g} to {SCALES[1]:g}")
        image_bgr = as_bgr_image(image_bgr)
        if self._upsampler is None:
            raise RestorerError("the background upsampler is closed")
        height, width = image_bgr.shape[:2]
        size_wh = max(1, round(width * scale)), max(1, round(height * scale))
        try:
            return _resize(self._enlarge_by_tiles(image_bgr), size_wh)
        except RestorerError:
            raise
        except Exception as error:
            kind = OutOfMemoryError if is_out_of_memory(error) else RestorerError
            raise kind(f"Real-ESRGAN failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Release the network; the upsampler is not used afterwards."""
        self._upsampler = None

    def _enlarge_by_tiles(self, image_bgr: Image) -> Image:
        """The image enlarged by `factor`."""
        import cv2

        height, width = image_bgr.shape[:2]
        # The x2 network works on pairs of pixels.
        factor, step = self.factor, 2 if self.factor == 2 else 1
        extra = (-height % step, -width % step)
        border = cv2.BORDER_REFLECT_101
        padded = np.asarray(
            cv2.copyMakeBorder(image_bgr, 0, extra[0], 0, extra[1], border), np.uint8
        )
        shape = ((height + extra[0]) * factor, (width + extra[1]) * factor, 3)
        enlarged = np.empty(shape, np.uint8)
        tile, pad = self._upsampler.tile_size, self._upsampler.tile_pad
        for rows in _spans(height + extra[0], tile, pad):
            for columns in _spans(width + extra[1], tile, pad):
                result = self._run(padded[rows.input, columns.input])
                inner = result[rows.inner(factor), columns.inner(factor)]
                enlarged[rows.output(factor), columns.output(factor)] = inner
        return enlarged[: height * factor, : width * factor]

    def _run(self, tile_bgr: Image) -> Image:
        """One tile through the network, rounded to 8 bits in the same way as RealESRGANer."""
        import torch

        from ..runtime.precision import without_autocast

        values = tile_bgr[..., ::-1].astype(np.float32) / 255
        inputs = torch.from_numpy(values).permute(2, 0, 1)[None].to(self.device)
        if self._upsampler.half:
            inputs = inputs.half()
        with torch.no_grad(), without_autocast(self.device):
            outputs = self._upsampler.model(inputs)[0].float()
        if not bool(torch.isfinite(outputs).all()):
            raise RestorerError("Real-ESRGAN returned NaN or infinite values")
        rounded = (outputs.clamp_(0, 1) * 255.0).round_().to(torch.uint8)
        tile_rgb: Image = rounded.permute(1, 2, 0).cpu().numpy()
        return tile_rgb[..., ::-1]


@dataclass(frozen=True)
class _Span:
    """One axis of a tile and of the network's input for it, in pixels of the image.

    Attributes:
        start: first pixel of the tile.
        end: its end, exclusive.
        first: first pixel of the input, which has pixels around the tile within the image.
        last: its end, exclusive.
    """

    start: int
    end: int
    first: int
    last: int

    @property
    def input(self) -> slice:
        """The input in the image."""
        return slice(self.first, self.last)

    def output(self, factor: int) -> slice:
        """The tile in the enlarged image."""
        return slice(self.start * factor, self.end * factor)

    def inner(self, factor: int) -> slice:
        """The tile in the network's output."""
        return slice((self.start - self.first) * factor, (self.end - self.first) * factor)


def _spans(length: int, tile: int, pad: int) -> Iterator[_Span]:
    """Tiles over `length` pixels, with inputs `pad` pixels larger; one span if `tile` is 0."""
    side = tile or length
    for index in range(math.ceil(length / side)):
        start, end = index * side, min((index + 1) * side, length)
        yield _Span(start, end, max(start - pad, 0), min(end + pad, length))


def _resize(image_bgr: Image, size_wh: tuple[int, int]) -> Image:
    import cv2

    image_bgr = np.ascontiguousarray(image_bgr)
    if image_bgr.shape[1::-1] == size_wh:
        return image_bgr
    resized = cv2.resize(image_bgr, size_wh, interpolation=cv2.INTER_LANCZOS4)
    return np.asarray(resized, np.uint8)
