"""CodeFormer (Zhou et al., "Towards Robust Blind Face Restoration with Codebook Lookup Transformer", NeurIPS 2022).

The network is spandrel_extra_arches', under the S-Lab License: for non-commercial use. It chooses one of 1,024
codes for each of 16x16 places of a face and paints from them; `fidelity` says how much of the input's own
features is mixed in. The choice is a hard one: where two codes are nearly as likely, sums in another order (another
runtime, precision or batch size) may choose the other, and the face then differs at that place by far more than
rounding.
"""

from __future__ import annotations

import warnings
from typing import Any

from ..backends import NetworkSpec
from ..errors import CheckpointError, MissingDependencyError
from .base import LoadRequest, NetworkRestorer, RestorerRecord
from .gfpgan import SIDE, empty

RECORD = RestorerRecord(
    name="codeformer",
    summary="CodeFormer: codes of high-quality faces chosen by a transformer; fidelity 0..1 (non-commercial)",
    input_size=SIDE,
    output_size=SIDE,
    value_range=(-1.0, 1.0),
    licence="S-Lab License 1.0 (non-commercial)",
    landmark_template="ffhq_512",
    has_fidelity=True,
    bytes_per_face=768 * 2**20,
    weight="CodeFormer",
    commercial=False,
)


class CodeFormerRestorer(NetworkRestorer):
    """CodeFormer with ``settings.fidelity``, its colours brought to the input's (``adain``), as published."""

    record = RECORD

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network of ``request.weight``; ``settings.channel_multiplier`` means nothing here.

        Raises:
            CheckpointError: there is no weight, or it holds another network.
            MissingDependencyError: the package spandrel_extra_arches is not installed.
        """
        from ..backends.wrapping import FirstOutput
        from .codeformer_network import exportable
        from .convert import check, fill

        if request.weight is None:
            raise CheckpointError(None, "nothing", f"a CodeFormer checkpoint for {request.record.name}")
        build = imported()
        state_dict, path = request.weight.state_dict(), request.weight.path
        check(state_dict, "CodeFormer", request.settings.channel_multiplier, path)
        source = empty(build)
        fill(source, state_dict, path, "CodeFormer")
        fidelity = request.settings.fidelity
        module = FirstOutput(exportable(source), weight=fidelity)
        key = "codeformer" if fidelity else "codeformer alone"  # at 0 nothing is mixed in, and that is quicker
        shape, value_range = (3, SIDE, SIDE), request.record.value_range
        return NetworkSpec(request.record.name, module, shape, value_range, key, channels_last=False)


def imported() -> Any:
    """The network's class.

    Raises:
        MissingDependencyError: the package spandrel_extra_arches is not installed.
    """
    try:
        with warnings.catch_warnings():  # it compiles a function with torch.jit, which new versions warn about
            warnings.simplefilter("ignore")
            from spandrel_extra_arches.architectures.CodeFormer import CodeFormer
    except ImportError as error:
        raise MissingDependencyError("spandrel_extra_arches", "codeformer", "CodeFormer", str(error)) from error
    return CodeFormer
