"""The embedded model: a small network that sharpens a soft 256 px face into a crisp 512 px one.

See ``assets/lite.md`` for its training data and its limits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends import NetworkSpec
from ..errors import CheckpointError, MissingDependencyError
from ..frames.resize import kept_rows
from .base import LoadRequest, ModelInfo, NetworkRestorer

if TYPE_CHECKING:
    import torch


ASSET = Path(__file__).with_name("assets") / "lite.safetensors"
"""The embedded weight."""

FIRST_KEY = "body.0.weight"
"""A name in every checkpoint of this form."""

SIDE = 256
"""Side of the faces it takes, in pixels."""
PADDING = 12
"""Pixels of the input; with 12 an image of one color comes back within 0.6/255 everywhere."""

INFO = ModelInfo(
    name="lite",
    summary="embedded small sharpener, 256 px in, 512 px out (not blind restoration)",
    input_size=SIDE,
    output_size=2 * SIDE,
    value_range=(0.0, 1.0),
    license="Apache-2.0",
    bytes_per_face=24 * 2**20,
)


def operator(
    network: Callable[[torch.Tensor], torch.Tensor], faces_rgb: torch.Tensor
) -> torch.Tensor:
    """Everything that lite computes, around its network.

    The network (spandrel's Compact, 12 channels in and out, scale 2) works on pixel-unshuffled
    faces and adds a nearest-enlarged copy of its input, which is meaningless for unshuffled
    channels; that copy is subtracted again and the residual is added to a bicubic enlargement::

        u = pixel_unshuffle(x, 2)
        lite(x) = bicubic_x2(x) + pixel_shuffle(network(u) - nearest_x2(u), 2)

    ``x`` is first padded by copies of `PADDING` pixels on each side and the rim is cropped again,
    because the zeros that convolutions pad an image with show as a frame of up to 5/255.

    Args:
        network: float32 (N, 12, h, w) to (N, 12, 2h, 2w).
        faces_rgb: float32 (N, 3, H, W), RGB, 0..1; H and W even.

    Returns:
        float32 (N, 3, 2H, 2W), RGB, about 0..1 (not clamped).
    """
    from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle

    unshuffled = pixel_unshuffle(pad(faces_rgb, (PADDING,) * 4, mode="replicate"), 2)
    residual = network(unshuffled) - interpolate(unshuffled, scale_factor=2, mode="nearest")
    rim = slice(2 * PADDING, -2 * PADDING)
    detail = pixel_shuffle(residual, 2)[..., rim, rim]
    return interpolate(faces_rgb, scale_factor=2, mode="bicubic", align_corners=False) + detail


class LiteRestorer(NetworkRestorer):
    """The embedded model, or another checkpoint of the same form."""

    info = INFO

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network of ``request.weight`` or, without one, of the embedded weight."""
        from ..weights import open_file
        from .lite_network import LiteNetwork

        weight = request.weight or open_file(ASSET)
        keep = kept_rows(request.settings.computed_region, SIDE).start
        module = LiteNetwork(_network(weight.state_dict(), weight.path), keep)
        key = f"lite {module.width}x{len(module.body)} rows {keep}"
        record = partial(_record_on, module)
        name, shape, identity = request.info.name, (3, SIDE, SIDE), f"{weight.sha256} {keep}"
        value_range = INFO.value_range
        return NetworkSpec(
            name, module, shape, value_range, key, symbolic=record, identity=identity
        )


def _record_on(module: Any, ops: Any) -> Any:
    return module.compute(ops, ops.input)


def _network(state_dict: dict[str, torch.Tensor], path: Path) -> torch.nn.Module:
    try:
        from spandrel.architectures.Compact import CompactArch
    except ImportError as error:
        raise MissingDependencyError("spandrel", "all", "the embedded model", str(error)) from error
    first = state_dict.get(FIRST_KEY)
    if first is None or first.shape[1] != 12:
        raise CheckpointError(path, "another network", "a Compact network with 12 input channels")
    network: torch.nn.Module = CompactArch().load(state_dict).model
    network.load_state_dict(state_dict)
    return network
