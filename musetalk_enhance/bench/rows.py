"""From what was measured to plain rows, ready for JSON, a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import reference, roofline
from .machine import anonymous
from .measuring import Measured

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]

DTYPES = ("fp32", "bf16", "fp16")


def rows_of(measured: Sequence[Measured], truth: np.ndarray | None) -> list[Row]:
    """One row for each candidate but the probes.

    Args:
        measured: of the reference paths and ours.
        truth: what torch in fp32 makes of the same faces, uint8 (N, H, W, 3); None where it could not be had.
    """
    own = {seen.candidate.name: seen.median_ms for seen in measured if seen.ms}
    rows = []
    for seen in measured:
        facts = seen.candidate.facts
        if facts["path"] == roofline.PROBE:
            continue
        row: Row = {"name": seen.candidate.name, **facts, "reason": seen.reason and anonymous(seen.reason)}
        if seen.reason is None and seen.ms:
            against = seen.against or own
            row |= _figures(seen) | {"times_faster": _times_faster(seen.median_ms, against)}
            row["difference"] = difference(seen, truth) if facts["path"] == "ours" else None
        rows.append(row)
    return rows


def _figures(seen: Measured) -> Row:
    return {
        "runs_as": seen.runs_as,
        "faces": seen.faces,
        "ms_per_face": round(seen.median_ms, 3),
        "ms_per_face_rounds": [round(ms, 3) for ms in seen.ms],
        "faces_per_second": round(1e3 / seen.median_ms, 3),
        "stages_ms": {stage: round(ms, 3) for stage, ms in seen.stages.items()},
        "loaded_bytes": seen.loaded_bytes,
        "working_bytes": seen.working_bytes,
        "peak_bytes": seen.peak_bytes,
    }


def _times_faster(ms: float, against: dict[str, float]) -> dict[str, float]:
    """How many times quicker than each reference path."""
    paths = {reference.PLAN: "plan", reference.ALIGNED: "aligned", reference.STOCK: "aligned"}
    return {paths[name]: round(other / ms, 3) for name, other in against.items() if name in paths}


def difference(seen: Measured, truth: np.ndarray | None) -> dict[str, float] | None:
    """Largest and mean absolute difference to `truth`, in steps of 1/255; below the centre for a part of the face."""
    import numpy as np

    if seen.output is None or truth is None or seen.output.shape[1:] != truth.shape[1:]:
        return None
    count = min(len(truth), len(seen.output))
    top = 0 if seen.candidate.facts.get("region") == "full" else truth.shape[1] // 2
    change = np.abs(seen.output[:count, top:].astype(np.int16) - truth[:count, top:].astype(np.int16))
    return {"max": int(change.max()), "mean": round(float(change.mean()), 4)}


def dtype_of(row: Row) -> str:
    """The arithmetic that ran: what the backend says, else what was asked for."""
    word = str(row.get("runs_as", "")).rpartition(" ")[2]
    return word if word in DTYPES else str(row.get("dtype", ""))


def best(rows: Sequence[Row], dtype: str | None = None, region: str | None = None) -> Row | None:
    """The quickest of our rows that was measured, of one dtype or region where one is given."""
    fitting = [
        row
        for row in rows
        if row["path"] == "ours"
        and row["reason"] is None
        and (dtype is None or dtype_of(row) == dtype)
        and (region is None or row["region"] == region)
    ]
    return min(fitting, key=lambda row: float(row["ms_per_face"]), default=None)


def roof(work: roofline.Work | None, measured: Sequence[Measured], rows: Sequence[Row]) -> Row | None:
    """The roofline: work of a face, rates of the machine, limits, and how near the best rows come."""
    probes = [seen for seen in measured if seen.candidate.facts["path"] == roofline.PROBE and seen.reason is None]
    rates = {str(seen.candidate.facts["dtype"]): seen.stages["per_second"] for seen in probes}
    if work is None or not rates:
        return None
    found = []
    for dtype, limit in roofline.limits(work, rates).items():
        entry: Row = {"dtype": dtype, "arithmetic_ms": round(limit.arithmetic_ms, 3), "memory_ms": None, "best": {}}
        if not math.isnan(limit.memory_ms):
            entry["memory_ms"] = round(limit.memory_ms, 3)
        for region in sorted({str(row["region"]) for row in rows}):
            row = best(rows, "fp32" if dtype == "tf32" else dtype, region)
            if row is not None:
                share = limit.arithmetic_ms / row["ms_per_face"]
                entry["best"][region] = {"name": row["name"], "ms": row["ms_per_face"], "share": round(share, 4)}
        found.append(entry)
    return {
        "convolution": "direct",
        "mac_per_face": work.macs,
        "activation_bytes_per_face": work.activation_bytes,
        "weight_bytes": work.weight_bytes,
        "rates_per_second": {name: round(rate) for name, rate in rates.items()},
        "limits": found,
    }
