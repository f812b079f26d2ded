"""Measure on real clips what stability, colour, guard and regions do, against the bars they were built for.

    python scripts/measure_stability.py --clips CLIPS --yunet YUNET.onnx [--frames 100] [--only NAME ...] \
        [--model lite | --random] [--out out/stability]

Of every clip the face is cut out as MuseTalk boxes it, softened as its decoder leaves it (`lite_data.soften`,
96 pixels), and restored twice with the same network: every frame by itself, and as it is shipped. The unsoftened
crop is the reference. `--random` takes a full-size GFPGAN with random weights instead, for the flicker of noise
alone: what it paints is no face, so the guard is off.

Printed for each clip: warping error against the soft input's, both as absolute (Lei et al., 2020) and squared (Lai
et al., 2018) difference, of the reference, without and with stability; the gain in sharpness with it on as a share
of the gain without; PSNR against the reference; correlation and lag of the mouth's opening against the soft input;
drift of the mean colour; what the guard did. Written as stability.json too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lite_data import FaceFinder, soften
from numpy.typing import NDArray

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.faces.gauge import FaceGauge
from musetalk_enhance.media import read_frames
from musetalk_enhance.metrics import Motion, laplacian_energy, opening_lag, psnr

Frames = NDArray[np.uint8]
OFF = {"stability": 0, "color_match": False, "guard": False, "sharpness_gate": False}


def crops(clip: Path, finder: FaceFinder, count: int) -> Frames:
    """The first `count` faces of a clip, BGR uint8 (N, 256, 256, 3): each box as the detector finds it."""
    found: list[Frames] = []
    for frame in read_frames(clip):
        box = finder.find(frame[..., ::-1])
        if box is not None:
            x, y, w, h = box
            face = frame[max(0, int(y + 0.08 * h)) : int(y + h), max(0, int(x)) : int(x + w)]
            found.append(np.asarray(cv2.resize(face, (256, 256), interpolation=cv2.INTER_LANCZOS4), np.uint8))
        if len(found) == count:
            break
    return np.stack(found)


def warping(frames: Frames, motions: list[Motion]) -> NDArray[np.float64]:
    """Mean absolute and mean squared difference of the frames to the following ones, moved."""
    both = []
    for here, there, motion in zip(frames[:-1], frames[1:], motions, strict=True):
        error = (here.astype(np.float32) - motion.warp(there.astype(np.float32)))[motion.seen]
        both.append((np.abs(error).mean(), np.square(error).mean()))
    return np.asarray(both, np.float64).mean(axis=0)


def sharpness(frames: Frames) -> float:
    """Mean Laplacian energy."""
    return float(np.mean([laplacian_energy(frame) for frame in frames]))


def mouths(frames: Frames, gauge: FaceGauge) -> NDArray[np.float64]:
    """The mouth's opening in every frame."""
    faces = torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
    return np.concatenate([gauge.measure(part).mouth.numpy() for part in faces.split(16)]).astype(np.float64)


def measure(clip: Path, args: argparse.Namespace, enhancers: dict[str, GFPGANEnhancer]) -> dict[str, Any]:
    """All figures of one clip."""
    gauge = FaceGauge()
    sharp = crops(clip, FaceFinder(args.yunet), args.frames)
    soft = np.stack([soften(frame, 96) for frame in sharp])
    motions = [Motion.between(a, b) for a, b in zip(soft[:-1], soft[1:], strict=True)]
    base, opened = warping(soft, motions), mouths(soft, gauge)
    row: dict[str, Any] = {
        "frames": len(sharp),
        "warping_reference": (warping(sharp, motions) / base).round(3).tolist(),
        "mouth_deviation": round(float(opened.std()), 4),
    }
    gains = {}
    for name, enhancer in enhancers.items():
        enhancer.reset()
        enhancer.stats.clear()
        start = time.perf_counter()
        out = np.concatenate([enhancer(soft[at : at + 8]) for at in range(0, len(soft), 8)])
        gains[name] = sharpness(out) - sharpness(soft)
        lag, agreement = opening_lag(opened, mouths(out, gauge))
        row[name] = {
            "warping": (warping(out, motions) / base).round(3).tolist(),
            "psnr": round(float(np.mean([psnr(a, b) for a, b in zip(out, sharp, strict=True)])), 2),
            "mouth_correlation": round(agreement, 4),
            "mouth_lag": lag,
            "mouth_difference": round(float(np.abs(opened - mouths(out, gauge)).max()), 4),
            "drift": round(float(np.abs(out.mean((1, 2)) - soft.mean((1, 2))).max()), 3),
            "guarded": dict(enhancer.stats.guarded),
            "ms_per_face": round((time.perf_counter() - start) / len(soft) * 1e3, 1),
            "ms": {stage: round(ms / len(soft), 1) for stage, ms in enhancer.stats.ms.items()},
        }
    row["gain_kept"] = round(gains["on"] / gains["off"], 3)
    return row


def still(enhancer: GFPGANEnhancer, frame: Frames) -> bool:
    """Whether one frame comes out the same fifty times."""
    enhancer.reset()
    out = np.concatenate([enhancer(np.repeat(frame[None], count, 0)) for count in (1, 3, 8, 8, 8, 8, 8, 6)])
    return bool((out == out[0]).all())


def line(name: str, row: dict[str, Any]) -> str:
    """One clip for a person."""
    on, off = row["on"], row["off"]
    return "  ".join(
        (
            f"{name:<13}",
            f"warping off {off['warping']} on {on['warping']} reference {row['warping_reference']}",
            f"gain kept {row['gain_kept']:.2f}",
            f"PSNR {off['psnr']:.2f} -> {on['psnr']:.2f}",
            f"mouth {on['mouth_correlation']:.3f} lag {on['mouth_lag']} (moves by {row['mouth_deviation']})",
            f"drift {on['drift']:.2f}",
            f"guarded {on['guarded']}",
            f"ms {off['ms_per_face']} -> {on['ms_per_face']}",
        )
    )


def main() -> int:
    """Measure every clip; 0 when the still frame is still."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--yunet", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--model", default="lite")
    parser.add_argument("--random", action="store_true", help="a full-size GFPGAN with random weights")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, default=Path("out/stability"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"model": args.model, "backend": args.backend}
        if args.random:
            from musetalk_enhance.bench.checkpoints import random_gfpgan, save

            path = Path(folder) / "random.safetensors"
            save(random_gfpgan(), path)
            options = {"model_path": str(path), "backend": args.backend}
        on = {"guard": False} if args.random else {}
        enhancers = {"off": GFPGANEnhancer(**options, **OFF), "on": GFPGANEnhancer(**options, **on)}
        rows: dict[str, Any] = {}
        for clip in sorted(args.clips.glob("*.mp4")):
            if not args.only or clip.stem in args.only:
                rows[clip.stem] = measure(clip, args, enhancers)
                print(line(clip.stem, rows[clip.stem]), flush=True)
        frame = soften(crops(clip, FaceFinder(args.yunet), 1)[0], 96)
        rows["still_frame_identical_50_times"] = still(enhancers["on"], frame)
    print("a still frame comes out the same 50 times:", rows["still_frame_identical_50_times"])
    (args.out / "stability.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if rows["still_frame_identical_50_times"] else 1


if __name__ == "__main__":
    sys.exit(main())
