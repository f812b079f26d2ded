"""Restorers that are ONNX files: published ones of `onnx_models.MODELS`, exports, users' own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..backends import NetworkSpec
from ..errors import CheckpointError
from ..weights.onnx_graph import read_graph
from ..weights.onnx_models import MODELS, RANGES, RestorerFile, RestorerModel, recognize
from ..weights.table import WEIGHTS
from .base import LoadRequest, ModelInfo, NetworkRestorer

if TYPE_CHECKING:
    from ..config.settings import EnhancerSettings
    from ..weights import Weight

OPTIONS = ("onnx_input_size", "onnx_value_range", "onnx_template")
"""Options that describe a file that nobody knows."""
_BYTES_AT_512 = 400 * 2**20  # of one face; GFPGAN's, as an estimate until a batch was measured


def info_of(model: RestorerModel) -> ModelInfo:
    """The facts of a model in the catalog's form."""
    files = [WEIGHTS.get(file) for file in model.files if file in WEIGHTS]
    files.sort(key=lambda entry: entry.sha256 is None)  # a pinned one is fetched
    return ModelInfo(
        name=model.name,
        summary=model.summary,
        input_size=model.input_size,
        output_size=model.output_size or model.input_size,
        value_range=model.value_range,
        license=model.license,
        landmark_template=model.template,
        has_fidelity=model.fidelity,
        bytes_per_face=max(2**24, _BYTES_AT_512 * model.input_size**2 // 512**2),
        weight=files[0].name if files else None,
        commercial=model.commercial,
    )


PUBLISHED: dict[str, ModelInfo] = {model.name: info_of(model) for model in MODELS}
"""The models of the table."""


def recognized(weight: Weight, settings: EnhancerSettings) -> RestorerFile:
    """The facts of a file, with the options of a user's own.

    Raises:
        WeightError: see `read_graph` and `recognize`.
    """
    size, template = settings.onnx_input_size, settings.onnx_template
    return recognize(
        read_graph(weight.path),
        weight.entry.file if weight.entry else None,
        input_size=size if isinstance(size, int) else None,
        value_range=RANGES.get(settings.onnx_value_range),
        template=None if template == "auto" else template,
    )


class OnnxRestorer(NetworkRestorer):
    """An ONNX file, run as it is by ONNX Runtime or OpenVINO."""

    info = PUBLISHED["gfpgan_1.4"]

    def __init__(self, request: LoadRequest) -> None:
        """Open the file; on a Mac's GPU, which neither runtime uses, it runs on the CPU."""
        if request.device.type == "mps":
            import torch

            request = replace(request, device=torch.device("cpu"))
        super().__init__(request)

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The graph of ``request.weight``, with ``settings.fidelity`` if it has that input.

        Raises:
            CheckpointError: there is no file, or it is not a restorer.
        """
        info, weight, settings = request.info, request.weight, request.settings
        if weight is None:
            raise CheckpointError(None, "nothing", f"an ONNX file for {info.name}")
        graph = recognized(weight, settings).graph_file(settings.fidelity)
        side = info.input_size or 0
        return NetworkSpec(
            info.name,
            None,
            (3, side, side),
            info.value_range,
            f"onnx {weight.sha256}",
            identity=f"{weight.sha256} {settings.fidelity}",
            graph=graph,
        )
