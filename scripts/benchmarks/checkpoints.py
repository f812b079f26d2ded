"""Full-size random weights in the official layouts: a network takes as long with them as with the
trained ones."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from musetalk_enhance.restorers import official_stack
from musetalk_enhance.restorers.gfpgan import GEOMETRY
from musetalk_enhance.weights import Weight, open_file

if TYPE_CHECKING:
    import torch

    StateDict = dict[str, torch.Tensor]

_SMALL = {  # standard deviation of weights that would otherwise make the output overflow -1..1
    r"stylegan_decoder\.to_rgb.*modulated_conv\.weight": 0.12,
    r"condition_scale\.\d+\.2\.weight": 0.3,
}
_GAINS = {  # the clean network has the gains of its activations and residual sums in its weights
    r"(conv_body_first|final_conv|.*\.conv1|condition_.*\.0|.*style_mlp\..*)\.weight": math.sqrt(2),
    r".*\.skip\.weight": 1 / math.sqrt(2),
}


def architecture(arch: str, multiplier: int = 2) -> torch.nn.Module:
    """A published network on the meta device: names, shapes and operations; no memory is taken.

    Args:
        arch: ``"clean"``, ``"bilinear"``, ``"original"`` (has the names and shapes of bilinear) or
            ``"RestoreFormer"``.
        multiplier: width of the StyleGAN2 decoder, 1 or 2.

    Raises:
        MissingDependencyError: bilinear and original need the extra gfpgan.
    """
    import torch
    from spandrel.architectures.GFPGAN import GFPGAN
    from spandrel.architectures.RestoreFormer import RestoreFormer

    with torch.device("meta"):
        if arch == "RestoreFormer":
            network: torch.nn.Module = RestoreFormer()
        elif arch == "clean":
            network = GFPGAN(**GEOMETRY, channel_multiplier=multiplier)
        else:
            module = official_stack.import_official(
                "gfpgan.archs.gfpgan_bilinear_arch", f"arch {arch}"
            )
            network = module.GFPGANBilinear(**GEOMETRY, channel_multiplier=multiplier)
    return network.eval()


def shapes(arch: str, multiplier: int = 2) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's tensors; see `architecture`."""
    return {
        key: tuple(tensor.shape)
        for key, tensor in architecture(arch, multiplier).state_dict().items()
    }


def random_gfpgan(arch: str = "clean", multiplier: int = 2, seed: int = 0) -> StateDict:
    """Weights that keep the variance of what passes through about 1, so that the output depends on
    the input.

    Noise strengths and biases, which a fresh network has at 0, are drawn too: otherwise a
    comparison of two ways to run the network would not see them.

    Args:
        arch: ``"clean"``, ``"bilinear"`` or ``"original"``.
        multiplier: width of the StyleGAN2 decoder, 1 or 2.
        seed: of the random numbers.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(shape, generator=generator) * _scale(key, shape, arch) + _shift(key)
        for key, shape in shapes(arch, multiplier).items()
    }


def _scale(key: str, shape: tuple[int, ...], arch: str) -> float:
    if key.endswith("bias"):
        return 0.1 * (100.0 if "style_mlp" in key and arch != "clean" else 1.0)
    if re.fullmatch(r"stylegan_decoder\.style_conv(1|s\.\d+)\.weight", key):
        return 0.1  # strength of the noise
    if "noises" in key or "constant_input" in key:
        return 1.0
    std = next((std for name, std in _SMALL.items() if re.fullmatch(name, key)), 1.0)
    if arch == "clean":
        gain = next((gain for name, gain in _GAINS.items() if re.fullmatch(name, key)), 1.0)
        return std * gain / math.sqrt(math.prod(shape[2:] if len(shape) == 5 else shape[1:]))
    return std * (100.0 if "style_mlp" in key else 1.0)  # equalised with a rate of 0.01


def _shift(key: str) -> float:
    return 1.0 if re.search(r"(modulation|condition_scale\.\d+\.2)\.bias$", key) else 0.0


def random_helpers(seed: int = 0) -> dict[str, StateDict]:
    """Random weights of facexlib's RetinaFace-R50 and ParseNet, by their names in the table of
    weights.

    The detector finds no face anywhere, so that nothing but its network takes time; the parser
    takes all for skin.

    Raises:
        MissingDependencyError: the extra gfpgan is not installed.
    """
    import torch

    detection = official_stack.import_official(
        "facexlib.detection.retinaface", "the official detector"
    )
    parsing = official_stack.import_official("facexlib.parsing.parsenet", "the official parser")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own, about their own code
        torch.manual_seed(seed)
        detector = detection.RetinaFace(
            network_name="resnet50", device=torch.device("cpu")
        ).state_dict()
        parser = parsing.ParseNet(in_size=512, out_size=512, parsing_ch=19).state_dict()
    for index in range(3):
        detector[f"ClassHead.{index}.conv1x1.weight"].zero_()
        detector[f"ClassHead.{index}.conv1x1.bias"][0::2] += 50
    parser["out_mask_conv.conv2d.bias"][1] += 1e3
    return {
        "RetinaFace-R50": {f"module.{key}": tensor for key, tensor in detector.items()},
        "ParseNet": dict(parser),
    }


def save(state: StateDict, path: Path) -> Weight:
    """Write `state` as a .safetensors file and hand it back as a `Weight`."""
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    return open_file(path)
