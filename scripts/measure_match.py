"""Measure on real clips what ``match: source`` does, with MuseTalk's way of blending.

    python scripts/measure_match.py --clips CLIPS --yunet YUNET.onnx --autoencoder DIR \
        [--frames 24] [--softness area:96 decoder:0.35,0.1] [--only NAME ...] [--out FILE]

Of every clip the face is cropped as MuseTalk boxes it and softened as a host leaves it; the
unsoftened crop is the source. It is restored by lite and by an oracle that hands back the source
with its detail doubled, as GFPGAN-like restorers overdo it, each without and with matching, then
resized to its box and blended into its frame under the lower half of the face with a blurred edge.

Printed, as the mean of each clip: energy of fine detail at the mouth over that of the original's,
which is the ratio of mouth to surroundings over the original's, as the surroundings are the
original itself; the step of color across the seam, in levels of 8 bits: the mean absolute
difference of low frequencies between blended frame and original along the edge of the mask; PSNR
to the original at the mouth; warping error over the original's own; the greatest change from an
untouched frame to the blended one that follows it, at the mouth (`jump`) and under the rest of the
mask (`jump_around`), as a multiple of the clip's own change there between these frames, and the
same at the mouth where a host fades over four frames (`jump_fade`); and what the blended frames
differ by from the originals, in levels: low frequencies (`color`) and the rest (`detail`) of both
parts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lite_data import FaceFinder
from measure_stability import Frames, detail_of, mean_psnr, oracle, softened, warping

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.faces.regions import region_mask
from musetalk_enhance.media import read_frames
from musetalk_enhance.report.metrics import Motion, fine_detail_energy
from musetalk_enhance.restorers.base import ModelInfo

OPTIONS: dict[str, Any] = {"output_size": "native", "region": "lower"}
EXCESS, FADE = 1.0, 4
INFO = ModelInfo("oracle", "no network", 256, 512, (0.0, 1.0), "none", bytes_per_face=2**20)


def boxed(clip: Path, finder: FaceFinder, count: int) -> Frames:
    """Faces of a clip in the size of the first one's box, BGR uint8 (N, H, W, 3)."""
    faces: list[Frames] = []
    size: tuple[int, int] | None = None
    for frame in read_frames(clip):
        box = finder.find(frame[..., ::-1])
        if box is None:
            continue
        x, y, w, h = box
        face = frame[max(0, int(y + 0.08 * h)) : int(y + h), max(0, int(x)) : int(x + w)]
        size = size or (face.shape[1], face.shape[0])
        faces.append(np.asarray(cv2.resize(face, size, interpolation=cv2.INTER_AREA), np.uint8))
        if len(faces) == count:
            break
    return np.stack(faces)


def blend_mask(size_hw: tuple[int, int]) -> np.ndarray:
    """The lower half of an ellipse with a blurred edge, float32 (H, W, 1), as MuseTalk blends."""
    height, width = size_hw
    mask = np.zeros(size_hw, np.float32)
    center, axes = (width // 2, height // 2), (int(0.42 * width), int(0.46 * height))
    cv2.ellipse(mask, center, axes, 0, 0, 360, 1.0, -1)
    mask[: height // 2] = 0
    kernel = int(0.1 * width) // 2 * 2 + 1
    return np.asarray(cv2.GaussianBlur(mask, (kernel, kernel), 0), np.float32)[..., None]


def blended(restored: Frames, originals: Frames) -> Frames:
    """Restored crops, resized to their boxes, under the mask."""
    height, width = originals.shape[1:3]
    mask = blend_mask((height, width))
    results = []
    for face, original in zip(restored, originals, strict=True):
        enlarged = cv2.resize(face, (width, height), interpolation=cv2.INTER_LINEAR)
        results.append(np.rint(mask * enlarged + (1 - mask) * original).astype(np.uint8))
    return np.stack(results)


def mouth_of(frames: Frames) -> Frames:
    """The part around the mouth."""
    height, width = frames.shape[1:3]
    rows, columns = (
        slice(int(a * side), int(b * side))
        for a, b, side in ((0.62, 0.92, height), (0.28, 0.72, width))
    )
    return frames[:, rows, columns]


def seam_step(results: Frames, originals: Frames) -> float:
    """Mean absolute difference of low frequencies along the seam, in levels."""
    height, width = originals.shape[1:3]
    mask = blend_mask((height, width))[..., 0]
    seam = (mask > 0.15) & (mask < 0.85)
    sigma = width / 16
    steps = []
    for result, original in zip(results, originals, strict=True):
        difference = result.astype(np.float32) - original
        coarse = cv2.GaussianBlur(difference, (0, 0), sigma)
        steps.append(float(np.abs(coarse[seam]).mean()))
    return float(np.mean(steps))


def parts_of_jump(results: Frames, originals: Frames) -> dict[str, float]:
    """What changes where a host goes from its own frames to blended ones."""
    height, width = size = originals.shape[1:3]
    inside = np.zeros(size, bool)
    mouth_of(inside[None])[:] = True
    region = region_mask("mouth", size)
    assert region is not None
    outside = (blend_mask(size)[..., 0] > 0.5) & (region[0, 0].numpy() < 0.05)
    ours, theirs = results.astype(np.float32), originals.astype(np.float32)
    error = ours - theirs
    color = np.stack([cv2.GaussianBlur(each, (0, 0), width / 16) for each in error])
    row: dict[str, float] = {}
    for name, place in (("mouth", inside), ("around", outside)):
        own = np.maximum(np.abs(theirs[1:] - theirs[:-1])[:, place].mean((1, 2)), 0.1)
        steps = np.abs(ours[1:] - theirs[:-1])[:, place].mean((1, 2)) / own
        row["jump" if name == "mouth" else "jump_around"] = float(steps.max())
        row[f"{name}_color"] = float(np.abs(color[:, place]).mean())
        row[f"{name}_detail"] = float(np.abs(error - color)[:, place].mean())
        if name == "mouth":
            faded = [
                np.abs(
                    (theirs + min(1, (step + 1) / FADE) * error)[step + 1 :]
                    - (theirs + step / FADE * error)[step:-1]
                )[:, place].mean((1, 2))
                / own[step:]
                for step in range(FADE)
            ]
            row["jump_fade"] = float(max(each.max() for each in faded))
    return row


def figures(restored: Frames, originals: Frames, motions: list[Motion]) -> dict[str, float]:
    """What is printed of one clip."""
    results = blended(restored, originals)
    ours, theirs = mouth_of(results), mouth_of(originals)
    shares = [
        fine_detail_energy(one) / fine_detail_energy(other)
        for one, other in zip(ours, theirs, strict=True)
    ]
    return {
        "sharpness": float(np.mean(shares)),
        "seam": seam_step(results, originals),
        "psnr": mean_psnr(ours, theirs),
        "warping": float((warping(results, motions) / warping(originals, motions))[0]),
        **parts_of_jump(results, originals),
    }


def measure(clip: Path, softness: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All figures of one clip."""
    originals = boxed(clip, FaceFinder(args.yunet), args.frames)
    small = np.stack(
        [
            cv2.resize(each, (256, 256), interpolation=cv2.INTER_AREA).astype(np.uint8)
            for each in originals
        ]
    )
    soft = softened(small, softness, args)
    motions = [Motion.between(a, b) for a, b in zip(originals[:-1], originals[1:], strict=True)]
    rows = {"input": figures(soft, originals, motions)}
    large = np.stack([cv2.resize(each, (512, 512)).astype(np.uint8) for each in originals])
    overdone = large + EXCESS * detail_of(large)
    overdone = np.clip(np.rint(overdone), 0, 255).astype(np.uint8)
    for match in ("none", "source"):
        sources = list(originals) if match == "source" else None
        options = OPTIONS | {"match": match}
        with GFPGANEnhancer(model="lite", **options) as enhancer:
            rows[f"lite, match {match}"] = figures(
                enhancer(soft, sources=sources), originals, motions
            )
        defaults = {"stability": "auto", "color_match": "auto", "guard": "auto"}
        with oracle(overdone, INFO, **defaults, **options) as enhancer:
            rows[f"oracle, match {match}"] = figures(
                enhancer(soft, sources=sources), originals, motions
            )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--yunet", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--softness", nargs="+", default=["area:96", "decoder:0.35,0.1"])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    for softness in args.softness:
        for clip in sorted(args.clips.glob("*.mp4")):
            if args.only and clip.stem not in args.only:
                continue
            rows[f"{softness} {clip.stem}"] = row = measure(clip, softness, args)
            for name, values in row.items():
                text = "  ".join(f"{key} {value:.2f}" for key, value in values.items())
                print(f"{softness:18} {clip.stem:14} {name:20} {text}", flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
