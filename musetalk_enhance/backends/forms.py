"""Which form of each modulated convolution runs fastest: found by running it, not by belief."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

from ..runtime import memory
from ..runtime.precision import without_autocast
from . import tuning
from .base import NetworkSpec
from .ops import FORMS, Modulated, TorchOps
from .torch_backend import TorchBackend

logger = logging.getLogger("musetalk_enhance")


CLEARLY = 0.9
"""Share of the first form's time that another one must stay below to be taken."""


def choose_forms(
    spec: NetworkSpec, device: torch.device, forms: Sequence[str] | None = None
) -> None:
    """Give every modulated convolution the form that runs fastest on `device`; measured once.

    They stay as they are where nothing is measured, or what was measured cannot be kept: each form
    sums in an order of its own.

    Args:
        spec: the network.
        device: where it runs.
        forms: for the layers in order, from an earlier run; none of another number or name.
    """
    layers = [part for part in spec.module.modules() if isinstance(part, Modulated)]
    if not layers:
        return
    if forms is None and tuning.enabled():
        forms = _remembered_forms(spec, device, layers)
    if not _are_sound(forms, layers):
        return
    for layer, form in zip(layers, forms or (), strict=True):
        layer.form = form


def _are_sound(forms: Any, layers: list[Modulated]) -> bool:
    sound = isinstance(forms, (list, tuple)) and len(forms) == len(layers)
    return sound and set(FORMS).issuperset(map(str, forms))


def _remembered_forms(
    spec: NetworkSpec, device: torch.device, layers: list[Modulated]
) -> list[str] | None:
    """What was measured before, or now; None where that is not possible."""
    key = tuning.key_of(f"{spec.key} forms", device)
    forms: list[str] | None = (tuning.remembered(key) or {}).get("forms")
    if _are_sound(forms, layers):
        return forms
    try:
        waiting = f"another process is measuring the convolutions of {spec.name}: waiting for it"
        with tuning.turn(key, waiting):
            forms = (tuning.remembered(key) or {}).get("forms")
            if not _are_sound(forms, layers):
                forms = _measured_forms(spec, device, layers)
                tuning.keep(key, {"network": spec.key, "forms": forms})
            return forms
    except tuning.NotKeptError as error:
        logger.debug("forms of %s are not measured: %s", spec.name, error)
        return None
    except RuntimeError as error:  # memory, mostly; every form is right
        logger.debug("forms of %s are not measured: %s", spec.name, error)
        memory.forget_locals(error)
    memory.release(device)
    return None


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
        best = min(took, key=lambda form: took[form])
        clear = took[best] < CLEARLY * took[FORMS[0]]
        self.best[id(layer)] = layer.form = best if clear else FORMS[0]
        return out

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
