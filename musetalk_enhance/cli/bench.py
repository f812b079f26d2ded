"""``musetalk-enhance bench``: faces per second by backend, dtype, region and batch size.

Each combination is measured as it runs in a host, with all defaults on (stability, guard, color
match, sharpness gate). Comparisons with the official packages, hardware limits and a host's loop
are the benchmark rig's, ``scripts/benchmarks`` in a checkout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ..config.settings import EnhancerSettings
from ..runtime.files import write_bytes
from .parser import folder_type

if TYPE_CHECKING:
    import numpy as np
    import torch

HELP = "measure faces per second and memory by backend, dtype, region and batch size"
EXAMPLES = (
    "musetalk-enhance bench --model lite --quick",
    "musetalk-enhance bench --model gfpgan-1.4 --backends torch,ncnn --batches 1,8",
)
SCHEMA = 2
"""Version of the JSON report."""
JSON_FILE = "bench.json"
BACKENDS = ["torch", "onnx", "openvino", "ncnn"]
RIG = "python -m scripts.benchmarks"
"""The benchmark rig, run in a checkout of the repository."""

_SIDE = 256  # of the frames, as MuseTalk makes them; pixels
_STAGES = ("prepare", "motion", "network", "finish")
_HEAD = ("", "ms/face", "faces/s", "spread", *_STAGES, "MiB", "runs as")

logger = logging.getLogger("musetalk_enhance")

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to measure, how often, and where the report goes."""
    parser.add_argument("--model", default="auto", help="name or path; default: %(default)s")
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
        "--dtypes",
        type=_words,
        default=["fp32", "bf16"],
        metavar="A,B",
        help="default: fp32,bf16",
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
        "--faces",
        type=_count,
        metavar="N",
        help="frames in one run, rounded up to whole batches; default: 8",
    )
    parser.add_argument(
        "--rounds", type=_count, metavar="N", help="runs of each combination; default: 3"
    )
    parser.add_argument("--quick", action="store_true", help="2 faces, 1 round, batches 1,2")
    parser.add_argument(
        "--out", type=folder_type, metavar="DIR", help=f"write {JSON_FILE} in this folder"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="measure which execution backend: auto and dtype: auto select on this machine",
    )
    for flag in ("--random", "--no-reference", "--host-loop"):
        parser.add_argument(flag, nargs=0, action=_Moved, help=argparse.SUPPRESS)
    for flag in ("--reference-faces", "--frame", "--loaded", "--musetalk"):
        parser.add_argument(flag, action=_Moved, help=argparse.SUPPRESS)


class _Moved(argparse.Action):
    """A flag of earlier releases that moved to the benchmark rig."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} has moved to the benchmark rig: run `{RIG}` in a checkout")


def run(args: argparse.Namespace) -> int:
    """Measure and print the report; 1 if no combination could be measured.

    Raises:
        ConfigError: the model or the device does not exist.
        WeightError: the model's weight is missing, corrupt or untrusted.
    """
    from ..restorers.catalog import choose
    from ..runtime.devices import pick_device

    device = pick_device(args.device)
    choice = choose(EnhancerSettings(enabled=True, model=args.model))
    name = choice.model.info.name
    weight_bytes = choice.weight.path.stat().st_size if choice.weight else 0
    if args.tune:
        return _tune(args, name, device)
    batches = args.batches or ([1, 2] if args.quick else [1, 4, 8])
    combinations = itertools.product(args.backends, args.dtypes, args.regions, batches)
    rows: list[Row] = []
    for backend, dtype, region, batch in combinations:
        row = {"backend": backend, "dtype": dtype, "region": region, "batch": batch}
        shortage = _shortage(row, rows, weight_bytes, device)
        if shortage is None:
            logger.info("measuring %s", _name(row))
        figures = {"reason": shortage} if shortage else _measured(args, row, device)
        rows.append({"name": _name(row), **row, **figures})
    report = {"schema": SCHEMA, "model": name, "device": str(device), "rows": rows}
    text = json.dumps(report, indent=2)
    print(text if args.json else "\n".join(table(report)))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_bytes(args.out / JSON_FILE, f"{text}\n".encode())
        logger.info("wrote %s", args.out / JSON_FILE)
    return 0 if any(row["reason"] is None for row in rows) else 1


def _tune(args: argparse.Namespace, name: str, device: torch.device) -> int:
    """Measure and store the fastest execution for each region; print all, fastest first."""
    from ..backends import BackendOptions
    from ..backends.selection import tune
    from ..restorers.catalog import choose

    for region in args.regions:
        settings = EnhancerSettings(
            enabled=True, model=args.model, device=args.device, region=region
        )
        ms = tune(choose(settings).network(), BackendOptions.of(settings), device)
        for execution in sorted(ms, key=lambda key: ms[key]):
            print(f"{name} {region:<6} {execution:<14} {ms[execution]:9.1f} ms per face")
    return 0


def _name(row: Row) -> str:
    region = "" if row["region"] == "full" else f" {row['region']}"
    return f"{row['backend']} {row['dtype']} batch {row['batch']}{region}"


def _shortage(
    row: Row, rows: Sequence[Row], weight_bytes: int, device: torch.device
) -> str | None:
    """Why a combination does not fit in memory, before the kernel ends the process; None if it
    does.

    What it needs is at most what the same with the last, smaller batch took when it was loaded and
    ran, times the ratio of the batches; without that, a multiple of the weights.
    """
    from ..backends.selection import NEEDED
    from ..runtime import memory

    keys = ("backend", "dtype", "region")
    alike = [one for one in rows if "memory_bytes" in one and all(one[k] == row[k] for k in keys)]
    needed: float = NEEDED * weight_bytes
    if alike:
        needed = alike[-1]["memory_bytes"] * max(1, row["batch"] / alike[-1]["batch"])
    free = memory.free_bytes(device)
    if needed <= free:
        return None
    return f"may need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"


def _measured(args: argparse.Namespace, row: Row, device: torch.device) -> Row:
    """The figures of one combination, or the ``reason`` why it cannot be measured."""
    from ..backends.torch_backend import is_emulated

    if device.type == "cpu" and row["backend"] == "torch" and is_emulated(row["dtype"]):
        reason = f"this CPU has no {row['dtype']} instructions: torch needs minutes per face"
        return {"reason": reason}
    faces = args.faces or (2 if args.quick else 8)
    frames = moving_frames(-(-faces // row["batch"]) * row["batch"])
    options = {
        "model": args.model,
        "device": args.device,
        "backend": row["backend"],
        "dtype": row["dtype"],
        "region": row["region"],
        "batch_size": row["batch"],
        "on_error": "raise",
    }
    try:
        return _timed(options, frames, args.rounds or (1 if args.quick else 3), device)
    except Exception as error:  # any error of a runtime becomes a row of the table
        return {"reason": " ".join(str(error).split()) or type(error).__name__}


def _timed(options: dict[str, Any], frames: np.ndarray, rounds: int, device: torch.device) -> Row:
    from ..enhancer import GFPGANEnhancer
    from ..pipeline import costs
    from ..runtime import memory

    settings = EnhancerSettings(enabled=True, **options)
    with ExitStack() as stack:
        with costs.watch(device) as peak:
            enhancer = stack.enter_context(GFPGANEnhancer.from_settings(settings))
            enhancer(frames)
        first_backoffs = enhancer.stats.backoffs
        enhancer.stats.clear()
        ms = []
        for _ in range(rounds):
            start = time.perf_counter()
            enhancer(frames)
            ms.append((time.perf_counter() - start) * 1e3 / len(frames))
        stages = {stage: total / rounds / len(frames) for stage, total in enhancer.stats.ms.items()}
        backend, backoffs = enhancer.backend, enhancer.stats.backoffs
    memory.release(device)
    if first_backoffs or backoffs:
        return {"reason": "out of memory with this batch"}
    median = statistics.median(ms)
    return {
        "reason": None,
        "runs_as": "" if backend is None else " ".join(backend),
        "faces": len(frames),
        "ms_per_face": round(median, 3),
        "ms_per_face_rounds": [round(value, 3) for value in ms],
        "faces_per_second": round(1e3 / median, 3),
        "stages_ms": {stage: round(value, 3) for stage, value in stages.items()},
        "memory_bytes": peak.highest,
    }


def moving_frames(count: int, seed: int = 3) -> np.ndarray:
    """A smooth random texture on a small circle: uint8 (count, 256, 256, 3).

    Consecutive frames differ and the motion between them is small, as in a talking head, so that
    the temporal filter runs as in a video and nothing is skipped as a repeated frame. The last
    frame leads back to the first.

    Args:
        count: number of frames.
        seed: of the texture.
    """
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    margin, cells, radius = 8, 12, 2
    side = _SIDE + 2 * margin
    coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
    texture = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    center = (side - 1) / 2
    angles = 2 * np.pi * np.arange(count) / max(2, count)
    frames = [
        cv2.getRectSubPix(
            texture,
            (_SIDE, _SIDE),
            (center + radius * float(np.cos(angle)), center + radius * float(np.sin(angle))),
        )
        for angle in angles
    ]
    return np.stack(frames)


def table(report: Row) -> list[str]:
    """The report as lines of text: what failed, the columns' meaning, the table."""
    rows = [row for row in report["rows"] if row["reason"] is None]
    reasons: dict[str, list[str]] = {}
    for row in report["rows"]:
        if row["reason"] is not None:
            reasons.setdefault(row["reason"], []).append(row["name"])
    lines = [f"not measured: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    if not rows:
        return [*lines, "no combination could be measured"]
    cells = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    text = [_aligned(line, widths) for line in cells]
    return [
        *lines,
        f"{report['model']} on {report['device']}, all defaults on. ms/face: median of the rounds.",
        f"spread: slowest over fastest round. {', '.join(_STAGES)}: ms per face.",
        "MiB: peak memory of loading and of a run.",
        text[0],
        "-" * max(len(line) for line in text),
        *text[1:],
    ]


def _cells(row: Row) -> tuple[str, ...]:
    rounds, stages = row["ms_per_face_rounds"], row["stages_ms"]
    return (
        row["name"],
        _short(row["ms_per_face"]),
        _short(row["faces_per_second"]),
        f"{max(rounds) / min(rounds):.2f}",
        *(_short(stages[stage]) if stage in stages else "" for stage in _STAGES),
        f"{row['memory_bytes'] / 2**20:.0f}",
        row["runs_as"],
    )


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    columns = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
    return "  ".join([line[0].ljust(widths[0]), *columns]).rstrip()


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


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
