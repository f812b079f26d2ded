"""What is known of published ONNX restorers, in one table, and how a file is recognized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingWeightError
from ..runtime.registry import Registry
from ..weights import Weight, cache_dir, open_file

IMAGE_INPUTS = ("input", "x", "x_lq", "faces")
"""Names of the image input: FaceFusion's, CodeFormer's, VQFR's, this library's exporter's."""
FIDELITY_INPUTS = ("weight", "w", "fidelity_ratio")
"""Names of the fidelity input of CodeFormer (FaceFusion's file, its own) and VQFR."""
OUTPUTS = ("output", "y", "restored", "main_dec")
"""Names of the restored image, where a graph has several outputs."""
RANGES = {"0..1": (0.0, 1.0), "-1..1": (-1.0, 1.0), "0..255": (0.0, 255.0)}
"""Value ranges by the words of the option ``value_range``."""
_APACHE, _GFPGAN = "Apache-2.0", "Apache-2.0 (names StyleGAN2 and DFDNet parts: non-commercial)"


@dataclass(frozen=True)
class RestorerModel:
    """Facts of a restorer, all that its pixels depend on.

    Attributes:
        name: its name for users.
        files: the names under which applications keep it.
        template: the warp template that it was trained on, a key of `templates.TEMPLATES`.
        input_size: side of its input, in pixels.
        value_range: lowest and highest value of its input and output.
        color: ``"rgb"`` or ``"bgr"``, of its input and output.
        fidelity: whether it has a fidelity input.
        license: SPDX identifier or the license's name.
        commercial: False where the license allows only non-commercial use.
    """

    name: str
    files: tuple[str, ...] = ()
    template: str = "ffhq_512"
    input_size: int = 512
    value_range: tuple[float, float] = (-1.0, 1.0)
    color: str = "rgb"
    fidelity: bool = False
    license: str = "unknown"
    commercial: bool = True


MODELS: Registry[RestorerModel] = Registry("model")
"""The published restorers. Templates, sizes and the value range are FaceFusion's
(``facefusion/processors/modules/face_enhancer``), the licenses those of the authors' repositories;
gfpgan_1024 is Deep-Live-Cam's, which writes 1024 px from 512, and vqfr VisoMaster's."""

for _model in (
    RestorerModel("gfpgan_1.4", ("gfpgan_1.4.onnx", "GFPGANv1.4.onnx"), license=_GFPGAN),
    RestorerModel("gfpgan_1.3", ("gfpgan_1.3.onnx", "GFPGANv1.3.onnx"), license=_GFPGAN),
    RestorerModel("gfpgan_1.2", ("gfpgan_1.2.onnx", "GFPGANv1.2.onnx"), license=_GFPGAN),
    RestorerModel("gfpgan_1024", ("gfpgan-1024.onnx",), license=_GFPGAN),
    RestorerModel(
        "restoreformer_plus_plus",
        ("restoreformer_plus_plus.onnx", "RestoreFormerPlusPlus.fp16.onnx"),
        license=_APACHE,
    ),
    RestorerModel(
        "codeformer",
        ("codeformer.onnx", "codeformer_fp16.onnx", "codeformer.fp16.onnx"),
        fidelity=True,
        license="S-Lab License 1.0 (non-commercial)",
        commercial=False,
    ),
    RestorerModel("vqfr", ("VQFRv2.fp16.onnx", "VQFRv2.onnx"), fidelity=True, license=_APACHE),
    *(
        RestorerModel(
            f"gpen_bfr_{size}",
            (f"gpen_bfr_{size}.onnx", f"GPEN-BFR-{size}.onnx"),
            "arcface_128" if size == 256 else "ffhq_512",
            size,
            license="non-commercial (GPEN, Alibaba)",
            commercial=False,
        )
        for size in (256, 512, 1024, 2048)
    ),
):
    MODELS.add(_model.name, _model, aliases=_model.files)


def find_model(model: str | Path) -> Weight:
    """The file of a model.

    Args:
        model: a path; a name or file name of `MODELS`, in the cache folder of the weights; or
            ``"auto"``, the first of `MODELS` that is there.

    Raises:
        ConfigError: neither a file nor a name of the table.
        WeightError: the file is missing, empty, a web page or a git-lfs pointer.
    """
    path = Path(model).expanduser()
    if path.is_file() or (path.suffix.lower() == ".onnx" and str(model) not in MODELS):
        return open_file(path)
    candidates = list(MODELS) if str(model).lower() == "auto" else [MODELS.get(str(model))]
    names = [name for candidate in candidates for name in candidate.files]
    stored = [cache_dir() / name for name in names if (cache_dir() / name).is_file()]
    if not stored:
        raise MissingWeightError.at_path(cache_dir() / " or ".join(names[:3]))
    return open_file(stored[0])


def recognize(
    path: Path,
    inputs: Sequence[Any],
    facts: Mapping[str, str],
    *,
    input_size: int | None = None,
    value_range: tuple[float, float] | None = None,
    template: str | None = None,
) -> tuple[RestorerModel, str, str | None]:
    """The facts of a file, by the names and shapes of its inputs.

    Several published models have the same inputs, and then the same size, range and template; the
    file's name only decides which of these it is called. A file that this library exported carries
    its facts.

    Args:
        path: the file.
        inputs: of the session, each with ``name``, ``shape`` and ``type``.
        facts: the metadata in the file.
        input_size: the user's own, in pixels; needed where the file is unknown and its size open.
        value_range: the user's own.
        template: the user's own.

    Returns:
        The model, the name of its image input, and that of its fidelity input or None.

    Raises:
        CheckpointError: not a face restorer; or an unknown one without the three options.
    """
    images = [one for one in inputs if len(one.shape) == 4]
    others = [one.name for one in inputs if len(one.shape) != 4]
    signature = ", ".join(f"{one.name} {one.type} {list(one.shape)}" for one in inputs)
    actual = f"a graph with the inputs {signature or 'none'}"
    expected = "a face restorer: one image input (N, 3, side, side), and at most a fidelity input"
    floats = ("tensor(float)", "tensor(float16)")
    if len(images) != 1 or images[0].type not in floats or images[0].shape[1] != 3:
        raise CheckpointError(path, actual, expected)
    name, (_, _, height, width) = images[0].name, images[0].shape
    if others[1:] or not set(others) <= set(FIDELITY_INPUTS):
        raise CheckpointError(path, actual, expected)
    sides = {side for side in (height, width, input_size) if isinstance(side, int)}
    if len(sides) > 1:
        raise CheckpointError(path, actual, f"{expected}; the option input_size is {input_size}")
    size = sides.pop() if sides else None
    changes: dict[str, Any] = {"value_range": value_range, "template": template}
    changes = {key: value for key, value in changes.items() if value is not None}
    model = _match(path, name, size, bool(others), facts)
    if model is None:
        if size is None or len(changes) < 2:
            hint = " Set input_size, value_range and template (see the model's own page)."
            raise CheckpointError(
                path, f"an unknown network, {actual}", "a model of the table", hint
            )
        model = RestorerModel(path.stem, input_size=size, fidelity=bool(others), commercial=False)
    return replace(model, **changes), name, others[0] if others else None


def _match(
    path: Path, name: str, size: int | None, fidelity: bool, facts: Mapping[str, str]
) -> RestorerModel | None:
    if "musetalk_enhance" in facts and size and facts.get("value_range") in RANGES:
        license = facts.get("license", facts.get("licence", "unknown"))
        value_range = RANGES[facts["value_range"]]
        label = facts.get("name", path.stem)
        is_free = "non-commercial" not in license.partition("(")[0] and "S-Lab" not in license
        return RestorerModel(
            label, (), "ffhq_512", size, value_range, license=license, commercial=is_free
        )
    if name not in IMAGE_INPUTS or name == "faces":
        return None
    alias = MODELS.canonical(path.name)
    similar = [each for each in MODELS if each.fidelity == fidelity and each.input_size == size]
    for each in similar:
        if each.name == alias:
            return each
    if not similar:
        return None
    licenses = " | ".join(dict.fromkeys(each.license for each in similar))
    is_free = all(each.commercial for each in similar)
    return replace(
        similar[0], name=path.stem, files=(), license=f"unknown: {licenses}", commercial=is_free
    )
