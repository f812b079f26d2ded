"""Does restoring faces work on this machine? Restores a few pictures for real and checks what came
out.

    python scripts/test_face_restoration.py      # pictures of its own, the defaults
    python scripts/test_face_restoration.py --model lite --device cpu --upscale 2
    python scripts/test_face_restoration.py --input-dir photos --num-samples 5 \\
        --output-dir out/check

All other options are those of ``musetalk-enhance images``, with hyphens or underscores. Without
``--input-dir`` it draws soft portraits (extra ``demo``), and where that extra is missing, soft
patterns, each taken as one face crop (``--face-detector none``). It checks that every picture came
out, in its size, with its faces changed and sharper and everything else as it was, and that a
second run finds nothing to do. One line a check; exit code 0 where all is well, else 1, 2 for a
wrong call. Runs from a checkout, installed or not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from face_restoration import hyphened  # finds the library in the checkout, too

if TYPE_CHECKING:
    from musetalk_enhance.jobs import ImageSettings

__test__ = False  # for people to run: pytest shall not take it for tests

SIDE, STEP_S = 480, 1.3  # of the pictures that are drawn: pixels, and seconds between them
SOFTER = 3.0  # how much detail they lack
MARGIN = 3  # pixels around the template that interpolation may reach


class Checks:
    """Says each check as it is made, and remembers whether all were well."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, well: bool, what: str, found: str) -> bool:
        self.failed += not well
        print(f"{'OK' if well else 'FAILED':7} {what}: {found}", flush=True)
        return well

    def skip(self, what: str, why: str) -> None:
        """Say that there is nothing to check."""
        print(f"SKIPPED {what}: {why}", flush=True)


@dataclass(frozen=True)
class Pair:
    """One picture, before and after.

    Attributes:
        name: relative to the input folder.
        before: BGR uint8, as it came.
        enlarged: the same at the size it is handed back in.
        after: as it was handed back.
        faces: what became of each, as the statistics have it.
    """

    name: str
    before: Any
    enlarged: Any
    after: Any
    faces: list[dict[str, Any]]


def draw(folder: Path, count: int) -> bool:
    """Write `count` soft pictures; False where they show no faces, for want of scikit-image."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    try:
        drawn, faces = list(_portraits(count)), True
    except ModuleNotFoundError as error:
        print(
            f"{error.name} is missing (pip install 'musetalk_enhance[demo]'): patterns in place "
            "of portraits"
        )
        drawn, faces = list(_patterns(count)), False
    for index, picture in enumerate(drawn):
        small = cv2.resize(
            picture, None, fx=1 / SOFTER, fy=1 / SOFTER, interpolation=cv2.INTER_AREA
        )
        soft = cv2.resize(small, picture.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        (folder / f"drawn_{index}.png").write_bytes(cv2.imencode(".png", soft)[1].tobytes())
    return faces


def _portraits(count: int) -> Iterator[Any]:
    sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
    import skimage  # noqa: F401  # said at once where it is missing
    import talking_head

    left, _, right, _ = talking_head.CROP_XYXY
    still = talking_head.make_still(SIDE / (right - left), 0)
    for index in range(count):
        yield talking_head.render(still, talking_head.pose_at(STEP_S * index, 0), SIDE)


def _patterns(count: int) -> Iterator[Any]:
    """Ovals with sharp edges in the colours of skin: something to sharpen, where no face is to be
    had."""
    import cv2
    import numpy as np

    for index in range(count):
        rng = np.random.default_rng(index)
        picture = np.full((SIDE // 2, SIDE // 2, 3), (120, 110, 100), np.uint8)
        for _ in range(40):
            middle, axes = rng.integers(0, SIDE // 2, 2).tolist(), rng.integers(6, 50, 2).tolist()
            colour = (np.array([90, 120, 180]) + rng.integers(-70, 70, 3)).tolist()
            cv2.ellipse(
                picture, middle, axes, float(rng.integers(180)), 0, 360, colour, -1, cv2.LINE_AA
            )
        yield picture


def settings_of(words: Sequence[str]) -> ImageSettings:
    """The settings that the words of ``images`` mean."""
    from musetalk_enhance.cli import images
    from musetalk_enhance.cli.job import settings_from
    from musetalk_enhance.cli.parser import CommandParser
    from musetalk_enhance.jobs import ImageSettings

    parser = CommandParser(prog="test_face_restoration.py")
    images.add_arguments(parser)
    parser.shorten_usage()
    args = parser.parse_args(words)
    if args.sweep is not None or args.engine != "local":
        parser.error(
            "--sweep and --engine ray are not for this check; try them with musetalk-enhance images"
        )
    return settings_from(args, ImageSettings)


def pairs_of(source: Path, output: Path, stats: dict[str, Any]) -> list[Pair]:
    """Every picture that was handed back, beside what it was."""
    import cv2

    from musetalk_enhance.media.image import decode_image

    pairs = []
    for item in stats["items"]:
        restored = [output / name for name in item["outputs"] if name.startswith("restored/")]
        if not all(path.is_file() for path in restored):
            continue
        for path in restored:
            after = decode_image(path.read_bytes(), path).bgr
            path = (source.parent if source.is_file() else source) / item["name"]
            before = enlarged = decode_image(path.read_bytes(), path).bgr
            if after.shape != before.shape:
                enlarged = cv2.resize(before, after.shape[1::-1], interpolation=cv2.INTER_LANCZOS4)
            pairs.append(Pair(item["name"], before, enlarged, after, item["faces"]))
    return pairs


def check_counts(check: Checks, output: Path, stats: dict[str, Any], wanted: int) -> None:
    """As many results as pictures, and a comparison beside each."""
    for kind in ("restored", "comparisons"):
        there = [
            name
            for item in stats["items"]
            for name in item["outputs"]
            if name.startswith(f"{kind}/")
        ]
        found = sum((output / name).is_file() for name in there)
        check(found == wanted, f"as many {kind} as pictures", f"{found} of {wanted}")


def check_sizes(check: Checks, pairs: Sequence[Pair], upscale: int) -> None:
    """Every result has the size of its picture, times `upscale`."""
    wrong = [
        f"{pair.name} is {pair.after.shape[1]}x{pair.after.shape[0]}"
        for pair in pairs
        if pair.after.shape[:2] != tuple(side * upscale for side in pair.before.shape[:2])
    ]
    check(
        bool(pairs) and not wrong,
        f"sizes are {upscale} times the pictures'",
        ", ".join(wrong) or "all of them",
    )


def check_faces(check: Checks, pairs: Sequence[Pair], hint: str) -> None:
    """Faces were found, and each that was restored is another one now, sharper in the middle of
    them all."""
    from musetalk_enhance.report.metrics import laplacian_energy

    parts = [part for pair in pairs for part in _face_parts(pair)]
    seen = sum(len(pair.faces) for pair in pairs)
    if not check(
        bool(parts),
        "faces were found and restored",
        f"{len(parts)} of {seen} in {len(pairs)} pictures",
    ):
        return
    changed = sum(bool((before != after).any()) for before, after in parts)
    check(changed == len(parts), "every restored face has changed", f"{changed} of {len(parts)}")
    sharper = [
        laplacian_energy(after) / max(laplacian_energy(before), 1e-6) for before, after in parts
    ]
    middle = statistics.median(sharper)
    found = (
        f"{middle:.2f} times (median of {len(parts)}, from {min(sharper):.2f} to "
        f"{max(sharper):.2f})"
    )
    check(
        middle > 1,
        "faces are sharper (variance of the Laplacian)",
        found if middle > 1 else f"{found}{hint}",
    )


def _face_parts(pair: Pair) -> Iterator[tuple[Any, Any]]:
    """The boxes of the faces that were restored, before and after, at the size handed back."""
    height, width = pair.after.shape[:2]
    scale = width / pair.before.shape[1]
    for face in pair.faces:
        if face["state"] != "restored":
            continue
        left, top, right, bottom = (round(side * scale) for side in face["box_xyxy"])
        box = slice(max(0, top), min(height, bottom)), slice(max(0, left), min(width, right))
        yield pair.enlarged[box], pair.after[box]


def check_rest(check: Checks, pairs: Sequence[Pair], settings: ImageSettings) -> None:
    """Outside what the network saw of the faces, every pixel is as it was."""
    what = "all around the faces is as it was"
    if settings.face_detector == "none" or settings.bg_upsampler != "none":
        check.skip(
            what,
            "--bg-upsampler restores it"
            if settings.bg_upsampler != "none"
            else "each picture is one face",
        )
        return
    from musetalk_enhance.jobs.model_loader import load_detector

    detector = load_detector(settings)
    outside = changed = 0
    for pair in pairs:
        rest = ~templates(pair, detector.detect(pair.before))
        outside += int(rest.sum())
        changed += int((pair.enlarged != pair.after).any(axis=2)[rest].sum())
    detector.close()
    if not outside:
        check.skip(what, "the faces fill the pictures")
        return
    check(changed == 0, what, f"{changed} of {outside} pixels differ")


def templates(pair: Pair, faces: Sequence[Any]) -> Any:
    """Where the templates of the restored faces lie in the result: bool (H, W)."""
    import cv2
    import numpy as np

    from musetalk_enhance.faces.paste import crop_face
    from musetalk_enhance.faces.templates import TEMPLATE_SIDE

    covered = np.zeros(pair.after.shape[:2], np.uint8)
    scale = pair.after.shape[1] / pair.before.shape[1]
    corners = np.array([(x, y, 1.0) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]) * (
        TEMPLATE_SIDE,
        TEMPLATE_SIDE,
        1,
    )
    for face, said in zip(faces, pair.faces, strict=True):
        if said["state"] == "restored":
            places = corners @ crop_face(pair.before, face.landmarks).to_image.T * scale
            cv2.fillConvexPoly(covered, np.rint(places).astype(np.int32), 1)
    reach = 2 * round(MARGIN * max(1.0, scale)) + 1
    return cv2.dilate(covered, np.ones((reach, reach), np.uint8)) > 0


def snapshot(output: Path) -> dict[str, tuple[str, int]]:
    """Every file but the job's own notes: its hash and, of results, when it was written."""
    found = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name = path.relative_to(output).as_posix()
        if not name.startswith("."):
            written = (
                path.stat().st_mtime_ns if name.startswith(("restored/", "comparisons/")) else 0
            )
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest(), written
    return found


def run_checks(source: Path, output: Path, count: int, rest: Sequence[str], hint: str) -> int:
    """Restore, and check; 0 where all is well, else 1."""
    from musetalk_enhance.cli import main as musetalk_enhance
    from musetalk_enhance.jobs.samples import select_images

    common = [
        "--num-samples",
        str(count),
        "--save-comparison",
        "true",
        "--format",
        "png",
        "--quiet",
    ]
    words = [str(source), "--output-dir", str(output), *rest, *common]
    settings, check = settings_of(words), Checks()
    code = musetalk_enhance(["images", *words])
    if not check(code == 0, "musetalk-enhance images", f"exit code {code}") and code != 3:
        return 1
    samples = output / "samples"
    stats = json.loads((samples / "restoration_stats.json").read_text(encoding="utf-8"))
    pairs = pairs_of(source, samples, stats)
    check_counts(check, samples, stats, len(select_images(source, output, count)))
    check_sizes(check, pairs, settings.upscale)
    check_faces(check, pairs, hint)
    check_rest(check, pairs, settings)
    before = snapshot(samples)
    again = musetalk_enhance(["images", *words])
    after = snapshot(samples)
    other = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    check(
        again == code and not other,
        "a second run changes nothing",
        ", ".join(other) or f"{len(after)} files",
    )
    ran = stats["model_that_ran"]
    print(
        f"ran: {ran['model']} with {ran['backend'] or 'its own backend'} ({ran['dtype']}) on "
        f"{ran['device']}"
    )
    return 1 if check.failed else 0


def parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of this script, and the words that are left for ``images``."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--input-dir", type=Path, metavar="DIR", help="pictures of your own; else some are drawn"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="OUT",
        help="keep the results there; else they are deleted",
    )
    parser.add_argument(
        "--num-samples", type=int, default=3, metavar="N", help="pictures; default: %(default)s"
    )
    args, rest = parser.parse_known_args(hyphened(words))
    if args.num_samples < 1:
        parser.error(f"--num-samples: got {args.num_samples}; expected 1 or more")
    return args, rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks and return the exit code."""
    from musetalk_enhance.errors import ConfigError, EnhanceError

    args, rest = parsed(sys.argv[1:] if argv is None else argv)
    with tempfile.TemporaryDirectory() as scratch:
        output = args.output_dir or Path(scratch) / "out"
        hint = "; faces that were sharp or noisy before need not be: try without --input-dir"
        source = args.input_dir
        if source is None:
            source, hint = Path(scratch) / "drawn", ""
        try:
            if args.input_dir is None and not draw(source, args.num_samples):
                rest = [*rest, "--face-detector", "none"]
            code = run_checks(source, output, args.num_samples, rest, hint)
        except ModuleNotFoundError as error:
            print(
                f"FAILED  {error.name} is missing: pip install "
                f"'{Path(__file__).resolve().parent.parent}[demo]'"
            )
            return 1
        except EnhanceError as error:
            print(f"FAILED  {error}")
            return 2 if isinstance(error, ConfigError) else 1
        if args.output_dir is not None:
            print(f"look at: {output / 'samples'}")
        return code


if __name__ == "__main__":
    sys.exit(main())
