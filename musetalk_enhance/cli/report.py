"""``musetalk-enhance report IN OUT``: what restoring did to a clip, as JSON and as a page."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError

HELP = "compare a clip with its restored version: figures, plots, worst frames, and a verdict on each line"

logger = logging.getLogger("musetalk_enhance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The clips, where the face is, and where the report goes."""
    parser.add_argument("before", metavar="IN", type=Path, help="the host's video, with soft faces")
    parser.add_argument("after", metavar="OUT", type=Path, help="the same video with restored faces")
    parser.add_argument("--reference", metavar="SRC", type=Path, help="the unsoftened original, where there is one")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("out/report"), help="default: %(default)s")
    parser.add_argument(
        "--box",
        type=_box,
        metavar="X1,Y1,X2,Y2",
        help="where the face is, in pixels; default: where IN and OUT differ, grown to a face",
    )
    parser.add_argument(
        "--sidecar",
        type=Path,
        metavar="FILE",
        help="JSON with what the enhancer did: totals, and notes for each frame; default: OUT's name and .json",
    )
    parser.add_argument("--title", default="", help="heading of the page; default: the names of both files")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a line fails")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON instead of lines")


def run(args: argparse.Namespace) -> int:
    """Write the report and print its lines; 1 with ``--strict`` where one fails.

    Raises:
        EnhanceError: a clip cannot be read, the clips do not belong together, or a package is missing.
    """
    from ..report import compare

    notes, totals = read_sidecar(args.sidecar, args.after)
    made = compare(
        args.before,
        args.after,
        args.reference,
        box=args.box,
        locate=find_locator(),
        notes=notes,
        totals=totals,
        title=args.title,
    )
    files = made.write(args.out)
    for note in made.notes:
        logger.info("%s", note)
    print(
        json.dumps([verdict.as_dict() for verdict in made.verdicts], indent=1) if args.json else _text(made.lines())
    )
    logger.info("written: %s", ", ".join(str(path) for path in files))
    return 1 if args.strict and made.failed else 0


def find_locator(path: str | Path | None = None) -> Any:
    """A face detector whose weight is on this machine, as `report.region.Locate`; None where there is none.

    `path` is a weight of YuNet of the user's own; one of another detector is looked past.
    """
    from ..errors import MissingWeightError
    from ..faces.detect import make_detector

    try:
        detector = make_detector("yunet", path if path is not None and str(path).endswith(".onnx") else None)
    except MissingWeightError:
        return None

    def locate(frame_bgr: Any) -> Any:
        faces = detector.detect(frame_bgr)
        return tuple(round(float(side)) for side in faces[0].box_xyxy) if faces else None

    return locate


def read_sidecar(given: Path | None, after: Path) -> tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]:
    """Notes for each frame and totals from ``{"notes": [{...}, ...], "totals": {...}}``; empty where none is there.

    Raises:
        ConfigError: the file that was named is missing, or it is of another form.
    """
    path = given or after.with_name(f"{after.name}.json")
    if given is None and not path.is_file():
        return (), {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("--sidecar", str(path), f"a JSON file that can be read ({error})") from error
    notes, totals = (found.get("notes", []), found.get("totals", {})) if isinstance(found, dict) else (None, None)
    if not isinstance(notes, list) or not isinstance(totals, dict) or not all(isinstance(one, dict) for one in notes):
        raise ConfigError("--sidecar", str(path), '{"notes": [{...} for each frame], "totals": {...}}')
    return notes, totals


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines)


def _box(text: str) -> tuple[int, int, int, int]:
    try:
        left, top, right, bottom = (int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not four whole numbers: X1,Y1,X2,Y2") from None
    if not (0 <= left < right and 0 <= top < bottom):
        raise argparse.ArgumentTypeError(f"{text!r}: left before right, top before bottom, none under 0")
    return left, top, right, bottom
