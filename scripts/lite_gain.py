"""Fit how often lite adds fine detail to a face, by the energies of its bands, and export it.

``python scripts/lite_gain.py --work WORK --weights WORK/NAME.pt --export lite.safetensors
[--snapshot lite_start.safetensors]``, with the crops and decoded views that a run left in WORK.

What minimizes the error alone is softer than the original wherever detail cannot be predicted. Of
the ways to make it sharper that were measured, the same gain at every place costs the least error.
Error and energy of fine detail are quadratic in the gain, so the gain that a face wants has a
closed form (`wanted_gains`). `LiteNet.gain`, two layers on the energies of bands of the input, is
fitted to it, over whole faces of the training people under all kinds of softness.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from lite_data import DecodedCache, PatchSampler, load_cache, to_tensor
from lite_losses import fine_detail
from lite_net import LiteNet
from safetensors import safe_open
from torch import Tensor, nn
from train_lite import export, load_weights, snapshot

SHARE = 0.6
"""Energy of fine detail that a result should have, of the original's."""
DECIBELS = 0.15
"""What a face may lose of its PSNR for that."""
LIMITS = -0.3, 2.0
"""Of the gain that a face can want; that of a flat one, or a very noisy one, is chance."""
STEPS, RATE, DECAY = 300, 0.01, 0.1
"""Of the fit. With more steps, or less decay, it takes the rarer kinds of softness differently with
every seed."""


def wanted_gains(
    restored: Tensor, target: Tensor, share: float = SHARE, decibels: float = DECIBELS
) -> Tensor:
    """Gain that each face wants, (N,).

    It is the gain of least error where that has ``share`` of the target's fine detail, else one
    above it, as far as the face loses no more than ``decibels``.

    Args:
        restored: before fine detail is added, float (N, 3, H, W), RGB, 0..1.
        target: the originals, the same.
        share: of the energy of the target's fine detail.
        decibels: of PSNR.

    Returns:
        float64.
    """
    detail, target_detail = fine_detail(restored), fine_detail(target)
    twice = fine_detail(detail.expand(-1, 3, -1, -1))

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() * b.double()).mean((1, 2, 3))

    difference = target - restored
    energy = product(detail, detail).clamp_min(1e-12)
    best = product(difference.mean(1, keepdim=True), detail) / energy
    cost = energy / (product(difference, difference) - best.square() * energy).clamp_min(1e-9)
    # share of the target's detail = a g^2 + 2 b g + energy
    a, b = product(twice, twice).clamp_min(1e-12), product(detail, twice)
    root = b.square() - a * (energy - share * product(target_detail, target_detail))
    sharp = (root.clamp_min(0).sqrt() - b) / a
    most = ((10 ** (decibels / 10) - 1) / cost).sqrt()
    return best + (sharp - best).clamp_min(0).minimum(most)


def fit_gain(net: LiteNet, faces: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Set ``net.gain``; returns the share of the variance of wanted gains that it explains.

    Args:
        net: trained, in `eval` mode, of which the gain is replaced.
        faces: inputs (N, 3, 256, 256) and targets (N, 3, 512, 512), float, 0..1.
    """
    energies, gains = [], []
    with torch.no_grad():
        for x, target in faces:
            energies.append(net.look.energies(x))
            gains.append(wanted_gains(net.restore(x, net.look(x)), target).clamp(*LIMITS))
    x, y = torch.cat(energies), torch.cat(gains).float()
    middle, scale = x.mean(0, keepdim=True), x.std(0, keepdim=True) + 1e-6
    first, last = net.gain
    with torch.no_grad():
        nn.init.kaiming_normal_(first.weight)
        for zero in (first.bias, last.weight, last.bias):
            zero.zero_()
    net.gain.requires_grad_(True)
    opt = torch.optim.AdamW(net.gain.parameters(), RATE, weight_decay=DECAY)
    for step in range(STEPS):
        opt.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        loss = F.mse_loss(last(first((x - middle) / scale).flatten(1))[:, 0], y)
        opt.zero_grad()
        torch.autograd.backward(loss)
        opt.step()
    with torch.no_grad():  # the input's scale into the weights
        first.weight.div_(scale)
        first.bias.sub_(F.conv2d(middle, first.weight).flatten())
    net.gain.requires_grad_(False)
    return float(1 - loss.detach() / y.var())


def training_faces(args: argparse.Namespace) -> Iterable[tuple[Tensor, Tensor]]:
    """``args.faces`` whole faces, eight at a time: inputs and targets, as `fit_gain` takes them.

    Raises:
        FileNotFoundError: WORK has no decoded views.
    """
    crops, images = load_cache(args.work, "train")
    views = int(json.loads((args.work / "decoded.json").read_text())[1])
    decoded = DecodedCache(args.work, crops, images, None, views // len(images))
    sampler = PatchSampler(crops, images, args.seed, decoded=decoded)
    for step in range(args.faces // 8):
        batch = sampler.batch(step, 32, "faces")
        yield to_tensor(batch.inputs), to_tensor(batch.targets)


def main() -> None:
    """Load, fit, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of train_lite.py")
    add("--weights", type=Path, required=True, help="checkpoint or snapshot of train_lite.py")
    add("--export", type=Path, help="write the weights there, branches fused")
    add("--snapshot", type=Path, help="write them there for another run's --init")
    add("--faces", type=int, default=2000, help="a multiple of 8")
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.weights.suffix == ".safetensors":
        shape: dict[str, int] = {}
        with safe_open(args.weights, "pt") as file:
            steps = int(file.metadata()["steps"])
    else:
        saved = torch.load(args.weights, weights_only=True)
        shape, steps = saved["shape"], int(saved["step"])
    net = LiteNet(**shape).eval().requires_grad_(False)
    load_weights(net, args.weights, lacking=("gain.",))
    print(f"explained: {fit_gain(net, training_faces(args)):.2f}")
    if args.export:
        export(net, args.export, steps)
    if args.snapshot:
        snapshot(net, args.snapshot, steps)


if __name__ == "__main__":
    main()
