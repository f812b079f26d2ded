"""``musetalk-enhance video IN OUT``: restore the faces in a video."""

from __future__ import annotations

import argparse
import json
import logging
import re
from decimal import Decimal
from typing import TYPE_CHECKING

from ..errors import MediaError
from ..pipeline.stats import by_reason, counted, restored_words
from .job import (
    UNREADABLE,
    add_execution_options,
    add_options,
    engine_from,
    left_alone_warning,
    offer_detector,
    progress_bar,
    settings_from,
)
from .parser import folder_type, path_type

if TYPE_CHECKING:
    from ..jobs import VideoResult

HELP = "restore the faces in a video and copy its audio; an interrupted run resumes"
EXAMPLES = (
    "musetalk-enhance video talk.mp4 restored.mp4",
    "musetalk-enhance video talk.mp4 restored.mp4 --start 0:10 --end 0:20 --region mouth",
)
MAIN = ("model", "strength", "fidelity", "face_detector", "region", "device", "download")
"""Options that stand first in the help."""

_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", re.ASCII)
logger = logging.getLogger("musetalk_enhance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add input, output, the clip's start and end, and every option of `VideoSettings`."""
    from ..jobs.options import VideoSettings

    parser.add_argument("source", metavar="IN", type=path_type, help="input video")
    parser.add_argument(
        "output",
        metavar="OUT",
        type=path_type,
        help="output video; its extension sets the container",
    )
    parser.add_argument(
        "--start", type=_seconds, metavar="TIME", help="start of the clip: seconds, or H:M:S"
    )
    parser.add_argument(
        "--end",
        type=_seconds,
        metavar="TIME",
        help="end of the clip (exclusive): seconds, or H:M:S",
    )
    parser.add_argument(
        "--report",
        metavar="FOLDER",
        type=folder_type,
        help="write report.json and report.html on the restored faces to this folder",
    )
    add_options(parser, VideoSettings, MAIN)
    add_execution_options(parser)


def run(args: argparse.Namespace) -> int:
    """Restore; 3 if the video cannot be read, or the network failed on some faces.

    Raises:
        EnhanceError: the job cannot start or continue.
    """
    from ..jobs import VideoSettings, restore_video

    settings, engine = settings_from(args, VideoSettings), engine_from(args)
    if args.report is not None:
        from ..report.builder import require_packages

        require_packages()
    offer_detector(settings)
    try:
        with progress_bar("frame", args.quiet) as progress:
            result = restore_video(
                args.source,
                args.output,
                settings,
                start=args.start,
                end=args.end,
                engine=engine,
                progress=progress,
            )
    except MediaError as error:
        if error.path != args.source:
            raise
        logger.error("%s", error)
        return UNREADABLE
    print(json.dumps(_as_dict(result), indent=1) if args.json else summary(result))
    totals, strength = result.stats["totals"], result.stats["job"]["settings"]["strength"]
    if "faces" in totals:  # the sidecar of an older version has no such count
        warning = left_alone_warning(totals["faces"], totals["left"], totals, strength)
        if warning is not None:
            logger.warning("%s", warning)
    if args.report is not None:
        is_yunet = settings.face_detector == "yunet"
        _report(args, result, settings.detector_path if is_yunet else None)
    return UNREADABLE if result.errors else 0


def _as_dict(result: VideoResult) -> dict[str, object]:
    return {"output": str(result.output), "seconds": round(result.seconds, 2), **result.stats}


def summary(result: VideoResult) -> str:
    """One line on the result, for a terminal."""
    totals, model = result.stats["totals"], result.stats["job"]["model_that_ran"]
    left = by_reason(totals["left"])
    strength, change = totals.get("mean_strength"), totals.get("mean_change")
    changed = restored_words(strength, change, totals.get("partial", {}))
    fidelity = "" if model["fidelity"] is None else f" at fidelity {model['fidelity']:g}"
    faces, frames = counted(totals["faces_restored"], "face"), counted(totals["frames"], "frame")
    text = (
        f"{result.output}: {faces} in {totals['restored']} of {frames} restored by "
        f"{model['model']}{fidelity}{changed}"
    )
    if left:
        text += f"; left alone: {left}"
    text += f"; {result.seconds:.1f} s"
    if result.resumed:
        text += f", {counted(result.resumed, 'frame')} restored by an earlier run"
    return text


def _report(args: argparse.Namespace, result: VideoResult, yunet: str | None) -> None:
    """Write the report on the restored video and its input, cut to the same range."""
    from ..jobs.video import excerpt
    from ..report import compare
    from ..report.inputs import find_locator, read_sidecar

    notes, totals = read_sidecar(None, result.output)
    clip = args.source, result.output, args.start, args.end
    damaged = bool(totals.get("damage"))
    with excerpt(*clip, damaged=damaged) as source, progress_bar("frame", args.quiet) as progress:
        report = compare(
            source,
            result.output,
            locate=find_locator(yunet),
            notes=notes,
            totals=totals,
            title=f"{args.source.name} → {args.output.name}",
            progress=progress,
        )
        files = report.write(args.report)
    for line in report.lines():
        logger.info("%s", line)
    logger.info("wrote %s", ", ".join(str(path) for path in files))


def _seconds(text: str) -> float:
    """Seconds from ``83.5``, ``1:23.5`` or ``0:01:23.5``; decimals are exact."""
    parts = text.split(":")
    is_time = 1 <= len(parts) <= 3 and all(_NUMBER.fullmatch(part) for part in parts)
    is_time = is_time and not any("." in part for part in parts[:-1])
    if not is_time or any(Decimal(part) >= 60 for part in parts[1:]):
        message = f"invalid time {text!r}; expected seconds, M:S or H:M:S"
        raise argparse.ArgumentTypeError(message)
    seconds = Decimal(0)
    for part in parts:
        seconds = seconds * 60 + Decimal(part)
    return float(seconds)
