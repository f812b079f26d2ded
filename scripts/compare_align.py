"""Does aligning crops to the FFHQ template help? `align none` against `align ffhq`, with `lite`.

    python scripts/compare_align.py --data ../shared/data/clips \\
        --yunet face_detection_yunet_2023mar.onnx [--autoencoder DIR --softness decoder:0.35,0.1]

Faces of clips whose people the model has not seen are cropped and softened as a host does it (a
tight box, squashed to 256 px; ``area:SIDE``, or ``decoder:BLEND,NOISE`` through the latent
autoencoder of DIR/tiny_autoencoder.py) and restored to 512 px:

    none          the crop as it is
    ffhq          aligned by YuNet's landmarks of each soft crop, smoothed by the One-Euro filter
    ffhq, raw     the same without smoothing
    ffhq, plain   with smoothing, but what comes back replaces the crop instead of being added
    ffhq, box     with smoothing and with the box's own aspect

Aligned faces have the size that the network takes, as in the enhancer. Figures are of the mouth
and chin (rows 0.55 to 1, columns 0.15 to 0.85 of the crop) against the crop before it was softened:
PSNR, sharpness as a share of that crop's own (fine detail after a 0.8 px blur), and jitter, the
mean difference between the residuals (output minus enlarged input) of two consecutive frames, in
steps of 1/255.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lite_data import (
    HELD_OUT,
    INPUT,
    TARGET,
    Decoder,
    Image,
    decode,
    load_decoder,
    resize,
    soften,
    to_tensor,
)

from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.faces.align import Aligner, LandmarkTrack
from musetalk_enhance.faces.detect import FaceDetector, make_detector
from musetalk_enhance.frames.resize import resize as scaled
from musetalk_enhance.report.metrics import fine_detail_energy, psnr
from musetalk_enhance.restorers.base import Restorer
from musetalk_enhance.restorers.catalog import choose

WAYS = ("none", "ffhq", "ffhq, raw", "ffhq, plain", "ffhq, box")


def consecutive(path: Path, count: int) -> tuple[list[Image], float]:
    """`count` consecutive BGR frames from a third into the clip, and its frame rate."""
    video = cv2.VideoCapture(str(path))
    start = max(
        0,
        min(
            int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // 3,
            int(video.get(cv2.CAP_PROP_FRAME_COUNT)) - count,
        ),
    )
    frames: list[Image] = []
    for index in range(start + count):
        ok, frame = video.read()
        if ok and index >= start:
            frames.append(np.asarray(frame, np.uint8))
    fps = float(video.get(cv2.CAP_PROP_FPS)) or 25.0
    video.release()
    return frames, fps


def softened(crop_rgb: Image, softness: str, decoder: Decoder | None, seed: int) -> Image:
    """A sharp crop of 256 px as a host leaves it; ``area:SIDE`` or ``decoder:BLEND,NOISE``."""
    kind, _, values = softness.partition(":")
    if kind == "area":
        return soften(crop_rgb, int(values))
    blend, noise = (float(value) for value in values.split(","))
    return decode(decoder, crop_rgb, blend, noise, seed)


def cut(
    frames_bgr: list[Image], detector: FaceDetector, softness: str, decoder: Decoder | None
) -> tuple[Image, Image, float]:
    """Sharp crops (N, 512, 512, 3) RGB, soft ones of 256 px, and the box's width / height."""
    boxes = [faces[0].box_xyxy for frame in frames_bgr if (faces := detector.detect(frame))]
    height, width = frames_bgr[0].shape[:2]
    x1, y1, x2, y2 = (
        int(v) for v in np.clip(np.median(boxes, axis=0).round(), 0, (width, height) * 2)
    )
    sharp = np.stack(
        [resize(np.ascontiguousarray(frame[y1:y2, x1:x2, ::-1]), TARGET) for frame in frames_bgr]
    )
    soft = np.stack(
        [softened(resize(crop, INPUT), softness, decoder, seed) for seed, crop in enumerate(sharp)]
    )
    return sharp, soft, (x2 - x1) / (y2 - y1)


def landmarks_of(soft_rgb: Image, detector: FaceDetector, fps: float, smooth: bool) -> np.ndarray:
    """(N, 5, 2) in pixels of the soft crops."""
    track = LandmarkTrack(detector, fps=fps)
    found = []
    for face in soft_rgb:
        if not smooth:
            track.reset()
        found.append(track.update(face_bgr=np.ascontiguousarray(face[..., ::-1])))
    if any(one is None for one in found):
        raise SystemExit("a crop without a face; choose other frames")
    return np.stack([one for one in found if one is not None])


def restored_by(
    way: str, soft: torch.Tensor, points: np.ndarray, aspect: float, restorer: Restorer
) -> torch.Tensor:
    """float (N, 3, 512, 512) for soft crops (N, 3, 256, 256)."""
    size = (TARGET, TARGET)
    side = restorer.info.input_size or INPUT
    if way == "none":
        return restorer.restore(soft)
    aligner = Aligner(side)
    aligned, alignment = aligner.warp(soft, points, aspect if way == "ffhq, box" else None)
    made = restorer.restore(aligned)
    if way != "ffhq, plain":
        return aligner.composite(soft, aligned, made, alignment, size)
    back, coverage = aligner.unwarp(made, alignment, size)
    return scaled(soft, size) + coverage * (back - scaled(soft, size))


def part(image: Any) -> Any:
    """Mouth and chin of (..., H, W) or, for bytes, (N, H, W, 3) pictures."""
    axis = 1 if image.shape[-1] == 3 else image.ndim - 2
    height, width = image.shape[axis : axis + 2]
    rows, columns = (
        slice(round(0.55 * height), None),
        slice(round(0.15 * width), round(0.85 * width)),
    )
    return image[:, rows, columns] if axis == 1 else image[..., rows, columns]


def figures(out: torch.Tensor, soft: torch.Tensor, sharp_rgb: Image) -> tuple[float, float, float]:
    """PSNR in dB, sharpness as a share of the sharp crops', jitter in steps of 1/255; means over
    the frames."""
    made = part((out.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())
    true = part(sharp_rgb)
    pairs = list(zip(made[..., ::-1], true[..., ::-1], strict=True))
    near = float(
        np.mean([psnr(np.ascontiguousarray(a), np.ascontiguousarray(b)) for a, b in pairs])
    )
    sharp = [
        fine_detail_energy(np.ascontiguousarray(a)) / fine_detail_energy(np.ascontiguousarray(b))
        for a, b in pairs
    ]
    residual = part(out.clamp(0, 1) - scaled(soft, (TARGET, TARGET))) * 255
    jitter = float(np.mean([float((b - a).abs().mean()) for a, b in pairwise(residual)]))
    return near, float(np.mean(sharp)), jitter


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of clips")
    parser.add_argument("--yunet", type=Path, required=True, help="YuNet's .onnx file")
    parser.add_argument("--frames", type=int, default=12, help="consecutive frames of each clip")
    parser.add_argument("--model", default="lite", help="name or path of the model")
    parser.add_argument("--softness", default="area:96", help="or decoder:BLEND,NOISE")
    parser.add_argument("--autoencoder", type=Path, help="folder of tiny_autoencoder.py")
    args = parser.parse_args()
    if args.autoencoder is None and args.softness.startswith("decoder"):
        parser.error("decoder softness needs --autoencoder DIR")
    decoder = load_decoder(args.autoencoder / "tiny_autoencoder.py") if args.autoencoder else None
    detector = make_detector("yunet", args.yunet)
    settings = EnhancerSettings(enabled=True, model=args.model, backend="torch", device="cpu")
    restorer = choose(settings).load(torch.device("cpu"))
    rows: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ("soft", *WAYS)}
    names = [path for path in sorted(args.data.glob("*.mp4")) if path.stem in HELD_OUT]
    print(f"{'':14}" + "".join(f"{path.stem:>26}" for path in names) + f"{'mean':>26}")
    for path in names:
        frames, fps = consecutive(path, args.frames)
        sharp_rgb, soft_rgb, aspect = cut(frames, detector, args.softness, decoder)
        soft = to_tensor(soft_rgb)
        smooth, raw = (landmarks_of(soft_rgb, detector, fps, smooth=keep) for keep in (True, False))
        rows["soft"].append(figures(scaled(soft, (TARGET, TARGET)), soft, sharp_rgb))
        with torch.no_grad():
            for way in WAYS:
                out = restored_by(
                    way, soft, raw if way == "ffhq, raw" else smooth, aspect, restorer
                )
                rows[way].append(figures(out, soft, sharp_rgb))
    for way, found in rows.items():
        cells = [*found, tuple(np.mean(found, axis=0))]
        print(
            f"{way:14}"
            + "".join(
                f"{near:11.2f} dB {sharp:5.2f} {jitter:5.2f}" for near, sharp, jitter in cells
            )
        )
    print("each: PSNR, sharpness / the sharp crop's, jitter in 1/255; mouth and chin at 512 px")


if __name__ == "__main__":
    main()
