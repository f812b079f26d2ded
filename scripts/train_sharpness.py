"""Train and evaluate the sharpness meter (``musetalk_enhance.pipeline.stability.sharpness``).

    python scripts/train_sharpness.py draw --cache CACHE --work WORK
    python scripts/train_sharpness.py train --work WORK --export sharpness.safetensors
    python scripts/train_sharpness.py eval --cache CACHE --autoencoder DIR --split test

CACHE is what ``scripts/train_lite.py`` has built: 512 px targets split by person
(``lite_people.json``), and views of them that a latent decoder made. DIR has
``tiny_autoencoder.py``. The people of ``validation`` choose between networks and set the limits,
those of ``test`` are only reported on; neither is trained on.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from lite_data import Image, load_cache, load_decoder
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits

from musetalk_enhance.pipeline.stability.sharpness import (
    CELL,
    SharpnessMeter,
    SharpnessNetwork,
    cell_weights,
)

Floats = NDArray[np.float32]
Soften = Callable[[Image], Image]

PATCH = 160
BAND_SIGMA = 0.8
"""What is finer than a Gaussian of this many pixels is called detail."""


def detail(image: Image) -> Floats:
    """Luma minus its Gaussian of `BAND_SIGMA`, float32 (H, W), 0..255."""
    gray = image.astype(np.float32).mean(2)
    return gray - cv2.GaussianBlur(gray, (0, 0), BAND_SIGMA)


def true_detail(soft: Image, sharp: Image) -> Floats:
    """Share of the detail in `soft` that is that of `sharp`, 0..1, per cell of `CELL` pixels.

    ``2 <s, o> / (<s, s> + <o, o>)``: 1 for the original, 0 where nothing or only foreign texture is
    left.
    """
    ours, truth = detail(soft), detail(sharp)
    size = (soft.shape[1] // CELL, soft.shape[0] // CELL)
    both, left, right = (
        cv2.GaussianBlur(cv2.resize(product, size, interpolation=cv2.INTER_AREA), (0, 0), 1.0)
        for product in (ours * truth, ours * ours, truth * truth)
    )
    return np.asarray(np.clip((2 * both + 0.1) / (left + right + 0.1), 0, 1), np.float32)


def through_resize(image: Image, share: float, mode: int = cv2.INTER_AREA) -> Image:
    """Reduced to `share` of its size, and back with a bicubic."""
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (max(8, round(width * share)), max(8, round(height * share))), interpolation=mode
    )
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def through_h264(image: Image, crf: int) -> Image:
    """Second of two frames that x264 encoded."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as target:
        stream: Any = target.add_stream(
            "libx264", rate=25, options={"crf": str(crf), "preset": "fast"}
        )
        stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], "yuv420p"
        for shift in (2, 0):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(np.roll(image, shift, 1)), format="rgb24"
            )
            for packet in stream.encode(frame):
                target.mux(packet)
        for packet in stream.encode():
            target.mux(packet)
    file.seek(0)
    with av.open(file) as source:
        return np.asarray(
            [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)][-1], np.uint8
        )


def through_jpeg(image: Image, quality: int) -> Image:
    """One generation of JPEG."""
    packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(
        np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[..., ::-1], np.uint8
    )


def through_decoder(
    decoder_soft: Any, image: Image, blend: float, noise: float, seed: int
) -> Image:
    """The softness of a latent decoder."""
    faces = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    soft = decoder_soft(faces, blend, noise, torch.Generator().manual_seed(seed))[0]
    return np.asarray((soft * 255).round().byte().permute(1, 2, 0).numpy(), np.uint8)


def softened(sharp: Image, decoded: Image | None, rng: np.random.Generator) -> Image:
    """One draw of softness: a quarter none at all, nearly half a decoder's where there is one."""
    draw = float(rng.random())
    if draw < 0.25:
        return sharp
    if draw < 0.65 and decoded is not None:
        return decoded
    kind = float(rng.random())
    if kind < 0.45:
        mode = int(rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
        return through_resize(sharp, float(rng.uniform(0.25, 0.9)), mode)
    if kind < 0.75:
        return np.asarray(cv2.GaussianBlur(sharp, (0, 0), float(rng.uniform(0.3, 2.5))), np.uint8)
    if kind < 0.9:
        return through_h264(sharp, int(rng.integers(20, 42)))
    return through_jpeg(sharp, int(rng.integers(15, 70)))


def disturbed(image: Image, rng: np.random.Generator) -> Image:
    """What is no softness: exposure, white balance, camera noise, a good JPEG."""
    gain = rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3)
    table = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.75, 1.3) * gain * 255
    image = np.asarray(
        cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8)[None]), np.uint8
    )
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(0.3, 3.5), image.shape)
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return through_jpeg(image, int(rng.integers(85, 99))) if rng.random() < 0.3 else image


def draw(args: argparse.Namespace) -> None:
    """Write ``patches.npz``: gray patches (n, PATCH, PATCH) and the true detail of their cells."""
    crops, targets = load_cache(args.cache, "train")
    decoded = np.load(args.cache / "decoded.npy", mmap_mode="r")
    versions = len(decoded) // len(targets)
    valid = [index for index in range(0, len(decoded), 1) if decoded[index, ::64, ::64].any()]
    rng = np.random.default_rng(args.seed)
    patches, labels = [], []
    while len(patches) < args.count:
        from_decoder = rng.random() < 0.6
        index = (
            int(rng.choice(valid)) // versions if from_decoder else int(rng.integers(len(targets)))
        )
        target = np.asarray(targets[index])
        # at 256 px a face of a host, all of whose detail is true; at 512 px a photograph at its own
        # size
        native = not from_decoder and rng.random() < 0.35 and crops[index].window_px >= 480
        sharp = (
            target
            if native
            else np.asarray(cv2.resize(target, (256, 256), interpolation=cv2.INTER_AREA))
        )
        views = [decoded[index * versions + version] for version in range(versions)]
        views = [view for view in views if view[::64, ::64].any()]
        soft = softened(
            sharp, views[int(rng.integers(len(views)))] if views and not native else None, rng
        )
        soft = np.asarray(soft)
        top, left = (
            int(rng.integers((side - PATCH) // CELL + 1)) * CELL for side in sharp.shape[:2]
        )
        window = np.s_[top : top + PATCH, left : left + PATCH]
        label = true_detail(soft, sharp)[
            top // CELL : (top + PATCH) // CELL, left // CELL : (left + PATCH) // CELL
        ]
        patch = disturbed(np.ascontiguousarray(soft[window]), rng)
        mirror = -1 if rng.random() < 0.5 else 1
        labels.append((label[:, ::mirror] * 255).round().astype(np.uint8))
        patches.append(patch.astype(np.float32).mean(2).round().astype(np.uint8)[:, ::mirror])
    np.savez(args.work / "patches.npz", patches=np.stack(patches), labels=np.stack(labels))
    print(f"{len(patches)} patches, {len(valid)} decoded views", flush=True)


def autoencoder(folder: Path) -> Any:
    """``decoder_soft`` of the module in `folder`."""
    return load_decoder(folder / "tiny_autoencoder.py")


def train(args: argparse.Namespace) -> None:
    """Fit the network to the cells' true detail."""
    torch.manual_seed(args.seed)
    files = [np.load(path) for path in [args.work / "patches.npz"]]
    patches = torch.from_numpy(np.concatenate([file["patches"] for file in files]))
    labels = torch.from_numpy(np.concatenate([file["labels"] for file in files]))
    print(f"{len(patches)} patches", flush=True)
    network, average = SharpnessNetwork(), SharpnessNetwork()
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(args.seed)
    start, total = time.monotonic(), 0.0
    for step in range(args.steps):
        rate = (
            args.lr
            * min(1.0, (step + 1) / 100)
            * (0.02 + 0.49 * (1 + np.cos(np.pi * step / args.steps)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(len(patches), (args.batch,), generator=generator)
        faces = patches[index][:, None].float() / 255
        wanted = labels[index][:, None].float() / 255
        weights = cell_weights(faces)
        logits = network(faces)
        cells = binary_cross_entropy_with_logits(logits, wanted, weights)
        whole = ((logits.sigmoid() - wanted) * weights).mean(
            (1, 2, 3)
        ).abs().mean() / weights.mean()
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
            print(
                f"{step + 1} {time.monotonic() - start:.0f}s error of a patch {total / 200:.4f}",
                flush=True,
            )
            total = 0.0
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            save_file(
                {name: value.half().contiguous() for name, value in average.state_dict().items()},
                args.export,
            )


def conditions(decoder_soft: Any, side: int = 256) -> dict[str, list[tuple[str, Soften]]]:
    """Kinds of softness, each from nearly none to much."""
    sizes = [224, 192, 160, 128, 112, 96, 80]
    blends = [0.0, 0.1, 0.25, 0.35, 0.5, 0.55]
    return {
        "area": [
            (f"{size} px", lambda image, s=size: through_resize(image, s / side)) for size in sizes
        ],
        "blur": [
            (
                f"sigma {s}",
                lambda image, s=s: np.asarray(cv2.GaussianBlur(image, (0, 0), s), np.uint8),
            )
            for s in (0.5, 0.7, 0.9, 1.2, 1.6, 2.2)
        ],
        "decoder": [
            (f"{b}/0", lambda image, b=b: through_decoder(decoder_soft, image, b, 0.0, 0))
            for b in blends
        ],
        "decoder with noise": [
            (f"{b}/0.1", lambda image, b=b: through_decoder(decoder_soft, image, b, 0.1, 0))
            for b in blends
        ],
        "H.264": [
            (f"crf {crf}", lambda image, c=crf: through_h264(image, c))
            for crf in (23, 28, 32, 36, 40)
        ],
    }


def area_under_curve(sharp: list[float], soft: list[float]) -> float:
    """Chance that a sharp face measures more than a soft one (Mann and Whitney), 0..1."""
    one, other = np.array(sharp)[:, None], np.array(soft)[None]
    return float((one > other).mean() + 0.5 * (one == other).mean())


def evaluate(args: argparse.Namespace) -> None:
    """Print the measure of every person and softness, the separation per kind, and where it is not
    monotone."""
    decoder_soft, meter = autoencoder(args.autoencoder), SharpnessMeter()
    if args.weights:
        meter.network.load_state_dict(
            {name: value.float() for name, value in load_file(args.weights).items()}
        )
    crops, targets = load_cache(args.cache, args.split)
    people: dict[int, list[Image]] = {}
    for crop, target in zip(crops, targets, strict=True):
        images = people.setdefault(crop.person, [])
        if len(images) < args.frames and crop.window_px >= args.least_window:
            images.append(
                np.asarray(cv2.resize(np.asarray(target), (256, 256), interpolation=cv2.INTER_AREA))
            )
    table: dict[int, dict[str, list[float]]] = {}

    def measure(images: list[Image]) -> list[float]:
        faces = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        return [float(value) for value in meter.measure(faces)]

    for person, images in people.items():
        if not images:
            continue
        row = table.setdefault(person, {})
        row["sharp"] = measure(images)
        for kind, steps in conditions(decoder_soft).items():
            for name, soften in steps:
                row[f"{kind} {name}"] = measure([soften(image) for image in images])
        print(
            person,
            {name: round(float(np.mean(values)), 3) for name, values in row.items()},
            flush=True,
        )
    sharp = [value for row in table.values() for value in row["sharp"]]
    means = {name: {k: np.mean(v) for k, v in row.items()} for name, row in table.items()}
    result: dict[str, Any] = {"people": means}
    for kind, steps in conditions(decoder_soft).items():
        soft = {
            name: [v for row in table.values() for v in row[f"{kind} {name}"]] for name, _ in steps
        }
        rising = sum(
            float(np.mean(row[f"{kind} {after}"])) > float(np.mean(row[f"{kind} {before}"])) + 0.01
            for row in table.values()
            for (before, _), (after, _) in zip(steps[:-1], steps[1:], strict=True)
        )
        curve = {name: round(area_under_curve(sharp, values), 3) for name, values in soft.items()}
        print(
            kind, curve, f"steps that rise: {rising} of {len(table) * (len(steps) - 1)}", flush=True
        )
        result[kind] = {"area_under_curve": curve, "rising": rising}
    (args.work / f"sharpness-{args.split}.json").write_text(
        json.dumps(result, indent=1, default=float)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("draw", "train", "eval"))
    parser.add_argument(
        "--cache", type=Path, default=Path(".train"), help="of scripts/train_lite.py"
    )
    parser.add_argument("--autoencoder", type=Path, default=Path("../shared/tools"))
    parser.add_argument("--work", type=Path, default=Path(".train/sharpness"))
    parser.add_argument(
        "--export", type=Path, default=Path(".train/sharpness/sharpness.safetensors")
    )
    parser.add_argument("--weights", type=Path, help="evaluate these instead of the embedded ones")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument(
        "--least-window", type=int, default=300, help="pixels; smaller crops are not sharp at 256"
    )
    parser.add_argument("--frames", type=int, default=2, help="of each person")
    parser.add_argument("--count", type=int, default=4000, help="patches")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"draw": draw, "train": train, "eval": evaluate}[args.stage](args)


if __name__ == "__main__":
    main()
