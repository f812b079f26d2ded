"""Measure a checkpoint of ``train_lite.py`` beside what costs less and what went before.

``python scripts/eval_lite.py --work WORK [--name lite] --split validation --data DATA
--repositories REPOSITORIES --yunet YUNET.onnx --decoder tiny_autoencoder.py [--out OUT]``

Rows: bicubic, Lanczos, a mild unsharp mask (sigma 1.5, amount 1), the shipped lite, the checkpoint,
the first lite where ``--first`` names its weights, and what ``--compare NAME=FILE`` adds (any
enlarging network that spandrel knows, or an ncnn ``.param`` file beside its ``.bin``, such as
realesr-animevideov3). Columns: PSNR, HaarPSI, GMSD, MS-SSIM, *share* (fine detail against the
original's, `lite_data.fine_energy`), *share_256* (the same after a resize to 256 px, which hosts
get by default), *grid* (`lite_data.grid`: dots and crosshatch count as detail, too, and are none)
and *false* (`lite_losses.false_detail`: detail where, or in a direction in which, the original has
less, as combs along edges) for every softness, and for networks the *rival*: the unsharp mask over
bicubic (sigma 1 to 3, amount 0.5 to 3) nearest to the original among those at least as sharp.
Then what a second pass changes, color drift, and on the videos of the split the warping error
against the soft input's, the correlation of the mouth's opening with it, and PSNR and share at
256 px, where originals are often soft themselves.

Choose on ``validation``; look at ``test`` once, at the very end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import piq
import torch
import torch.nn.functional as F
from lite_data import (
    CONDITIONS,
    INPUT,
    TARGET,
    Crop,
    FaceFinder,
    Image,
    build_cache,
    condition,
    face_window,
    fine_energy,
    grid,
    load_cache,
    load_decoder,
    locate,
    read_people,
    resize,
    to_tensor,
)
from lite_losses import false_detail
from lite_net import LiteNet
from torch import Tensor
from train_lite import apply, psnr

from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.lite import LiteRestorer

SIGMAS, AMOUNTS = (1.0, 1.5, 2.0, 2.5, 3.0), (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
VIDEO_CONDITIONS = ("96 px", "128 px", "decoder .25/.1")
Method = Callable[[Image], Image]


def shipped_lite() -> Callable[[Tensor], Tensor]:
    """The embedded model."""
    request = LoadRequest(LiteRestorer.info, EnhancerSettings(), torch.device("cpu"))
    module: Callable[[Tensor], Tensor] = LiteRestorer.network(request).module
    return module


def first_lite(path: Path) -> Callable[[Tensor], Tensor]:
    """The first generation: spandrel's Compact on unshuffled faces, a residual over bicubic."""
    from safetensors.torch import load_file
    from spandrel.architectures.Compact import CompactArch

    network: Any = CompactArch().load(load_file(path)).model.eval()

    def run(x: Tensor) -> Tensor:
        unshuffled = F.pixel_unshuffle(F.pad(x, (12,) * 4, mode="replicate"), 2)
        nearest = F.interpolate(unshuffled, scale_factor=2.0, mode="nearest")
        detail = F.pixel_shuffle(network(unshuffled) - nearest, 2)[..., 24:-24, 24:-24]
        return F.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False) + detail

    return run


def trained_lite(path: Path) -> LiteNet:
    """The averaged weights of a checkpoint of ``train_lite.py``."""
    saved = torch.load(path, weights_only=True)
    net = LiteNet(**saved["shape"]).eval().requires_grad_(False)
    net.load_state_dict(saved["ema"])
    return net


def other_network(path: Path) -> Method:
    """An enlarging network of somebody else, its output brought to 512 px."""
    if path.suffix == ".param":
        return _ncnn_network(path)
    from spandrel import ModelLoader

    network: Any = ModelLoader().load_from_file(path).eval()

    @torch.no_grad()
    def run(image_rgb: Image) -> Image:
        out = network(to_tensor(image_rgb[None])).clamp(0, 1)[0].permute(1, 2, 0)
        return resize((out * 255).round().byte().numpy(), TARGET)

    return run


def _ncnn_network(path: Path) -> Method:
    import ncnn

    net = ncnn.Net()
    net.load_param(str(path))
    net.load_model(str(path.with_suffix(".bin")))

    def run(image_rgb: Image) -> Image:
        pixels_in = np.ascontiguousarray(image_rgb.transpose(2, 0, 1), np.float32) / 255
        with net.create_extractor() as extractor:
            extractor.input(net.input_names()[0], ncnn.Mat(pixels_in).clone())
            out = np.array(extractor.extract(net.output_names()[0])[1])
        pixels = np.clip(np.rint(out.transpose(1, 2, 0) * 255), 0, 255).astype(np.uint8)
        return resize(pixels, TARGET)

    return run


def unsharp(bicubic_rgb: Image, sigma: float, amount: float) -> Image:
    """``bicubic_rgb`` and ``amount`` times what a Gaussian takes from it."""
    base = bicubic_rgb.astype(np.float32)
    mask = base + amount * (base - cv2.GaussianBlur(base, (0, 0), sigma))
    return np.clip(np.rint(mask), 0, 255).astype(np.uint8)


def methods(args: argparse.Namespace) -> dict[str, Method]:
    """Every row of the table by its name: uint8 256 px in, 512 px out."""

    def of(net: Callable[[Tensor], Tensor] | None) -> Method:
        return lambda image: apply(net, image[None])[0]

    bicubic = of(None)
    rows: dict[str, Method] = {
        "bicubic": bicubic,
        "lanczos": lambda image: resize(image, TARGET),
        "unsharp": lambda image: unsharp(bicubic(image), 1.5, 1.0),
    }
    rows["shipped"] = of(shipped_lite())
    if args.first is not None:
        rows["first lite"] = of(first_lite(args.first))
    checkpoint = args.work / f"{args.name}.pt"
    if checkpoint.exists():
        rows[args.name] = of(trained_lite(checkpoint))
    for entry in args.compare:
        name, _, path = entry.partition("=")
        rows[name] = other_network(Path(path))
    return rows


def qualities(out: Image, target: Image) -> dict[str, float]:
    """Figures against the original."""
    a, b = to_tensor(out[None]), to_tensor(target[None])
    return {
        "psnr": psnr(out, target),
        "haarpsi": float(piq.haarpsi(a, b)),
        "gmsd": float(piq.gmsd(a, b)),
        "ms_ssim": float(piq.multi_scale_ssim(a, b)),
        "share": fine_energy(out) / fine_energy(target),
        "share_256": at_host_size([resize(out, INPUT)], [resize(target, INPUT)])["share"],
        "grid": grid(out),
        "false": float(false_detail(a, b)),
    }


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every figure."""
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def masks(bicubics: list[Image], targets: list[Image]) -> list[tuple[float, float]]:
    """Mean share and mean PSNR of every unsharp mask of the grid."""
    grid = []
    for sigma in SIGMAS:
        for amount in AMOUNTS:
            outs = [unsharp(image, sigma, amount) for image in bicubics]
            share = [fine_energy(a) / fine_energy(b) for a, b in zip(outs, targets, strict=True)]
            quality = [psnr(a, b) for a, b in zip(outs, targets, strict=True)]
            grid.append((float(np.mean(share)), float(np.mean(quality))))
    return grid


def rival(grid: list[tuple[float, float]], share: float) -> float | None:
    """PSNR of the best mask at least as sharp; None where there is none."""
    sharp = [quality for strength, quality in grid if strength >= share]
    return round(max(sharp), 3) if sharp else None


def measure_stills(
    rows: dict[str, Method], crops: list[Crop], images: Image, decoder: Any, chosen: list[str]
) -> dict[str, Any]:
    """Tables by condition and row; the second pass and drift over all conditions by row."""
    result: dict[str, Any] = {"conditions": {}, "second_pass": {}, "drift": {}}
    changes: dict[str, list[float]] = {name: [] for name in rows}
    drifts: dict[str, list[float]] = {name: [] for name in rows}
    targets = [np.asarray(each) for each in images]
    people: dict[int, list[int]] = {}
    for index, crop in enumerate(crops):
        people.setdefault(crop.person, []).append(index)
    for softness in chosen:
        inputs = [condition(softness, t, decoder, i) for i, t in enumerate(targets)]
        if any(image is None for image in inputs):
            continue
        table: dict[str, Any] = {}
        bicubics = [rows["bicubic"](image) for image in inputs if image is not None]
        grid = masks(bicubics, targets)
        for name, method in rows.items():
            figures = []
            for image, target in zip(inputs, targets, strict=True):
                assert image is not None
                out = method(image)
                figures.append(qualities(out, target))
                small = resize(out, INPUT)
                second = resize(method(small), INPUT)
                changes[name].append(float(np.abs(second.astype(np.float32) - small).mean()))
                moved = out.mean((0, 1), dtype=np.float64) - image.mean((0, 1), dtype=np.float64)
                drifts[name].append(float(np.abs(moved).max()))
            # every person counts the same, however many crops show them
            table[name] = mean([mean([figures[i] for i in indices]) for indices in people.values()])
            if name not in ("bicubic", "lanczos", "unsharp"):
                share = float(np.mean([figure["share"] for figure in figures]))
                best = rival(grid, share)
                plain = float(np.mean([figure["psnr"] for figure in figures]))
                table[name]["rival"] = best
                table[name]["over_rival"] = None if best is None else round(plain - best, 3)
        result["conditions"][softness] = table
        print(render(softness, table), flush=True)
    result["second_pass"] = {name: round(float(np.mean(v)), 3) for name, v in changes.items() if v}
    result["drift"] = {name: round(float(np.max(v)), 3) for name, v in drifts.items() if v}
    return result


def render(softness: str, table: dict[str, dict[str, Any]]) -> str:
    """One condition for a reader."""
    columns = (
        *("psnr", "haarpsi", "gmsd", "ms_ssim", "share", "share_256", "grid", "false"),
        *("rival", "over_rival"),
    )
    lines = [f"\n{softness:<16}" + "".join(f"{name:>11}" for name in columns)]
    for row, figures in table.items():
        cells = [figures.get(name) for name in columns]
        lines.append(f"  {row:<14}" + "".join(f"{'' if c is None else c:>11}" for c in cells))
    return "\n".join(lines)


def video_crops(path: Path, finder: FaceFinder, count: int) -> list[Image]:
    """The first ``count`` frames of a video under the window of its first face, 512 px."""
    video = cv2.VideoCapture(str(path))
    frames: list[Image] = []
    while len(frames) < count:
        ok, frame = video.read()
        if not ok:
            break
        frames.append(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8))
    video.release()
    box = next((box for frame in islice(frames, 10) if (box := finder.find(frame))), None)
    window = None if box is None else face_window(frames[0].shape, box, 1.25, 1.15)
    if window is None:
        return []
    left, top, across, down = window
    return [resize(frame[top : top + down, left : left + across], TARGET) for frame in frames]


def flows(frames: list[Image]) -> list[Any]:
    """Dense motion (DIS) from every frame to the next, and where both directions agree."""
    method: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    rows, columns = np.mgrid[0 : gray[0].shape[0], 0 : gray[0].shape[1]].astype(np.float32)
    result = []
    for one, two in pairwise(gray):
        forward = method.calc(one, two, None)
        backward = method.calc(two, one, None)
        x, y = columns + forward[..., 0], rows + forward[..., 1]
        returned = cv2.remap(backward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = (x >= 0) & (y >= 0) & (x < columns.shape[1]) & (y < rows.shape[0])
        result.append((x, y, (np.square(forward + returned).sum(-1) < 1.0) & inside))
    return result


def warping(frames: list[Image], motions: list[Any]) -> float:
    """Mean absolute difference of frames to the following ones moved back, in gray levels."""
    errors = []
    for (one, two), (x, y, visible) in zip(pairwise(frames), motions, strict=True):
        moved = cv2.remap(two.astype(np.float32), x, y, cv2.INTER_LINEAR)
        errors.append(np.abs(moved - one)[visible].mean())
    return float(np.mean(errors))


def at_host_size(frames: list[Image], targets: list[Image]) -> dict[str, float]:
    """PSNR and share of frames of 256 px, means."""
    return mean(
        [
            {
                "psnr": psnr(out, target),
                "share": fine_energy(out) / max(1e-6, fine_energy(target)),
            }
            for out, target in zip(frames, targets, strict=True)
        ]
    )


def measure_videos(
    rows: dict[str, Method], args: argparse.Namespace, decoder: Any
) -> dict[str, Any]:
    """Warping error, mouth opening, PSNR and share on the videos of the split, by condition.

    Originals in videos are often softer than stills, and hosts blend faces of 256 px: there PSNR
    and share are taken.
    """
    from musetalk_enhance.faces.meter import FaceMeter
    from musetalk_enhance.report.metrics import opening_lag

    meter, finder = FaceMeter(), FaceFinder(args.yunet)

    def opening(frames: list[Image]) -> Any:
        faces = to_tensor(np.stack(frames))
        parts = [meter.measure(faces[at : at + 16]).mouth for at in range(0, len(faces), 16)]
        return torch.cat(parts).double().numpy()

    result: dict[str, Any] = {}
    names = [name for files in read_people(args.split) for name in files if name.endswith(".mp4")]
    for name in names:
        targets = video_crops(locate(name, args.data, args.repositories), finder, args.frames)
        if not targets:
            continue
        motions = flows(targets)
        own, small = warping(targets, motions), [resize(target, INPUT) for target in targets]
        for softness in VIDEO_CONDITIONS:
            inputs = [condition(softness, target, decoder, 5) for target in targets]
            soft = [image for image in inputs if image is not None]
            if len(soft) < len(inputs):
                continue
            base = warping([rows["bicubic"](image) for image in soft], motions)
            opened = opening(soft)
            table = {
                "original": {"warping": round(own / base, 3)},
                "input": at_host_size(soft, small),
            }
            for row, method in rows.items():
                out = [method(image) for image in soft]
                at_host = [resize(image, INPUT) for image in out]
                table[row] = {
                    "warping": round(warping(out, motions) / base, 3),
                    "mouth": round(float(opening_lag(opened, opening(at_host))[1]), 4),
                    **at_host_size(at_host, small),
                }
            result[f"{name}, {softness}"] = table
            print(f"\n{name}, {softness}: {json.dumps(table)}", flush=True)
    return result


def sheets(
    rows: dict[str, Method], crops: list[Crop], images: Image, decoder: Any, out: Path
) -> None:
    """PNG sheets at full size, one row a face: the chosen methods and the original, mouths too."""
    first_crops: dict[int, int] = {}
    for index, crop in enumerate(crops):
        first_crops.setdefault(crop.person, index)
    names = [name for name in rows if name not in ("lanczos", "unsharp")]
    for softness in ("96 px", "decoder .25/.1", "decoder .4/.15", "none"):
        faces, mouths = [], []
        for index in list(first_crops.values())[:10]:
            target = np.asarray(images[index])
            soft = condition(softness, target, decoder, index)
            if soft is None:
                continue
            views = [rows[name](soft) for name in names] + [target]
            x, y = (int(np.clip(round(v), 128, TARGET - 128)) for v in crops[index].points[2])
            faces.append(np.hstack(views))
            mouths.append(np.hstack([v[y - 96 : y + 96, x - 128 : x + 128] for v in views]))
        for kind, parts in (("faces", faces), ("mouths", mouths)):
            if parts:
                label = softness.replace(" ", "_").replace("/", "_")
                cv2.imwrite(str(out / f"{kind}_{label}.png"), np.vstack(parts)[..., ::-1])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of train_lite.py")
    add("--name", default="lite", help="of the checkpoint")
    add("--split", choices=("validation", "test"), default="validation")
    add("--data", type=Path, required=True)
    add("--repositories", type=Path, required=True)
    add("--yunet", type=Path, required=True)
    add("--decoder", type=Path, help="file with decoder_soft(crops, blend, noise, generator)")
    add("--first", type=Path, help="weights of the first lite, as versions up to 0.3 ship them")
    add("--compare", nargs="*", default=[], metavar="NAME=FILE", help="networks of others")
    add("--only", nargs="*", default=list(CONDITIONS), help="conditions")
    add("--frames", type=int, default=48, help="of every video; 0 leaves the videos out")
    add("--out", type=Path, help="folder for the table as JSON and the sheets; WORK/eval_SPLIT")
    add("--threads", type=int, default=2)
    return parser.parse_args(argv)


def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    out: Path = args.out or args.work / f"eval_{args.split}"
    out.mkdir(parents=True, exist_ok=True)
    decoder = load_decoder(args.decoder) if args.decoder else None
    build_cache(args.data, args.repositories, args.yunet, args.work, 0, args.split)
    crops, images = load_cache(args.work, args.split)
    rows = methods(args)
    result = measure_stills(rows, crops, images, decoder, args.only)
    if args.frames:
        result["videos"] = measure_videos(rows, args, decoder)
    print(f"\nsecond pass: {result['second_pass']}\ndrift: {result['drift']}")
    (out / "table.json").write_text(json.dumps(result, indent=1))
    sheets(rows, crops, images, decoder, out)


if __name__ == "__main__":
    main()
