"""``musetalk-enhance bench``: how quick this machine is, with this library and without it."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from ..config.settings import EnhancerSettings
from ..errors import ConfigError

HELP = "measure faces per second, ms a stage and memory, beside gfpgan's own path and this machine's limits"

logger = logging.getLogger("musetalk_enhance")

BACKENDS = ["torch", "onnx", "openvino", "ncnn"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, how long, and where the files go."""
    parser.add_argument("--model", default="gfpgan-1.4", help="name or path; default: %(default)s")
    parser.add_argument("--random", action="store_true", help="random weights of GFPGAN's size, whatever is here")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N; default: %(default)s")
    parser.add_argument(
        "--backends", type=_words, default=BACKENDS, metavar="A,B", help=f"default: {','.join(BACKENDS)}"
    )
    parser.add_argument("--dtypes", type=_words, default=["fp32", "bf16"], metavar="A,B", help="default: fp32,bf16")
    parser.add_argument(
        "--regions", type=_words, default=["full", "lower"], metavar="A,B", help="default: full,lower"
    )
    parser.add_argument("--batches", type=_numbers, metavar="N,M", help="faces at once; default: 1,4,8")
    parser.add_argument("--faces", type=_count, metavar="N", help="faces in one run of ours; default: 8")
    parser.add_argument("--rounds", type=_count, metavar="N", help="how often each candidate runs; default: 3")
    parser.add_argument("--quick", action="store_true", help="a first look: 2 faces, 1 round, batches 1,2")
    parser.add_argument("--no-reference", action="store_true", help="leave out gfpgan's own paths (a) and (b)")
    parser.add_argument(
        "--reference-faces", type=_count, default=2, metavar="N", help="faces in one run of theirs; default: 2"
    )
    parser.add_argument(
        "--frame", type=_frame, default=(256, 256), metavar="WxH", help="frames of path (a); default: 256x256"
    )
    parser.add_argument("--loaded", metavar="SIZE", help='most that is loaded at once, such as "8GiB"; default: half')
    parser.add_argument("--host-loop", action="store_true", help="also the time added to a host's loop")
    parser.add_argument("--musetalk", type=Path, metavar="DIR", help="MuseTalk with its weights, for --host-loop")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="only measure anew what backend: auto and dtype: auto take on this machine",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print the report, the table last; 1 when nothing of ours could be measured."""
    if args.tune:
        return _tune(args)
    from ..bench import report, suite

    made = suite.run(plan_of(args), logger.info)
    print(json.dumps(made, indent=2) if args.json else report.text(made))
    logger.info("written: %s", ", ".join(str(path) for path in sorted(args.out.glob("bench.*"))))
    return 0 if any(row["path"] == "ours" and row["reason"] is None for row in made["rows"]) else 1


def _tune(args: argparse.Namespace) -> int:
    """Measure and remember for every region; print way and milliseconds a face, fastest first."""
    from ..backends.choosing import tune
    from ..bench.subject import open_subject
    from ..restorers.catalog import choose
    from ..runtime.devices import pick_device

    device = pick_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        subject = open_subject(args.model, args.random, Path(folder), logger.info)
        for region in args.regions:
            settings = EnhancerSettings(enabled=True, device=args.device, region=region, **subject.options)
            ms = tune(choose(settings).network(), settings, device)
            for way in sorted(ms, key=lambda way: ms[way]):
                print(f"{subject.name} {region:<6} {way:<14} {ms[way]:9.1f} ms a face")
    return 0


def plan_of(args: argparse.Namespace) -> Any:
    """The parsed arguments as a `musetalk_enhance.bench.Plan`."""
    from ..bench.suite import Plan

    few = args.quick
    return Plan(
        model=args.model,
        random=args.random,
        device=args.device,
        backends=args.backends,
        dtypes=args.dtypes,
        regions=args.regions,
        batches=args.batches or ([1, 2] if few else [1, 4, 8]),
        faces=args.faces or (2 if few else 8),
        rounds=args.rounds or (1 if few else 3),
        references=not args.no_reference,
        reference_faces=1 if few else args.reference_faces,
        frame_wh=args.frame,
        bound_bytes=_bytes(args.loaded),
        host_loop=args.host_loop,
        musetalk=args.musetalk,
        out=args.out,
    )


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    from ..config.schema import checked
    from ..config.settings import options

    option = next(option for option in options() if option.name == "memory_budget")
    value = checked(option, text, "--loaded")
    if not isinstance(value, int):
        raise ConfigError("--loaded", text, 'bytes, or a size such as "8GiB"')
    return value


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError("give one at least")
    return words


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return number


def _numbers(text: str) -> list[int]:
    return [_count(word) for word in _words(text)]


def _frame(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    size = _count(width), _count(height)
    if min(size) < 64:
        raise argparse.ArgumentTypeError(f"{text!r}: 64 px at least on each side")
    return size
