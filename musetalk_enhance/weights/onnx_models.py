"""What is known of published ONNX restorers, in one table, and how a file is recognized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..runtime.registry import Registry
from .onnx_graph import OnnxGraph, Port

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IMAGE_INPUTS = ("input", "x", "x_lq")
"""Names of the image input: FaceFusion's, CodeFormer's, VQFR's."""
OUTPUTS = ("output", "y", "restored", "main_dec")
"""Names of the restored image, where a graph has several outputs."""
RANGES = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}
"""Value ranges by the words of the options."""
NON_COMMERCIAL = "(non-commercial)"
"""In a license: of the whole, not of some parts."""
GFPGAN_LICENSE = "Apache-2.0 (names StyleGAN2 and DFDNet parts: non-commercial)"
_FLOATS = ("float32", "float16")


@dataclass(frozen=True)
class RestorerModel:
    """Facts of a restorer, all that its pixels depend on.

    Attributes:
        name: its name for users.
        files: the names under which applications keep it.
        template: the warp template that it was trained on, a key of `faces.templates.TEMPLATES`.
        input_size: side of its input, in pixels.
        output_size: side of its output; None as the input.
        value_range: lowest and highest value of its input and output.
        color: ``"rgb"`` or ``"bgr"``, of its input and output.
        fidelity_inputs: names of its fidelity input, by exporter; none without one.
        license: SPDX identifier or the license's name.
        summary: one line for lists.
    """

    name: str
    files: tuple[str, ...] = ()
    template: str = "ffhq_512"
    input_size: int = 512
    output_size: int | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)
    color: str = "rgb"
    fidelity_inputs: tuple[str, ...] = ()
    license: str = "unknown"
    summary: str = "an ONNX file"

    @property
    def fidelity(self) -> bool:
        """Whether it has a fidelity input."""
        return bool(self.fidelity_inputs)

    @property
    def commercial(self) -> bool:
        """False where the license allows only non-commercial use, or is unknown."""
        return NON_COMMERCIAL not in self.license and not self.license.startswith("unknown")


MODELS: Registry[RestorerModel] = Registry("model")
"""The published restorers. Templates, sizes and the value range are FaceFusion's
(``facefusion/processors/modules/face_enhancer``), the licenses those of the authors' repositories;
gfpgan_1024 is Deep-Live-Cam's, which writes 1024 px from 512, and vqfr VisoMaster's. The files are
FaceFusion's, Deep-Live-Cam's, ReActor's, wav2lip-onnx-HQ's and VisoMaster's."""

_GPEN = f"GPEN (Alibaba) {NON_COMMERCIAL}"
for _model in (
    RestorerModel(
        "gfpgan_1.4",
        ("gfpgan_1.4.onnx", "GFPGANv1.4.onnx"),
        license=GFPGAN_LICENSE,
        summary="GFPGAN 1.4, an ONNX file",
    ),
    RestorerModel(
        "gfpgan_1.3",
        ("gfpgan_1.3.onnx", "GFPGANv1.3.onnx"),
        license=GFPGAN_LICENSE,
        summary="GFPGAN 1.3, an ONNX file",
    ),
    RestorerModel(
        "gfpgan_1.2",
        ("gfpgan_1.2.onnx", "GFPGANv1.2.onnx"),
        license=GFPGAN_LICENSE,
        summary="GFPGAN 1.2, an ONNX file",
    ),
    RestorerModel(
        "gfpgan_1024",
        ("gfpgan-1024.onnx",),
        output_size=1024,
        license=GFPGAN_LICENSE,
        summary="GFPGAN with 1024 px out, an ONNX file",
    ),
    RestorerModel(
        "restoreformer_plus_plus",
        ("restoreformer_plus_plus.onnx", "RestoreFormer_PP.onnx", "RestoreFormerPlusPlus.fp16.onnx")
        + ("restoreformer16.onnx",),
        license="Apache-2.0",
        summary="RestoreFormer++, an ONNX file",
    ),
    RestorerModel(
        "codeformer",
        ("codeformer.onnx", "codeformer_fp16.onnx", "codeformer.fp16.onnx", "codeformerfixed.onnx"),
        fidelity_inputs=("weight", "w"),  # FaceFusion's file, CodeFormer's own exporter
        license=f"S-Lab License 1.0 {NON_COMMERCIAL}",
        summary="CodeFormer, an ONNX file, with fidelity 0..1",
    ),
    RestorerModel(
        "vqfr",
        ("VQFRv2.fp16.onnx", "VQFRv2.onnx"),
        fidelity_inputs=("fidelity_ratio",),
        license="Apache-2.0",
        summary="VQFR, an ONNX file, with fidelity 0..1",
    ),
    RestorerModel(
        "gpen_bfr_256",
        ("gpen_bfr_256.onnx", "GPEN-BFR-256.onnx", "GPEN-BFR-256-sim.onnx"),
        "arcface_128",
        256,
        license=_GPEN,
        summary="GPEN, an ONNX file: the fast one, for crops of 256 px",
    ),
    *(
        RestorerModel(
            f"gpen_bfr_{side}",
            (f"gpen_bfr_{side}.onnx", f"GPEN-BFR-{side}.onnx"),
            input_size=side,
            license=_GPEN,
            summary=f"GPEN with {side} px, an ONNX file",
        )
        for side in (512, 1024, 2048)
    ),
):
    MODELS.add(_model.name, _model, aliases=_model.files)


@dataclass(frozen=True, eq=False)
class GraphFile:
    """How a graph is run: what goes in beside the faces, and how many of them.

    Attributes:
        graph: the file, or its content.
        image: name of the image input, (n, 3, side, side).
        output: name of the restored image.
        dtype: of the image input: ``"float32"`` or ``"float16"``.
        batch: the only number of faces that it takes; None takes any.
        constants: its other inputs.
    """

    graph: Path | bytes
    image: str
    output: str
    dtype: str = "float32"
    batch: int | None = None
    constants: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def parts(self, faces: Any, size: int | None = None) -> Iterator[tuple[Any, int]]:
        """Faces in runs of `batch`, else of at most `size`: an array or tensor, and its number.

        A run that is too short for a fixed batch is filled up with its last face.
        """
        step = self.batch or size or max(1, len(faces))
        for start in range(0, len(faces), step):
            count = min(step, len(faces) - start)
            if self.batch and count < step:
                yield faces[[min(at, len(faces) - 1) for at in range(start, start + step)]], count
            else:
                yield faces[start : start + count], count

    def run(
        self,
        faces: NDArray[np.float32],
        network: Callable[[dict[str, NDArray[Any]]], NDArray[Any]],
        size: int | None = None,
    ) -> NDArray[np.float32]:
        """All faces through `network`, which takes the inputs by name and returns the output."""
        import numpy as np

        outputs = []
        for part, count in self.parts(faces, size):
            inputs = np.ascontiguousarray(part, self.dtype)
            restored = network({self.image: inputs, **self.constants})
            outputs.append(np.asarray(restored[:count], np.float32))
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


@dataclass(frozen=True)
class RestorerFile:
    """A recognized file.

    Attributes:
        model: its facts.
        graph: its interface.
        image: the image input.
        fidelity: the fidelity input, None without one.
        output: name of the restored image.
    """

    model: RestorerModel
    graph: OnnxGraph
    image: Port
    fidelity: Port | None
    output: str

    @property
    def batch(self) -> int | None:
        """The only number of faces that it takes; None takes any."""
        return self.image.shape[0] if self.image.shape else None

    def graph_file(self, fidelity: float) -> GraphFile:
        """How it is run; `fidelity` goes into the fidelity input, if there is one."""
        import numpy as np

        constants = {}
        if self.fidelity is not None:
            shape = [side or 1 for side in self.fidelity.shape or ()]
            constants[self.fidelity.name] = np.full(shape, fidelity, self.fidelity.type)
        path, image = self.graph.path, self.image
        return GraphFile(path, image.name, self.output, image.type, self.batch, constants)


def recognize(
    graph: OnnxGraph,
    published: str | None = None,
    *,
    input_size: int | None = None,
    value_range: tuple[float, float] | None = None,
    template: str | None = None,
) -> RestorerFile:
    """The facts of a file, by the names and shapes of its inputs.

    Several published models have the same inputs, and then the same size, range and template. Which
    of these it is decides only the name and the license: by the file's hash where that is
    published, else by its name. A file that this library exported carries its facts.

    Args:
        graph: the file's interface.
        published: file name of the published file with this hash.
        input_size: the user's own, in pixels; needed where the file is unknown and its size open.
        value_range: the user's own.
        template: the user's own.

    Raises:
        CheckpointError: not a face restorer; or an unknown one without the three options.
    """
    path = graph.path
    images = [port for port in graph.inputs if port.shape is not None and len(port.shape) == 4]
    others = [port for port in graph.inputs if port not in images]
    actual = f"a graph with the inputs {', '.join(map(str, graph.inputs)) or 'none'}"
    expected = "a face restorer: one image input (N, 3, side, side), and at most a fidelity input"
    if len(images) != 1 or images[0].type not in _FLOATS or images[0].shape is None:
        raise CheckpointError(path, actual, expected)
    image, (_, channels, height, width) = images[0], images[0].shape
    names = [name for model in MODELS for name in model.fidelity_inputs]
    is_fidelity = [port.name in names and "float" in port.type for port in others]
    if channels != 3 or len(others) > 1 or not all(is_fidelity):
        raise CheckpointError(path, actual, expected)
    sides = {side for side in (height, width, input_size) if side is not None}
    if len(sides) > 1:
        raise CheckpointError(path, actual, f"{expected}; the option input_size is {input_size}")
    size = sides.pop() if sides else None
    changes: dict[str, Any] = {"value_range": value_range, "template": template}
    changes = {key: value for key, value in changes.items() if value is not None}
    fidelity = tuple(port.name for port in others)
    model = _match(graph, image.name, size, fidelity, published or path.name)
    if model is None:
        if size is None or len(changes) < 2:
            hint = " Set input_size, value_range and template (see the model's own page)."
            raise CheckpointError(
                path, f"an unknown network, {actual}", "a model of the table", hint
            )
        model = RestorerModel(path.stem, input_size=size, fidelity_inputs=fidelity)
    output = _image_output(graph)
    side = output.shape[2] if output.shape else None
    model = replace(model, output_size=side or model.output_size or model.input_size, **changes)
    return RestorerFile(model, graph, image, others[0] if others else None, output.name)


def _match(
    graph: OnnxGraph, image: str, size: int | None, fidelity: tuple[str, ...], file_name: str
) -> RestorerModel | None:
    facts, stem = graph.facts, graph.path.stem
    if "musetalk_enhance" in facts and size and facts.get("value_range") in RANGES:
        license = facts.get("license", facts.get("licence", "unknown"))
        output = facts.get("output_size", "")
        return RestorerModel(
            facts.get("name", stem),
            input_size=size,
            output_size=int(output) if output.isdecimal() else None,
            value_range=RANGES[facts["value_range"]],
            fidelity_inputs=fidelity,
            license=license,
        )
    if image not in IMAGE_INPUTS:
        return None
    similar = [
        each
        for each in MODELS
        if each.input_size == size
        and each.fidelity == bool(fidelity)
        and set(fidelity) <= {*each.fidelity_inputs}
    ]
    for each in similar:
        if each.name == MODELS.canonical(file_name):
            return each
    if not similar:
        return None
    licenses = " | ".join(dict.fromkeys(each.license for each in similar))
    summary = RestorerModel.summary
    return replace(similar[0], name=stem, files=(), license=f"unknown: {licenses}", summary=summary)


def _image_output(graph: OnnxGraph) -> Port:
    """The restored image: by its shape, as far as the file states it, and its name."""
    images = [port for port in graph.outputs if port.shape is None or _is_image(port.shape)]
    images.sort(key=lambda port: (port.name not in OUTPUTS, port.shape is None))
    if not images:
        actual = f"a graph with the outputs {', '.join(map(str, graph.outputs))}"
        raise CheckpointError(graph.path, actual, "an image (N, 3, side, side)")
    return images[0]


def _is_image(shape: tuple[int | None, ...]) -> bool:
    return len(shape) == 4 and shape[1] in (3, None)
