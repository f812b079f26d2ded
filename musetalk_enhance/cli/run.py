"""``musetalk-enhance run SCRIPT ...``: a host's own script, unmodified, with its faces restored."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from contextlib import suppress

from ..config.flags import add_gfpgan_arguments, flag_of, given_flags
from ..config.settings import SECTION, options
from ..errors import ConfigError

HELP = "run MuseTalk's own script, unmodified, with its faces restored"

REPORT = "--report"
HOST_FPS = 25.0
"""MuseTalk's own default, where its arguments name no ``--fps``."""

logger = logging.getLogger("musetalk_enhance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``run --help`` shows; the words themselves are taken apart by `split`."""
    parser.usage = (
        "musetalk-enhance run [--report FOLDER] SCRIPT --enable_gfpgan [--gfpgan_...] [the script's own arguments]"
    )
    parser.add_argument("script", metavar="SCRIPT", help="scripts/inference.py or scripts/realtime_inference.py")
    parser.add_argument(
        REPORT, metavar="FOLDER", help="before SCRIPT: write report.json and report.html on the restored faces there"
    )
    add_gfpgan_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run ``args.script`` without arguments of its own (`main` takes the way through `run_words`)."""
    return _run(args.script, [], args, args.report)


def split(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our flags, in any place and order, and the words that are left for the host.

    Raises:
        ConfigError: a word looks like one of our flags but is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_gfpgan_arguments(parser)
    end = list(words).index("--") if "--" in words else len(words)  # what follows is the host's in any case
    try:
        args, rest = parser.parse_known_args(_joined(words[:end]))
    except argparse.ArgumentError as error:
        lacking = "expected" in error.message
        allowed = "a value after the flag" if lacking else "the flag alone"
        raise ConfigError(str(error.argument_name), "nothing" if lacking else error.message, allowed) from None
    known = [flag_of(option.name) for option in options()]
    for word in rest:
        name, _, value = word.partition("=")
        if name.startswith((f"--{SECTION}_", f"--enable_{SECTION}", f"--no-{SECTION}_")):
            raise ConfigError.unknown(name, value, known)
    return args, [*rest, *words[end:]]


def _joined(words: Sequence[str]) -> list[str]:
    """`words` with ``--gfpgan_x -1..1`` as ``--gfpgan_x=-1..1``: argparse would take the value for a flag."""
    joined: list[str] = []
    for word in words:
        ours = bool(joined) and joined[-1].startswith(f"--{SECTION}_") and "=" not in joined[-1]
        if ours and re.match(r"-\.?\d", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def run_words(words: Sequence[str]) -> int:
    """Run the script named in `words`; the exit code is the script's own.

    Raises:
        EnhanceError: a wrong option, or the script cannot be run.
    """
    args, rest = split(words)
    folder, rest = split_report(rest)
    if rest[:1] == ["-m"]:
        module = rest[1] if len(rest) > 1 else "scripts.inference"
        path = module.replace(".", "/") + ".py"
        raise ConfigError("SCRIPT", f"-m {module}", f"the path of the script: {path}")
    if not rest or rest[0].startswith("-"):
        raise ConfigError("SCRIPT", rest[0] if rest else "", "the host's script before its own arguments")
    return _run(rest[0], rest[1:], args, folder)


def split_report(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The folder of ``--report FOLDER``, if that stands before the script, and the other words.

    Raises:
        ConfigError: no folder follows it.
    """
    if not words or words[0].partition("=")[0] != REPORT:
        return None, list(words)
    _, equals, folder = words[0].partition("=")
    rest = list(words[1:])
    if not equals:
        folder, rest = (rest[0] if rest else ""), rest[1:]
    if not folder or folder.endswith(".py"):
        raise ConfigError(REPORT, folder or "nothing", "a folder, before the script")
    return folder, rest


def _fps(arguments: Sequence[str]) -> float:
    """The host's frames per second: the value of its ``--fps``, or its default."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag == "--fps":
            with suppress(ValueError):
                return float(value or following)
    return HOST_FPS


def _run(script: str, arguments: Sequence[str], args: argparse.Namespace, folder: str | None = None) -> int:
    from ..hosts.musetalk import run_script

    recorder = None
    if folder is not None:
        from ..report import Recorder

        recorder = Recorder(_fps(arguments), f"{script} {' '.join(arguments)}")
    try:
        enhancer = run_script(script, arguments, given_flags(args), recorder.watch if recorder is not None else None)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        logger.error("%s", stop.code)
        return 1
    if not enhancer.enabled:
        logger.warning("nothing was restored: say --enable_gfpgan, or enabled: true under gfpgan: in the YAML file")
        return 0
    logger.info("%s", enhancer.stats.summary())
    warning = enhancer.stats.warning(lambda name, value: f"{flag_of(name)} {value}")
    if warning is not None:
        logger.warning("%s", warning)
    if recorder is not None and folder is not None:
        for path in recorder.write(folder):
            logger.info("written: %s", path)
    return 0


__all__ = ["HELP", "add_arguments", "run", "run_words", "split"]
