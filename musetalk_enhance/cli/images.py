"""``musetalk-enhance images INPUT_DIR --output-dir OUT``: restore the faces in images."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    from ..jobs import ImagesResult
    from ..jobs.samples import SampleResult

HELP = "restore the faces in every image of a folder; an interrupted run resumes"
EXAMPLES = (
    "musetalk-enhance images photos --output-dir out --save-comparison",
    "musetalk-enhance images photos --output-dir out --num-samples 10 --sweep strength=0.5,1",
)

MAIN = (
    *("model", "strength", "fidelity", "face_detector", "upscale", "save_comparison", "device"),
    "download",
)
"""Options that stand first in the help."""

logger = logging.getLogger("musetalk_enhance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add input, output, sampling, and every option of `ImageSettings`."""
    from ..jobs.options import ImageSettings

    parser.add_argument(
        "source", metavar="INPUT_DIR", type=path_type, help="a folder with images, or one image"
    )
    parser.add_argument(
        "--output-dir",
        metavar="OUT",
        type=folder_type,
        required=True,
        help="folder for the results",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        metavar="N",
        help="restore only N images, spread over the folder, in OUT/samples",
    )
    parser.add_argument(
        "--sweep",
        metavar="OPTION=V,V,...",
        help="restore every image once per value, side by side in OUT/sweep; "
        "example: fidelity=0.5,0.7,0.9",
    )
    add_options(parser, ImageSettings, MAIN)
    add_execution_options(parser)


def run(args: argparse.Namespace) -> int:
    """Restore; 3 if images could not be read or restored.

    Raises:
        EnhanceError: the job cannot start or continue.
    """
    from ..jobs import ImageSettings, restore_images
    from ..jobs.samples import Sweep, restore_samples, restore_sweep

    settings = settings_from(args, ImageSettings)
    sweep = None if args.sweep is None else Sweep.parse(args.sweep)
    engine, paths = engine_from(args), (args.source, args.output_dir)
    offer_detector(settings)
    with progress_bar("image", args.quiet) as progress:
        common: dict[str, Any] = {"engine": engine, "progress": progress}
        result: ImagesResult | SampleResult
        if sweep is not None:
            result = restore_sweep(*paths, settings, sweep, args.num_samples, **common)
        elif args.num_samples is not None:
            result = restore_samples(*paths, settings, args.num_samples, **common)
        else:
            result = restore_images(*paths, settings, **common)
    _print(result, args)
    return UNREADABLE if result.errors else 0


def _print(result: ImagesResult | SampleResult, args: argparse.Namespace) -> None:
    from ..jobs import ImagesResult

    results = (result,) if isinstance(result, ImagesResult) else result.results
    errors = (error["error"] for one in results for error in one.stats["errors"])
    for message in dict.fromkeys(errors):
        logger.warning("%s", message)
    for one in results:
        _warn_of_losses(one)
    for one in results:
        faces, strength = one.stats["faces"], one.stats["settings"]["strength"]
        warning = left_alone_warning(faces["found"], faces["left"], faces, strength)
        if warning is not None:
            logger.warning("%s: %s", one.output, warning)
    if args.json:
        rows = [
            {"output": str(one.output), "seconds": round(one.seconds, 2), **one.stats}
            for one in results
        ]
        print(json.dumps(rows[0] if isinstance(result, ImagesResult) else rows, indent=1))
        return
    for one in results:
        print(summary(one))
    if not isinstance(result, ImagesResult) and result.sheet is not None:
        print(f"wrote {result.sheet}")


def _warn_of_losses(result: ImagesResult) -> None:
    """One warning on what the results do not hold, and one on images that were skipped."""
    losses, skipped = result.stats["losses"], result.stats["skipped"]
    parts = [f"{words} ({_named(names)})" for words, names in losses.items()]
    if parts:
        logger.warning("%s: the results do not hold: %s", result.output, "; ".join(parts))
    if skipped:
        text = "skipped, because their formats are not read"
        logger.warning("%s: %s", text, _named(skipped))


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def summary(result: ImagesResult) -> str:
    """One line on the result, for a terminal."""
    images, faces, model = (result.stats[name] for name in ("pictures", "faces", "model_that_ran"))
    left = by_reason(faces["left"])
    changed = restored_words(faces["mean_strength"], faces["mean_change"], faces["partial"])
    failed = images["unreadable"] + images["failed"]
    fidelity = "" if model["fidelity"] is None else f" at fidelity {model['fidelity']:g}"
    text = (
        f"{result.output}: {counted(faces['restored'], 'face')} in "
        f"{counted(images['all'], 'image')} restored by {model['model']}{fidelity}{changed}"
    )
    if left:
        text += f"; left alone: {left}"
    text += f"; {counted(images['without_restored_face'], 'image')} without a restored face"
    if failed:
        text += f"; {failed} could not be read, restored or written"
    if images["skipped"]:
        text += f"; {images['skipped']} of other formats skipped"
    text += f"; {result.seconds:.1f} s"
    if result.resumed:
        text += f", {counted(result.resumed, 'image')} restored by an earlier run"
    return text
