"""The embedded model: a small network that sharpens a soft 256 px face into a crisp 512 px one.

See ``assets/lite.md`` for its training data and its limits.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ..backends import NetworkSpec
from ..errors import CheckpointError
from ..frames.resize import kept_rows
from .base import LoadRequest, ModelInfo, NetworkRestorer

ASSET = Path(__file__).with_name("assets") / "lite.safetensors"
"""The embedded weight."""

FIRST_KEY = "look.layers.0.weight"
"""A name in every checkpoint of this form."""

SIDE = 256
"""Side of the faces it takes, in pixels."""

INFO = ModelInfo(
    name="lite",
    summary="embedded small sharpener, 256 px in, 512 px out (not blind restoration)",
    input_size=SIDE,
    output_size=2 * SIDE,
    value_range=(0.0, 1.0),
    license="Apache-2.0",
    bytes_per_face=24 * 2**20,
)


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
        state = {name: tensor.float() for name, tensor in weight.state_dict().items()}
        try:
            module = LiteNetwork(state, keep)
        except KeyError as error:
            expected = "the weights of lite's second generation"
            raise CheckpointError(weight.path, f"no {error.args[0]}", expected) from error
        key = f"lite {module.width}x{module.blocks} rows {keep}"
        record = partial(_record_on, module)
        name, shape, identity = request.info.name, (3, SIDE, SIDE), f"{weight.sha256} {keep}"
        value_range = INFO.value_range
        return NetworkSpec(
            name, module, shape, value_range, key, symbolic=record, identity=identity
        )


def _record_on(module: Any, ops: Any) -> Any:
    return module.compute(ops, ops.input)
