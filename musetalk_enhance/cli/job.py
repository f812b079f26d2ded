"""What the commands for folders and videos share: options made from their settings, engines, a progress bar."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ..config.schema import checked
from ..errors import ConfigError
from ..pipeline.stats import mostly_left_alone

if TYPE_CHECKING:
    from ..jobs import FaceSettings
    from ..jobs.job import Engine

Settings = TypeVar("Settings", bound="FaceSettings")

UNREADABLE = 3
"""Exit code where inputs could not be read or restored; everything else was done."""


def flag(name: str) -> str:
    """The flag of an option: ``--face-detector`` for ``face_detector``."""
    return f"--{name.replace('_', '-')}"


def left_alone_warning(
    faces: int, left: Mapping[str, int], totals: Mapping[str, Any], strength: float
) -> str | None:
    """What to tell the user of a job where most of the restoration is not in the result.

    Args:
        faces: that were detected.
        left: reason to number of faces that were left as they came.
        totals: of the job, with ``partial`` and ``mean_strength``.
        strength: the option.
    """
    restored, mean = faces - sum(left.values()), totals["mean_strength"]
    share = None if mean is None or not strength else restored * mean / strength / faces
    return mostly_left_alone(
        faces, left, totals["partial"], share, lambda name, value: f"{flag(name)} {value}"
    )


def add_options(parser: argparse.ArgumentParser, settings: type[FaceSettings]) -> None:
    """A flag for every option of a job; one that is not given leaves no trace in the namespace."""
    group = parser.add_argument_group("what is restored, and how")
    for option in dataclasses.fields(settings):
        default = "" if option.default is None else f" Default: {str(option.default).lower()}."
        text = f"{option.metadata['help']} One of: {option.metadata['allowed']}.{default}".replace("%", "%%")
        common: dict[str, Any] = {"dest": f"job_{option.name}", "default": argparse.SUPPRESS, "help": text}
        words = [flag(option.name)]
        if not option.metadata["flag"]:
            continue
        if option.metadata["allowed"].endswith("true | false"):
            group.add_argument(*words, action=_Switch, metavar="true|false", **common)
        else:
            group.add_argument(*words, metavar=option.name.upper(), **common)


class _Switch(argparse.Action):
    """``--guard``, ``--guard true``, ``--guard=false`` and ``--no-guard``: a word may follow, and need not."""

    def __init__(self, option_strings: list[str], dest: str, **common: Any) -> None:
        names = [*option_strings, *(f"--no-{name[2:]}" for name in option_strings)]
        super().__init__(names, dest, nargs="?", **common)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        negated = bool(option_string and option_string.startswith("--no-"))
        if negated and values is not None:
            parser.error(f"{option_string} takes no value, got {values!r}")
        setattr(namespace, self.dest, "false" if negated else values or "true")


def settings_from(args: argparse.Namespace, settings: type[Settings]) -> Settings:
    """The settings that the flags mean.

    Raises:
        ConfigError: an impossible value, named as the user wrote it.
    """
    given = {}
    for option in dataclasses.fields(settings):
        if hasattr(args, f"job_{option.name}"):
            given[option.name] = checked(option, getattr(args, f"job_{option.name}"), flag(option.name))
    return settings(**given)


def add_running(parser: argparse.ArgumentParser) -> None:
    """Where the work is done, and what is said meanwhile."""
    group = parser.add_argument_group("where it runs, and what it says")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="default: %(default)s")
    group.add_argument(
        "--address", metavar="ADDRESS", help="of a running Ray cluster, or auto; without it one is started here"
    )
    group.add_argument("--workers", type=int, metavar="N", help="with --engine ray: how many work side by side")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    group.add_argument("--json", action="store_true", help="print what was done as JSON")


def engine_from(args: argparse.Namespace) -> Engine | None:
    """The engine that the flags mean; None: here.

    Raises:
        ConfigError: flags of another engine were given.
        MissingDependencyError: Ray is not installed.
    """
    if args.engine == "ray":
        from ..jobs.ray_engine import RayEngine

        return RayEngine(args.address, args.workers)
    for name in ("address", "workers"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name}", getattr(args, name), "only with --engine ray")
    return None


@contextmanager
def progress_bar(unit: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left on stderr, as a function of what is done and what there is.

    What an earlier run had done does not count for the rate. Where stderr is no terminal, a line comes every ten
    seconds.
    """
    from tqdm import tqdm

    seldom = 0.1 if sys.stderr.isatty() else 10.0
    bars: list[Any] = []

    def told(done: int, total: int) -> None:
        if bars and (bars[0].total != total or done < bars[0].n):
            bars.pop().close()
        if not bars:
            bars.append(tqdm(total=total, initial=done, unit=f" {unit}", mininterval=seldom, disable=quiet))
        bars[0].update(done - bars[0].n)

    try:
        yield told
    finally:
        for bar in bars:
            bar.close()
