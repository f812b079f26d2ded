"""The options of the ONNX pipeline: names, defaults, checks and help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..config import schema
from ..runtime.onnx_session import PROVIDERS
from ..weights.onnx_models import RANGES
from .templates import TEMPLATES


@dataclass(frozen=True)
class PipelineOptions:
    """Options of `Pipeline`. Immutable; every value has been checked.

    Raises:
        ConfigError: a value is invalid.
    """

    model: str = schema.option(
        "auto",
        "Restorer: an .onnx file, or a name of the table in docs/onnx.md whose file is in the "
        "cache folder of the weights. auto: the first of the table that is there.",
        schema.text("a name or a path"),
    )
    input_size: int | str = schema.option(
        "auto",
        "Side of an unknown model's input, in pixels. auto: as the file states.",
        schema.auto(schema.whole(16, 4096)),
    )
    value_range: str = schema.option(
        "auto",
        "Value range of an unknown model. auto: the table's.",
        schema.auto(schema.choice(*RANGES)),
    )
    template: str = schema.option(
        "auto",
        "Warp template of an unknown model. auto: the table's.",
        schema.auto(schema.choice(*TEMPLATES)),
    )
    fidelity: float = schema.option(
        0.7,
        "Fidelity input of CodeFormer and VQFR: 1 stays closest to the input. Other models do not "
        "have it.",
        schema.number(0, 1),
    )
    blend: int = schema.option(
        100,
        "Share of the restored face in the result, in percent; 0 changes nothing.",
        schema.whole(0, 100),
    )
    region: str = schema.option(
        "full", "Part of a face that may change.", schema.choice("full", "lower", "mouth")
    )
    occluder: str | None = schema.option(
        None,
        "ONNX file of an occluder (dfl_xseg, xseg_1 to xseg_3); what covers a face stays as it is.",
        schema.text("a path"),
    )
    detector_path: str | None = schema.option(
        None,
        "File of YuNet, instead of the published one, for images without an analysis.",
        schema.text("a path"),
    )
    download: bool = schema.option(False, "Fetch a missing YuNet.", schema.switch())
    provider: str = schema.option(
        "cpu",
        "Execution provider of onnxruntime; it must be installed and start, else it is an error.",
        schema.choice(*PROVIDERS),
    )
    allow_cpu: bool = schema.option(
        False,
        "Fall back to the CPU, with a warning, where the provider cannot run.",
        schema.switch(),
    )
    threads: int = schema.option(
        0, "Threads of the CPU; 0 leaves the number to onnxruntime.", schema.whole(0, 1024)
    )
    batch_size: int = schema.option(
        4, "Faces in one run, where the model's batch is not fixed.", schema.whole(1, 256)
    )
    commercial: bool = schema.option(
        False, "Use no model whose license allows non-commercial use only.", schema.switch()
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = schema.checked(option, getattr(self, option.name), option.name)
            object.__setattr__(self, option.name, value)
