"""Changes to CodeFormer's network for tracing with any batch and running in any precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Codebook(nn.Module):
    """Replaces the network's quantizer, of which only the lookup is used.

    The published code looks a code up by multiplying the codebook with a matrix of zeros and ones,
    built for every batch and always in fp32. An index gives the same numbers, in any precision, and
    exports as one operator.

    Args:
        embedding: the codes, under their name in checkpoints.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def get_codebook_feat(self, indices: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Integers (N, h * w, 1) and a shape (N, h, w, C) to codes (N, C, h, w)."""
        codes: torch.Tensor = self.embedding(indices.flatten(1))
        return codes.reshape(-1, *shape[1:]).permute(0, 3, 1, 2).contiguous()


class LayersBySize(nn.ModuleDict):
    """Replaces the network's dictionary of layers, whose keys are feature map sizes in pixels.

    The network looks up ``str(x.shape[-1])``, which is ``"tensor(32)"`` instead of ``"32"`` in a
    trace.
    """

    def __getitem__(self, key: str) -> nn.Module:
        """The layer for ``"32"`` or ``"tensor(32)"``."""
        return super().__getitem__("".join(filter(str.isdigit, key)))


def make_exportable(network: Any) -> nn.Module:
    """Put a `Codebook` and `LayersBySize` into a network; its results stay the same.

    Args:
        network: spandrel_extra_arches' ``CodeFormer``; changed in place.

    Returns:
        `network`.
    """
    network.quantize = Codebook(network.quantize.embedding)
    network.fuse_convs_dict = LayersBySize(network.fuse_convs_dict.items())
    module: nn.Module = network
    return module
