"""The command line: ``musetalk-enhance`` and ``python -m musetalk_enhance``.

Exit codes: 0 success, 1 a check failed, 2 a usage error or an error of the library, 3 some inputs
could not be read or restored, 130 interrupted. ``run`` returns the host script's exit code.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import EnhanceError
from .parser import CommandParser

COMMANDS = tuple(
    name
    for name in "run images video onnx serve report models weights export bench".split()
    if Path(__file__).with_name(f"{name}.py").exists()
)
"""Subcommands: modules of this package with HELP, EXAMPLES (command lines), add_arguments(parser),
and run(args) -> exit code. The torch-free distribution has only some of them."""


def _parser() -> CommandParser:
    examples = (
        "musetalk-enhance images photos --output-dir out",
        "musetalk-enhance COMMAND --help",
    )
    parser = CommandParser(
        prog="musetalk-enhance",
        description="Sharp, stable faces for talking-head pipelines.",
        examples=examples,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f".{name}", __name__)
        sub = commands.add_parser(
            name, help=module.HELP, description=module.HELP, examples=module.EXAMPLES
        )
        module.add_arguments(sub)
        if sub.usage is None:
            sub.shorten_usage()
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: arguments without the program's name; None uses ``sys.argv``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with _log_to_stderr(), _printable_names():
        return _main(words)


@contextmanager
def _printable_names() -> Iterator[None]:
    """Escape what stdout cannot encode: a name of a file may hold any bytes."""
    stream: Any = sys.stdout
    if getattr(stream, "errors", None) != "strict" or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors="strict")


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Send the library's log to stderr inside the context; the root logger stays untouched."""
    logger = logging.getLogger("musetalk_enhance")
    # a command within a command
    if any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        yield
        return
    handler, level, propagate = _StderrHandler(sys.stderr), logger.level, logger.propagate
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level or logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """The handler of the command line."""


def _run_command(words: list[str]) -> int:
    args = _parser().parse_args(words)
    try:
        code = int(args.run(args))
        print(end="", flush=True)  # does nothing where stdout is closed
        return code
    except EnhanceError:  # some of them are OSErrors, too
        raise
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # What is left in the buffer would raise once more at the exit of the interpreter.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # the reader, such as `head`, has seen enough
            return 128 + 13
        print(f"musetalk-enhance: the output cannot be written ({error})", file=sys.stderr)
        return 2


def _main(words: list[str]) -> int:
    if words[:1] in ([], ["help"]):
        words = [*words[1:], "--help"]
    try:
        if words[:1] == ["run"] and words[1:] not in ([], ["-h"], ["--help"]):
            from .run import run_words  # argparse must not parse the script's own arguments

            return run_words(words[1:])
        return _run_command(words)
    except EnhanceError as error:
        print(f"musetalk-enhance: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("musetalk-enhance: interrupted", file=sys.stderr)
        return 130
