"""GFPGAN's network by itself: batched, with fixed noise, on face crops of 512 px.

It differs from ``gfpgan.GFPGANer`` in two ways: N faces are one run instead of N, and StyleGAN2's
noise is the checkpoint's own (``randomize_noise=False``) instead of random in every call, so that
the same face gives the same result, frame after frame.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..backends import NetworkSpec
from ..errors import CheckpointError, MissingDependencyError
from ..frames.resize import kept_rows
from .architecture import build_empty, check_architecture, load_tensors
from .base import LoadRequest, ModelInfo, NetworkRestorer

if TYPE_CHECKING:
    import torch

    from .architecture import StateDict

SIDE = 512

GEOMETRY: dict[str, Any] = {
    "out_size": SIDE,
    "num_style_feat": 512,
    "decoder_load_path": None,
    "fix_decoder": False,
    "num_mlp": 8,
    "input_is_latent": True,
    "different_w": True,
    "narrow": 1,
    "sft_half": True,
}
"""Constructor arguments of every published GFPGAN; only ``channel_multiplier`` differs."""
CALL = {"return_rgb": False, "randomize_noise": False}
"""How the networks are called: no intermediate images, and the checkpoint's own noise."""
LICENSE = "Apache-2.0 (names StyleGAN2 and DFDNet parts: non-commercial)"


def _info(version: str, summary: str) -> ModelInfo:
    return ModelInfo(
        name=f"gfpgan-{version}",
        summary=summary,
        input_size=SIDE,
        output_size=SIDE,
        value_range=(-1.0, 1.0),
        license=LICENSE,
        landmark_template="ffhq_512",
        bytes_per_face=400 * 2**20,
        weight=f"GFPGANv{version}",
    )


VERSIONS: dict[str, ModelInfo] = {
    "gfpgan-1.4": _info("1.4", "GFPGAN 1.4: more detail than 1.3, keeps identity better"),
    "gfpgan-1.3": _info("1.3", "GFPGAN 1.3: more natural, not always sharp"),
    "gfpgan-1.2": _info("1.2", "GFPGAN 1.2: sharper, sometimes invented detail"),
}
"""The published models, best first. All have arch ``clean`` with channel multiplier 2."""


class GFPGANRestorer(NetworkRestorer):
    """GFPGAN of arch ``clean``, ``bilinear`` or ``original``, by ``settings.arch``.

    ``bilinear`` is rewritten as ``clean`` when it is loaded (see `bilinear`); ``original`` needs
    the extra ``gfpgan``, which has its network.
    """

    info = VERSIONS["gfpgan-1.4"]

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network of ``request.weight``, of ``settings.arch`` and ``channel_multiplier``.

        Arch ``clean`` (and ``bilinear``, rewritten as it) is rearranged for speed and omits rows
        outside ``settings.region``; see `gfpgan_network`.

        Raises:
            CheckpointError: there is no weight, or it holds another network; the message has the
                options for it.
            MissingDependencyError: arch ``original`` without the package gfpgan.
        """
        info, settings, weight = request.info, request.settings, request.weight
        if weight is None:
            raise CheckpointError(None, "nothing", f"a GFPGAN checkpoint for {info.name}")
        state_dict = weight.state_dict()
        check_architecture(state_dict, settings.arch, settings.channel_multiplier, weight.path)
        source = _network(state_dict, request)
        key = f"gfpgan {settings.arch} x{settings.channel_multiplier}"
        shape, value_range = (3, SIDE, SIDE), info.value_range
        if settings.arch == "original":
            from .first_output import FirstOutput

            module = FirstOutput(source, **CALL)
            identity = f"{weight.sha256} {key}"
            return NetworkSpec(
                info.name, module, shape, value_range, key, channels_last=False, identity=identity
            )
        from .gfpgan_network import GFPGANNetwork

        fast = GFPGANNetwork(source, kept_rows(settings.computed_region, SIDE).start)
        key = f"{key.replace('bilinear', 'clean')} rows {fast.keep}"
        record, identity = partial(_compute, fast), f"{weight.sha256} {key}"
        return NetworkSpec(
            info.name, fast, shape, value_range, key, symbolic=record, identity=identity
        )


def _compute(module: Any, ops: Any) -> Any:
    return module.compute(ops, ops.input)


def _network(state_dict: StateDict, request: LoadRequest) -> torch.nn.Module:
    assert request.weight is not None
    path, arch = request.weight.path, request.settings.arch
    multiplier = request.settings.channel_multiplier
    if arch == "original":
        from .official_stack import original_network

        network = original_network({**GEOMETRY, "channel_multiplier": multiplier})
    else:
        try:
            from spandrel.architectures.GFPGAN import GFPGAN
        except ImportError as error:
            raise MissingDependencyError("spandrel", "all", "GFPGAN", str(error)) from error
        network = build_empty(GFPGAN, **GEOMETRY, channel_multiplier=multiplier)
        if arch == "bilinear":
            from .bilinear import bilinear_to_clean

            state_dict = bilinear_to_clean(state_dict)
    name = f"GFPGAN, arch {arch}, channel_multiplier {multiplier}"
    load_tensors(network, state_dict, path, name)
    return network
