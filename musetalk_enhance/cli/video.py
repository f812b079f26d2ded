"""``musetalk-enhance video IN OUT``: the faces of a film."""

from __future__ import annotations

import argparse
import json
import logging
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MediaError
from ..pipeline.stats import by_reason, counted, restored_words
from .job import (
    UNREADABLE,
    add_options,
    add_running,
    engine_from,
    left_alone_warning,
    progress_bar,
    settings_from,
)

if TYPE_CHECKING:
    from ..jobs import VideoResult

HELP = "restore the faces of a film, sound and all else untouched; goes on where it was stopped"

_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)
logger = logging.getLogger("musetalk_enhance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Input, output, the stretch, and every option of `VideoSettings`."""
    from ..jobs.options import VideoSettings

    parser.add_argument("source", metavar="IN", type=Path, help="the film")
    parser.add_argument("output", metavar="OUT", type=Path, help="the new one; its ending tells the container")
    parser.add_argument("--start", type=_seconds, metavar="TIME", help="leave out what is before: seconds, or H:M:S")
    parser.add_argument("--end", type=_seconds, metavar="TIME", help="leave out what is from here on")
    parser.add_argument(
        "--report", metavar="FOLDER", type=Path, help="write report.json and report.html on the restored faces there"
    )
    add_options(parser, VideoSettings)
    add_running(parser)


def run(args: argparse.Namespace) -> int:
    """Restore; 3 where the film cannot be read, or the network failed at some faces.

    Raises:
        EnhanceError: the work cannot begin or go on.
    """
    from ..jobs import VideoSettings, restore_video

    settings, engine = settings_from(args, VideoSettings), engine_from(args)
    if args.report is not None:
        from ..report.builder import require_packages

        require_packages()
    try:
        with progress_bar("frame", args.quiet) as progress:
            made = restore_video(
                args.source, args.output, settings, start=args.start, end=args.end, engine=engine, progress=progress
            )
    except MediaError as error:
        if error.path != args.source:
            raise
        logger.error("%s", error)
        return UNREADABLE
    print(json.dumps(_as_dict(made), indent=1) if args.json else summary(made))
    totals, strength = made.stats["totals"], made.stats["job"]["settings"]["strength"]
    if "faces" in totals:  # a finished video of an older version has no such count
        warning = left_alone_warning(totals["faces"], totals["left"], totals, strength)
        if warning is not None:
            logger.warning("%s", warning)
    if args.report is not None:
        _report(args, made)
    return UNREADABLE if made.errors else 0


def _as_dict(made: VideoResult) -> dict[str, object]:
    return {"output": str(made.output), "seconds": round(made.seconds, 2), **made.stats}


def summary(made: VideoResult) -> str:
    """One line for a person."""
    totals, ran = made.stats["totals"], made.stats["job"]["model_that_ran"]
    left = by_reason(totals["left"])
    strength, change = totals.get("mean_strength"), totals.get("mean_change")
    changed = restored_words(strength, change, totals.get("partial", {}))
    fidelity = "" if ran["fidelity"] is None else f" at fidelity {ran['fidelity']:g}"
    faces, frames = counted(totals["faces_restored"], "face"), counted(totals["frames"], "frame")
    before = counted(made.resumed, "frame")
    return (
        f"{made.output}: {faces} in {totals['restored']} of {frames} restored by {ran['model']}{fidelity}"
        f"{changed}{f'; left alone: {left}' if left else ''}; {made.seconds:.1f} s"
        f"{f', {before} done before' if made.resumed else ''}"
    )


def _report(args: argparse.Namespace, made: VideoResult) -> None:
    """Compare the film with what came in, or with the stretch of it that was taken."""
    from ..jobs.video import excerpt
    from ..report import compare
    from .report import find_locator, read_sidecar

    notes, totals = read_sidecar(None, made.output)
    with excerpt(args.source, made.output, args.start, args.end) as before:
        title = f"{args.source.name} → {args.output.name}"
        report = compare(
            before,
            made.output,
            locate=find_locator(args.job_detector_path if hasattr(args, "job_detector_path") else None),
            notes=notes,
            totals=totals,
            title=title,
        )
        files = report.write(args.report)
    for line in report.lines():
        logger.info("%s", line)
    logger.info("written: %s", ", ".join(str(path) for path in files))


def _seconds(text: str) -> float:
    """Seconds from ``83.5``, ``1:23.5`` or ``0:01:23.5``; decimals as they are written."""
    parts = text.split(":")
    fits = 1 <= len(parts) <= 3 and all(_NUMBER.fullmatch(part) for part in parts)
    if not fits or any("." in part for part in parts[:-1]) or any(Decimal(part) >= 60 for part in parts[1:]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: seconds, M:S or H:M:S")
    seconds = Decimal(0)
    for part in parts:
        seconds = seconds * 60 + Decimal(part)
    return float(seconds)
