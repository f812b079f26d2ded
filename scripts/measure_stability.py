"""Measure on real clips what stability, color match and guard do, on two kinds of softness.

    python scripts/measure_stability.py --clips CLIPS --yunet YUNET.onnx --autoencoder DIR \
        [--frames 40] [--softness area:96 decoder:0.35,0.1] [--only NAME ...] \
        [--model lite | --random | --oracle] [--out FOLDER]

Of every clip the face is cropped as MuseTalk boxes it, softened (``area:SIDE``: resized to SIDE
pixels and back; ``decoder:BLEND,NOISE``: through the latent autoencoder of
DIR/tiny_autoencoder.py), and restored twice with the same network: every frame by itself, and as it
is shipped. The unsoftened crop is the reference. `--random` takes a full-size GFPGAN with random
weights instead, for the flicker of noise alone: what it paints is no face, so the guard is off.

Printed for each clip: warping error against the soft input's, both as absolute (Lei et al., 2020)
and squared (Lai et al., 2018) difference, of the reference, without and with stability; the gain in
sharpness with it on as a share of the gain without; PSNR of the soft input and of both results
against the reference; correlation and lag of the mouth's opening against the soft input; drift of
the mean color; what the guard did.

`--oracle` restores with perfect restorers in place of a network, the *full* one, which hands back
the reference itself, and the *detail* one, which adds the reference's detail (finer than a Gaussian
of 2 pixels) to the input. It prints how much of them arrives, and which part of the pipeline takes
the rest.

Written as stability.json too.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lite_data import FaceFinder, soften
from numpy.typing import NDArray

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.faces.meter import FaceMeter
from musetalk_enhance.media import read_frames
from musetalk_enhance.report.metrics import Motion, fine_detail_energy, opening_lag, psnr
from musetalk_enhance.restorers.base import LoadRequest, ModelInfo, Restorer

Frames = NDArray[np.uint8]
OFF: dict[str, Any] = {"stability": 0, "color_match": False, "guard": False}
PARTS: dict[str, dict[str, Any]] = {
    "none": {},
    "color_match": {"color_match": True},
    "stability": {"stability": 1},
    "guard": {"guard": True},
    "defaults": {"stability": "auto", "color_match": "auto", "guard": "auto"},
}
DETAIL_SIGMA = 2.0
BATCH = 8


def face_crops(clip: Path, finder: FaceFinder, count: int) -> Frames:
    """The first `count` faces of a clip, BGR uint8 (N, 256, 256, 3): each box as the detector sees
    it."""
    crops: list[Frames] = []
    for frame in read_frames(clip):
        box = finder.find(frame[..., ::-1])
        if box is not None:
            x, y, w, h = box
            face = frame[max(0, int(y + 0.08 * h)) : int(y + h), max(0, int(x)) : int(x + w)]
            mode = cv2.INTER_AREA if min(face.shape[:2]) >= 256 else cv2.INTER_LANCZOS4
            crops.append(np.asarray(cv2.resize(face, (256, 256), interpolation=mode), np.uint8))
        if len(crops) == count:
            break
    return np.stack(crops)


def softened(frames: Frames, softness: str, args: argparse.Namespace) -> Frames:
    """The frames as a host's decoder leaves them; `softness` is ``area:SIDE`` or
    ``decoder:BLEND,NOISE``."""
    kind, _, values = softness.partition(":")
    if kind == "area":
        return np.stack([soften(frame, int(values)) for frame in frames])
    sys.path.insert(0, str(args.autoencoder))
    decoder_soft = importlib.import_module("tiny_autoencoder").decoder_soft
    blend, noise = (float(value) for value in values.split(","))
    generator = torch.Generator().manual_seed(0)
    parts = [decoder_soft(part, blend, noise, generator) for part in to_faces(frames).split(4)]
    return to_frames(torch.cat(parts))


def to_faces(frames: Frames) -> torch.Tensor:
    """BGR uint8 (N, H, W, 3) to float RGB 0..1 (N, 3, H, W)."""
    return torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255


def to_frames(faces: torch.Tensor) -> Frames:
    """The way back."""
    rgb = (faces.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(rgb[..., ::-1])


class Oracle(Restorer):
    """Hands back, in order, the faces that it was given beforehand."""

    info = ModelInfo("oracle", "no network", 256, 256, (0.0, 1.0), "none", bytes_per_face=2**20)

    def __init__(self, request: LoadRequest, answers: torch.Tensor) -> None:
        super().__init__(request)
        self.info, self.answers, self.place = request.info, answers, 0

    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        self.place += len(faces_rgb)
        return self.answers[self.place - len(faces_rgb) : self.place]

    def to(self, device: torch.device) -> None:
        self.device = device

    def close(self) -> None:
        self.answers = self.answers[:0]


@contextmanager
def oracle(
    answers: Frames, info: ModelInfo = Oracle.info, **options: Any
) -> Iterator[GFPGANEnhancer]:
    """An enhancer whose restorer hands back `answers`."""
    settings = EnhancerSettings(enabled=True, on_error="raise", **(OFF | options))
    request = LoadRequest(info, settings, torch.device("cpu"))
    with GFPGANEnhancer.from_settings(settings, Oracle(request, to_faces(answers))) as enhancer:
        yield enhancer


def detail_of(frames: Frames) -> NDArray[np.float32]:
    """Frames minus their Gaussian of `DETAIL_SIGMA`."""
    values = frames.astype(np.float32)
    return values - np.stack([cv2.GaussianBlur(value, (0, 0), DETAIL_SIGMA) for value in values])


def restored(enhancer: GFPGANEnhancer, soft: Frames) -> tuple[Frames, list[float]]:
    """The frames, batch by batch, and the strength that each got."""
    strengths: list[float] = []
    enhancer.observe(lambda before, after, note: strengths.append(getattr(note, "strength", 0.0)))
    batches = [enhancer(soft[start : start + BATCH]) for start in range(0, len(soft), BATCH)]
    return np.concatenate(batches), strengths


def mean_psnr(frames: Frames, sharp: Frames) -> float:
    """Mean over the frames, dB; equal frames count as 60."""
    return float(np.mean([min(60.0, psnr(a, b)) for a, b in zip(frames, sharp, strict=True)]))


def measure_oracles(sharp: Frames, soft: Frames) -> dict[str, Any]:
    """What of two perfect restorers arrives, part by part."""
    detail = np.clip(np.rint(soft + detail_of(sharp) - detail_of(soft)), 0, 255).astype(np.uint8)
    row: dict[str, Any] = {"soft_psnr": round(mean_psnr(soft, sharp), 2)}
    for name, answers in (("full", sharp), ("detail", detail)):
        row[name] = {}
        for part, options in PARTS.items():
            with oracle(answers, **options) as enhancer:
                out, strengths = restored(enhancer, soft)
                row[name][part] = {
                    "psnr": round(mean_psnr(out, sharp), 2),
                    "strength": round(float(np.mean(strengths)), 3),
                    "guarded": dict(enhancer.stats.guarded),
                }
    return row


def warping(frames: Frames, motions: list[Motion]) -> NDArray[np.float64]:
    """Mean absolute and mean squared difference of the frames to the following ones, moved."""
    both = []
    for before, after, motion in zip(frames[:-1], frames[1:], motions, strict=True):
        error = (before.astype(np.float32) - motion.warp(after.astype(np.float32)))[motion.visible]
        both.append((np.abs(error).mean(), np.square(error).mean()))
    return np.asarray(both, np.float64).mean(axis=0)


def sharpness(frames: Frames) -> float:
    """Mean energy of fine detail."""
    return float(np.mean([fine_detail_energy(frame) for frame in frames]))


def mouths(frames: Frames, gauge: FaceMeter) -> NDArray[np.float64]:
    """The mouth's opening in every frame."""
    parts = [gauge.measure(part).mouth.numpy() for part in to_faces(frames).split(16)]
    return np.concatenate(parts).astype(np.float64)


def measure(sharp: Frames, soft: Frames, enhancers: dict[str, GFPGANEnhancer]) -> dict[str, Any]:
    """All figures of one clip and softness."""
    gauge = FaceMeter()
    motions = [Motion.between(a, b) for a, b in zip(soft[:-1], soft[1:], strict=True)]
    base, opened = warping(soft, motions), mouths(soft, gauge)
    row: dict[str, Any] = {
        "frames": len(sharp),
        "warping_reference": (warping(sharp, motions) / base).round(3).tolist(),
        "mouth_deviation": round(float(opened.std()), 4),
        "soft_psnr": round(mean_psnr(soft, sharp), 2),
        "sharpness": [round(sharpness(soft), 1), round(sharpness(sharp), 1)],
    }
    gains = {}
    for name, enhancer in enhancers.items():
        enhancer.reset()
        enhancer.stats.clear()
        start = time.perf_counter()
        out, strengths = restored(enhancer, soft)
        gains[name] = sharpness(out) - sharpness(soft)
        lag, agreement = opening_lag(opened, mouths(out, gauge))
        row[name] = {
            "warping": (warping(out, motions) / base).round(3).tolist(),
            "psnr": round(mean_psnr(out, sharp), 2),
            "strength": round(float(np.mean(strengths[-len(soft) :])), 3),
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
    out = np.concatenate(
        [enhancer(np.repeat(frame[None], count, 0)) for count in (1, 3, 8, 8, 8, 8, 8, 6)]
    )
    return bool((out == out[0]).all())


def line(name: str, row: dict[str, Any]) -> str:
    """One clip and softness for a person."""
    if "full" in row:
        parts = [
            f"{which} {part} {row[which][part]['psnr']:.2f} dB strength "
            f"{row[which][part]['strength']:.2f}"
            for which in ("full", "detail")
            for part in PARTS
        ]
        return f"{name:<28}soft {row['soft_psnr']:.2f} dB  {'  '.join(parts)}"
    on, off = row["on"], row["off"]
    return "  ".join(
        (
            f"{name:<28}",
            f"warping off {off['warping']} on {on['warping']} reference {row['warping_reference']}",
            f"gain kept {row['gain_kept']:.2f}",
            f"PSNR {row['soft_psnr']:.2f} -> {off['psnr']:.2f} -> {on['psnr']:.2f}",
            f"strength {on['strength']:.2f}",
            f"mouth {on['mouth_correlation']:.3f} lag {on['mouth_lag']} (moves by "
            f"{row['mouth_deviation']})",
            f"drift {on['drift']:.2f}",
            f"guarded {on['guarded']}",
            f"ms {off['ms_per_face']} -> {on['ms_per_face']}",
        )
    )


def main() -> int:
    """Measure every clip; 0 when the still frame is still."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--yunet", type=Path, required=True)
    parser.add_argument(
        "--autoencoder", type=Path, help="folder of tiny_autoencoder.py, for decoder softness"
    )
    parser.add_argument("--softness", nargs="+", default=["area:96", "decoder:0.35,0.1"])
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--model", default="lite")
    parser.add_argument(
        "--random", action="store_true", help="a full-size GFPGAN with random weights"
    )
    parser.add_argument(
        "--oracle", action="store_true", help="perfect restorers in place of a network"
    )
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, default=Path("out/stability"))
    args = parser.parse_args()
    if args.autoencoder is None and any(
        softness.startswith("decoder") for softness in args.softness
    ):
        parser.error("decoder softness needs --autoencoder DIR; or give --softness area:96")
    args.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        enhancers = {} if args.oracle else loaded(args, Path(folder))
        for clip in sorted(args.clips.glob("*.mp4")):
            if args.only and clip.stem not in args.only:
                continue
            sharp = face_crops(clip, FaceFinder(args.yunet), args.frames)
            for softness in args.softness:
                name = f"{clip.stem} {softness}"
                stored = args.out / f"{name.replace(' ', '-').replace(':', '-')}-{len(sharp)}.npy"
                if not stored.exists():
                    np.save(stored, softened(sharp, softness, args))
                soft = np.load(stored)
                rows[name] = (
                    measure_oracles(sharp, soft) if args.oracle else measure(sharp, soft, enhancers)
                )
                print(line(name, rows[name]), flush=True)
        if enhancers:
            rows["still_frame_identical_50_times"] = still(enhancers["on"], soft[0])
    print(
        "a still frame comes out the same 50 times:",
        rows.get("still_frame_identical_50_times", "not measured"),
    )
    file = args.out / ("oracles.json" if args.oracle else "stability.json")
    file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if rows.get("still_frame_identical_50_times", True) else 1


def loaded(args: argparse.Namespace, folder: Path) -> dict[str, GFPGANEnhancer]:
    """The network without anything beside it, and as it is shipped."""
    # bf16 shifts the mean color by up to half a level, which the color match hides
    options: dict[str, Any] = {"model": args.model, "backend": args.backend, "dtype": "fp32"}
    on = {}
    if args.random:
        from benchmarks.checkpoints import random_gfpgan, save

        path = folder / "random.safetensors"
        save(random_gfpgan(), path)
        options, on = {"model_path": str(path), "backend": args.backend}, {"guard": False}
    return {"off": GFPGANEnhancer(**options, **OFF), "on": GFPGANEnhancer(**options, **on)}


if __name__ == "__main__":
    sys.exit(main())
