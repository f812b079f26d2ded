"""What is measured: a model, its weights (random ones where they are unavailable), and the frames
it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musetalk_enhance import weights
from musetalk_enhance.config.settings import EnhancerSettings

from . import checkpoints

if TYPE_CHECKING:
    import numpy as np

SIDE = 256
"""Side of the face crops that MuseTalk makes."""


@dataclass(frozen=True)
class Subject:
    """The model under measurement.

    Attributes:
        name: for people and files; never a path.
        options: the options of `EnhancerSettings` that name it.
        arch: of a GFPGAN or RestoreFormer checkpoint; None for any other network.
        weight: its file; None where it is embedded.
        random: whether that file has random weights.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    arch: str | None = None
    weight: weights.Weight | None = None
    random: bool = False


def open_subject(model: str, random: bool, folder: Path, log: Callable[[str], object]) -> Subject:
    """The model called `model`, GFPGAN with random weights where its own are not on this machine.

    Args:
        model: a name or the path of a checkpoint.
        random: take random weights without looking for others.
        folder: where a random checkpoint is written.
        log: takes a line of progress.

    Raises:
        ConfigError: there is no such model.
        WeightError: its weight is missing (other than a GFPGAN's), damaged or not to be trusted.
    """
    from musetalk_enhance.restorers.catalog import AUTO_ORDER, choose

    if model == "lite":
        return Subject("lite", {"model": "lite"})
    missing = model in AUTO_ORDER and weights.find(f"GFPGANv{model.rpartition('-')[2]}") is None
    if random or missing:
        if not random:
            log(f"the weight of {model} is not on this machine")
        log("measuring random weights of GFPGAN's full size: timing does not depend on the weights")
        return random_subject(folder)
    choice = choose(EnhancerSettings(enabled=True, model=model))
    options = {"model": model, "arch": choice.settings.arch}
    return Subject(
        choice.model.info.name, options, choice.model.arch and choice.settings.arch, choice.weight
    )


def random_subject(folder: Path) -> Subject:
    """GFPGAN clean of channel multiplier 2 with random weights, in a file in `folder`."""
    path = folder / "random-gfpgan.safetensors"
    weight = checkpoints.save(checkpoints.random_gfpgan(), path)
    return Subject("gfpgan, random weights", {"model_path": str(path)}, "clean", weight, True)


def pictures(count: int, width: int = SIDE, height: int = SIDE, seed: int = 3) -> np.ndarray:
    """Smooth random pictures, all different: uint8 (count, height, width, 3)."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 12, 12, 3), np.uint8)
    return np.stack(
        [cv2.resize(one, (width, height), interpolation=cv2.INTER_CUBIC) for one in coarse]
    )
