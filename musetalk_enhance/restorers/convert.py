"""Which network a checkpoint holds, and GFPGAN's bilinear network rewritten as its clean one.

The rewriting is exact. With c the inputs times the kernel area of a layer, and a(x) = max(x, 0.2 x):

- *equalised learning rate* (Karras et al., "Progressive Growing of GANs", ICLR 2018, section 4.1; with the
  rate multiplier m of the mapping network: "A Style-Based Generator Architecture", CVPR 2019): the bilinear
  network stores W and b and computes with W m / sqrt(c) and b m. The factor is folded into the weight.
- *scaled leaky ReLU*: it computes sqrt(2) a(W x + b). As a(k x) = k a(x) for every k > 0, that is
  a(sqrt(2) W x + sqrt(2) b).
- *residual blocks* divide (main + skip) by sqrt(2). The main branch ends in the activation above, so its two
  factors cancel; the skip branch, which has no activation, is left with W / sqrt(2).
- *modulated convolution* (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
  section 2.2): demodulation sees W s / sqrt(c) in both networks, so folding the factor keeps its epsilon as
  it was. The clean network multiplies the result by sqrt(2) by itself; the noise strength and the bias,
  which are added after that, get the factor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError

if TYPE_CHECKING:
    import torch

    StateDict = Mapping[str, torch.Tensor]

EQUALISED = ("bilinear", "original")
"""Archs whose checkpoints have the same names and shapes: nothing in the file tells them apart."""

WIDTHLESS = ("RestoreFormer", "CodeFormer")
"""Archs that have no channel multiplier."""

_BASE_WIDTH = 16  # channels of the first layer at channel_multiplier 1
_ROOT2 = math.sqrt(2)
_RATE = 0.01  # learning-rate multiplier of the mapping network

_TELLTALES = {
    "body.0.rdb1.conv1.weight": "Real-ESRGAN (an upscaler)",
    "position_emb": "a part of CodeFormer",
    "body.conv1.weight": "RetinaFace (a face detector)",
    "ClassHead.0.conv1x1.weight": "RetinaFace (a face detector)",
    "out_mask_conv.conv2d.weight": "ParseNet (a face parser)",
}

# Name in the bilinear network, name in the clean one, what its layer's stored weight or bias is multiplied by,
# and whether the layer's equalised rate is folded in as well.
_RULES: tuple[tuple[str, str, float, bool], ...] = (
    (r"(conv_body_first|final_conv)\.0\.weight", r"\1.weight", _ROOT2, True),
    (r"(conv_body_first|final_conv)\.1\.bias", r"\1.bias", _ROOT2, False),
    (r"(conv_body_(?:down|up)\.\d+\.conv1)\.0\.weight", r"\1.weight", _ROOT2, True),
    (r"(conv_body_(?:down|up)\.\d+\.conv1)\.1\.bias", r"\1.bias", _ROOT2, False),
    (r"(conv_body_down\.\d+\.conv2)\.1\.weight", r"\1.weight", 1.0, True),
    (r"(conv_body_down\.\d+\.conv2)\.2\.bias", r"\1.bias", 1.0, False),
    (r"(conv_body_down\.\d+\.skip)\.1\.weight", r"\1.weight", 1 / _ROOT2, True),
    (r"(conv_body_up\.\d+\.conv2)\.weight", r"\1.weight", 1.0, True),
    (r"(conv_body_up\.\d+\.conv2)\.activation\.bias", r"\1.bias", 1.0, False),
    (r"(conv_body_up\.\d+\.skip)\.weight", r"\1.weight", 1 / _ROOT2, True),
    (r"(condition_(?:scale|shift)\.\d+\.0)\.weight", r"\1.weight", _ROOT2, True),
    (r"(condition_(?:scale|shift)\.\d+\.0)\.bias", r"\1.bias", _ROOT2, False),
    (r"((?:condition_(?:scale|shift)\.\d+\.2)|toRGB\.\d+|final_linear)\.weight", r"\1.weight", 1.0, True),
    (r"((?:condition_(?:scale|shift)\.\d+\.2)|toRGB\.\d+|final_linear)\.bias", r"\1.bias", 1.0, False),
    (r"(stylegan_decoder\..+\.modulated_conv(?:\.modulation)?)\.weight", r"\1.weight", 1.0, True),
    (r"(stylegan_decoder\..+\.modulation)\.bias", r"\1.bias", 1.0, False),
    (r"(stylegan_decoder\.style_conv(?:1|s\.\d+))\.weight", r"\1.weight", _ROOT2, False),
    (r"(stylegan_decoder\.style_conv(?:1|s\.\d+))\.activate\.bias", r"\1.bias", _ROOT2, False),
    (r"(stylegan_decoder\.to_rgb(?:1|s\.\d+))\.bias", r"\1.bias", 1.0, False),
    (r"(stylegan_decoder\.(?:constant_input\.weight|noises\.noise\d+))", r"\1", 1.0, False),
)


def detect(state_dict: StateDict, path: Path | None = None) -> tuple[str, int | None]:
    """Tell ``arch`` and ``channel_multiplier`` of a checkpoint from its names and shapes.

    ``bilinear`` and ``original`` cannot be told apart; the answer is then the published one of that width
    (``original`` at 1, ``bilinear`` at 2), and `EQUALISED` names both.

    Args:
        state_dict: names to tensors, unwrapped.
        path: where it came from, for the error.

    Returns:
        (arch, channel multiplier); the multiplier is None for RestoreFormer and CodeFormer, which have none.

    Raises:
        CheckpointError: it is none of the five networks; says what it is, where that is known.
    """
    if "conv_body_first.weight" in state_dict:
        arch, first = "clean", "conv_body_first.weight"
    elif "conv_body_first.0.weight" in state_dict:
        arch, first = "equalised", "conv_body_first.0.weight"
    elif "quant_conv.weight" in state_dict and "encoder.down.0.block.0.norm1.weight" in state_dict:
        return "RestoreFormer", None
    elif "position_emb" in state_dict and "idx_pred_layer.1.weight" in state_dict:
        return "CodeFormer", None
    else:
        wanted = "a GFPGAN (arch clean, bilinear or original), RestoreFormer or CodeFormer network"
        raise CheckpointError(path, _stranger(state_dict), wanted)
    width = state_dict[first].shape[0]
    if width not in (_BASE_WIDTH, 2 * _BASE_WIDTH):
        actual = f"a GFPGAN network with {width} channels in its first layer"
        raise CheckpointError(path, actual, f"{_BASE_WIDTH} or {2 * _BASE_WIDTH} (channel_multiplier 1 or 2)")
    multiplier = width // _BASE_WIDTH
    if arch == "equalised":
        arch = "original" if multiplier == 1 else "bilinear"
    return arch, multiplier


def _stranger(state_dict: StateDict) -> str:
    known = next((name for key, name in _TELLTALES.items() if key in state_dict), "an unknown network")
    example = next(iter(state_dict), None)
    return f"{known}, {len(state_dict)} tensors" + (f", the first called {example!r}" if example else "")


def check(state_dict: StateDict, arch: str, channel_multiplier: int, path: Path | None = None) -> None:
    """Check that a checkpoint fits the options `arch` and `channel_multiplier`.

    Raises:
        CheckpointError: it does not; says what the file holds and which options fit.
    """
    found, multiplier = detect(state_dict, path)
    same_arch = found == arch or (found in EQUALISED and arch in EQUALISED)
    if same_arch and multiplier in (None, channel_multiplier):
        return
    names = EQUALISED if found in EQUALISED else (found,)
    width = "" if multiplier is None else f", channel_multiplier {multiplier}"
    needed = f"arch {arch}" + ("" if arch in WIDTHLESS else f", channel_multiplier {channel_multiplier}")
    hint = " Say " + " or ".join(f"arch: {name}" for name in names)
    hint += " (the file does not tell which)" if len(names) > 1 else ""
    hint += "." if multiplier is None else f", and channel_multiplier: {multiplier}."
    raise CheckpointError(path, f"arch {' or '.join(names)}{width}", needed, hint)


def fill(network: torch.nn.Module, state_dict: StateDict, path: Path | None, name: str) -> None:
    """Load `state_dict` into `network`, every tensor and none other.

    Args:
        network: on the CPU, or with empty tensors.
        state_dict: names to tensors of any floating dtype.
        path: where they came from, for the error.
        name: what the network is called, for the error.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape; counts them and names one.
    """
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    given = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    faults = {
        "missing": [key for key in wanted if key not in given],
        "too many": [key for key in given if key not in wanted],
        "of another shape": [key for key in wanted if key in given and given[key] != wanted[key]],
    }
    said = [f"{len(keys)} {fault} (such as {keys[0]!r})" for fault, keys in faults.items() if keys]
    if said:
        actual = f"{len(given)} tensors: {', '.join(said)}"
        raise CheckpointError(path, actual, f"{name}: {len(wanted)} tensors", " The file is cut or another model.")
    network.load_state_dict(dict(state_dict), strict=True)


def bilinear_to_clean(state_dict: StateDict) -> dict[str, torch.Tensor]:
    """Rewrite a checkpoint of arch ``bilinear`` as one of arch ``clean`` that computes the same.

    Args:
        state_dict: names to float tensors of a ``GFPGANBilinear``; not modified.

    Returns:
        Names to float32 tensors of a ``GFPGANv1Clean``. A name that no rule knows is kept as it is, so that
        `fill` can report it.
    """
    clean = {}
    for key, tensor in state_dict.items():
        name, factor = _translate(key, tuple(tensor.shape))
        tensor = (tensor.double() * factor).float()
        clean[name] = tensor.view(1, -1, 1, 1) if _is_style_bias(name) else tensor
    return clean


def _translate(key: str, shape: tuple[int, ...]) -> tuple[str, float]:
    """Name in the clean network and factor of one tensor of the bilinear one."""
    if found := re.fullmatch(r"stylegan_decoder\.style_mlp\.(\d+)\.(weight|bias)", key):
        # Linear layers 1..8 behind the norm; in the clean network an activation of its own follows each.
        index, kind = int(found[1]), found[2]
        rate = _RATE / math.sqrt(shape[-1]) if kind == "weight" else _RATE
        return f"stylegan_decoder.style_mlp.{2 * index - 1}.{kind}", rate * _ROOT2
    for pattern, name, gain, equalised in _RULES:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key), gain / math.sqrt(_fan_in(shape)) if equalised else gain
    return key, 1.0


def _fan_in(shape: tuple[int, ...]) -> int:
    """Inputs times kernel area: (out, in), (out, in, k, k), or (1, out, in, k, k) where it is modulated."""
    return math.prod(shape[2:] if len(shape) == 5 else shape[1:])


def _is_style_bias(name: str) -> bool:
    return re.fullmatch(r"stylegan_decoder\.style_conv(1|s\.\d+)\.bias", name) is not None
