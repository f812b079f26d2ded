"""Stream thousands of frames through an enhancer and watch the memory of the process.

    python scripts/soak.py --frames 10000 --model lite --mode memory

The frames come as MuseTalk hands them out, BGR uint8 views of negative stride in batches of 8, each
clip with an odd tail; now and then one is broken, and a clip comes as a list. Prints the resident
memory at every 500th frame, and how much of it is the process' own (not pages of files, which the
machine drops and reads again as it likes). Ends with 1 when either was ever more than 5 % over what
it was at the 500th, or when a frame was lost. `--model none` takes a restorer without a network:
the same path, and thousands of frames in a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from musetalk_enhance import EnhancerSettings, GFPGANEnhancer
from musetalk_enhance.restorers.base import LoadRequest, ModelInfo, Restorer

BATCH, STEP, ALLOWED = 8, 500, 0.05
INFO = ModelInfo("none", "no network", 256, 512, (0.0, 1.0), "none", bytes_per_face=32 * 2**20)


class NoNetwork(Restorer):
    """Enlarges by pixel repetition and inverts: allocates as a network would, computes next to
    nothing."""

    info = INFO

    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) to (N, 3, 2S, 2S); see `Restorer.restore`."""
        return 1 - faces_rgb.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def to(self, device: torch.device) -> None:
        """Remember `device`."""
        self.device = device


def make_enhancer(args: argparse.Namespace) -> GFPGANEnhancer:
    """The enhancer that `args` ask for."""
    options = {
        "mode": args.mode,
        "output_size": args.output_size,
        "memory_budget": args.budget,
        "device": args.device,
    }
    if args.model != "none":
        return GFPGANEnhancer(model=args.model, **options)
    settings = EnhancerSettings(enabled=True, **options)
    info = replace(INFO, input_size=args.side, output_size=2 * args.side)
    return GFPGANEnhancer.from_settings(
        settings, NoNetwork(LoadRequest(info, settings, torch.device("cpu")))
    )


def batches(frames: int, side: int, seed: int = 0) -> Iterator[Any]:
    """`frames` frames in clips of 20 to 150: batches of 8 with an odd tail, (N, side, side, 3)
    uint8 or lists."""
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 256, (4 * BATCH, side, side, 3), np.uint8)
    left = frames
    while left:
        clip = min(left, int(rng.integers(20, 150)))
        left -= clip
        as_list = rng.random() < 0.2
        while clip:
            count = min(BATCH, clip)
            clip -= count
            batch = pool[rng.integers(0, len(pool), count)][..., ::-1]
            if as_list:
                yield [frame if rng.random() < 0.98 else frame[..., :1] for frame in batch]
            else:
                yield batch


def resident() -> tuple[float, float]:
    """MiB resident, and how many of them are backed by no file (the same where the system does not
    tell)."""
    seen = psutil.Process().memory_info()
    return seen.rss / 2**20, (seen.rss - getattr(seen, "shared", 0)) / 2**20


def soak(enhancer: GFPGANEnhancer, args: argparse.Namespace) -> dict[str, Any]:
    """Stream, and return what was seen: resident MiB by number of frames, growth, frames lost,
    seconds."""
    seen, due, start = 0, STEP, time.perf_counter()
    mib: dict[int, tuple[float, float]] = {}
    lost = 0
    for batch in batches(args.frames, args.side):
        out = enhancer(batch)
        lost += len(batch) - len(out)
        seen += len(batch)
        del out, batch
        if seen >= due:
            mib[due] = resident()
            took = time.perf_counter() - start
            print(
                f"{due:>8} frames  {mib[due][0]:8.1f} MiB  own {mib[due][1]:8.1f} MiB  "
                f"{took:7.0f} s",
                flush=True,
            )
            due += STEP
    first, *later = mib.values()
    return {
        "model": enhancer.model_name,
        "frames": seen,
        "lost": lost,
        "resident_mib": {count: [round(value, 1) for value in pair] for count, pair in mib.items()},
        "growth": round(max(pair[i] / first[i] - 1 for pair in later for i in (0, 1)), 4),
        "seconds": round(time.perf_counter() - start, 1),
        "stats": enhancer.stats.as_dict(),
    }


def main() -> int:
    """Run; 0 when memory stayed flat and no frame was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--model", default="lite", help="a model's name, or none")
    parser.add_argument("--mode", choices=("batch", "memory"), default="memory")
    parser.add_argument("--budget", default="auto", help="memory_budget")
    parser.add_argument("--side", type=int, default=256, help="of the frames, in pixels")
    parser.add_argument("--output_size", default="same")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--json", type=Path, help="file for what was seen")
    args = parser.parse_args()
    if args.frames < 2 * STEP:
        parser.error(f"--frames: {2 * STEP} at least, or there is nothing to compare")
    if args.threads:
        torch.set_num_threads(args.threads)
    figures = soak(make_enhancer(args), args)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    flat = figures["growth"] <= ALLOWED
    print(
        f"growth after the first {STEP}: {figures['growth']:.2%} (allowed {ALLOWED:.0%}); lost "
        f"{figures['lost']}"
    )
    print(figures["stats"])
    return 0 if flat and not figures["lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
