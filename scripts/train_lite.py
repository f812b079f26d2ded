"""Train the lite face sharpener (`lite_net.LiteNet`), and go on where it was left.

``python scripts/train_lite.py --data DATA --repositories REPOSITORIES --yunet YUNET.onnx
--decoder tiny_autoencoder.py --work WORK`` begins; ``python scripts/train_lite.py --work WORK
--resume`` goes on with the same arguments (those given again replace the stored ones).

WORK gets the cached crops, ``NAME.pt`` (a checkpoint every few minutes, replaced in one move),
``NAME.args.json`` and ``NAME.jsonl``: losses every 100 steps, and figures on the people of the
validation split. ``scripts/eval_lite.py`` measures a checkpoint in full.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from lite_data import (
    CONDITIONS,
    BatchStream,
    Image,
    build_cache,
    condition,
    fine_energy,
    load_cache,
    load_decoder,
    to_tensor,
)
from lite_net import LiteNet
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

LUMA = (0.299, 0.587, 0.114)
PATHS = ("data", "repositories", "yunet", "decoder", "work", "export")


def luma(x: Tensor) -> Tensor:
    """Rec. 601 luma ``(N,1,H,W)``."""
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def charbonnier(difference: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of ``sqrt(d^2 + epsilon^2)``."""
    return (difference * difference + epsilon * epsilon).sqrt().mean()


def pyramid_loss(difference: Tensor) -> Tensor:
    """Charbonnier over the band-pass levels of a Laplacian pyramid, finest level first."""
    total = difference.new_zeros(())
    for weight in (1.0, 0.7, 0.5):
        low = F.avg_pool2d(difference, 2)
        wide = F.interpolate(low, scale_factor=2, mode="bilinear")
        total = total + weight * charbonnier(difference - wide)
        difference = low
    return total


def spectrum_loss(difference: Tensor) -> Tensor:
    """Mean magnitude of the FFT of the luma under a Hann window: amount and place of detail."""
    window = torch.hann_window(difference.shape[-1], periodic=False)
    windowed = luma(difference) * torch.outer(window, window)
    spectrum: Tensor = torch.fft.rfft2(windowed, norm="ortho")
    return spectrum.abs().mean()


def drift_loss(difference: Tensor) -> Tensor:
    """L1 between 16 px means: no shift of color or brightness."""
    return F.avg_pool2d(difference, 16).abs().mean()


class Trainer:
    """Network, optimizer, averaged weights and the step counter: all that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.step = args, 0
        shape = {"width": args.width, "blocks": args.blocks, "wide": args.wide}
        self.net, self.ema = LiteNet(**shape), LiteNet(**shape).eval().requires_grad_(False)
        self.ema.load_state_dict(self.net.state_dict())
        self.opt = torch.optim.Adam(
            self.net.parameters(), lr=args.lr, betas=(0.9, 0.99), fused=True
        )

    def state(self) -> dict[str, Any]:
        """A checkpoint of tensors and numbers."""
        parts = {name: getattr(self, name).state_dict() for name in ("net", "ema", "opt")}
        return {"step": self.step, "shape": self.net.shape} | parts

    def load(self, path: Path) -> None:
        """Continue from a checkpoint that ``state`` made."""
        saved = torch.load(path, weights_only=True)
        self.step = int(saved["step"])
        for name in ("net", "ema", "opt"):
            getattr(self, name).load_state_dict(saved[name])

    def learning_rate(self) -> float:
        """Short warm-up, constant, and a cosine to 2 % over the last ``--decay`` of the steps."""
        args = self.args
        start = args.steps * (1 - args.decay)
        progress = min(1.0, max(0.0, (self.step - start) / max(1.0, args.steps - start)))
        fall = 0.02 + 0.49 * (1 + np.cos(np.pi * progress))
        return float(args.lr * min(1.0, (self.step + 1) / 500) * fall)

    def losses(self, out: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Weighted terms of the fidelity stage."""
        difference = out - target
        return {
            "l1": charbonnier(difference),
            "pyramid": pyramid_loss(difference),
            "spectrum": self.args.spectrum * spectrum_loss(difference),
            "drift": 0.5 * drift_loss(difference),
        }

    def train_step(self, x: Tensor, target: Tensor) -> dict[str, float]:
        """One step on inputs ``(N,3,p,p)`` and targets ``(N,3,2p,2p)``; the terms as numbers."""
        for group in self.opt.param_groups:
            group["lr"] = self.learning_rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
            out = self.net(x)
        terms = self.losses(out.float(), target)
        self.opt.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), self.args.clip))
        if np.isfinite(norm):  # one overflow must not spoil a run of days
            self.opt.step()
        log = {name: float(term.detach()) for name, term in terms.items()} | {"norm": norm}
        decay = min(self.args.ema, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        self.step += 1
        return log


def export(net: LiteNet, path: Path, steps: int) -> None:
    """Write fp32 weights with all branches fused, replacing the file in one move."""
    from lite_net import Layer

    state: dict[str, Tensor] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, Layer):
            fused = layer.fused()
            for part in ("weight", "bias", "slopes"):
                tensor = getattr(fused, part)
                if tensor is not None:
                    state[f"{name}.{part}"] = tensor.float().contiguous()
    shape = " ".join(f"{name}={value}" for name, value in net.shape.items())
    metadata = {"architecture": f"LiteNet {shape}", "scale": "2", "steps": str(steps)}
    partial = path.with_suffix(".partial")
    save_file(state, partial, {**metadata, "license": "apache-2.0"})
    partial.replace(path)


@torch.no_grad()
def apply(net: Callable[[Tensor], Tensor] | None, images_rgb: Image) -> Image:
    """``net`` (bicubic without) on uint8 ``(N,256,256,3)``, to uint8 ``(N,512,512,3)``."""
    x = to_tensor(images_rgb)
    if net is None:
        out = F.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False)
    else:
        out = net(x)
    return (out.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def psnr(a: Image, b: Image) -> float:
    """In dB."""
    return float(10 * np.log10(255**2 / max(1e-9, np.square(a.astype(np.float64) - b).mean())))


class Validation:
    """A few crops of the validation people under every softness, kept in ``WORK/validation.npz``."""

    def __init__(self, work: Path, decoder: Any, count: int) -> None:
        crops, images = load_cache(work, "validation")
        per_person: dict[int, int] = {}
        chosen: list[int] = []
        for index, crop in enumerate(crops):
            per_person[crop.person] = per_person.get(crop.person, 0) + 1
            if per_person[crop.person] <= 2 and len(chosen) < count:
                chosen.append(index)
        self.targets = [np.asarray(images[index]) for index in chosen]
        path = work / f"validation_{count}.npz"
        if not path.exists():
            inputs: dict[str, Any] = {}
            for name in CONDITIONS:
                given = [condition(name, t, decoder, i) for i, t in enumerate(self.targets)]
                present = [image for image in given if image is not None]
                if len(present) == len(given):
                    inputs[name] = np.stack(present)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **inputs)
            partial.replace(path)
        with np.load(path) as stored:
            self.inputs = {name: stored[name] for name in CONDITIONS if name in stored}
        self.energy = [fine_energy(target) for target in self.targets]

    def measure(self, net: Callable[[Tensor], Tensor] | None) -> dict[str, list[float]]:
        """Mean PSNR and mean share of the original's fine detail, by condition."""
        rows: dict[str, list[float]] = {}
        for name, inputs in self.inputs.items():
            outputs = [apply(net, image[None])[0] for image in inputs]
            quality = [psnr(out, target) for out, target in zip(outputs, self.targets, strict=True)]
            share = [fine_energy(out) / e for out, e in zip(outputs, self.energy, strict=True)]
            rows[name] = [round(float(np.mean(quality)), 3), round(float(np.mean(share)), 3)]
        return rows


def append(path: Path, entry: dict[str, Any]) -> None:
    """One line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def train(args: argparse.Namespace) -> Trainer:
    """Run to ``--steps``."""
    decoder = load_decoder(args.decoder) if args.decoder else None
    for split in ("train", "validation"):
        build_cache(args.data, args.repositories, args.yunet, args.work, args.seed, split)
    validation = Validation(args.work, decoder, args.validation_count)
    trainer = Trainer(args)
    checkpoint, log_path = (args.work / f"{args.name}{end}" for end in (".pt", ".jsonl"))
    if args.resume and checkpoint.exists():
        trainer.load(checkpoint)
    else:
        append(log_path, {"step": 0, "bicubic": validation.measure(None)})
    began = saved = time.monotonic()
    sums: dict[str, float] = {}
    stream = BatchStream(args.work, args.decoder, args, trainer.step, args.steps)
    # its own process: beside others, one thread for the network and one for the data do most
    loader = DataLoader(stream, batch_size=None, num_workers=args.workers)
    for decoded, inputs, targets in loader:
        log = trainer.train_step(to_tensor(inputs), to_tensor(targets))
        for name, value in log.items():
            sums[name] = sums.get(name, 0.0) + value
        step, ended = trainer.step, trainer.step >= args.steps
        if step % 100 == 0:
            means = {name: round(total / 100, 6) for name, total in sums.items()}
            times = {"seconds": round(time.monotonic() - began), "decoded": decoded}
            append(log_path, {"step": step, "lr": trainer.learning_rate(), **times, **means})
            sums = {}
        if time.monotonic() - saved > 60 * args.save_minutes or ended:
            partial = checkpoint.with_suffix(".partial")
            torch.save(trainer.state(), partial)
            partial.replace(checkpoint)
            saved = time.monotonic()
        if step % args.validate_every == 0 or ended:
            append(log_path, {"step": step, "validation": validation.measure(trainer.ema)})
    return trainer


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, over what ``NAME.args.json`` holds where ``--resume`` is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with clips/*.mp4 and portraits/*")
    add("--repositories", type=Path, help="folder with owner/name of public repositories")
    add("--yunet", type=Path, help="face_detection_yunet_2023mar.onnx")
    add("--decoder", type=Path, help="file with decoder_soft(crops, blend, noise, generator)")
    add("--work", type=Path, required=True, help="folder for caches, checkpoints and the log")
    add("--name", default="lite", help="of the checkpoint and the log")
    add("--resume", action="store_true", help="go on from the checkpoint, arguments as before")
    add("--export", type=Path, help="write the averaged weights there at the end")
    add("--steps", type=int, default=150_000)
    add("--decay", type=float, default=0.2, help="share of the steps over which the rate falls")
    add("--batch", type=int, default=8)
    add("--patch", type=int, default=128, help="side of the input patches, a multiple of 8")
    add("--lr", type=float, default=5e-4)
    add("--clip", type=float, default=1.0, help="norm that gradients are clipped to")
    add("--ema", type=float, default=0.999)
    add("--spectrum", type=float, default=0.1)
    add("--width", type=int, default=96)
    add("--blocks", type=int, default=4)
    add("--wide", type=int, default=96)
    add("--bf16", action=argparse.BooleanOptionalAction, default=True)
    add("--versions", type=int, default=3, help="decoded views per target")
    add("--decode-every", type=int, default=6, help="steps between two new decoded views")
    add("--validate-every", type=int, default=1000)
    add("--validation-count", type=int, default=16)
    add("--save-minutes", type=float, default=4)
    add("--threads", type=int, default=1)
    add("--workers", type=int, default=1, help="processes that make batches; 0 for none, 1 at most")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    stored = args.work / f"{args.name}.args.json"
    if args.resume and stored.exists():
        defaults = json.loads(stored.read_text())
        for name in PATHS:
            defaults[name] = Path(defaults[name]) if defaults.get(name) else None
        parser.set_defaults(**defaults)
        args = parser.parse_args(argv)
    for name in ("data", "repositories", "yunet"):
        if getattr(args, name) is None:
            parser.error(f"--{name} is required to begin")
    return args


def main() -> None:
    """Cache, train, export."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    values = {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "resume"
    }
    (args.work / f"{args.name}.args.json").write_text(json.dumps(values, indent=1))
    trainer = train(args)
    if args.export:
        export(trainer.ema, args.export, trainer.step)


if __name__ == "__main__":
    main()
