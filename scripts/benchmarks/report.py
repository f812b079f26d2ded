"""The report as text for a person: a table, and one line for each limit of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

SCHEMA = 1
"""Version of the JSON file's form; a reader refuses others."""

_HEAD = (
    "",
    "ms/face",
    "faces/s",
    "x (a)",
    "x (b)",
    "prepare",
    "network",
    "finish",
    "MiB",
    "diff",
    "runs as",
)


def text(report: Row) -> str:
    """Notes, machine, limits, the host loop where it was measured, and last the table."""
    blocks = [
        [f"note: {note}" for note in report["notes"]],
        [_machine(report["machine"])],
        roof_lines(report["roofline"]),
        host_lines(report["host_loop"]),
        refusals(report["rows"]),
        table(report["rows"]),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of the table, one for each row that was measured, and what its columns mean."""
    cells = [_HEAD, *(_cells(row) for row in rows if row["reason"] is None)]
    if len(cells) == 1:
        return ["nothing was measured"]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    lines = []
    for line in cells:
        aligned = [
            line[0].ljust(widths[0]),
            *(cell.rjust(wide) for cell, wide in zip(line[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(aligned).rstrip())
    return [
        "medians of interleaved rounds. x (a), x (b): times faster than that path. prepare, "
        "network, finish: ms a",
        "face. MiB: memory taken by loading it and by running it. diff: largest / mean "
        "difference to torch in fp32,",
        "in steps of 1/255 (below the center of the face where only a part is computed).",
        lines[0],
        "-" * max(len(line) for line in lines),
        *lines[1:],
    ]


def _cells(row: Row) -> tuple[str, ...]:
    stages, times, change = row["stages_ms"], row["times_faster"], row["difference"]
    mib = (row["loaded_bytes"] + row["working_bytes"]) / 2**20
    return (
        row["name"],
        _short(row["ms_per_face"]),
        _short(row["faces_per_second"]),
        *(f"{times[path]:.2f}" if path in times else "" for path in ("plan", "aligned")),
        *(
            _short(stages[stage]) if stage in stages else ""
            for stage in ("prepare", "network", "finish")
        ),
        f"{mib:.0f}",
        f"{change['max']} / {change['mean']:.2f}" if change else "",
        row["runs_as"],
    )


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def refusals(rows: Sequence[Row]) -> list[str]:
    """One line for each reason why something could not be measured, with all that it stopped."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"] is not None:
            reasons.setdefault(row["reason"], []).append(row["name"])
    return [f"not measured: {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def roof_lines(roof: Row | None) -> list[str]:
    """The machine's limits by dtype, and the share of them that our best row reaches."""
    if roof is None:
        return ["no limit: the arithmetic of this model is not counted"]
    rates = roof["rates_per_second"]
    moved = (roof["activation_bytes_per_face"] + roof["weight_bytes"]) / 1e9
    lines = [
        f"a face is {roof['mac_per_face'] / 1e9:.4g} GMAC (direct convolution) and about "
        f"{moved:.2g} GB in fp32 (weights once, inputs and outputs of convolutions once); copy: "
        f"{rates.get('bytes', 0) / 1e9:.1f} GB/s"
    ]
    for limit in roof["limits"]:
        line = (
            f"{limit['dtype']}: matrix product {rates[limit['dtype']] / 1e9:.4g} GMAC/s; "
            "arithmetic limit (direct "
        )
        line += f"convolution): {_short(limit['arithmetic_ms'])} ms a face"
        if limit["memory_ms"] is not None:
            line += f", memory {_short(limit['memory_ms'])} ms"
        for region, best in limit["best"].items():
            line += (
                f"; measured best, region {region}: {_short(best['ms'])} ms "
                f"({best['share']:.0%}, {best['name']})"
            )
        lines.append(line)
    return lines


def host_lines(host: Row | None) -> list[str]:
    """What enhancing adds to the wall time of a host's loop."""
    if host is None:
        return []
    if host.get("reason"):
        return [f"time added to the host's loop: not measured: {host['reason']}"]
    lines = [
        f"time added to the host's loop ({host['host']}; enhanced with {host['enhancer']}; "
        f"{host['batches']} batches of {host['batch']} faces, medians of {host['rounds']} rounds):"
    ]
    for name in ("alone", "in turn", "overlapped"):
        added = "" if name == "alone" else f"  {host['added'][name]:+.1%}"
        lines.append(f"  {name:<11} {host['ms_per_face'][name]:9.2f} ms a face{added}")
    return lines


def _machine(facts: Row) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    gpu = f"{facts['gpu']}; " if "gpu" in facts else ""
    return (
        f"{gpu}{facts['cpu']}, {facts['threads']} threads ({', '.join(facts['isa'])}); device "
        f"{facts['device']}\nPython {facts['python']}, {versions}"
    )
