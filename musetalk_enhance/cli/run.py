"""``musetalk-enhance run SCRIPT ...``: run a host's script unmodified and restore its faces."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..config.flags import add_gfpgan_arguments, flag_of, given_flags
from ..config.settings import SECTION, options
from ..errors import ConfigError

HELP = "run a host's own script (MuseTalk, LiveTalking, Wav2Lip, ...) and restore its faces"
EXAMPLES = (
    "musetalk-enhance run app.py --enable_gfpgan",
    "musetalk-enhance run -m scripts.inference --enable_gfpgan --inference_config task.yaml "
    "--unet_config models/musetalkV15/musetalk.json",
)

REPORT, HOST = "--report", "--host"

if TYPE_CHECKING:
    from ..enhancer import FaceEnhancer
    from ..report import Recorder

logger = logging.getLogger("musetalk_enhance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``run --help`` shows; `split` parses the arguments."""
    parser.usage = (
        "musetalk-enhance run [--report FOLDER] [--host NAME] (SCRIPT | -m MODULE) "
        "--enable_gfpgan [--gfpgan_...] [the script's own arguments]"
    )
    parser.add_argument(
        "script", metavar="SCRIPT", help="scripts/inference.py or app.py; -m scripts.inference"
    )
    parser.add_argument(
        HOST,
        metavar="NAME",
        help="whose script it is, instead of what its imports say; goes before SCRIPT",
    )
    parser.add_argument(
        REPORT,
        metavar="FOLDER",
        help="write report.json and report.html to this folder; goes before SCRIPT",
    )
    add_gfpgan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``args.script`` without arguments of its own (`main` calls `run_words` instead)."""
    return _run(args.script, [], args, {REPORT: args.report, HOST: args.host})


def split(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split arguments into this library's flags, in any position, and the host's arguments.

    Raises:
        ConfigError: an unknown flag has this library's prefix.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_gfpgan_arguments(parser)
    # everything after "--" belongs to the host
    end = list(words).index("--") if "--" in words else len(words)
    try:
        args, rest = parser.parse_known_args(_join_negative_values(words[:end]))
    except argparse.ArgumentError as error:
        missing_value = "expected" in error.message
        allowed = "a value after the flag" if missing_value else "the flag alone"
        value = "nothing" if missing_value else error.message
        raise ConfigError(str(error.argument_name), value, allowed) from None
    flags = [flag_of(option.name) for option in options()]
    for word in rest:
        name, _, value = word.partition("=")
        if name.startswith((f"--{SECTION}_", f"--enable_{SECTION}", f"--no-{SECTION}_")):
            raise ConfigError.unknown(name, value, flags)
    return args, [*rest, *words[end:]]


def _join_negative_values(words: Sequence[str]) -> list[str]:
    """Join ``--gfpgan_x -1..1`` to ``--gfpgan_x=-1..1``: argparse takes the value for a flag."""
    joined: list[str] = []
    for word in words:
        flag = joined[-1] if joined else ""
        expects_value = flag.startswith(f"--{SECTION}_") and "=" not in flag
        if expects_value and re.match(r"-\.?\d", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def run_words(words: Sequence[str]) -> int:
    """Run the script named in `words` and return its exit code.

    Raises:
        EnhanceError: an option is invalid, or the script cannot be run.
    """
    args, rest = split(words)
    own, rest = split_own(rest)
    as_module = rest[:1] == ["-m"]
    rest = rest[as_module:]
    if not rest or rest[0].startswith("-"):
        kind = "name of the host's module" if as_module else "host's script, or -m and its module"
        value = rest[0] if rest else "nothing"
        raise ConfigError("SCRIPT", value, f"the {kind}, followed by its arguments")
    return _run(rest[0], rest[1:], args, own, as_module)


def split_own(words: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """The values of a leading ``--report FOLDER`` and ``--host NAME``, and the other words.

    Raises:
        ConfigError: a value is missing.
    """
    values: dict[str, str | None] = {REPORT: None, HOST: None}
    kinds = {REPORT: "a folder", HOST: "the name of a host"}
    rest = list(words)
    while rest and (flag := rest[0].partition("=")[0]) in values:
        _, equals, value = rest.pop(0).partition("=")
        if not equals:
            value = rest.pop(0) if rest else ""
        if not value or value.endswith(".py") or (value.startswith("-") and not equals):
            raise ConfigError(flag, value or "nothing", f"{kinds[flag]}, before the script")
        values[flag] = value
    return values, rest


def _fps(arguments: Sequence[str], default: float) -> float:
    """The host's frames per second: the value of its ``--fps``, or its default."""
    from ..hosts.base import argument_of

    with suppress(TypeError, ValueError):
        return float(argument_of(arguments, "--fps") or default)
    return default


def _run(
    script: str,
    arguments: Sequence[str],
    args: argparse.Namespace,
    own: dict[str, str | None],
    as_module: bool = False,
) -> int:
    from ..hosts.base import Host
    from ..hosts.registry import host_named, recognize
    from ..hosts.script import run_script

    folder, name = own[REPORT], own[HOST]
    host_by_name = host_named(name) if name is not None else None
    recorder: Recorder | None = None

    def choose(path: str) -> Host:
        nonlocal recorder
        host = host_by_name or recognize(path)
        if folder is not None:
            from ..report import Recorder

            recorder = Recorder(_fps(arguments, host.fps), f"{script} {' '.join(arguments)}")
        return host

    def watch(enhancer: FaceEnhancer) -> None:
        if recorder is not None:
            recorder.watch(enhancer)

    try:
        enhancer = run_script(
            script, arguments, given_flags(args), watch, as_module=as_module, choose=choose
        )
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        logger.error("%s", stop.code)
        return 1
    if not enhancer.enabled:
        logger.warning(
            "nothing was restored: set --enable_gfpgan, or enabled: true under gfpgan: "
            "in the YAML file"
        )
        return 0
    logger.info("%s", enhancer.stats.summary())
    warning = enhancer.stats.warning(lambda name, value: f"{flag_of(name)} {value}")
    if warning is not None:
        logger.warning("%s", warning)
    if recorder is not None and folder is not None:
        for path in recorder.write(folder):
            logger.info("wrote %s", path)
    return 0


__all__ = ["EXAMPLES", "HELP", "add_arguments", "run", "run_words", "split"]
