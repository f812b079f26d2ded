"""RestoreFormer (Wang et al., CVPR 2022), in the checkpoint layout that GFPGAN's releases carry."""

from __future__ import annotations

from ..backends import NetworkSpec
from ..errors import CheckpointError, MissingDependencyError
from .base import LoadRequest, NetworkRestorer, RestorerRecord
from .gfpgan import SIDE, empty

RECORD = RestorerRecord(
    name="restoreformer",
    summary="RestoreFormer: a codebook of high-quality faces and attention between it and the input",
    input_size=SIDE,
    output_size=SIDE,
    value_range=(-1.0, 1.0),
    licence="Apache-2.0",
    landmark_template="ffhq_512",
    bytes_per_face=768 * 2**20,
    weight="RestoreFormer",
)


class RestoreFormerRestorer(NetworkRestorer):
    """RestoreFormer with spandrel's network; it draws no random numbers."""

    record = RECORD

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network of ``request.weight``; ``settings.channel_multiplier`` means nothing here.

        Raises:
            CheckpointError: there is no weight, or it holds another network.
        """
        from ..backends.wrapping import FirstOutput
        from .convert import check, fill

        if request.weight is None:
            raise CheckpointError(None, "nothing", f"a RestoreFormer checkpoint for {request.record.name}")
        try:
            from spandrel.architectures.RestoreFormer import RestoreFormer
        except ImportError as error:
            raise MissingDependencyError("spandrel", "all", "RestoreFormer", str(error)) from error
        state_dict, path = request.weight.state_dict(), request.weight.path
        check(state_dict, "RestoreFormer", request.settings.channel_multiplier, path)
        source = empty(RestoreFormer)
        fill(source, state_dict, path, "RestoreFormer")
        record = request.record
        shape = (3, SIDE, SIDE)
        return NetworkSpec(
            record.name, FirstOutput(source), shape, record.value_range, "restoreformer", channels_last=False
        )
