"""The options as ``--gfpgan_*`` flags of a host's own command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .schema import help_text
from .settings import SECTION, options


def flag_of(name: str) -> str:
    """The flag of an option: ``--enable_gfpgan`` for `enabled`, else ``--gfpgan_<name>``."""
    return f"--enable_{SECTION}" if name == "enabled" else f"--{SECTION}_{name}"


GROUPS = {
    "models": (
        *("model", "model_path", "arch", "channel_multiplier", "engine", "commercial"),
        *("download", "trust_unpinned", "onnx_input_size", "onnx_value_range", "onnx_template"),
    ),
    "faces": (
        *("face_detector", "detector_path", "detection_size", "min_face", "only_center_face"),
        *("at", "face"),
        *("align", "landmarks"),
    ),
    "result": (
        *("strength", "fidelity", "region", "face_mask", "bg_upsampler", "occluder", "stability"),
        *("color_match", "guard", "sharpness_gate", "match"),
    ),
    "frames and files": (
        *("upscale", "output_size", "color", "value_range", "format", "quality", "crf", "preset"),
        *("save_comparison", "overwrite", "segment", "strict", "on_error"),
    ),
    "device, speed and memory": (
        *("device", "allow_cpu", "backend", "dtype", "provider", "mode", "batch_size"),
        *("memory_budget", "cpu_fallback", "deadline_ms", "budget_ms"),
    ),
    "service": ("cors", "data_dir", "diffusers_model", "ray_config", "keep_hours"),
    "limits": (
        *("batch_wait", "time_limit", "max_queue", "max_streams", "max_models", "max_body"),
        *("max_pixels", "max_video", "max_frames", "max_jobs"),
    ),
}
"""Groups of options in the help of commands, by title; one that stands in none comes last."""

MAIN = (
    *("enabled", "model", "strength", "fidelity", "region", "output_size", "stability", "device"),
    *("mode", "download"),
)
"""The options of an enhancer that stand first in the help."""


def grouped(
    parser: argparse.ArgumentParser,
    fields: Iterable[dataclasses.Field[Any]],
    main: Sequence[str],
    main_group: Any,
    prefix: str = "",
) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Each of `fields` with the group of `parser` that its flag belongs to.

    Args:
        parser: gets the groups that are not empty.
        fields: the options.
        main: names of those in `main_group`, in this order.
        main_group: the group, or the parser, that the main options are added to.
        prefix: of the titles of the other groups.
    """
    rest = {option.name: option for option in fields}
    yield from ((rest.pop(name), main_group) for name in main)
    for title, names in (*GROUPS.items(), ("other options", tuple(rest))):
        members = [rest.pop(name) for name in names if name in rest]
        if members:
            group = parser.add_argument_group(f"{prefix}{title}")
            yield from ((option, group) for option in members)


def add_gfpgan_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--enable_gfpgan`` and a ``--gfpgan_<option>`` for every option to a host's own parser.

    A flag that is not given leaves no trace in the namespace, so that `GFPGANEnhancer.from_args`
    can let flags win over YAML and YAML over defaults. Returns `parser`.
    """
    title = "face restoration (musetalk_enhance)"
    main = parser.add_argument_group(title)
    fields = [option for option in options() if option.metadata["flag"]]
    for option, group in grouped(parser, fields, MAIN, main, f"{title}: "):
        common: dict[str, Any] = {
            "dest": _dest(option.name),
            "default": argparse.SUPPRESS,
            "help": help_text(option),
        }
        if isinstance(option.default, bool):
            group.add_argument(
                flag_of(option.name), action=argparse.BooleanOptionalAction, **common
            )
        else:
            group.add_argument(flag_of(option.name), metavar=option.name.upper(), **common)
    return parser


def _dest(name: str) -> str:
    return flag_of(name).lstrip("-")


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given as flags, by option name."""
    values = {option.name: getattr(args, _dest(option.name), None) for option in options()}
    return {name: value for name, value in values.items() if value is not None}
