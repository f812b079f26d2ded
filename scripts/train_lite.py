"""Train the lite face sharpener (`lite_net.LiteNet`), and go on where it was left.

``python scripts/train_lite.py --data DATA --repositories REPOSITORIES --yunet YUNET.onnx
--decoder tiny_autoencoder.py --work WORK`` begins; ``python scripts/train_lite.py --work WORK
--resume`` goes on with the same arguments (those given again replace the stored ones).

WORK gets the cached crops, ``NAME.pt`` (a checkpoint every few minutes, replaced in one move, and
when the process is asked to end),
``NAME.args.json`` and ``NAME.jsonl``: losses every 100 steps, and figures on the people of the
validation split. ``scripts/lite_gain.py`` then fits how much fine detail is added, and exports;
``scripts/eval_lite.py`` measures a checkpoint in full.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lite_data import (
    CONDITIONS,
    BatchStream,
    Image,
    Patches,
    build_cache,
    condition,
    fine_energy,
    grid,
    load_cache,
    load_decoder,
    to_tensor,
)
from lite_losses import (
    Critic,
    artifact_map,
    critic_loss,
    false_detail,
    flicker_loss,
    grid_loss,
    robust,
    scales_loss,
    sharpness_loss,
    spectrum_loss,
)
from lite_net import LiteNet, enlarged
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from musetalk_enhance.faces.meter import SIDE, FaceMeter, shrink

PATHS = ("data", "repositories", "yunet", "decoder", "work", "snapshot", "init")


class Trainer:
    """Networks, optimizers, averaged weights and the step counter: all that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.step = args, 0
        shape = {name: getattr(args, name) for name in ("width", "blocks", "wide", "look")}
        self.net, self.ema = LiteNet(**shape), LiteNet(**shape).eval().requires_grad_(False)
        if args.init:
            # weights without a look at the whole face, or without a gain, may begin, too
            load_weights(self.net, args.init, lacking=("look.", "styles.", "gain."))
        self.ema.load_state_dict(self.net.state_dict())
        parameters = self.net.parameters()
        self.opt = torch.optim.Adam(parameters, lr=args.lr, betas=(0.9, 0.99), fused=True)
        self.critic = Critic()
        self.critic_opt = torch.optim.Adam(
            self.critic.parameters(), lr=args.critic_lr, betas=(0.5, 0.99)
        )
        self.meter: Any = None
        self.balance = 0.0
        """Running ratio between the gradients of fidelity and of the critic, at the output."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what a checkpoint holds beside numbers."""
        return ("net", "ema", "opt", *(("critic", "critic_opt") if self.args.stage == 2 else ()))

    def plain(self, x: Tensor) -> Tensor:
        """The averaged network before fine detail is added, on faces (N, 3, 256, 256)."""
        return self.ema.restore(x, self.ema.look(x))

    def state(self) -> dict[str, Any]:
        """A checkpoint of tensors and numbers."""
        parts = {name: getattr(self, name).state_dict() for name in self.parts}
        return {"step": self.step, "shape": self.net.shape, "balance": self.balance} | parts

    def load(self, path: Path) -> None:
        """Continue from a checkpoint that ``state`` returned."""
        saved = torch.load(path, weights_only=True)
        self.step, self.balance = int(saved["step"]), float(saved.get("balance", 0.0))
        for name in self.parts:
            getattr(self, name).load_state_dict(saved[name])

    def learning_rate(self) -> float:
        """Share of the full rate: warm-up, constant, a cosine to 2 % in the last ``--decay``."""
        args = self.args
        start = args.steps * (1 - args.decay)
        progress = min(1.0, max(0.0, (self.step - start) / max(1.0, args.steps - start)))
        fall = 0.02 + 0.49 * (1 + np.cos(np.pi * progress))
        return float(min(1.0, (self.step + 1) / 500) * fall)

    def fidelity(self, out: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Weighted terms of how near the result is to the target."""
        difference = out - target
        scales, drift = scales_loss(difference)
        return {
            "l1": robust(difference),
            "scales": 0.5 * scales,
            "spectrum": self.args.spectrum * spectrum_loss(difference),
            "drift": 0.5 * drift,
        }

    def meter_loss(self, out: Tensor, target: Tensor) -> Tensor:
        """How far openings of mouth and eyes and the landmarks of whole faces move."""
        if self.meter is None:
            self.meter = FaceMeter()
        readings = [self.meter.network(shrink(faces, SIDE).clamp(0, 1)) for faces in (out, target)]
        size = out.new_tensor([1.0, 1.0])
        ours, theirs = readings
        moved: Tensor = (
            (ours.mouth - theirs.mouth).abs().mean()
            + (ours.eye_shares(size) - theirs.eye_shares(size)).abs().mean()
            + 4 * (ours.landmarks - theirs.landmarks).abs().mean()
        )
        return moved

    def criticism(
        self, bicubic: Tensor, out: Tensor, target: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """One step of the critic on half of the batch, then its gradient at the output."""
        half = max(1, len(out) // 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
            scores = [self.critic(y[:half], bicubic[:half]) for y in (target, out.detach())]
        loss = critic_loss(*scores)
        self.critic_opt.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.critic_opt.step()
        self.critic.requires_grad_(False)
        leaf = out.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
            with torch.no_grad():
                original = self.critic(target, bicubic)
            restored = self.critic(leaf, bicubic)
        gradient = torch.autograd.grad(critic_loss(restored, original), leaf)[0]
        self.critic.requires_grad_(True)
        margin = float((original - restored.detach()).mean())
        return gradient, {"critic": float(loss.detach()), "margin": margin}

    def train_step(self, patches: Patches, kind: str = "patches") -> dict[str, float]:
        """One step on a batch; the terms as numbers.

        What is trained is the result before fine detail is added: ``lite_gain.py`` fits how much of
        it to add, when the rest is done.

        The gradient at the output is put together there: fidelity and detail as they are, that of
        the critic as a share (``--adversarial``) of fidelity's norm. The network is passed once.

        Args:
            patches: inputs, originals, and the faces that they are of.
            kind: "patches"; "pairs", whose second half are the frames after those of the first; or
                "faces", which are whole.
        """
        args = self.args
        x, target = to_tensor(patches.inputs), to_tensor(patches.targets)
        bicubic = enlarged(x)
        weights = evened(bicubic, target)
        whole = cropped(to_tensor(patches.whole))
        for opt, rate in ((self.opt, args.lr), (self.critic_opt, args.critic_lr)):
            for group in opt.param_groups:
                group["lr"] = rate * self.learning_rate()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            raw = self.net.residual(x, self.net.look(whole)[patches.owner])
        out = (bicubic + raw.detach()).requires_grad_()
        terms = self.fidelity(target + (out - target) * weights, target)
        if args.stage == 2 and args.artifacts:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                added = self.ema.residual(x, self.ema.look(whole)[patches.owner])
            weights = artifact_map(out.detach(), bicubic + added, target)
            terms["artifacts"] = args.artifacts * (weights * (out - target).abs()).mean()
        terms["sharpness"] = args.sharpness * sharpness_loss(out, target)
        terms["grid"] = args.grid * grid_loss(out, target)
        if kind == "pairs":
            terms["flicker"] = args.flicker * flicker_loss(out - target)
        if kind == "faces":
            terms["meter"] = args.meter * self.meter_loss(out, target)
        log = {name: float(term.detach()) for name, term in terms.items()}
        gradient = torch.autograd.grad(torch.stack(list(terms.values())).sum(), out)[0]
        if args.stage == 2 and args.adversarial:
            pull, figures = self.criticism(bicubic, out, target)
            ratio = float(gradient.norm() / pull.norm().clamp_min(1e-12))
            self.balance = ratio if not self.balance else 0.99 * self.balance + 0.01 * ratio
            gradient = gradient + args.adversarial * min(ratio, 2 * self.balance) * pull
            log |= figures
        self.opt.zero_grad(set_to_none=True)
        torch.autograd.backward(raw, gradient)
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), args.clip))
        if np.isfinite(norm):  # one overflow must not spoil a run of days
            self.opt.step()
        log["norm"] = norm
        decay = min(args.ema, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        self.step += 1
        return log


def cropped(faces: Tensor) -> Tensor:
    """Some part of the faces, 128 px at least on each side: (N, 3, H, W) to (N, 3, h, w).

    A look at ever other parts learns how they are soft; at the same face it learns whose it is.
    """
    sides = [8 * int(torch.randint(16, size // 8 + 1, ())) for size in faces.shape[2:]]
    free = [size - side for size, side in zip(faces.shape[2:], sides, strict=True)]
    top, left = (int(torch.randint(0, each + 1, ())) for each in free)
    return faces[:, :, top : top + sides[0], left : left + sides[1]]


def evened(bicubic: Tensor, target: Tensor) -> Tensor:
    """Weights (N, 1, 1, 1) that let a patch count the same however soft it is.

    The mean error of the bicubic enlargements over that of each patch, from 1/8 to 8, as in a mean
    of decibels: clear skin in a sharp face has a tenth of the error of a beard.
    """
    error = (bicubic - target).abs().mean((1, 2, 3), keepdim=True) + 5e-4
    return (error.mean() / error).clamp(1 / 8, 8)


def averaged_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint, or of what `snapshot` wrote, float32."""
    if path.suffix == ".safetensors":
        return {name: value.float() for name, value in load_file(path).items()}
    ema: dict[str, Tensor] = torch.load(path, weights_only=True)["ema"]
    return ema


def load_weights(net: LiteNet, path: Path, lacking: tuple[str, ...]) -> None:
    """Put `averaged_weights` into ``net``; names that begin with ``lacking`` may be missing.

    Raises:
        ValueError: they are of another network.
    """
    missing = net.load_state_dict(averaged_weights(path), strict=False)
    if missing.unexpected_keys or any(not n.startswith(lacking) for n in missing.missing_keys):
        raise ValueError(f"{path} holds another network: {missing}")


def snapshot(net: LiteNet, path: Path, steps: int) -> None:
    """Write all branches as fp16, to begin another run with, replacing the file in one move."""
    state = {name: value.half().contiguous() for name, value in net.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(state, partial, {"steps": str(steps), "license": "apache-2.0"})
    partial.replace(path)


def export(net: LiteNet, path: Path, steps: int, dtype: torch.dtype = torch.float16) -> None:
    """Write weights with all branches fused, replacing the file in one move.

    Half precision halves the file and changes no pixel by more than 0.1 of 255.
    """
    from lite_net import Layer

    state: dict[str, Tensor] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, Layer):
            fused = layer.fused()
            for part in ("weight", "bias"):
                tensor = getattr(fused, part)
                if tensor is not None:
                    state[f"{name}.{part}"] = tensor.to(dtype).contiguous()
        elif isinstance(layer, nn.Linear):
            state |= {f"{name}.{part}": v.to(dtype) for part, v in layer.state_dict().items()}
    state["look.filters"] = net.look.filters.clone()  # exact: no band may see brightness
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
        out = enlarged(x)
    else:
        out = net(x)
    return (out.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def psnr(a: Image, b: Image) -> float:
    """In dB."""
    return float(10 * np.log10(255**2 / max(1e-9, np.square(a.astype(np.float64) - b).mean())))


class Validation:
    """A few crops of the validation people under every softness, cached in ``WORK``."""

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
                views = [condition(name, t, decoder, i) for i, t in enumerate(self.targets)]
                present = [image for image in views if image is not None]
                if len(present) == len(self.targets):
                    inputs[name] = np.stack(present)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, **inputs)
            partial.replace(path)
        with np.load(path) as stored:
            self.inputs = {name: stored[name] for name in CONDITIONS if name in stored}
        self.energy = [fine_energy(target) for target in self.targets]

    def measure(self, net: Callable[[Tensor], Tensor] | None) -> dict[str, list[float]]:
        """Mean PSNR, share of fine detail, `grid` and `false_detail`, by condition."""
        rows: dict[str, list[float]] = {}
        for name, inputs in self.inputs.items():
            outputs = [apply(net, image[None])[0] for image in inputs]
            quality = [psnr(out, target) for out, target in zip(outputs, self.targets, strict=True)]
            share = [fine_energy(out) / e for out, e in zip(outputs, self.energy, strict=True)]
            out, target = (to_tensor(np.stack(each)) for each in (outputs, self.targets))
            false = false_detail(out, target).tolist()
            figures = (quality, share, [grid(image) for image in outputs], false)
            rows[name] = [round(float(np.mean(values)), 3) for values in figures]
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
    stop: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    began = saved = time.monotonic()
    sums: dict[str, list[float]] = {}
    stream = BatchStream(args, trainer.step)
    # its own process: beside others, one thread for the network and one for the data do most
    loader = DataLoader(stream, batch_size=None, num_workers=args.workers)
    for kind, decoded, patches in loader:
        log = trainer.train_step(patches, kind)
        for name, value in log.items():
            sums.setdefault(name, []).append(value)
        step, ended = trainer.step, trainer.step >= args.steps
        if step % 100 == 0:
            means = {name: round(float(np.mean(values)), 6) for name, values in sums.items()}
            times = {"seconds": round(time.monotonic() - began), "decoded": decoded}
            append(
                log_path, {"step": step, "lr": args.lr * trainer.learning_rate(), **times, **means}
            )
            sums = {}
        if time.monotonic() - saved > 60 * args.save_minutes or ended or stop:
            partial = checkpoint.with_suffix(".partial")
            torch.save(trainer.state(), partial)
            partial.replace(checkpoint)
            saved = time.monotonic()
        if step % args.validate_every == 0 or ended:
            append(log_path, {"step": step, "validation": validation.measure(trainer.plain)})
        if stop:
            break
    signal.signal(signal.SIGTERM, handler)
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
    add("--snapshot", type=Path, help="write the averaged weights there for another run's --init")
    add("--steps", type=int, default=150_000)
    add("--decay", type=float, default=0.2, help="share of the steps over which the rate falls")
    add("--batch", type=int, default=8)
    add("--patch", type=int, default=128, help="side of the input patches, a multiple of 8")
    add("--per-face", type=int, default=2, help="patches of each face, but for whole ones")
    add("--lr", type=float, default=5e-4)
    add("--clip", type=float, default=1.0, help="norm that gradients are clipped to")
    add("--ema", type=float, default=0.999)
    add(
        "--stage",
        type=int,
        choices=(1, 2),
        default=1,
        help="2 adds what --adversarial, --critic-lr, --artifacts, --flicker and --meter say",
    )
    add("--init", type=Path, help="checkpoint or snapshot whose averaged weights to begin with")
    add("--adversarial", type=float, default=0.3, help="the critic's share of fidelity's gradient")
    add("--critic-lr", type=float, default=2e-4)
    add("--artifacts", type=float, default=10.0)
    add("--sharpness", type=float, default=0.2, help="weight of limits of detail")
    add("--grid", type=float, default=0.1, help="weight of what keeps dots out")
    add("--flicker", type=float, default=0.5)
    add("--pair-every", type=int, default=5, help="steps between two of following frames")
    add("--meter", type=float, default=0.02)
    add("--face-every", type=int, default=16, help="steps between two of whole faces")
    add("--spectrum", type=float, default=0.1)
    add("--width", type=int, default=96)
    add("--blocks", type=int, default=4)
    add("--wide", type=int, default=96)
    add("--look", type=int, default=64)
    add("--bf16", action=argparse.BooleanOptionalAction, default=True)
    add("--versions", type=int, default=3, help="decoded views per target")
    add("--decode-every", type=int, default=16, help="steps between two new decoded views")
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
    if args.per_face < 1:
        parser.error("--per-face must be at least 1")
    for name in ("data", "repositories", "yunet"):
        if getattr(args, name) is None:
            parser.error(f"--{name} is required to begin")
    return args


def main() -> None:
    """Cache and train."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    values = {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "resume"
    }
    (args.work / f"{args.name}.args.json").write_text(json.dumps(values, indent=1))
    trainer = train(args)
    if args.snapshot:
        snapshot(trainer.ema, args.snapshot, trainer.step)


if __name__ == "__main__":
    main()
