"""Full-size random checkpoints in the official layouts, once per session, and images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance import weights
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import MissingDependencyError
from musetalk_enhance.restorers import official_stack as stack
from musetalk_enhance.restorers.base import LoadRequest, Restorer
from scripts.benchmarks.checkpoints import random_gfpgan, random_helpers, shapes

CPU = torch.device("cpu")


def random_restoreformer(seed: int = 0) -> dict[str, torch.Tensor]:
    """RestoreFormer with variance-keeping weights and a codebook of which many codes are used."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes("RestoreFormer", 2).items():
        tensor = torch.randn(shape, generator=generator)
        if "norm" in key:
            tensor = tensor * 0.1 + (1.0 if key.endswith("weight") else 0.0)
        elif key.endswith("bias"):
            tensor = tensor * 0.1
        elif "embedding" not in key:
            tensor = tensor / math.sqrt(math.prod(shape[1:]))
        state[key] = tensor
    state["decoder.conv_out.weight"] *= 0.5
    return state


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """checkpoint(arch, channel_multiplier=2): a full-size random .pth in the official layout."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(arch: str, multiplier: int = 2) -> Path:
        path = folder / f"{arch}-{multiplier}.pth"
        if not path.exists():
            state = (
                random_restoreformer()
                if arch == "RestoreFormer"
                else random_gfpgan(arch, multiplier)
            )
            torch.save({"params_ema": state}, path)
        return path

    return make


@pytest.fixture
def load() -> Callable[..., Restorer]:
    """load(class, path, **settings) -> a restorer on the CPU."""

    def make(kind: type[Restorer], path: Path, **settings) -> Restorer:
        weight = weights.open_file(path, trust_unpinned=True)
        return kind(LoadRequest(kind.info, EnhancerSettings(enabled=True, **settings), CPU, weight))

    return make


def pictures(count: int, side: int = 512, seed: int = 3) -> torch.Tensor:
    """Smooth random images, all different: float32 (N, 3, side, side), RGB, 0..1, 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 12, 12, generator=generator)
    smooth = interpolate(coarse, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return (smooth * 255).round() / 255


@pytest.fixture(scope="session")
def faces() -> torch.Tensor:
    """Three different pictures, float32 (3, 3, 512, 512), RGB, 0..1."""
    return pictures(3)


@pytest.fixture(scope="session")
def official_stack() -> None:
    """Skip where the official packages are not installed; say why."""
    try:
        stack.import_official("gfpgan.utils")
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture
def plain_fused_act(official_stack: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give basicsr's own layers the one function of its CUDA extension, to run on a CPU."""
    from basicsr.ops.fused_act import fused_act

    class Extension:
        @staticmethod
        def fused_bias_act(x, bias, _refer, act, grad, slope, gain):
            assert (act, grad) == (3, 0)
            x = x + bias.reshape([1, -1] + [1] * (x.ndim - 2))
            return torch.where(x > 0, x, x * slope) * gain

    monkeypatch.setattr(fused_act, "fused_act_ext", Extension, raising=False)


@pytest.fixture(scope="session")
def helper_files(official_stack: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random files of facexlib's detector and parser, by their names in the table of weights."""
    folder = tmp_path_factory.mktemp("helpers")
    states = random_helpers()
    files = {name: folder / weights.WEIGHTS.get(name).file for name in states}
    for name, path in files.items():
        torch.save(states[name], path)
    return files


@pytest.fixture
def helpers_in_cache(
    helper_files: dict[str, Path], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cache folder with random detector and parser, and a table that accepts them."""
    put_in_cache(helper_files, own_cache, monkeypatch)
    return own_cache


def put_in_cache(files: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Link `files` into the cache `folder` and pin them in the table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        entry = weights.WEIGHTS.get(name)
        (folder / entry.file).symlink_to(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = replace(entry, size=path.stat().st_size, sha256=digest)
        monkeypatch.setitem(weights.WEIGHTS._items, name, entry)


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Any socket that is opened during the test is refused and noted."""
    import socket

    opened: list[str] = []

    def refuse(*args, **kwargs):
        opened.append(repr(args[1:]))
        raise OSError("a test opened a socket")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    yield opened
    assert opened == []


def spread(pictures_rgb: torch.Tensor) -> tuple[float, float]:
    """Standard deviation, and mean absolute difference between the first two images."""
    return float(pictures_rgb.std()), float((pictures_rgb[0] - pictures_rgb[1]).abs().mean())


def to_bgr(picture_rgb: torch.Tensor) -> np.ndarray:
    """float (3, H, W) RGB 0..1 to uint8 (H, W, 3) BGR."""
    return np.ascontiguousarray(
        (picture_rgb * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]
    )
