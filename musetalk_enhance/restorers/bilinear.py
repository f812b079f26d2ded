"""GFPGAN's bilinear network rewritten as its clean one.

The rewriting is exact. With c the inputs times the kernel area of a layer, a(x) = max(x, 0.2 x):

- *equalized learning rate* (Karras et al., "Progressive Growing of GANs", ICLR 2018, section 4.1;
  with the rate multiplier m of the mapping network: "A Style-Based Generator Architecture", CVPR
  2019): the bilinear network stores W and b and computes with W m / sqrt(c) and b m. The factor is
  folded into the weight.
- *scaled leaky ReLU*: it computes sqrt(2) a(W x + b). As a(k x) = k a(x) for every k > 0, that is
  a(sqrt(2) W x + sqrt(2) b).
- *residual blocks* divide (main + skip) by sqrt(2). The main branch ends in the activation above,
  so its two factors cancel; the skip branch, which has no activation, keeps W / sqrt(2).
- *modulated convolution* (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN",
  CVPR 2020, section 2.2): demodulation sees W s / sqrt(c) in both networks, so folding the factor
  does not change its epsilon. The clean network multiplies the result by sqrt(2) by itself; the
  noise strength and the bias, which are added after that, get the factor.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .architecture import StateDict

_ROOT2 = math.sqrt(2)
_RATE = 0.01  # learning-rate multiplier of the mapping network

# Name in the bilinear network, name in the clean one, factor of the layer's stored weight or bias,
# and whether the layer's equalized learning rate is folded in as well.
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
    (
        r"((?:condition_(?:scale|shift)\.\d+\.2)|toRGB\.\d+|final_linear)\.weight",
        r"\1.weight",
        1.0,
        True,
    ),
    (
        r"((?:condition_(?:scale|shift)\.\d+\.2)|toRGB\.\d+|final_linear)\.bias",
        r"\1.bias",
        1.0,
        False,
    ),
    (r"(stylegan_decoder\..+\.modulated_conv(?:\.modulation)?)\.weight", r"\1.weight", 1.0, True),
    (r"(stylegan_decoder\..+\.modulation)\.bias", r"\1.bias", 1.0, False),
    (r"(stylegan_decoder\.style_conv(?:1|s\.\d+))\.weight", r"\1.weight", _ROOT2, False),
    (r"(stylegan_decoder\.style_conv(?:1|s\.\d+))\.activate\.bias", r"\1.bias", _ROOT2, False),
    (r"(stylegan_decoder\.to_rgb(?:1|s\.\d+))\.bias", r"\1.bias", 1.0, False),
    (r"(stylegan_decoder\.(?:constant_input\.weight|noises\.noise\d+))", r"\1", 1.0, False),
)


def bilinear_to_clean(state_dict: StateDict) -> dict[str, torch.Tensor]:
    """Rewrite a checkpoint of arch ``bilinear`` as one of arch ``clean`` that computes the same.

    Args:
        state_dict: names to float tensors of a ``GFPGANBilinear``; not modified.

    Returns:
        Names to float32 tensors of a ``GFPGANv1Clean``. A name without a rule is kept, so that
        `load_tensors` can report it.
    """
    clean = {}
    for key, tensor in state_dict.items():
        name, factor = _translate(key, tuple(tensor.shape))
        tensor = (tensor.double() * factor).float()
        clean[name] = tensor.view(1, -1, 1, 1) if _is_style_bias(name) else tensor
    return clean


def _translate(key: str, shape: tuple[int, ...]) -> tuple[str, float]:
    """Name in the clean network and factor of one tensor of the bilinear one."""
    if linear := re.fullmatch(r"stylegan_decoder\.style_mlp\.(\d+)\.(weight|bias)", key):
        # Linear layers 1..8 after the norm; in the clean network an activation layer follows each.
        index, kind = int(linear[1]), linear[2]
        rate = _RATE / math.sqrt(shape[-1]) if kind == "weight" else _RATE
        return f"stylegan_decoder.style_mlp.{2 * index - 1}.{kind}", rate * _ROOT2
    for pattern, name, gain, equalized in _RULES:
        if re.fullmatch(pattern, key):
            factor = gain / math.sqrt(_fan_in(shape)) if equalized else gain
            return re.sub(pattern, name, key), factor
    return key, 1.0


def _fan_in(shape: tuple[int, ...]) -> int:
    """Inputs times kernel area of (out, in), (out, in, k, k) or, modulated, (1, out, in, k, k)."""
    return math.prod(shape[2:] if len(shape) == 5 else shape[1:])


def _is_style_bias(name: str) -> bool:
    return re.fullmatch(r"stylegan_decoder\.style_conv(1|s\.\d+)\.bias", name) is not None
