"""The options of a job, which decide the pixels of the output: names, defaults, checks and help.

Options that `EnhancerSettings` has too are borrowed from there, with their help and check.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import MISSING, dataclass
from typing import Any, TypeVar

from ..config import schema
from ..config.settings import EnhancerSettings, options
from ..config.settings import options as enhancer_options
from ..errors import ConfigError
from ..media import PRESETS
from ..restorers.catalog import is_path

_ENHANCER = {option.name: option for option in options()}

_NOT_DECISIVE = {
    *(
        "model",
        "model_path",
        "arch",
        "fidelity",
        "detector_path",
        "face",
    ),  # the models and photos themselves are identified by their hashes
    *(
        "device",
        "provider",
        "allow_cpu",
        "mode",
        "memory_budget",
        "commercial",
        "overwrite",
        "download",
        "trust_unpinned",
    ),
}

Settings = TypeVar("Settings", bound="FaceSettings")


def borrowed(name: str, default: Any = MISSING, help: str | None = None) -> Any:
    """An option of `EnhancerSettings`, with another default or help if a job needs one."""
    source = _ENHANCER[name]
    # a job always runs the native implementation
    text = re.sub(r" \(\w+ for the official engine\)", "", source.metadata["help"])
    metadata = {**source.metadata, "help": help or text}
    return dataclasses.field(
        default=source.default if default is MISSING else default, metadata=metadata
    )


def _optional(check: tuple[schema.Check, str], word: str) -> tuple[schema.Check, str]:
    """`check`, or None, which is written as `word`."""

    def check_or_none(raw: Any) -> Any:
        return (
            None if raw is None or (isinstance(raw, str) and raw.lower() == word) else check[0](raw)
        )

    return check_or_none, f"{word} | {check[1]}"


_DETECTORS = ("yunet", "retinaface", "retinaface-mobile", "yolov5")
_DETECTOR_HELP = "Face detector. yolov5: your own YOLOv5-face ONNX file at detector_path."
_GATE_HELP = "Leave faces alone that are already as sharp as a photograph. auto: the default."


@dataclass(frozen=True)
class FaceSettings:
    """Options shared by images and videos. Immutable; every value has been checked.

    Raises:
        ConfigError: a value is invalid, or two options contradict each other.
    """

    model: str = borrowed(
        "model",
        help="Restorer: a name (`musetalk-enhance models` lists them) or the path of a checkpoint "
        "or an ONNX file. codeformer falls back to GFPGAN, with a warning, if it cannot be loaded. "
        "auto: codeformer, then GFPGAN, then the embedded lite.",
    )
    model_path: str | None = borrowed("model_path")
    onnx_input_size: str | int = borrowed("onnx_input_size")
    onnx_value_range: str = borrowed("onnx_value_range")
    onnx_template: str = borrowed("onnx_template")
    arch: str = borrowed("arch")
    fidelity: float | None = schema.option(
        None,
        "CodeFormer's w: 0 gives the best quality, 1 stays closest to the input. Other models do "
        f"not have it. auto: {EnhancerSettings.fidelity:g}.",
        _optional(schema.number(0, 1), "auto"),
    )
    strength: float = borrowed("strength")
    commercial: bool = schema.option(
        False, "Use no weight whose license allows non-commercial use only.", schema.switch()
    )
    face_detector: str = schema.option(
        "yunet",
        f"{_DETECTOR_HELP} none: each image is one face crop.",
        schema.choice(*_DETECTORS, "none"),
    )
    detector_path: str | None = schema.option(
        None,
        "Path of your own detector weight, instead of the published one.",
        schema.text("a path"),
    )
    detection_size: int = schema.option(
        1280,
        "Long side, in pixels, to which an image is reduced for the detector.",
        schema.whole(64, 16384),
    )
    min_face: float = schema.option(
        32,
        "Leave a face alone if both sides of its box are shorter than this, in pixels.",
        schema.number(0, 16384),
    )
    only_center_face: bool = schema.option(
        False, "Restore only the face nearest to the center of the image.", schema.switch()
    )
    face: tuple[str, ...] | None = schema.option(
        None,
        "Restore only the faces of people on a photo with one face; give it once for each photo. "
        "Needs the weight sface.",
        schema.paths("the path of a photo"),
        repeat=True,
    )
    device: str = borrowed("device", help="Device that runs the network. auto: the best available.")
    backend: str = borrowed("backend")
    dtype: str = borrowed(
        "dtype",
        help="Arithmetic of the network. bf16 and fp16 are checked against fp32 on a fixed image "
        "and fall back to it if they fail. auto: fp32, so that every run makes the same files; "
        "bf16 is faster on a CPU or GPU that supports it.",
    )
    provider: str = borrowed("provider")
    allow_cpu: bool = borrowed("allow_cpu")
    color_match: str | bool = borrowed("color_match")
    guard: str | bool = borrowed("guard")
    sharpness_gate: str | bool = borrowed("sharpness_gate", False, _GATE_HELP)
    occluder: str | None = borrowed("occluder")
    mode: str = borrowed("mode")
    batch_size: str | int = borrowed("batch_size")
    memory_budget: str | int | float = borrowed("memory_budget")
    overwrite: bool = schema.option(
        False,
        "Replace existing output files that this command did not write.",
        schema.switch(),
    )
    download: bool = borrowed("download", help="Fetch missing weights before the job starts.")
    trust_unpinned: bool = borrowed("trust_unpinned")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            object.__setattr__(
                self, option.name, schema.checked(option, getattr(self, option.name), option.name)
            )
        if self.model_path is not None and self.model != "auto":
            raise ConfigError(
                "model_path",
                self.model_path,
                f"unset with model: {self.model}; set only one of them",
            )
        if self.detector_path is not None and self.face_detector == "none":
            raise ConfigError(
                "detector_path", self.detector_path, "only with a face_detector that has a weight"
            )
        if self.only_center_face and self.face_detector == "none":
            raise ConfigError(
                "only_center_face", True, "false with face_detector: none (there is one face)"
            )
        if self.face is not None and self.face_detector == "none":
            raise ConfigError("face", self.face, "unset with face_detector: none (no detection)")
        if self.face is not None and self.only_center_face:
            raise ConfigError("face", self.face, "unset with only_center_face: true")
        for name in ("detection_size", "min_face"):
            default = getattr(type(self), name)
            if self.face_detector == "none" and getattr(self, name) != default:
                allowed = f"{default} with face_detector: none (no faces are detected)"
                raise ConfigError(name, getattr(self, name), allowed)

    def replace(self: Settings, **changes: Any) -> Settings:
        """A copy with `changes`, checked."""
        return dataclasses.replace(self, **changes)

    def absolute(self: Settings) -> Settings:
        """A copy with absolute paths, valid in every working directory."""
        names = [
            name
            for name in ("model", "model_path", "detector_path", "occluder")
            if getattr(self, name) is not None
        ]
        if not is_path(self.model):
            names.remove("model")
        paths: dict[str, Any] = {name: _absolute(getattr(self, name)) for name in names}
        if self.face is not None:
            paths["face"] = tuple(_absolute(path) for path in self.face)
        return self.replace(**paths)

    def enhancer(self, **changes: Any) -> EnhancerSettings:
        """The settings of the enhancer that restores the faces, with `changes` applied."""
        shared_names = {option.name for option in dataclasses.fields(self)} & {
            option.name for option in enhancer_options()
        }
        common = {
            name: getattr(self, name)
            for name in shared_names - {"fidelity", "upscale", "bg_upsampler"}
        }
        if self.sharpness_gate == "auto":
            common["sharpness_gate"] = type(self).sharpness_gate
        return EnhancerSettings(**{"enabled": True, **common, **changes})

    def decisive(self) -> dict[str, Any]:
        """The options that decide the output, as plain values; without those that `models.RunInfo`
        records exactly."""
        return {
            name: list(value) if isinstance(value, tuple) else value  # as JSON gives it back
            for name, value in dataclasses.asdict(self).items()
            if name not in _NOT_DECISIVE
        }


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


@dataclass(frozen=True)
class ImageSettings(FaceSettings):
    """The options of `restore_images`; see `FaceSettings`."""

    guard: str | bool = borrowed("guard", False)
    sharpness_gate: str | bool = borrowed("sharpness_gate", False, _GATE_HELP)
    upscale: int = schema.option(
        1, "Scale factor of the output.", (schema.whole(1, 4)[0], "1 | 2 | 4")
    )
    face_mask: str = schema.option(
        "auto",
        "Which part of a restored face is pasted. feathered: the whole crop, feathered at its "
        "border. parsed: only what ParseNet labels as face. auto: parsed if ParseNet's weight is "
        "in the cache, except with lite.",
        schema.choice("auto", "feathered", "parsed"),
    )
    bg_upsampler: str = schema.option(
        "none",
        "Upsampler that restores and enlarges the rest of the image.",
        schema.choice("none", "realesrgan"),
    )
    save_comparison: bool = schema.option(
        False, "Write comparisons/NAME_compare.jpg, before and after side by side.", schema.switch()
    )
    format: str = schema.option(
        "keep",
        "Output format; keep: the format of each input.",
        schema.choice("keep", "png", "jpg", "webp"),
    )
    quality: int = schema.option(95, "Quality of JPEG and lossy WebP.", schema.whole(1, 100))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.upscale == 3:
            raise ConfigError("upscale", self.upscale, "1 | 2 | 4")
        if self.face_detector == "none" and self.face_mask == "parsed":
            raise ConfigError(
                "face_mask",
                "parsed",
                "auto | feathered with face_detector: none (nothing is pasted)",
            )
        if self.face_detector == "none" and self.bg_upsampler != "none":
            allowed = "none with face_detector: none (the image is only the face)"
            raise ConfigError("bg_upsampler", self.bg_upsampler, allowed)


@dataclass(frozen=True)
class VideoSettings(FaceSettings):
    """The options of `restore_video`; see `FaceSettings`."""

    face_detector: str = schema.option("yunet", _DETECTOR_HELP, schema.choice(*_DETECTORS))
    detection_size: int = schema.option(
        640,
        "Long side, in pixels, to which a frame is reduced for the detector.",
        schema.whole(64, 16384),
    )
    only_center_face: bool = schema.option(
        False, "Restore only one face, the one nearest to the center.", schema.switch()
    )
    at: tuple[float, float] | None = schema.option(
        None,
        "Restore only the face that covers this point of the upright frame, or is nearest to it, "
        "where the face first appears.",
        schema.point(),
    )
    region: str = borrowed(
        "region",
        help="Which part of a face may change, on the FFHQ template. lower: from the eyes down; "
        "rows that cannot affect it are not computed. mouth: lips and chin only.",
    )
    stability: str | float = borrowed("stability")
    sharpness_gate: str | bool = borrowed("sharpness_gate", True, _GATE_HELP)
    match: str = borrowed(
        "match",
        help="source: the mouth becomes as sharp as the eyes and the forehead of its frame tell, "
        "not more.",
    )
    crf: int = schema.option(
        18,
        "x264's constant rate factor: 0 is lossless, 18 visually almost lossless.",
        schema.whole(0, 51),
    )
    preset: str = schema.option(
        "medium", "x264's preset: slower ones make smaller files.", schema.choice(*PRESETS)
    )
    strict: bool = schema.option(
        False,
        "Stop at a damaged frame, or at one whose size differs from the first. Otherwise such "
        "frames are concealed by the decoder, repeated or scaled, and named.",
        schema.switch(),
    )
    segment: int = schema.option(
        240,
        "Frames per segment: the most that a killed run loses, and the unit of work of one worker.",
        schema.whole(16, 100000),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("only_center_face", "face"):
            if self.at is not None and getattr(self, name):
                raise ConfigError("at", self.at, f"unset with {name}; set only one of them")


def option_named(
    settings: type[FaceSettings], name: str, value: str = ""
) -> dataclasses.Field[Any]:
    """The option with that name; `value` is only used in the error.

    Raises:
        ConfigError: there is no such option.
    """
    fields = {option.name: option for option in dataclasses.fields(settings)}
    if name.replace("-", "_") not in fields:
        raise ConfigError.unknown(name, value, fields)
    return fields[name.replace("-", "_")]


__all__ = ["FaceSettings", "ImageSettings", "VideoSettings", "borrowed", "option_named"]
