"""CodeFormer: the network is spandrel_extra_arches', under the S-Lab License (non-commercial).

Zhou et al., "Towards Robust Blind Face Restoration with Codebook Lookup Transformer", NeurIPS 2022.

It selects one of 1,024 codes for each of 16x16 places of a face and decodes the face from them;
`fidelity` controls how much of the input's own features is mixed in. The selection is a hard one:
where two codes are almost equally likely, sums in another order (another runtime, precision or
batch size) may select the other, and the face then differs there by far more than rounding.
"""

from __future__ import annotations

import warnings
from typing import Any

from ..backends import NetworkSpec
from ..errors import CheckpointError, MissingDependencyError
from .architecture import build_empty, check_architecture, load_tensors
from .base import LoadRequest, ModelInfo, NetworkRestorer
from .gfpgan import SIDE

INFO = ModelInfo(
    name="codeformer",
    summary="CodeFormer: codes of high-quality faces, selected by a transformer; fidelity 0..1 "
    "(non-commercial)",
    input_size=SIDE,
    output_size=SIDE,
    value_range=(-1.0, 1.0),
    license="S-Lab License 1.0 (non-commercial)",
    landmark_template="ffhq_512",
    has_fidelity=True,
    bytes_per_face=600 * 2**20,
    weight="CodeFormer",
    commercial=False,
)


class CodeFormerRestorer(NetworkRestorer):
    """CodeFormer with ``settings.fidelity``; colors are matched to the input (``adain``)."""

    info = INFO

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network of ``request.weight``; ``settings.channel_multiplier`` is ignored.

        Raises:
            CheckpointError: there is no weight, or it holds another network.
            MissingDependencyError: the package spandrel_extra_arches is not installed.
        """
        from .codeformer_network import make_exportable
        from .first_output import FirstOutput

        info, weight, settings = request.info, request.weight, request.settings
        if weight is None:
            raise CheckpointError(None, "nothing", f"a CodeFormer checkpoint for {info.name}")
        network_class = import_network()
        state_dict = weight.state_dict()
        check_architecture(state_dict, "CodeFormer", settings.channel_multiplier, weight.path)
        source = build_empty(network_class)
        load_tensors(source, state_dict, weight.path, "CodeFormer")
        fidelity = settings.fidelity
        module = FirstOutput(make_exportable(source), weight=fidelity)
        # At 0 nothing is mixed in, and the network is faster.
        key = "codeformer" if fidelity else "codeformer alone"
        shape = (3, SIDE, SIDE)
        identity = f"{weight.sha256} {fidelity}"
        value_range = info.value_range
        return NetworkSpec(
            info.name, module, shape, value_range, key, channels_last=False, identity=identity
        )


def import_network() -> Any:
    """The network's class.

    Raises:
        MissingDependencyError: the package spandrel_extra_arches is not installed.
    """
    package = "spandrel_extra_arches"
    try:
        # It compiles a function with torch.jit, for which new versions of torch warn.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from spandrel_extra_arches.architectures.CodeFormer import CodeFormer
    except ImportError as error:
        raise MissingDependencyError(package, "codeformer", "CodeFormer", str(error)) from error
    return CodeFormer
