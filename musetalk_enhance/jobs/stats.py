"""``restoration_stats.json``: the settings, what ran, and the outcome of every image and face."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._version import __version__
from ..pipeline.stats import mean_or_none
from .image_processor import FAILED, NO_FACE, RESTORED, UNREADABLE
from .manifest import State, digest
from .models import RunInfo
from .options import FaceSettings

_MODEL = (
    "model",
    "licence",
    "weight_sha256",
    "fidelity",
    "backend",
    "dtype",
    "device",
    "batch_size",
)


def settings_stats(settings: FaceSettings, run_info: RunInfo) -> dict[str, Any]:
    """The settings and what ran, as plain values; equal for runs that produce the same files."""
    info = run_info.as_dict()
    return {
        "version": __version__,
        "model_asked_for": settings.model_path or settings.model,
        "model_that_ran": {name: info[name] for name in _MODEL},
        "models_passed_over": [
            {"model": name, "reason": reason} for name, reason in run_info.passed_over
        ],
        "helpers_sha256": run_info.helpers,
        "settings": settings.decisive(),
        "settings_sha256": digest(settings.decisive() | run_info.decisive()),
    }


def is_image_state(state: State) -> bool:
    """Whether a state, which comes from a file, has all the values that are used in the end."""
    texts, numbers = ("name", "state"), ("strength", "change")
    optional = ("input_sha256", "error", "lowered")
    items = state["items"]
    if [item.get("name") for item in items] != state["unit"].get("items"):
        return False
    if not all(isinstance(item.get("faces"), list) and "input_sha256" in item for item in items):
        return False
    losses = [item.get("losses", []) for item in items]
    if not all(isinstance(words, list) for words in losses):
        return False
    if not all(isinstance(each, str) for words in losses for each in words):
        return False
    faces = [face for item in items for face in item["faces"]]
    if not all(isinstance(face, dict) and "strength" in face for face in faces):
        return False
    values = [(name, value) for each in (*items, *faces) for name, value in each.items()]
    return (
        all(isinstance(each.get("state"), str) for each in (*items, *faces))
        and all("error" in item and "outputs" in item for item in items)
        and all(isinstance(value, str) for name, value in values if name in texts)
        and all(isinstance(value, (str, type(None))) for name, value in values if name in optional)
        and all(_is_finite(value) for name, value in values if name in numbers)
    )


def _is_finite(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def image_stats(
    settings: FaceSettings,
    run_info: RunInfo,
    states: Iterable[State],
    listed: Sequence[str],
    troubles: Sequence[tuple[str, str]] = (),
    skipped: Sequence[str] = (),
) -> dict[str, Any]:
    """The statistics of a folder, as plain values.

    They contain no times: an interrupted and resumed run writes the same file as an uninterrupted
    one.

    Args:
        settings: of the job.
        run_info: what ran.
        states: of all units.
        listed: the images that are in the folder now.
        troubles: subfolders that cannot be read, with the reason.
        skipped: images in the folder whose format is not read.
    """
    names = set(listed)
    items = sorted(
        (item for state in states for item in state["items"] if item["name"] in names),
        key=lambda item: item["name"],
    )
    state_counts = Counter(item["state"] for item in items)
    errors = [(item["name"], item["error"]) for item in items if item["error"]]
    faces = Counter(face["state"] for item in items for face in item["faces"])
    return settings_stats(settings, run_info) | {
        "pictures": {
            "all": len(items),
            "with_restored_faces": state_counts[RESTORED],
            "without_restored_face": state_counts[NO_FACE],
            "failed": state_counts[FAILED],
            "unreadable": state_counts[UNREADABLE],
            "unreadable_folders": len(troubles),
            "skipped": len(skipped),
        },
        "faces": {
            "found": sum(faces.values()),
            "restored": faces["restored"],
            "left": {state: count for state, count in sorted(faces.items()) if state != "restored"},
            **_restoration([face for item in items for face in item["faces"]]),
        },
        "skipped": list(skipped),
        "losses": _losses(items),
        "errors": [{"name": name, "error": error} for name, error in [*troubles, *errors]],
        "items": [{name: value for name, value in item.items() if name != "ms"} for item in items],
    }


def _losses(items: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What the results do not hold of their inputs: in words, to the names of the images."""
    losses: dict[str, list[str]] = {}
    for item in items:
        for words in item.get("losses", ()):
            losses.setdefault(words, []).append(item["name"])
    return dict(sorted(losses.items()))


def _restoration(faces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How much the restored faces changed; states of older versions have no ``change``."""
    restored = [face for face in faces if face["state"] == "restored"]
    changes = [face["change"] for face in restored if face.get("change") is not None]
    partial = Counter(face["lowered"] for face in restored if face.get("lowered"))
    return {
        "partial": dict(sorted(partial.items())),
        "mean_strength": mean_or_none(sum(face["strength"] for face in restored), len(restored), 4),
        "mean_change": mean_or_none(sum(changes), len(changes), 3),
    }
