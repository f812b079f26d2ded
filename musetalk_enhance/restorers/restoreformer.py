"""RestoreFormer (Wang et al., CVPR 2022), in the checkpoint layout of GFPGAN's releases."""

from __future__ import annotations

from ..backends import NetworkSpec
from ..errors import CheckpointError, MissingDependencyError
from .architecture import build_empty, check_architecture, load_tensors
from .base import LoadRequest, ModelInfo, NetworkRestorer
from .gfpgan import SIDE

INFO = ModelInfo(
    name="restoreformer",
    summary="RestoreFormer: a codebook of high-quality faces, attention between it and the input",
    input_size=SIDE,
    output_size=SIDE,
    value_range=(-1.0, 1.0),
    license="Apache-2.0",
    landmark_template="ffhq_512",
    bytes_per_face=720 * 2**20,
    weight="RestoreFormer",
)


class RestoreFormerRestorer(NetworkRestorer):
    """RestoreFormer with spandrel's network; it uses no random numbers."""

    info = INFO

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network of ``request.weight``; ``settings.channel_multiplier`` is ignored.

        Raises:
            CheckpointError: there is no weight, or it holds another network.
        """
        from .first_output import FirstOutput

        info, weight = request.info, request.weight
        if weight is None:
            raise CheckpointError(None, "nothing", f"a RestoreFormer checkpoint for {info.name}")
        try:
            from spandrel.architectures.RestoreFormer import RestoreFormer
        except ImportError as error:
            raise MissingDependencyError("spandrel", "all", "RestoreFormer", str(error)) from error
        state_dict = weight.state_dict()
        multiplier = request.settings.channel_multiplier
        check_architecture(state_dict, "RestoreFormer", multiplier, weight.path)
        source = build_empty(RestoreFormer)
        load_tensors(source, state_dict, weight.path, "RestoreFormer")
        return NetworkSpec(
            info.name,
            FirstOutput(source),
            (3, SIDE, SIDE),
            info.value_range,
            "restoreformer",
            channels_last=False,
            identity=weight.sha256,
        )
