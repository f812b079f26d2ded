"""The demo: a talking head with soft faces goes in, a sharper one comes out, and figures say how
much.

It does what MuseTalk does around our hook, frame by frame: crop the face box, bring it to 256 px,
lose detail much as a latent decoder loses it (latent_softness.py, a stand-in without weights),
*restore*, resize to the box, blend the lower half of the face back. The same without the restoring
is the "before" clip, the clip it was made from is the "source". No model is fetched: the default is
the embedded one.

    python examples/demo.py --seconds 4 --out out/demo
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from latent_softness import soften
from talking_head import Box, Image, talking_head
from tqdm import tqdm

from musetalk_enhance import EnhanceError, GFPGANEnhancer, __version__, add_gfpgan_arguments
from musetalk_enhance.media import VideoWriter, read_frames, write_image
from musetalk_enhance.report.metrics import color_drift, laplacian_energy, psnr

FACE, BATCH = 256, 8
"""Side of the host's faces in pixels; faces in the host's batch."""

PANEL = 512
"""Width of a column of the still picture in pixels."""

CLIPS = ("source", "before", "after", "side_by_side")


def crop_face(frame_bgr: Image, box_xyxy: Box) -> Image:
    """The face as the host takes it: the box, squeezed to ``(256, 256, 3)``."""
    left, top, right, bottom = box_xyxy
    return np.asarray(
        cv2.resize(
            frame_bgr[top:bottom, left:right], (FACE, FACE), interpolation=cv2.INTER_LANCZOS4
        ),
        np.uint8,
    )


def blend_face(frame_bgr: Image, face_bgr: Image, box_xyxy: Box) -> Image:
    """Put a face back as MuseTalk's blending does: resized to the box, lower half only, edges
    blurred.

    MuseTalk finds the face's outline with a parsing network; an ellipse in the box stands in for
    it.
    """
    left, top, right, bottom = box_xyxy
    width, height = right - left, bottom - top
    pasted = frame_bgr.copy()
    pasted[top:bottom, left:right] = cv2.resize(face_bgr, (width, height))
    mask = np.zeros(frame_bgr.shape[:2], np.uint8)
    centre = ((left + right) // 2, (top + bottom) // 2)
    cv2.ellipse(mask, centre, (width // 2, height // 2), 0, 0, 360, 255, -1)
    mask[: centre[1]] = 0
    side = 2 * int(max(width, height) // 2 * 1.5)
    kernel = int(0.05 * side // 2 * 2) + 1
    share = (cv2.GaussianBlur(mask, (kernel, kernel), 0).astype(np.float32) / 255)[..., None]
    return np.asarray(
        np.rint(frame_bgr + share * (pasted.astype(np.float32) - frame_bgr)), np.uint8
    )


def measured_part(frame_bgr: Image, box_xyxy: Box) -> Image:
    """The middle of the lower half of the face box, mouth and chin: all of it is blended in by the
    host.

    Around it the three clips hold the same pixels, which would only water the figures down.
    """
    left, top, right, bottom = box_xyxy
    width, height = right - left, bottom - top
    rows = slice(top + height // 2, top + round(0.88 * height))
    return frame_bgr[rows, left + round(0.2 * width) : right - round(0.2 * width)]


def label(image_bgr: Image, text: str, left_top: tuple[int, int], height: int) -> None:
    """Write white `text` on a dark plate, `height` pixels high, into the picture."""
    from PIL import Image as Pictures
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(size=height * 0.56)
    x0, _, x1, _ = font.getbbox(text)
    left, top = left_top
    area = image_bgr[top : top + height, left : left + round(x1 - x0 + 0.8 * height)]
    plate = Pictures.fromarray((area[..., ::-1] * 0.3).astype(np.uint8))
    middle = (plate.width / 2, plate.height / 2)
    ImageDraw.Draw(plate).text(middle, text, fill=(255, 255, 255), font=font, anchor="mm")
    area[:] = np.asarray(plate)[..., ::-1]


def zoom(frame_bgr: Image, window_xyxy: Box, size_wh: tuple[int, int]) -> Image:
    """A part of a frame at another size; where it leaves the frame, the last pixels are
    repeated."""
    left, top, right, bottom = window_xyxy
    matrix = np.array(
        [[(right - left) / size_wh[0], 0, left], [0, (bottom - top) / size_wh[1], top]]
    )
    shift = matrix[:, :2] @ (0.5, 0.5) - 0.5  # pixel centres, not corners
    matrix[:, 2] += shift
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(
        frame_bgr, matrix, size_wh, flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(picture, np.uint8)


def square_around(box_xyxy: Box, share: float) -> Box:
    """A square about the middle of a box, `share` times as high."""
    left, top, right, bottom = box_xyxy
    half = round(share * (bottom - top) / 2)
    x, y = (left + right) // 2, (top + bottom) // 2
    return x - half, y - half, x + half, y + half


def side_by_side(frames_bgr: dict[str, Image], window_xyxy: Box, side: int) -> Image:
    """Frames zoomed to the face, each with its name: ``(side, len(frames) * side, 3)``."""
    plate = max(18, side // 18)
    panels = []
    for text, frame in frames_bgr.items():
        panel = zoom(frame, window_xyxy, (side, side))
        label(panel, text, (plate // 2, plate // 2), plate)
        panels.append(panel)
    return np.hstack(panels)


def comparison(frames_bgr: dict[str, Image], box_xyxy: Box) -> Image:
    """The still picture: the faces large, each with its name, and below them the mouths larger."""
    left, top, right, bottom = box_xyxy
    x, y, half = (
        (left + right) // 2,
        round(top + 0.735 * (bottom - top)),
        round(0.27 * (bottom - top)),
    )
    mouth = (x - half, y - half // 2, x - half + 2 * half, y - half // 2 + half)
    face_wh, mouth_wh = (PANEL, PANEL), (PANEL, PANEL // 2)
    line = np.full((6, PANEL, 3), 255, np.uint8)
    columns = []
    for text, frame in frames_bgr.items():
        face = zoom(frame, square_around(box_xyxy, 1.2), face_wh)
        label(face, text, (14, 14), 34)
        columns += [np.vstack([face, line, zoom(frame, mouth, mouth_wh)]), None]
    gap = np.full((columns[0].shape[0], 6, 3), 255, np.uint8)
    return np.hstack([gap if column is None else column for column in columns[:-1]])


@dataclass
class Measures:
    """What is measured frame by frame, by name, and the seconds each stage took."""

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def add(self, source: Image, before: Image, after: Image) -> None:
        """Measure the same part of one frame in the three clips."""
        for name, region in (("source", source), ("before", before), ("after", after)):
            self.values[f"sharpness_{name}"].append(laplacian_energy(region))
            if name != "source":
                self.values[f"psnr_{name}"].append(min(psnr(region, source), 100.0))
                self.values[f"drift_{name}"].append(color_drift(region, source))

    def mean(self, name: str) -> float:
        """Mean over the frames."""
        return round(float(np.mean(self.values[name])), 3)


def run(args: argparse.Namespace, enhancer: GFPGANEnhancer) -> dict[str, Any]:
    """Make every file under ``args.out``; return the report."""
    count = max(1, round(args.seconds * args.fps))
    args.out.mkdir(parents=True, exist_ok=True)
    measures, best, window = Measures(), (-1.0, np.empty(0, np.uint8)), None
    head = talking_head(count, args.size, args.fps, args.seed)
    start = time.perf_counter()
    with ExitStack() as stack:
        sizes = {name: (args.size, args.size) for name in CLIPS} | {
            "side_by_side": (3 * args.size, args.size)
        }
        writers = {
            name: stack.enter_context(VideoWriter(args.out / f"{name}.mp4", args.fps, sizes[name]))
            for name in CLIPS
        }
        bar = stack.enter_context(tqdm(total=count, desc="demo", unit="frame"))
        while True:
            with measures.timed("make the source"):
                batch = list(islice(head, BATCH))
            if not batch:
                break
            with measures.timed("host: crop and soften"):
                soft = np.stack([soften(crop_face(*pair), args.seed) for pair in batch])
            with measures.timed("restore"):
                restored = enhancer(soft)
            for (source, box), soft_face, face in zip(batch, soft, restored, strict=True):
                window = window or square_around(box, 1.3)
                with measures.timed("host: blend"):
                    before, after = (blend_face(source, part, box) for part in (soft_face, face))
                with measures.timed("measure"):
                    measures.add(*(measured_part(frame, box) for frame in (source, before, after)))
                with measures.timed("compare and write"):
                    # the liveliest frame: teeth, open eyes
                    if measures.values["sharpness_source"][-1] > best[0]:
                        named = {
                            "before": before,
                            f"after: {enhancer.model_name}": after,
                            "source": source,
                        }
                        best = measures.values["sharpness_source"][-1], comparison(named, box)
                    three = {"before": before, "after": after, "source": source}
                    panels = side_by_side(three, window, args.size)
                    for writer, frame in zip(
                        writers.values(), (source, before, after, panels), strict=True
                    ):
                        writer.write(frame)
                bar.update()
    write_image(args.out / "before_after.png", best[1])
    return make_report(args, enhancer, measures, count, time.perf_counter() - start)


def make_report(
    args: argparse.Namespace,
    enhancer: GFPGANEnhancer,
    measures: Measures,
    count: int,
    total_s: float,
) -> dict[str, Any]:
    """The figures, and what is wrong with them under ``problems``; also written to
    ``report.json``."""
    both = ("before", "after")
    report: dict[str, Any] = {
        "frames": count,
        "frames_in_files": {
            name: sum(1 for _ in read_frames(args.out / f"{name}.mp4")) for name in CLIPS
        },
        "size_wh": [args.size, args.size],
        "fps": str(args.fps),
        "model": enhancer.model_name,
        "device": str(enhancer.device),
        "softness": "a lapped cosine transform in place of a latent decoder, see "
        "examples/latent_softness.py",
        "region_measured": "middle of the lower half of the face box; frames as blended, before "
        "the video encoder",
        "sharpness": {name: measures.mean(f"sharpness_{name}") for name in (*both, "source")},
        "psnr_db": {name: measures.mean(f"psnr_{name}") for name in both},
        "color_drift": {name: measures.mean(f"drift_{name}") for name in both},
        "seconds": {stage: round(value, 3) for stage, value in measures.seconds.items()},
        "faces_per_second": round(count / max(measures.seconds["restore"], 1e-9), 2),
        "frames_per_second": round(count / total_s, 2),
        "stats": enhancer.stats.as_dict(),
        "versions": versions(),
        "files": [*(f"{name}.mp4" for name in CLIPS), "before_after.png", "report.json"],
    }
    lost = [
        f"{name}.mp4 holds {n} frames of {count}"
        for name, n in report["frames_in_files"].items()
        if n != count
    ]
    soft = report["sharpness"]["after"] <= report["sharpness"]["before"]
    report["problems"] = lost + (
        ["the restored clip is not sharper than the soft one"] if soft else []
    )
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def versions() -> dict[str, str]:
    """What ran: versions of Python, of this library, and of what it stands on."""
    import av
    import torch

    return {
        "python": platform.python_version(),
        "musetalk_enhance": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "av": av.__version__,
    }


def table(report: dict[str, Any], out: Path) -> str:
    """The report for a person, in plain text."""
    width, height = report["size_wh"]
    sharp, near, drift = report["sharpness"], report["psnr_db"], report["color_drift"]
    lines = [
        f"{'frames':<12} {report['frames']} of {width} x {height}, {report['fps']} fps",
        f"{'model':<12} {report['model']} on {report['device']}",
        f"{'speed':<12} {report['faces_per_second']:.1f} faces/s restored, "
        f"{report['frames_per_second']:.1f} frames/s for the whole demo",
        "",
        f"{'':<12} {'before':>8} {'after':>8} {'source':>8}   mouth and chin, mean over the frames",
        f"{'sharpness':<12} {sharp['before']:>8.1f} {sharp['after']:>8.1f} "
        f"{sharp['source']:>8.1f}   variance of the Laplacian",
        f"{'PSNR':<12} {near['before']:>8.2f} {near['after']:>8.2f} {'':>8}   dB against the "
        "source",
        f"{'colour drift':<12} {drift['before']:>8.2f} {drift['after']:>8.2f} {'':>8}   of 255, "
        "against the source",
        "",
        *(
            f"{'files' if not index else '':<12} {out / name}"
            for index, name in enumerate(report["files"])
        ),
    ]
    return "\n".join(lines)


def _rate(text: str) -> Fraction:
    try:
        return Fraction(text)
    except ZeroDivisionError as error:
        raise ValueError(text) from error


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line. Restoration is on, with the embedded model at its own size, unless flags
    say otherwise."""
    parser = argparse.ArgumentParser(description="Restore a synthetic talking head and measure it.")
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), help="folder for the files (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="length of the clip (%(default)s)"
    )
    parser.add_argument(
        "--fps", type=_rate, default=Fraction(25), help="such as 25 or 30000/1001 (25)"
    )
    parser.add_argument(
        "--size", type=int, default=640, help="side of the frames in pixels (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another take (%(default)s)")
    add_gfpgan_arguments(parser)
    parser.set_defaults(enable_gfpgan=True)
    args = parser.parse_args(argv)
    if not 0 < args.seconds < float("inf") or args.fps <= 0 or not 160 <= args.size <= 2160:
        parser.error("--seconds and --fps must be over 0, --size from 160 to 2160")
    if any(path.exists() and not path.is_dir() for path in (args.out, *args.out.parents)):
        parser.error(f"--out {args.out}: a file stands where a folder is needed")
    if not hasattr(args, "gfpgan_model") and not hasattr(args, "gfpgan_model_path"):
        args.gfpgan_model = "lite"
    # the host resizes to the box itself, and the box is over 256 px
    if not hasattr(args, "gfpgan_output_size"):
        args.gfpgan_output_size = "native"
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the demo. Returns 0, or 1 when frames were lost or the result is no sharper, or 2 on an
    error, or 130 when interrupted."""
    args = parse(argv)
    new_folders = [path for path in (args.out, *args.out.parents) if not path.exists()]
    try:
        with GFPGANEnhancer.from_args(args) as enhancer:
            report = run(args, enhancer)
    except EnhanceError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndemo: interrupted, nothing was written", file=sys.stderr)
        return 130
    finally:
        for path in new_folders:
            with suppress(OSError):  # it holds files
                path.rmdir()
    print(f"\n{table(report, args.out)}")
    for problem in report["problems"]:
        print(f"demo: {problem}", file=sys.stderr)
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
