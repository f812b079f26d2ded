"""The time that enhancing adds to a host's loop: one call of a UNet, the decoder, frames to the
CPU, and again.

MuseTalk's own networks where its folder and weights are given; else networks of the same size with
random weights, from diffusers; else convolutions of about the same cost. The report says which.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musetalk_enhance.errors import HostError
from musetalk_enhance.hosts.overlap import overlapped

if TYPE_CHECKING:
    import numpy as np
    import torch

UNET: dict[str, Any] = {
    "sample_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "cross_attention_dim": 384,
    "attention_head_dim": 8,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
}
"""What MuseTalk's UNet is built with."""

VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}
"""What the Stable Diffusion VAE that MuseTalk uses is built with."""

_LATENT, _AUDIO = 32, (50, 384)  # side of a face's latent; tokens and width of its audio features
_SMALL = 8  # the same on a CPU: a sixteenth of the work


@dataclass(frozen=True)
class Host:
    """A host's loop.

    Attributes:
        name: what it is, for people.
        generate: one batch of frames, uint8 (N, 256, 256, 3) BGR, on the CPU.
        batch: N.
    """

    name: str
    generate: Callable[[], np.ndarray]
    batch: int


def open_host(
    device: torch.device,
    batch: int,
    musetalk: Path | None = None,
    log: Callable[[str], object] = print,
) -> Host:
    """The best host that can be had: MuseTalk itself, its networks with random weights, or a
    stand-in.

    Args:
        device: where it runs; half precision on a GPU, small pictures elsewhere.
        batch: faces at once.
        musetalk: MuseTalk's folder with its weights under ``models``; None does not look for it.
        log: takes a line of progress.
    """
    if musetalk is not None:
        try:
            return musetalk_host(device, batch, musetalk)
        except Exception as error:  # somebody else's code and files
            log(f"MuseTalk in {musetalk} cannot be used ({error!r}): measuring a stand-in")
    try:
        return diffusers_host(device, batch)
    except ImportError as error:
        log(f"diffusers is not available ({error}): convolutions stand in for MuseTalk's networks")
        return convolution_host(device, batch)


def musetalk_host(device: torch.device, batch: int, folder: Path) -> Host:
    """MuseTalk's own UNet and VAE, with its weights.

    Raises:
        HostError: a file is not where MuseTalk's download puts it.
    """
    import torch

    config, weight = (
        folder / "models" / "musetalkV15" / name for name in ("musetalk.json", "unet.pth")
    )
    vaes = [folder / "models" / name for name in ("sd-vae", "sd-vae-ft-mse")]
    vae_path = next((path for path in vaes if path.is_dir()), vaes[0])
    for path in (config, weight, vae_path):
        if not path.exists():
            raise HostError(
                f"{path.relative_to(folder)} is not in MuseTalk's folder; download its weights "
                "first"
            )
    sys.path.insert(0, str(folder))
    try:
        unet_class = importlib.import_module("musetalk.models.unet").UNet
        vae_class = importlib.import_module("musetalk.models.vae").VAE
    finally:
        sys.path.remove(str(folder))
    half = device.type == "cuda"
    unet = unet_class(
        unet_config=str(config), model_path=str(weight), use_float16=half, device=device
    )
    vae = vae_class(model_path=str(vae_path), use_float16=half)
    call = _calls(unet.model, device, batch, _LATENT)

    def generate() -> np.ndarray:
        with torch.no_grad():
            frames: np.ndarray = vae.decode_latents(call())
        return frames

    return Host("MuseTalk's own UNet and VAE", generate, batch)


def diffusers_host(device: torch.device, batch: int, **changes: Any) -> Host:
    """UNet and VAE of MuseTalk's size with random weights.

    Args:
        device: where it runs.
        batch: faces at once.
        changes: of `UNET` and `VAE`, for tests.

    Raises:
        ImportError: diffusers is not installed.
    """
    import torch

    diffusers = importlib.import_module("diffusers")
    kind, side = _kind_and_side(device)
    with torch.random.fork_rng(devices=[]):
        unet = diffusers.UNet2DConditionModel(**{**UNET, **changes.get("unet", {})})
        vae = diffusers.AutoencoderKL(**{**VAE, **changes.get("vae", {})})
    unet, vae = (_ready(network, device, kind) for network in (unet, vae))
    call = _calls(unet, device, batch, side)

    def generate() -> np.ndarray:
        with torch.no_grad():
            return _frames(vae.decode(call()).sample)

    return Host(f"UNet and VAE of MuseTalk's size, random weights{_size(side)}", generate, batch)


def convolution_host(device: torch.device, batch: int, depths: tuple[int, int] = (36, 32)) -> Host:
    """Convolutions of about the cost of MuseTalk's UNet (89 GMAC a face) and VAE decoder (311
    GMAC).

    Args:
        device: where it runs.
        batch: faces at once.
        depths: convolutions of 512 channels at the latent's size, and of 128 at the picture's.
    """
    import torch
    from torch.nn import Conv2d, Sequential

    kind, side = _kind_and_side(device)
    with torch.random.fork_rng(devices=[]):
        deep = Sequential(*(Conv2d(512, 512, 3, padding=1) for _ in range(depths[0])))
        wide = Sequential(*(Conv2d(128, 128, 3, padding=1) for _ in range(depths[1])))
    deep, wide = (_ready(network, device, kind) for network in (deep, wide))
    latent = torch.randn(batch, 512, side, side, device=device, dtype=kind)
    picture = torch.randn(batch, 128, 8 * side, 8 * side, device=device, dtype=kind)

    def generate() -> np.ndarray:
        with torch.no_grad():
            return _frames(wide(picture)[:, :3] + deep(latent).mean())

    return Host(
        f"convolutions of about the cost of MuseTalk's networks{_size(side)}", generate, batch
    )


def _kind_and_side(device: torch.device) -> tuple[torch.dtype, int]:
    import torch

    return (torch.float16, _LATENT) if device.type == "cuda" else (torch.float32, _SMALL)


def _ready(network: Any, device: torch.device, kind: torch.dtype) -> Any:
    import torch

    network = network.eval().requires_grad_(False).to(device)
    return network.half() if kind is torch.float16 else network


def _size(side: int) -> str:
    return "" if side == _LATENT else f", pictures of {8 * side} px instead of {8 * _LATENT}"


def _calls(unet: Any, device: torch.device, batch: int, side: int) -> Callable[[], torch.Tensor]:
    """One step of the UNet, as MuseTalk's loop calls it."""
    import torch

    kind = next(unet.parameters()).dtype
    latents = torch.randn(batch, 8, side, side, device=device, dtype=kind)
    audio = torch.randn(batch, *_AUDIO, device=device, dtype=kind)
    step = torch.tensor([0], device=device)

    def call() -> torch.Tensor:
        latent: torch.Tensor = unet(latents, step, encoder_hidden_states=audio).sample
        return latent

    return call


def _frames(image: torch.Tensor) -> np.ndarray:
    """float (N, 3, H, W) to uint8 (N, 256, 256, 3) on the CPU, a reversed BGR view as MuseTalk's
    VAE returns."""
    pictures = (image.float().nan_to_num() / 2 + 0.5).clamp(0, 1).mul(255).round().byte()
    times = max(1, 8 * _LATENT // image.shape[2])
    array: np.ndarray = pictures.permute(0, 2, 3, 1).cpu().numpy()
    return array.repeat(times, 1).repeat(times, 2)[..., ::-1]


def added(
    host: Host, enhance: Callable[[Any], Any], rounds: int, batches: int | None = None
) -> dict[str, Any]:
    """Wall time of the loop alone, enhanced in turn, and enhanced while the next batch is
    generated.

    The three run in turn, `rounds` times, after one that does not count.

    Args:
        host: the loop.
        enhance: batch of frames -> batch of frames.
        rounds: how often.
        batches: of one run; None takes 2 on a CPU and 16 on a GPU.

    Returns:
        ``ms_per_face`` and, as a share of the loop alone, ``added``, by way: ``alone``, ``in
        turn``, ``overlapped``.
    """
    import torch

    batches = batches or (16 if torch.cuda.is_available() else 2)

    def generated() -> Iterator[np.ndarray]:
        for _ in range(batches):
            yield host.generate()

    loops: dict[str, Callable[[], int]] = {
        "alone": lambda: sum(1 for _ in generated()),
        "in turn": lambda: sum(1 for _ in map(enhance, generated())),
        "overlapped": lambda: sum(1 for _ in overlapped(enhance, generated())),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(-1, rounds):
        for name, loop in loops.items():
            start = time.perf_counter()
            loop()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    faces = batches * host.batch
    ms = {name: statistics.median(elapsed) * 1e3 / faces for name, elapsed in seconds.items()}
    return {
        "host": host.name,
        "batch": host.batch,
        "batches": batches,
        "rounds": rounds,
        "ms_per_face": {name: round(value, 3) for name, value in ms.items()},
        "added": {
            name: round(value / ms["alone"] - 1, 4) for name, value in ms.items() if name != "alone"
        },
    }
