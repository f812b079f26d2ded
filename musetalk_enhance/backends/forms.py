"""Which form of each modulated convolution runs fastest: found by running it, not by belief."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from ..runtime import memory
from ..runtime.precision import without_autocast
from . import tuning
from .base import NetworkSpec
from .ops import FORMS, Modulated, TorchOps
from .torch_backend import TorchBackend

logger = logging.getLogger("musetalk_enhance")


def choose_forms(spec: NetworkSpec, device: torch.device) -> None:
    """Give every modulated convolution of a network the form that runs fastest on `device`; measured once."""
    layers = [part for part in spec.module.modules() if isinstance(part, Modulated)]
    if not layers or not tuning.enabled():
        return
    key = tuning.key_of(f"{spec.key} forms", device)
    forms = (tuning.remembered(key) or {}).get("forms")
    if not isinstance(forms, list) or len(forms) != len(layers) or not set(FORMS).issuperset(map(str, forms)):
        forms = None
        try:
            forms = _measured_forms(spec, device, layers)
        except RuntimeError as error:  # memory, mostly: every form is right, and there may be enough for fewer faces
            logger.debug("forms of %s are not measured: %s", spec.name, error)
            memory.forget_locals(error)
        if forms is None:
            memory.release(device)
            return
        tuning.remember(key, {"network": spec.key, "forms": forms})
    for layer, form in zip(layers, forms, strict=True):
        layer.form = form


def _measured_forms(spec: NetworkSpec, device: torch.device, layers: list[Modulated]) -> list[str]:
    compute: Any = getattr(spec.module, "compute", None)
    if compute is None:
        return [layer.form for layer in layers]
    count = 1 if device.type == "cpu" else 8
    backend = TorchBackend(spec, device, graphs=False)
    ops = _TimingOps(device)
    with torch.inference_mode(), without_autocast(device):
        faces = torch.zeros(count, *spec.input_shape, device=device)
        backend.module.compute(ops, faces)  # type: ignore[operator]
    parts = [part for part in backend.module.modules() if isinstance(part, Modulated)]
    return [ops.best[id(part)] for part in parts]


class _TimingOps(TorchOps):
    """Runs every modulated convolution in every form and remembers which was quickest."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.best: dict[int, str] = {}

    def modulated(
        self, x: torch.Tensor, latent: torch.Tensor, layer: Modulated, enlarge: bool = False
    ) -> torch.Tensor:
        """Time the forms; on a GPU three times each, the best run counting."""
        super().modulated(x, latent, layer, enlarge)  # caches and memory are warm for whichever comes first
        took = dict.fromkeys(FORMS, float("inf"))
        for _ in range(1 if self.device.type == "cpu" else 3):
            for form in FORMS:
                layer.form = form
                start = self._now()
                out = super().modulated(x, latent, layer, enlarge)
                took[form] = min(took[form], self._now() - start)
        self.best[id(layer)] = layer.form = min(took, key=lambda form: took[form])
        return out

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
