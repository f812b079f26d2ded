"""``python -m scripts.benchmarks``: this library beside gfpgan's own paths and this machine's
limits."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from musetalk_enhance.errors import ConfigError, EnhanceError

from . import report, suite
from .suite import Plan

logger = logging.getLogger("benchmarks")

BACKENDS = ["torch", "onnx", "openvino", "ncnn"]


def build_parser() -> argparse.ArgumentParser:
    """What to measure, how long, and where the files go."""
    parser = argparse.ArgumentParser(prog="python -m scripts.benchmarks", description=__doc__)
    parser.add_argument("--model", default="gfpgan-1.4", help="name or path; default: %(default)s")
    parser.add_argument(
        "--random", action="store_true", help="random weights of GFPGAN's size in any case"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N; default: %(default)s"
    )
    parser.add_argument(
        "--backends",
        type=_words,
        default=BACKENDS,
        metavar="A,B",
        help=f"default: {','.join(BACKENDS)}",
    )
    parser.add_argument(
        "--dtypes", type=_words, default=["fp32", "bf16"], metavar="A,B", help="default: fp32,bf16"
    )
    parser.add_argument(
        "--regions",
        type=_words,
        default=["full", "lower"],
        metavar="A,B",
        help="default: full,lower",
    )
    parser.add_argument(
        "--batches", type=_numbers, metavar="N,M", help="batch sizes; default: 1,4,8"
    )
    parser.add_argument(
        "--faces", type=_count, metavar="N", help="faces in one run of ours; default: 8"
    )
    parser.add_argument(
        "--rounds", type=_count, metavar="N", help="runs of each candidate; default: 3"
    )
    parser.add_argument("--quick", action="store_true", help="2 faces, 1 round, batches 1,2")
    parser.add_argument(
        "--no-reference", action="store_true", help="without gfpgan's own paths (a) and (b)"
    )
    parser.add_argument(
        "--reference-faces",
        type=_count,
        default=2,
        metavar="N",
        help="faces in one run of theirs; default: 2",
    )
    parser.add_argument(
        "--frame",
        type=_frame,
        default=(256, 256),
        metavar="WxH",
        help="frames of path (a); default: 256x256",
    )
    parser.add_argument(
        "--loaded", metavar="SIZE", help='most to load at once, such as "8GiB"; default: half'
    )
    parser.add_argument(
        "--host-loop", action="store_true", help="measure the time added to a host's loop, too"
    )
    parser.add_argument(
        "--musetalk", type=Path, metavar="DIR", help="MuseTalk with its weights, for --host-loop"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/bench"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON instead of a table"
    )
    return parser


def plan_of(args: argparse.Namespace) -> Plan:
    """The parsed arguments as a `Plan`.

    Raises:
        ConfigError: ``--loaded`` is not a size.
    """
    return Plan(
        model=args.model,
        random=args.random,
        device=args.device,
        backends=args.backends,
        dtypes=args.dtypes,
        regions=args.regions,
        batches=args.batches or ([1, 2] if args.quick else [1, 4, 8]),
        faces=args.faces or (2 if args.quick else 8),
        rounds=args.rounds or (1 if args.quick else 3),
        references=not args.no_reference,
        reference_faces=1 if args.quick else args.reference_faces,
        frame_wh=args.frame,
        bound_bytes=_bytes(args.loaded),
        host_loop=args.host_loop,
        musetalk=args.musetalk,
        out=args.out,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the report, the table last.

    Args:
        argv: arguments without the program's name; None takes ``sys.argv``.

    Returns:
        0; 1 if nothing of ours could be measured; 2 for an invalid option or a missing weight.
    """
    args = build_parser().parse_args(argv)
    try:
        content = suite.run(plan_of(args), logger.info)
    except EnhanceError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(content, indent=2) if args.json else report.text(content))
    logger.info("wrote %s", ", ".join(str(path) for path in sorted(args.out.glob("bench.*"))))
    return (
        0 if any(row["path"] == "ours" and row["reason"] is None for row in content["rows"]) else 1
    )


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    from musetalk_enhance.config.schema import checked
    from musetalk_enhance.config.settings import options

    option = next(option for option in options() if option.name == "memory_budget")
    value = checked(option, text, "--loaded")
    if not isinstance(value, int):
        raise ConfigError("--loaded", text, 'bytes, or a size such as "8GiB"')
    return value


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError("expected at least one value")
    return words


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}; expected a number, 1 or more")
    return number


def _numbers(text: str) -> list[int]:
    return [_count(word) for word in _words(text)]


def _frame(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    size = _count(width), _count(height)
    if min(size) < 64:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}; expected at least 64x64")
    return size


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("musetalk_enhance").setLevel(logging.INFO)
    logger.setLevel(logging.INFO)
    sys.exit(main())
