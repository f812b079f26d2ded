"""``musetalk-enhance report IN OUT``: how restoration changed a clip, as JSON and as a page."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from .job import progress_bar
from .parser import folder_type, path_type

HELP = "compare a clip with its restored version: metrics, plots, worst frames, and checks"
EXAMPLES = (
    "musetalk-enhance report host.mp4 restored.mp4",
    "musetalk-enhance report host.mp4 restored.mp4 --reference original.mp4 --out out/report",
)

logger = logging.getLogger("musetalk_enhance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the clips, the face's position, and the output folder."""
    parser.add_argument(
        "before", metavar="IN", type=path_type, help="the host's video, with soft faces"
    )
    parser.add_argument(
        "after", metavar="OUT", type=path_type, help="the same video with restored faces"
    )
    parser.add_argument(
        "--reference", metavar="SRC", type=path_type, help="the unsoftened original, if available"
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=folder_type,
        default=Path("out/report"),
        help="default: %(default)s",
    )
    parser.add_argument(
        "--box",
        type=_box,
        metavar="X1,Y1,X2,Y2",
        help="the face's box in pixels; default: where IN and OUT differ, enlarged to a face",
    )
    parser.add_argument(
        "--sidecar",
        type=path_type,
        metavar="FILE",
        help="JSON from the enhancer: totals, and notes on each frame; default: OUT.json",
    )
    parser.add_argument(
        "--title", default="", help="heading of the page; default: the names of both files"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a check fails")
    parser.add_argument(
        "--json", action="store_true", help="print the verdicts as JSON instead of lines"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Write the report and print its verdicts; 1 with ``--strict`` if one fails.

    Raises:
        EnhanceError: a clip cannot be read, the clips do not match, or a package is missing.
    """
    from ..report import compare
    from ..report.inputs import find_locator, read_sidecar

    notes, totals = read_sidecar(args.sidecar, args.after)
    with progress_bar("frame", args.quiet) as progress:
        report = compare(
            args.before,
            args.after,
            args.reference,
            box=args.box,
            locate=find_locator(),
            notes=notes,
            totals=totals,
            title=args.title,
            progress=progress,
        )
    files = report.write(args.out)
    for note in report.notes:
        logger.info("%s", note)
    if args.json:
        print(json.dumps([verdict.as_dict() for verdict in report.verdicts], indent=1))
    else:
        print("\n".join(report.lines()))
    logger.info("wrote %s", ", ".join(str(path) for path in files))
    return 1 if args.strict and report.failed else 0


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        left, top, right, bottom = (int(word) for word in text.split(","))
    except ValueError:
        message = f"invalid value {text!r}; expected four integers: X1,Y1,X2,Y2"
        raise argparse.ArgumentTypeError(message) from None
    if not (0 <= left < right and 0 <= top < bottom):
        message = f"invalid value {text!r}; expected 0 <= X1 < X2 and 0 <= Y1 < Y2"
        raise argparse.ArgumentTypeError(message)
    return left, top, right, bottom
