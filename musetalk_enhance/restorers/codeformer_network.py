"""What it takes to trace CodeFormer's network for any batch and to run it in any precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Codebook(nn.Module):
    """Takes the place of the network's quantizer, of which only the lookup is used.

    As published, a code is found by multiplying the codebook with a matrix of zeros and ones, made for every
    batch and always in fp32. An index gives the same numbers, in any precision, and exports as one operator.

    Args:
        embedding: the codes, under the name that they have in checkpoints.
    """

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def get_codebook_feat(self, indices: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Whole numbers (N, h * w, 1) and (N, h, w, C) to codes (N, C, h, w)."""
        codes: torch.Tensor = self.embedding(indices.flatten(1))
        return codes.reshape(-1, *shape[1:]).permute(0, 3, 1, 2).contiguous()


class BySize(nn.ModuleDict):
    """Takes the place of the network's dictionary of layers, whose keys are sides of feature maps in pixels.

    The network asks with ``str(x.shape[-1])``, which reads ``"tensor(32)"`` instead of ``"32"`` in a trace.
    """

    def __getitem__(self, key: str) -> nn.Module:
        """The layer for ``"32"`` or ``"tensor(32)"``."""
        return super().__getitem__("".join(filter(str.isdigit, key)))


def exportable(network: Any) -> nn.Module:
    """`network`, spandrel_extra_arches' ``CodeFormer``, with a `Codebook` and `BySize` put in; same numbers."""
    network.quantize = Codebook(network.quantize.embedding)
    network.fuse_convs_dict = BySize(network.fuse_convs_dict.items())
    out: nn.Module = network
    return out
