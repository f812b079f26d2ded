"""Shared by the commands for folders and videos: flags from settings, engines, a progress bar."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ..config.flags import grouped
from ..config.schema import checked, help_text
from ..errors import ConfigError
from ..pipeline.stats import mostly_left_alone
from .parser import Switch

if TYPE_CHECKING:
    from ..jobs import FaceSettings
    from ..jobs.job import Engine

Settings = TypeVar("Settings", bound="FaceSettings")

UNREADABLE = 3
"""Exit code if inputs could not be read or restored; all others were."""


def flag(name: str) -> str:
    """The flag of an option: ``--face-detector`` for ``face_detector``."""
    return f"--{name.replace('_', '-')}"


def left_alone_warning(
    faces: int, left: Mapping[str, int], totals: Mapping[str, Any], strength: float
) -> str | None:
    """A warning for a job whose result lacks most of the restoration; None otherwise.

    Args:
        faces: number of detected faces.
        left: reason to the number of faces that were left unchanged.
        totals: the job's totals, with ``partial`` and ``mean_strength``.
        strength: the option ``strength``.
    """
    restored, mean = faces - sum(left.values()), totals["mean_strength"]
    share = None if mean is None or not strength else restored * mean / strength / faces
    return mostly_left_alone(
        faces, left, totals["partial"], share, lambda name, value: f"{flag(name)} {value}"
    )


def add_options(
    parser: argparse.ArgumentParser, settings: type[FaceSettings], main: Sequence[str]
) -> None:
    """Add a flag for every option of a job; an absent flag sets no attribute of the namespace.

    Args:
        parser: of the command.
        settings: the options.
        main: names of those that stand first in the help; the others follow in groups.
    """
    fields = [option for option in dataclasses.fields(settings) if option.metadata["flag"]]
    for option, group in grouped(parser, fields, main, parser):
        common: dict[str, Any] = {
            "dest": f"job_{option.name}",
            "default": argparse.SUPPRESS,
            "help": help_text(option),
        }
        if option.metadata["allowed"].endswith("true | false"):
            check = option.metadata["check"]
            metavar = option.metadata["allowed"].replace(" ", "")
            group.add_argument(
                flag(option.name), action=Switch, metavar=metavar, check=check, **common
            )
        else:
            action = "append" if option.metadata["repeat"] else "store"
            metavar = option.name.upper()
            group.add_argument(flag(option.name), action=action, metavar=metavar, **common)


def settings_from(args: argparse.Namespace, settings: type[Settings]) -> Settings:
    """The settings that the flags select.

    Raises:
        ConfigError: an invalid value; the error names the flag.
    """
    values = {}
    for option in dataclasses.fields(settings):
        if hasattr(args, f"job_{option.name}"):
            value = getattr(args, f"job_{option.name}")
            values[option.name] = checked(option, value, flag(option.name))
    return settings(**values)


def offer_detector(settings: FaceSettings) -> None:
    """In a terminal, ask once whether to fetch a missing detector; elsewhere do nothing.

    Raises:
        WeightError: the download failed.
    """
    from .. import weights
    from ..faces.detect import weight_of

    name = weight_of(settings.face_detector)
    if name is None or settings.detector_path is not None or settings.download:
        return
    if weights.find(name) is not None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    entry = weights.table.WEIGHTS.get(name)
    question = f"{name}, {(entry.size or 0) / 1e6:.1f} MB, {entry.license}: fetch now? [Y/n] "
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()  # empty at the end of the input, where nobody answered
    if answer and answer.strip().lower() in ("", "y", "yes"):
        weights.fetch(name)


def add_execution_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the engine and the output."""
    group = parser.add_argument_group("execution and output")
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="default: %(default)s"
    )
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help="address of a running Ray cluster, or auto; default: start a local one",
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="number of parallel workers with --engine ray"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    group.add_argument("--json", action="store_true", help="print the results as JSON")


def engine_from(args: argparse.Namespace) -> Engine | None:
    """The engine that the flags select; None runs the job in this process.

    Raises:
        ConfigError: a flag belongs to another engine.
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
    """A progress bar with rate and remaining time on stderr.

    Items of an earlier run do not count for the rate. If stderr is not a terminal, the bar is
    printed every ten seconds.

    Args:
        unit: name of an item.
        quiet: show nothing.

    Yields:
        A function ``update(finished, total)``.
    """
    from tqdm import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10.0
    bars: list[Any] = []

    def update(finished: int, total: int) -> None:
        if bars and (bars[0].total != total or finished < bars[0].n):
            bars.pop().close()
        if not bars:
            options: Any = {"unit": f" {unit}", "mininterval": interval, "disable": quiet}
            bars.append(tqdm(total=total, initial=finished, **options))
        bars[0].update(finished - bars[0].n)

    try:
        yield update
    finally:
        for bar in bars:
            bar.close()
