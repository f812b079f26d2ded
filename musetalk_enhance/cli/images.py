"""``musetalk-enhance images INPUT_DIR --output-dir OUT``: the faces of a folder of pictures."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    from ..jobs import ImagesResult
    from ..jobs.samples import SampleResult

HELP = "restore the faces of every picture in a folder; goes on where it was stopped"

logger = logging.getLogger("musetalk_enhance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Input, output, what to try first, and every option of `ImageSettings`."""
    from ..jobs.options import ImageSettings

    parser.add_argument("source", metavar="INPUT_DIR", type=Path, help="a folder with pictures, or one picture")
    parser.add_argument("--output-dir", metavar="OUT", type=Path, required=True, help="folder for the results")
    trying = parser.add_argument_group("trying first")
    trying.add_argument(
        "--num-samples", type=int, metavar="N", help="only N pictures, spread over the folder, in OUT/samples"
    )
    trying.add_argument(
        "--sweep",
        metavar="OPTION=V,V,...",
        help="every picture once for each value, side by side in OUT/sweep, such as fidelity=0.5,0.7,0.9",
    )
    add_options(parser, ImageSettings)
    add_running(parser)


def run(args: argparse.Namespace) -> int:
    """Restore; 3 where pictures could not be read or restored.

    Raises:
        EnhanceError: the work cannot begin or go on.
    """
    from ..jobs import ImageSettings, restore_images
    from ..jobs.samples import Sweep, restore_samples, restore_sweep

    settings, sweep = settings_from(args, ImageSettings), None if args.sweep is None else Sweep.parse(args.sweep)
    engine = engine_from(args)
    with progress_bar("picture", args.quiet) as progress:
        common: dict[str, Any] = {"engine": engine, "progress": progress}
        made: ImagesResult | SampleResult
        if sweep is not None:
            made = restore_sweep(args.source, args.output_dir, settings, sweep, args.num_samples, **common)
        elif args.num_samples is not None:
            made = restore_samples(args.source, args.output_dir, settings, args.num_samples, **common)
        else:
            made = restore_images(args.source, args.output_dir, settings, **common)
    _say(made, args)
    return UNREADABLE if made.errors else 0


def _say(made: ImagesResult | SampleResult, args: argparse.Namespace) -> None:
    from ..jobs import ImagesResult

    results = (made,) if isinstance(made, ImagesResult) else made.results
    for said in dict.fromkeys(error["error"] for one in results for error in one.stats["errors"]):
        logger.warning("%s", said)
    for one in results:
        faces, strength = one.stats["faces"], one.stats["settings"]["strength"]
        warning = left_alone_warning(faces["found"], faces["left"], faces, strength)
        if warning is not None:
            logger.warning("%s: %s", one.output, warning)
    if args.json:
        rows = [{"output": str(one.output), "seconds": round(one.seconds, 2), **one.stats} for one in results]
        print(json.dumps(rows[0] if isinstance(made, ImagesResult) else rows, indent=1))
        return
    for one in results:
        print(summary(one))
    if not isinstance(made, ImagesResult) and made.sheet is not None:
        print(f"written: {made.sheet}")


def summary(result: ImagesResult) -> str:
    """One line for a person."""
    pictures, faces, ran = (result.stats[name] for name in ("pictures", "faces", "model_that_ran"))
    left = by_reason(faces["left"])
    changed = restored_words(faces["mean_strength"], faces["mean_change"], faces["partial"])
    bad = pictures["unreadable"] + pictures["failed"]
    fidelity = "" if ran["fidelity"] is None else f" at fidelity {ran['fidelity']:g}"
    before = counted(result.resumed, "picture")
    return (
        f"{result.output}: {counted(faces['restored'], 'face')} in {counted(pictures['all'], 'picture')} restored by "
        f"{ran['model']}{fidelity}{changed}{f'; left alone: {left}' if left else ''}; "
        f"{counted(pictures['without_restored_face'], 'picture')} without a face"
        f"{f'; {bad} could not be read or restored' if bad else ''}; {result.seconds:.1f} s"
        f"{f', {before} done before' if result.resumed else ''}"
    )
