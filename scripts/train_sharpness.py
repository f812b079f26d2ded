"""Train and evaluate the sharpness meter (``musetalk_enhance.pipeline.stability.sharpness``).

    python scripts/train_sharpness.py draw --data DATA --autoencoder DIR --work WORK
    python scripts/train_sharpness.py train --work WORK --export sharpness.safetensors
    python scripts/train_sharpness.py eval --data DATA --autoencoder DIR --yunet YUNET.onnx

DATA has ``clips/*.mp4`` and ``portraits/*``; DIR has ``tiny_autoencoder.py``, a module with
``decoder_soft(crops, blend, noise, generator)``. The people of ``VALIDATION`` choose between networks and set the
limits, those of ``TEST`` are only reported on; neither is trained on.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from lite_data import MIN_SHARPNESS, FaceFinder, Image, read_frames, sharpness
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from musetalk_enhance.pipeline.stability.sharpness import CELL, SharpnessMeter, SharpnessNetwork, cell_weights

Floats = NDArray[np.float32]
Soften = Callable[[Image], Image]

VALIDATION = frozenset({"d3", "d9", "s32", "s1", "s42", "ls2", "vr1", "s29", "d13"})
TEST = frozenset({"musetalk_sun", "d18", "s8", "astronaut", "ls3", "vr2", "vr3", "d0", "d12", "s20"})
PATCH = 192
BAND_SIGMA = 1.5
"""What is finer than a Gaussian of this many pixels is called detail."""


def detail(image: Image) -> Floats:
    """Luma minus its Gaussian of `BAND_SIGMA`, float32 (H, W), 0..255."""
    gray = image.astype(np.float32).mean(2)
    return gray - cv2.GaussianBlur(gray, (0, 0), BAND_SIGMA)


def true_detail(soft: Image, sharp: Image) -> Floats:
    """Share of the detail in `soft` that is that of `sharp`, 0..1, per cell of `CELL` pixels.

    ``2 <s, o> / (<s, s> + <o, o>)``: 1 for the original, 0 where nothing or only foreign texture is left.
    """
    ours, truth = detail(soft), detail(sharp)
    size = (soft.shape[1] // CELL, soft.shape[0] // CELL)
    both, left, right = (
        cv2.GaussianBlur(cv2.resize(product, size, interpolation=cv2.INTER_AREA), (0, 0), 1.0)
        for product in (ours * truth, ours * ours, truth * truth)
    )
    return np.asarray(np.clip((2 * both + 0.1) / (left + right + 0.1), 0, 1), np.float32)


def resized(image: Image, size_wh: tuple[int, int]) -> Image:
    """Area when shrinking, bicubic when enlarging."""
    shrinks = size_wh[0] < image.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size_wh, interpolation=mode), np.uint8)


def through_resize(image: Image, share: float, mode: int = cv2.INTER_AREA) -> Image:
    """Reduced to `share` of its size, and back with a bicubic."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(8, round(width * share)), max(8, round(height * share))), interpolation=mode)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def through_h264(image: Image, crf: int) -> Image:
    """Second of two frames that x264 encoded."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as target:
        stream: Any = target.add_stream("libx264", rate=25, options={"crf": str(crf), "preset": "fast"})
        stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], "yuv420p"
        for shift in (2, 0):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(image, shift, 1)), format="rgb24")
            for packet in stream.encode(frame):
                target.mux(packet)
        for packet in stream.encode():
            target.mux(packet)
    file.seek(0)
    with av.open(file) as source:
        return np.asarray([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)][-1], np.uint8)


def through_jpeg(image: Image, quality: int) -> Image:
    """One generation of JPEG."""
    packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[..., ::-1], np.uint8)


def through_decoder(decoder_soft: Any, image: Image, blend: float, noise: float, seed: int) -> Image:
    """The softness of a latent decoder."""
    faces = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    soft = decoder_soft(faces, blend, noise, torch.Generator().manual_seed(seed))[0]
    return np.asarray((soft * 255).round().byte().permute(1, 2, 0).numpy(), np.uint8)


def softened(image: Image, rng: np.random.Generator, decoder_soft: Any) -> Image:
    """One draw of softness: a quarter none at all, nearly half a decoder's."""
    draw = float(rng.random())
    if draw < 0.25:
        return image
    if draw < 0.62:
        noise = float(rng.choice([0.0, rng.uniform(0, 0.25)]))
        return through_decoder(decoder_soft, image, float(rng.uniform(0, 0.6)), noise, int(rng.integers(2**31)))
    if draw < 0.78:
        mode = int(rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
        return through_resize(image, float(rng.uniform(0.25, 0.9)), mode)
    if draw < 0.88:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 2.5))), np.uint8)
    if draw < 0.95:
        return through_h264(image, int(rng.integers(22, 42)))
    return through_jpeg(image, int(rng.integers(15, 70)))


def disturbed(image: Image, rng: np.random.Generator) -> Image:
    """What is no softness: exposure, white balance, camera noise, a good JPEG."""
    gain = rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)
    table = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.75, 1.3) * gain * 255
    image = np.asarray(cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None]), np.uint8)
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(0.3, 3.5), image.shape)
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return through_jpeg(image, int(rng.integers(85, 99))) if rng.random() < 0.3 else image


def sources(data: Path, people: Callable[[str], bool]) -> list[Path]:
    """Clips and portraits of the people that are asked for."""
    files = [path for folder in ("clips", "portraits", "faces") for path in sorted((data / folder).glob("*"))]
    return [path for path in files if path.suffix in {".mp4", ".jpg", ".png"} and people(path.stem)]


def face_views(path: Path, finder: FaceFinder, count: int) -> Iterator[tuple[Image, int]]:
    """Face and some of what is around it at native size, RGB, with the height of the face in pixels."""
    for _, frame in read_frames(path, count):
        box = finder.find(frame)
        if box is not None and box[3] >= 150:
            x, y, w, h = box
            top, bottom = max(0, int(y - 0.2 * h)), int(y + 1.15 * h)
            left, right = max(0, int(x - 0.2 * w)), int(x + 1.2 * w)
            yield np.ascontiguousarray(frame[top:bottom, left:right]), round(h)


def draw(args: argparse.Namespace) -> None:
    """Write ``patches-N.npz``: gray patches (n, PATCH, PATCH) and the true detail of their cells."""
    decoder_soft = autoencoder(args.autoencoder)
    finder, rng = FaceFinder(args.yunet), np.random.default_rng(args.seed)
    views = [
        view
        for path in sources(args.data, lambda name: name not in VALIDATION | TEST)
        for view in face_views(path, finder, 12)
        if sharpness(view[0]) >= MIN_SHARPNESS
    ]
    print(f"{len(views)} views", flush=True)
    for part in range(args.parts):
        target = args.work / f"patches-{args.seed}-{part}.npz"
        if target.exists():
            continue
        patches, labels = [], []
        while len(patches) < args.count:
            view, face = views[int(rng.integers(len(views)))]
            # between a face of 190 px and its native size, never enlarged
            share = float(rng.uniform(min(1.0, 190 / face), 1.0)) if rng.random() < 0.7 else 1.0
            view = resized(view, (round(view.shape[1] * share), round(view.shape[0] * share))) if share < 1 else view
            if min(view.shape[:2]) < PATCH:
                continue
            top, left = (int(rng.integers(side - PATCH + 1)) for side in view.shape[:2])
            sharp = np.ascontiguousarray(view[top : top + PATCH, left : left + PATCH])
            sharp = np.ascontiguousarray(sharp[:, ::-1]) if rng.random() < 0.5 else sharp
            soft = softened(sharp, rng, decoder_soft)
            labels.append((true_detail(soft, sharp) * 255).round().astype(np.uint8))
            patches.append(disturbed(soft, rng).astype(np.float32).mean(2).round().astype(np.uint8))
        np.savez(target, patches=np.stack(patches), labels=np.stack(labels))
        print(target.name, flush=True)


def autoencoder(folder: Path) -> Any:
    """``decoder_soft`` of the module in `folder`."""
    sys.path.insert(0, str(folder))
    return importlib.import_module("tiny_autoencoder").decoder_soft


def train(args: argparse.Namespace) -> None:
    """Fit the network to the cells' true detail."""
    torch.manual_seed(args.seed)
    files = [np.load(path) for path in sorted(args.work.glob("patches-*.npz"))]
    patches = torch.from_numpy(np.concatenate([file["patches"] for file in files]))
    labels = torch.from_numpy(np.concatenate([file["labels"] for file in files]))
    print(f"{len(patches)} patches", flush=True)
    network, average = SharpnessNetwork(), SharpnessNetwork()
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(args.seed)
    start, total = time.monotonic(), 0.0
    for step in range(args.steps):
        rate = args.lr * min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1 + np.cos(np.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(len(patches), (args.batch,), generator=generator)
        faces = patches[index][:, None].float() / 255
        wanted = labels[index][:, None].float() / 255
        weights = cell_weights(faces)
        logits = network(faces)
        cells = binary_cross_entropy_with_logits(logits, wanted, weights)
        whole = ((logits.sigmoid() - wanted) * weights).mean((1, 2, 3)).abs().mean() / weights.mean()
        loss = cells / weights.mean() + 2 * whole
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 0.005 if step > 200 else 0.1)
        total += float(whole.detach())
        if (step + 1) % 200 == 0:
            print(f"{step + 1} {time.monotonic() - start:.0f}s error of a patch {total / 200:.4f}", flush=True)
            total = 0.0
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            save_file({name: value.half().contiguous() for name, value in average.state_dict().items()}, args.export)


def conditions(decoder_soft: Any, side: int = 256) -> dict[str, list[tuple[str, Soften]]]:
    """Kinds of softness, each from nearly none to much."""
    sizes = [224, 192, 160, 128, 112, 96, 80]
    blends = [0.0, 0.1, 0.25, 0.35, 0.5, 0.55]
    return {
        "area": [(f"{size} px", lambda image, s=size: through_resize(image, s / side)) for size in sizes],
        "blur": [
            (f"sigma {s}", lambda image, s=s: np.asarray(cv2.GaussianBlur(image, (0, 0), s), np.uint8))
            for s in (0.5, 0.7, 0.9, 1.2, 1.6, 2.2)
        ],
        "decoder": [
            (f"{b}/0", lambda image, b=b: through_decoder(decoder_soft, image, b, 0.0, 0)) for b in blends
        ],
        "decoder with noise": [
            (f"{b}/0.1", lambda image, b=b: through_decoder(decoder_soft, image, b, 0.1, 0)) for b in blends
        ],
        "H.264": [(f"crf {crf}", lambda image, c=crf: through_h264(image, c)) for crf in (23, 28, 32, 36, 40)],
    }


def area_under_curve(sharp: list[float], soft: list[float]) -> float:
    """Chance that a sharp face measures more than a soft one (Mann and Whitney), 0..1."""
    one, other = np.array(sharp)[:, None], np.array(soft)[None]
    return float((one > other).mean() + 0.5 * (one == other).mean())


def evaluate(args: argparse.Namespace) -> None:
    """Print the measure of every person and softness, the separation per kind, and where it is not monotone."""
    decoder_soft, finder = autoencoder(args.autoencoder), FaceFinder(args.yunet)
    meter = SharpnessMeter()
    if args.weights:
        meter.network.load_state_dict({name: value.float() for name, value in load_file(args.weights).items()})
    people = TEST if args.split == "test" else VALIDATION
    table: dict[str, dict[str, list[float]]] = {}

    def measure(images: list[Image]) -> list[float]:
        faces = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        return [float(value) for value in meter.measure(faces)]

    for path in sources(args.data, lambda name: name in people):
        crops = []
        for view, face in islice(face_views(path, finder, 4), 4):
            if face >= args.least_face:
                height, width = view.shape[:2]
                tight = view[int(0.18 * height) : int(0.88 * height), int(0.14 * width) : int(0.86 * width)]
                mode = cv2.INTER_AREA if tight.shape[0] >= 256 else cv2.INTER_LANCZOS4
                crops.append(np.asarray(cv2.resize(tight, (256, 256), interpolation=mode), np.uint8))
        if not crops:
            continue
        row = table.setdefault(path.stem, {})
        row["sharp"] = measure(crops)
        for kind, steps in conditions(decoder_soft).items():
            for name, soften in steps:
                row[f"{kind} {name}"] = measure([soften(crop) for crop in crops])
        print(path.stem, {name: round(float(np.mean(values)), 3) for name, values in row.items()}, flush=True)
    sharp = [value for row in table.values() for value in row["sharp"]]
    means = {name: {k: np.mean(v) for k, v in row.items()} for name, row in table.items()}
    result: dict[str, Any] = {"people": means}
    for kind, steps in conditions(decoder_soft).items():
        soft = {name: [v for row in table.values() for v in row[f"{kind} {name}"]] for name, _ in steps}
        rising = sum(
            float(np.mean(row[f"{kind} {after}"])) > float(np.mean(row[f"{kind} {before}"])) + 0.01
            for row in table.values()
            for (before, _), (after, _) in zip(steps[:-1], steps[1:], strict=True)
        )
        curve = {name: round(area_under_curve(sharp, values), 3) for name, values in soft.items()}
        print(kind, curve, f"steps that rise: {rising} of {len(table) * (len(steps) - 1)}", flush=True)
        result[kind] = {"area_under_curve": curve, "rising": rising}
    (args.work / f"sharpness-{args.split}.json").write_text(json.dumps(result, indent=1, default=float))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("draw", "train", "eval"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--autoencoder", type=Path, default=Path("../shared/tools"))
    parser.add_argument("--yunet", type=Path, default=Path("../shared/weights/face_detection_yunet_2023mar.onnx"))
    parser.add_argument("--work", type=Path, default=Path(".train/sharpness"))
    parser.add_argument("--export", type=Path, default=Path(".train/sharpness/sharpness.safetensors"))
    parser.add_argument("--weights", type=Path, help="evaluate these instead of the embedded ones")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--least-face", type=int, default=200, help="pixels; smaller faces are not sharp at 256")
    parser.add_argument("--count", type=int, default=1000, help="patches a part")
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"draw": draw, "train": train, "eval": evaluate}[args.stage](args)


if __name__ == "__main__":
    main()
