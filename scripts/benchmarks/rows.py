"""From measurements to plain rows, ready for JSON, a table and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import reference, roofline
from .machine import anonymous
from .measure import Measurement

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]

DTYPES = ("fp32", "bf16", "fp16")


def rows_of(measurements: Sequence[Measurement], truth: np.ndarray | None) -> list[Row]:
    """One row for each candidate but the probes.

    Args:
        measurements: of the reference paths and ours.
        truth: torch's output in fp32 for the same faces, uint8 (N, H, W, 3); None where there is
            none.
    """
    medians = {one.candidate.name: one.median_ms for one in measurements if one.ms}
    rows = []
    for one in measurements:
        facts = one.candidate.facts
        if facts["path"] == roofline.PROBE:
            continue
        row: Row = {
            "name": one.candidate.name,
            **facts,
            "reason": one.reason and anonymous(one.reason),
        }
        if one.reason is None and one.ms:
            against = one.against or medians
            row |= _figures(one) | {"times_faster": _times_faster(one.median_ms, against)}
            row["difference"] = difference(one, truth) if facts["path"] == "ours" else None
        rows.append(row)
    return rows


def _figures(one: Measurement) -> Row:
    return {
        "runs_as": one.runs_as,
        "faces": one.faces,
        "ms_per_face": round(one.median_ms, 3),
        "ms_per_face_rounds": [round(ms, 3) for ms in one.ms],
        "faces_per_second": round(1e3 / one.median_ms, 3),
        "stages_ms": {stage: round(ms, 3) for stage, ms in one.stages.items()},
        "loaded_bytes": one.loaded_bytes,
        "working_bytes": one.working_bytes,
        "peak_bytes": one.peak_bytes,
    }


def _times_faster(ms: float, against: dict[str, float]) -> dict[str, float]:
    """How many times faster than each reference path."""
    paths = {reference.PLAN: "plan", reference.ALIGNED: "aligned", reference.STOCK: "aligned"}
    return {paths[name]: round(other / ms, 3) for name, other in against.items() if name in paths}


def difference(one: Measurement, truth: np.ndarray | None) -> dict[str, float] | None:
    """Largest and mean absolute difference to `truth`, in steps of 1/255; below the center for a
    part of the face."""
    import numpy as np

    if one.output is None or truth is None or one.output.shape[1:] != truth.shape[1:]:
        return None
    count = min(len(truth), len(one.output))
    top = 0 if one.candidate.facts.get("region") == "full" else truth.shape[1] // 2
    change = np.abs(
        one.output[:count, top:].astype(np.int16) - truth[:count, top:].astype(np.int16)
    )
    return {"max": int(change.max()), "mean": round(float(change.mean()), 4)}


def dtype_of(row: Row) -> str:
    """The arithmetic that ran: what the backend reports, else the option."""
    word = str(row.get("runs_as", "")).rpartition(" ")[2]
    return word if word in DTYPES else str(row.get("dtype", ""))


def best(rows: Sequence[Row], dtype: str | None = None, region: str | None = None) -> Row | None:
    """The fastest of our rows that was measured, of one dtype or region where one is given."""
    fitting = [
        row
        for row in rows
        if row["path"] == "ours"
        and row["reason"] is None
        and (dtype is None or dtype_of(row) == dtype)
        and (region is None or row["region"] == region)
    ]
    return min(fitting, key=lambda row: float(row["ms_per_face"]), default=None)


def roof(
    work: roofline.WorkloadCost | None, measurements: Sequence[Measurement], rows: Sequence[Row]
) -> Row | None:
    """The roofline: work of a face, rates of the machine, limits, and the share that the best rows
    reach."""
    probes = [
        one
        for one in measurements
        if one.candidate.facts["path"] == roofline.PROBE and one.reason is None
    ]
    rates = {str(one.candidate.facts["dtype"]): one.stages["per_second"] for one in probes}
    if work is None or not rates:
        return None
    entries = []
    for dtype, limit in roofline.limits(work, rates).items():
        entry: Row = {
            "dtype": dtype,
            "arithmetic_ms": round(limit.arithmetic_ms, 3),
            "memory_ms": None,
            "best": {},
        }
        if not math.isnan(limit.memory_ms):
            entry["memory_ms"] = round(limit.memory_ms, 3)
        for region in sorted({str(row["region"]) for row in rows}):
            row = best(rows, "fp32" if dtype == "tf32" else dtype, region)
            if row is not None:
                share = limit.arithmetic_ms / row["ms_per_face"]
                entry["best"][region] = {
                    "name": row["name"],
                    "ms": row["ms_per_face"],
                    "share": round(share, 4),
                }
        entries.append(entry)
    return {
        "convolution": "direct",
        "mac_per_face": work.macs,
        "activation_bytes_per_face": work.activation_bytes,
        "weight_bytes": work.weight_bytes,
        "rates_per_second": {name: round(rate) for name, rate in rates.items()},
        "limits": entries,
    }
