"""Train, evaluate and export the lite face sharpener.

What is trained is ``musetalk_enhance.restorers.lite.operator`` around the Compact network of spandrel, 12 channels
in and out.

``python scripts/train_lite.py --data DATA --yunet YUNET.onnx --work WORK --export lite.safetensors``
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import piq
import torch
import torch.nn.functional as F
from lite_data import (
    HOST,
    INPUT,
    FaceFinder,
    Image,
    PatchSampler,
    build_cache,
    conditions,
    load_cache,
    read_frames,
    resize,
    sharpness,
    soften,
    tight_crop,
    to_tensor,
)
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from torch import Tensor, nn

from musetalk_enhance.restorers.lite import operator

LUMA = (0.299, 0.587, 0.114)


def make_net() -> Compact:
    """The network; variance kept from layer to layer, mid grey at zero, last layer silent: bicubic."""
    net = Compact(num_in_ch=12, num_out_ch=12, num_feat=48, num_conv=8, upscale=2, act_type="prelu")
    convs = [layer for layer in net.body if isinstance(layer, nn.Conv2d)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, a=0.25)
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
    with torch.no_grad():
        convs[0].weight.mul_(2)  # pictures vary less than one unit
        convs[0].bias = nn.Parameter(-0.5 * convs[0].weight.sum((1, 2, 3)))
        convs[-1].weight.zero_()
    return net


def lite(net: nn.Module, x: Tensor) -> Tensor:
    """Sharpened faces ``(N,3,2H,2W)`` of ``x`` ``(N,3,H,W)``, RGB 0..1 in and out; H and W even."""
    return raw_lite(net, x).clamp(0, 1)


def raw_lite(net: nn.Module, x: Tensor) -> Tensor:
    """As ``lite``, before the clamp: what training sees, so that no gradient is cut off."""
    return operator(net, x)


def luma(x: Tensor) -> Tensor:
    """Rec. 601 luma ``(N,1,H,W)``."""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def charbonnier(difference: Tensor) -> Tensor:
    """Mean of ``sqrt(d^2 + 1e-4)``: squares under 0.01, so that small detail is not voted down to none."""
    return (difference * difference + 1e-4).sqrt().mean()


def pyramid_loss(difference: Tensor) -> Tensor:
    """L1 over the band-pass levels of a three-level Laplacian pyramid, finest level first."""
    total = difference.new_zeros(())
    for weight in (1.0, 0.7, 0.5):
        low = F.avg_pool2d(difference, 2)
        total = total + weight * charbonnier(difference - F.interpolate(low, scale_factor=2, mode="bilinear"))
        difference = low
    return total


def spectrum_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 between the FFT amplitudes of the luma under a Hann window: the amount of detail, not its place."""
    window = torch.hann_window(out.shape[-1], periodic=False)
    window = window[:, None] * window[None, :]
    spectra: list[Tensor] = [torch.fft.rfft2(luma(x) * window, norm="ortho").abs() for x in (out, target)]
    return (spectra[0] - spectra[1]).abs().mean()


def bands(grey: Tensor) -> list[Tensor]:
    """Three octaves of detail, finest first, then what sits at the pixel grid itself (checkers, stripes)."""
    taps = grey.new_tensor([1.0, 4, 6, 4, 1]) / 16
    found, low = [], grey
    for dilation in (1, 2, 4):
        wide = F.pad(low, [2 * dilation] * 4, mode="reflect")
        wide = F.conv2d(wide, taps.view(1, 1, 1, 5), dilation=dilation)
        wide = F.conv2d(wide, taps.view(1, 1, 5, 1), dilation=dilation)
        found.append(low - wide)
        low = wide
    high, flat = grey.new_tensor([-1.0, 2, -1]) / 4, grey.new_tensor([1.0, 2, 1]) / 4
    for rows, columns in ((high, high), (high, flat), (flat, high)):
        found.append(F.conv2d(grey, (rows[:, None] * columns[None, :]).view(1, 1, 3, 3), padding=1))
    return found


def texture_loss(out: Tensor, target: Tensor, cell: int = 16) -> tuple[Tensor, Tensor]:
    """How much detail is missing, and how much is too much, band by band in cells of ``cell`` px.

    Missing is what the target's strength (rms) exceeds the *projection* of ours on the target by: only detail
    in its true place counts. Rewarding strength as such (of the Laplacian, or of each band) is cheapest to
    earn with a faint checkerboard or crosshatch everywhere. Too much is judged by strength alone, whatever
    the place, and most severely at the pixel grid.
    """
    lacking, excess = out.new_zeros(()), out.new_zeros(())
    for index, (ours, truth) in enumerate(zip(bands(luma(out)), bands(luma(target)), strict=True)):
        strength, wanted, shared = (
            F.avg_pool2d(product, cell, cell // 2) for product in (ours * ours, truth * truth, ours * truth)
        )
        strength, wanted = (strength + 1e-6).sqrt(), (wanted + 1e-6).sqrt()
        if index < 3:
            missing = F.relu(wanted - shared / wanted) + 0.5 * F.relu(wanted - strength)
            lacking = lacking + (2.5, 1.0, 0.1)[index] * missing.mean()
        excess = excess + (6.0 if index > 2 else 2.0) * F.relu(strength - wanted).mean()
    return lacking, excess


def drift_loss(out: Tensor, target: Tensor) -> Tensor:
    """L1 between 16 px means: no shift of colour or brightness."""
    return F.avg_pool2d(out - target, 16).abs().mean()


class Trainer:
    """Networks, optimisers, EMA and the step counter; everything that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.step = args, 0
        self.net, self.ema = make_net(), make_net()
        self.ema.load_state_dict(self.net.state_dict())
        self.opt = torch.optim.Adam(self.net.parameters(), lr=args.lr, betas=(0.9, 0.99))

    def state(self) -> dict[str, Any]:
        """A checkpoint of tensors and numbers."""
        parts = ("net", "ema", "opt")
        return {"step": self.step} | {name: getattr(self, name).state_dict() for name in parts}

    def load(self, path: Path) -> None:
        """Continue from a checkpoint that ``state`` made."""
        saved = torch.load(path, weights_only=True)
        self.step = int(saved.pop("step"))
        for name, part in saved.items():
            getattr(self, name).load_state_dict(part)

    def learning_rate(self) -> float:
        """Constant (short warm-up) before ``--texture-from``, then 66 % of it going to 3 % by a cosine."""
        start, end = self.args.texture_from, self.args.steps
        if self.step < start:
            return float(self.args.lr * min(1.0, (self.step + 1) / 100))
        progress = min(1.0, (self.step - start) / max(1, end - start))
        return float(self.args.lr * (0.03 + 0.315 * (1 + np.cos(np.pi * progress))))

    def losses(self, out: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Weighted terms; texture only from ``--texture-from`` on."""
        args = self.args
        terms = {
            "l1": charbonnier(out - target),
            "pyramid": pyramid_loss(out - target),
            "spectrum": args.spectrum * spectrum_loss(out, target),
            "drift": 0.5 * drift_loss(out, target),
        }
        if self.step >= args.texture_from:
            lacking, excess = texture_loss(out, target)
            terms |= {"lacking": args.texture * lacking, "excess": args.excess * excess}
        return terms

    def train_step(self, x: Tensor, target: Tensor) -> dict[str, float]:
        """One step on inputs ``(N,3,p,p)`` and targets ``(N,3,2p,2p)``; the terms of the loss as numbers."""
        for group in self.opt.param_groups:
            group["lr"] = self.learning_rate()
        terms = self.losses(raw_lite(self.net, x), target)
        self.opt.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.opt.step()
        log = {name: float(term.detach()) for name, term in terms.items()}
        decay = min(0.998, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        self.step += 1
        return log


def export(net: nn.Module, path: Path, steps: int) -> None:
    """Write the fp32 weights as safetensors, replacing the file in one move."""
    state = {name: tensor.detach().float().contiguous().clone() for name, tensor in net.state_dict().items()}
    metadata = {"architecture": "Compact 12-12-48-8 x2 on pixel_unshuffle(2)", "scale": "2"}
    partial = path.with_suffix(".partial")
    save_file(state, partial, {**metadata, "steps": str(steps), "licence": "apache-2.0"})
    partial.replace(path)


@torch.no_grad()
def amplify(net: Compact, gain: float) -> None:
    """Scale the last layer, and with it all that is added to bicubic: ``gain`` trades PSNR for detail."""
    for parameter in net.body[-2 if isinstance(net.body[-1], nn.PixelShuffle) else -1].parameters():
        parameter.mul_(gain)


def train(args: argparse.Namespace) -> Trainer:
    """Run to ``--steps``, with a checkpoint every ``--save-every`` steps."""
    records, images = load_cache(args.work, "train")
    sampler, trainer = PatchSampler(records, images, args.seed, args.patch), Trainer(args)
    checkpoint = args.work / f"{args.name}.pt"
    if args.resume:
        trainer.load(args.resume if args.resume.exists() else checkpoint)
    began, sums, since = time.monotonic(), dict[str, float](), 0
    while trainer.step < args.steps:
        log = trainer.train_step(*sampler.batch(trainer.step, args.batch))
        since += 1
        for name, value in log.items():
            sums[name] = sums.get(name, 0.0) + value
        if trainer.step % 100 == 0:
            text = " ".join(f"{name}={total / since:.5f}" for name, total in sums.items())
            print(f"{trainer.step} {time.monotonic() - began:.0f}s {text}", flush=True)
            sums, since = {}, 0
        if trainer.step % args.save_every == 0 or trainer.step == args.steps:
            partial = checkpoint.with_suffix(".partial")
            torch.save(trainer.state(), partial)
            partial.replace(checkpoint)
    return trainer


def measure(out: Image, target: Image, given: Image) -> dict[str, float]:
    """PSNR, GMSD, HaarPSI against the target; Laplacian energy; colour drift (1/255) from the input."""
    a, b = to_tensor(out[None]), to_tensor(target[None])
    drift = np.abs(out.mean((0, 1)) - given.mean((0, 1))).max()
    return {
        "psnr": float(piq.psnr(a, b)),
        "gmsd": float(piq.gmsd(a, b)),
        "haarpsi": float(piq.haarpsi(a, b)),
        "laplacian": sharpness(out),
        "drift": float(drift),
    }


@torch.no_grad()
def apply(net: nn.Module | None, images_rgb: Image) -> Image:
    """``lite`` (bicubic without a net) on uint8 ``(N,256,256,3)``, to uint8 ``(N,512,512,3)``."""
    x = to_tensor(images_rgb)
    bicubic = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    out = bicubic if net is None else lite(net, x)
    return (out.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def flicker(net: nn.Module, clip: Path, yunet: Path, count: int = 16) -> dict[str, float]:
    """Mean absolute change between consecutive 512 px frames (1/255), each frame softened on its own."""
    frames = list(islice(read_frames(clip, 10**6), count))
    box = FaceFinder(yunet).find(frames[0][1])
    if box is None:
        raise SystemExit(f"no face in {clip}")
    targets = [tight_crop(frame, box) for _, frame in frames]
    inputs = [soften(resize(target, INPUT), HOST) for target in targets]
    views = {"original": targets}
    for name, each in (("bicubic", None), ("lite", net)):
        views[name] = [apply(each, image[None])[0] for image in inputs]
    return {
        name: float(np.mean([np.abs(a.astype(float) - b).mean() for a, b in pairwise(view)]))
        for name, view in views.items()
    }


def evaluate(net: nn.Module, args: argparse.Namespace) -> dict[str, Any]:
    """Table over the held-out faces, written to ``NAME.eval.json`` with side-by-side pictures beside it."""
    records, images = load_cache(args.work, "val")
    rows: dict[str, list[dict[str, float]]] = {}
    sheets: dict[str, list[Image]] = {}
    for index, record in enumerate(records):
        if args.quick and (index % 4 >= 2):
            continue
        target = np.asarray(images[index])
        for condition, given in conditions(target, index).items():
            if args.quick and condition not in ("host 96", "host 128", "blur 1.2", "sharp"):
                continue
            pictures = {"bicubic": apply(None, given[None])[0], "lite": apply(net, given[None])[0]}
            pictures["original"] = target
            for who, picture in pictures.items():
                for group in (condition, f"{condition}, {record.kind}"):
                    rows.setdefault(f"{group}|{who}", []).append(measure(picture, target, given))
            if condition in ("host 96", "sharp"):
                sheets.setdefault(f"{condition} {record.kind}", []).append(np.hstack(list(pictures.values())))
    result: dict[str, Any] = {
        key: {name: round(float(np.mean([row[name] for row in found])), 5) for name in found[0]}
        for key, found in rows.items()
    }
    for key in [key for key in rows if key.endswith("|lite")]:
        pairs = zip(rows[key], rows[key.replace("|lite", "|bicubic")], strict=True)
        gains = [ours["laplacian"] / base["laplacian"] for ours, base in pairs]
        result[key]["median_gain"] = round(float(np.median(gains)), 3)
    colours = np.random.default_rng(0).integers(0, 256, (32, 1, 1, 3))
    flat = np.broadcast_to(colours, (32, 64, 64, 3)).astype(np.uint8)
    error = np.abs(apply(net, flat).astype(int) - flat.repeat(2, 1).repeat(2, 2).astype(int)).max()
    result["constant colour, largest error"] = int(error)
    result["flicker"] = flicker(net, args.data / "clips" / "d3.mp4", args.yunet)
    (args.work / f"{args.name}.eval.json").write_text(json.dumps(result, indent=1))
    for name, strips in sheets.items():
        for page in range(0, len(strips), 4):
            sheet = np.vstack(strips[page : page + 4])[..., ::-1]
            cv2.imwrite(str(args.work / f"{args.name} {name} {page // 4}.png".replace(" ", "_")), sheet)
    return result


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| input | picture | PSNR | GMSD | HaarPSI | Laplacian | drift |", "|---" * 7 + "|"]
    for key, row in result.items():
        if "|" in key:
            name, who = key.split("|")
            scores = " | ".join(f"{row[k]:.{d}f}" for k, d in (("psnr", 2), ("gmsd", 4), ("haarpsi", 4)))
            lines.append(f"| {name} | {who} | {scores} | {row['laplacian']:.1f} | {row['drift']:.2f} |")
    rest = {key: value for key, value in result.items() if "|" not in key}
    return "\n".join([*lines, "", json.dumps(rest)])


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="has clips/, portraits/, public_domain/")
    parser.add_argument("--yunet", type=Path, required=True, help="YuNet face detector, ONNX")
    parser.add_argument("--work", type=Path, required=True, help="cache, checkpoints, pictures")
    parser.add_argument("--name", default="lite", help="name of the run's checkpoint in --work")
    parser.add_argument("--steps", type=int, default=5200)
    parser.add_argument("--texture-from", type=int, default=3000, help="step where texture joins")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--patch", type=int, default=64, help="input patch, px")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--spectrum", type=float, default=0.2)
    parser.add_argument("--texture", type=float, default=3.0)
    parser.add_argument("--excess", type=float, default=1.0)
    parser.add_argument("--gain", type=float, default=1.0, help="on the detail of the averaged net")
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, nargs="?", const=Path("last"), help="default: the run's own")
    parser.add_argument("--eval-only", action="store_true", help="no training: table and pictures")
    parser.add_argument("--quick", action="store_true", help="evaluate on half of the held-out crops")
    parser.add_argument("--export", type=Path, help="write the averaged weights here")
    return parser.parse_args()


def main() -> None:
    """Cache, train, evaluate, export."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    build_cache(args.data, args.yunet, args.work, args.seed)
    if args.eval_only:
        args.steps = 0
        args.resume = args.resume or Path("last")
    trainer = train(args)
    amplify(trainer.ema.eval(), args.gain)
    print(table(evaluate(trainer.ema, args)))
    if args.export:
        export(trainer.ema, args.export, trainer.step)


if __name__ == "__main__":
    main()
