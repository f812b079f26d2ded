"""GFPGAN, the network itself: batched, with fixed noise, on face crops of 512 px.

Two things differ from ``gfpgan.GFPGANer``: N faces are one run instead of N, and StyleGAN2's noise is the
checkpoint's own (``randomize_noise=False``) instead of drawn anew for every call, so that the same face comes
out the same, frame after frame.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..backends import NetworkSpec
from ..errors import CheckpointError, MissingDependencyError
from ..frames.resize import kept_rows
from .base import LoadRequest, NetworkRestorer, RestorerRecord

if TYPE_CHECKING:
    import torch

    from .convert import StateDict

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
"""What every published GFPGAN is built with; only ``channel_multiplier`` differs."""
CALL = {"return_rgb": False, "randomize_noise": False}
"""How the published networks are called: no pictures on the way, and the checkpoint's own noise."""


def _record(version: str, summary: str) -> RestorerRecord:
    return RestorerRecord(
        name=f"gfpgan-{version}",
        summary=summary,
        input_size=SIDE,
        output_size=SIDE,
        value_range=(-1.0, 1.0),
        licence="Apache-2.0 (names StyleGAN2 and DFDNet parts: non-commercial)",
        landmark_template="ffhq_512",
        bytes_per_face=768 * 2**20,
        weight=f"GFPGANv{version}",
    )


RECORDS: dict[str, RestorerRecord] = {
    "gfpgan-1.4": _record("1.4", "GFPGAN 1.4: more detail than 1.3, keeps identity better"),
    "gfpgan-1.3": _record("1.3", "GFPGAN 1.3: more natural, not always sharp"),
    "gfpgan-1.2": _record("1.2", "GFPGAN 1.2: sharper, at times made up"),
}
"""The published models, best first. All are of arch ``clean`` with channel multiplier 2."""


class GFPGANRestorer(NetworkRestorer):
    """GFPGAN of arch ``clean``, ``bilinear`` or ``original``, as ``settings.arch`` says.

    ``bilinear`` is rewritten as ``clean`` when it is loaded (see `convert`); ``original`` needs the extra
    ``gfpgan``, where its network stands.
    """

    record = RECORDS["gfpgan-1.4"]

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network of ``request.weight``, which ``settings.arch`` and ``channel_multiplier`` name.

        Arch ``clean`` (and ``bilinear``, rewritten as it) is rearranged for speed, and leaves rows out that
        ``settings.region`` does not keep; see `gfpgan_network`.

        Raises:
            CheckpointError: there is no weight, or it holds another network; says which options fit.
            MissingDependencyError: arch ``original`` without the package gfpgan.
        """
        from .convert import check

        settings, weight = request.settings, request.weight
        if weight is None:
            raise CheckpointError(None, "nothing", f"a GFPGAN checkpoint for {request.record.name}")
        state_dict = weight.state_dict()
        check(state_dict, settings.arch, settings.channel_multiplier, weight.path)
        source = _network(state_dict, request)
        name, key = request.record.name, f"gfpgan {settings.arch} x{settings.channel_multiplier}"
        shape, value_range = (3, SIDE, SIDE), request.record.value_range
        if settings.arch == "original":
            from ..backends.wrapping import FirstOutput

            return NetworkSpec(name, FirstOutput(source, **CALL), shape, value_range, key, channels_last=False)
        from .gfpgan_network import GFPGANNetwork

        module = GFPGANNetwork(source, kept_rows(settings.computed_region, SIDE).start)
        key = f"{key.replace('bilinear', 'clean')} rows {module.keep}"
        record = partial(_record_on, module)
        return NetworkSpec(name, module, shape, value_range, key, symbolic=record)


def _record_on(module: Any, ops: Any) -> Any:
    return module.compute(ops, ops.input)


def empty(build: Any, **arguments: Any) -> torch.nn.Module:
    """A network from its class without random initialisation: quicker, and torch's random state is not touched."""
    import torch

    with torch.device("meta"):
        network: torch.nn.Module = build(**arguments)
    return network.to_empty(device=torch.device("cpu"))


def _network(state_dict: StateDict, request: LoadRequest) -> torch.nn.Module:
    from . import convert

    assert request.weight is not None
    path, arch = request.weight.path, request.settings.arch
    multiplier = request.settings.channel_multiplier
    if arch == "original":
        from ..official import original_network

        network = original_network({**GEOMETRY, "channel_multiplier": multiplier})
    else:
        try:
            from spandrel.architectures.GFPGAN import GFPGAN
        except ImportError as error:
            raise MissingDependencyError("spandrel", "all", "GFPGAN", str(error)) from error
        network = empty(GFPGAN, **GEOMETRY, channel_multiplier=multiplier)
        if arch == "bilinear":
            state_dict = convert.bilinear_to_clean(state_dict)
    convert.fill(network, state_dict, path, f"GFPGAN, arch {arch}, channel_multiplier {multiplier}")
    return network
