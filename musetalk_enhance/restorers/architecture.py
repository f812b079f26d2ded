"""The network in a checkpoint: telling which one it is, and loading its tensors completely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    import torch

    StateDict = Mapping[str, torch.Tensor]

EQUALIZED = ("bilinear", "original")
"""Archs whose checkpoints have the same names and shapes: nothing in the file tells them apart."""

WITHOUT_MULTIPLIER = ("RestoreFormer", "CodeFormer")
"""Archs without a channel multiplier."""

_BASE_WIDTH = 16  # channels of the first layer at channel_multiplier 1

_OTHER_NETWORKS = {
    "body.0.rdb1.conv1.weight": "Real-ESRGAN (an upscaler)",
    "position_emb": "a part of CodeFormer",
    "body.conv1.weight": "RetinaFace (a face detector)",
    "ClassHead.0.conv1x1.weight": "RetinaFace (a face detector)",
    "out_mask_conv.conv2d.weight": "ParseNet (a face parser)",
}


def detect_architecture(state_dict: StateDict, path: Path | None = None) -> tuple[str, int | None]:
    """The ``arch`` and ``channel_multiplier`` of a checkpoint, from its names and shapes.

    ``bilinear`` and ``original`` cannot be told apart; the result is then the published one of that
    width (``original`` at 1, ``bilinear`` at 2), and `EQUALIZED` names both.

    Args:
        state_dict: names to tensors, unwrapped.
        path: the file, for the error.

    Returns:
        (arch, channel multiplier); the multiplier is None for RestoreFormer and CodeFormer, which
        have none.

    Raises:
        CheckpointError: it is none of the five networks; the message names a known other one.
    """
    if "conv_body_first.weight" in state_dict:
        arch, first = "clean", "conv_body_first.weight"
    elif "conv_body_first.0.weight" in state_dict:
        arch, first = "equalized", "conv_body_first.0.weight"
    elif "quant_conv.weight" in state_dict and "encoder.down.0.block.0.norm1.weight" in state_dict:
        return "RestoreFormer", None
    elif "position_emb" in state_dict and "idx_pred_layer.1.weight" in state_dict:
        return "CodeFormer", None
    else:
        families = "GFPGAN (arch clean, bilinear or original), RestoreFormer or CodeFormer"
        raise CheckpointError(path, _describe(state_dict), f"a network of {families}")
    width = state_dict[first].shape[0]
    if width not in (_BASE_WIDTH, 2 * _BASE_WIDTH):
        actual = f"a GFPGAN network with {width} channels in its first layer"
        expected = f"{_BASE_WIDTH} or {2 * _BASE_WIDTH} (channel_multiplier 1 or 2)"
        raise CheckpointError(path, actual, expected)
    multiplier = width // _BASE_WIDTH
    if arch == "equalized":
        arch = "original" if multiplier == 1 else "bilinear"
    return arch, multiplier


def _describe(state_dict: StateDict) -> str:
    names = (name for key, name in _OTHER_NETWORKS.items() if key in state_dict)
    network = next(names, "an unknown network")
    example = next(iter(state_dict), None)
    suffix = f", the first called {example!r}" if example else ""
    return f"{network}, {len(state_dict)} tensors{suffix}"


def check_architecture(
    state_dict: StateDict, arch: str, channel_multiplier: int, path: Path | None = None
) -> None:
    """Check that a checkpoint fits the options `arch` and `channel_multiplier`.

    Raises:
        CheckpointError: it does not; the message has the actual network and the options for it.
    """
    actual, multiplier = detect_architecture(state_dict, path)
    same_arch = actual == arch or (actual in EQUALIZED and arch in EQUALIZED)
    if same_arch and multiplier in (None, channel_multiplier):
        return
    names = EQUALIZED if actual in EQUALIZED else (actual,)
    width = "" if multiplier is None else f", channel_multiplier {multiplier}"
    expected = f"arch {arch}"
    if arch not in WITHOUT_MULTIPLIER:
        expected += f", channel_multiplier {channel_multiplier}"
    hint = " Set " + " or ".join(f"arch: {name}" for name in names)
    hint += " (the file does not tell which)" if len(names) > 1 else ""
    hint += "." if multiplier is None else f", and channel_multiplier: {multiplier}."
    raise CheckpointError(path, f"arch {' or '.join(names)}{width}", expected, hint)


def load_tensors(
    network: torch.nn.Module, state_dict: StateDict, path: Path | None, name: str
) -> None:
    """Load `state_dict` into `network`, with every tensor and no other.

    Args:
        network: on the CPU, or with empty tensors.
        state_dict: names to tensors of any floating-point dtype.
        path: the file, for the error.
        name: the network's name, for the error.

    Raises:
        CheckpointError: tensors are missing, superfluous or of another shape; the message counts
            them and names one.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    actual = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    faults = {
        "missing": [key for key in expected if key not in actual],
        "too many": [key for key in actual if key not in expected],
        "of another shape": [
            key for key in expected if key in actual and actual[key] != expected[key]
        ],
    }
    texts = [f"{len(keys)} {fault} (such as {keys[0]!r})" for fault, keys in faults.items() if keys]
    if texts:
        hint = " The file is truncated or has another model."
        actual_text = f"{len(actual)} tensors: {', '.join(texts)}"
        raise CheckpointError(path, actual_text, f"{name}: {len(expected)} tensors", hint)
    network.load_state_dict(dict(state_dict), strict=True)


def build_empty(network_class: Any, **arguments: Any) -> torch.nn.Module:
    """A network from its class, on the CPU, without random initialization.

    That is faster, and torch's random state does not change.
    """
    import torch

    with torch.device("meta"):
        network: torch.nn.Module = network_class(**arguments)
    return network.to_empty(device=torch.device("cpu"))
