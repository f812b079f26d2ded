"""The options as ``--gfpgan_*`` flags of a host's own command line."""

from __future__ import annotations

import argparse
from typing import Any

from .schema import help_text
from .settings import SECTION, options


def flag_of(name: str) -> str:
    """The flag of an option: ``--enable_gfpgan`` for `enabled`, else ``--gfpgan_<name>``."""
    return f"--enable_{SECTION}" if name == "enabled" else f"--{SECTION}_{name}"


def add_gfpgan_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--enable_gfpgan`` and a ``--gfpgan_<option>`` for every option to a host's own parser.

    A flag that is not given leaves no trace in the namespace, so that `GFPGANEnhancer.from_args`
    can let flags win over YAML and YAML over defaults. Returns `parser`.
    """
    group = parser.add_argument_group("face restoration (musetalk_enhance)")
    for option in options():
        if not option.metadata["flag"]:
            continue
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
