"""The whole benchmark: from the plan to a report and its files."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musetalk_enhance.errors import EnhanceError, MissingDependencyError
from musetalk_enhance.runtime.devices import pick_device

from . import candidates, host_loop, machine, plot, reference, report, roofline
from .measure import Measurement, Rounds, measure
from .rows import best, dtype_of, roof, rows_of
from .subject import Subject, open_subject

if TYPE_CHECKING:
    import numpy as np
    import torch

JSON_FILE, PLOT_FILE = "bench.json", "bench.png"
_PREFIX, _LOCK = "musetalk-enhance-bench-", "in-use.lock"


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        model: a name or a path; GFPGAN gets random weights where its own are unavailable.
        random: take random weights in any case.
        device: as the option `device`.
        backends, dtypes, regions, batches: values of the options, every combination of which is
            measured.
        faces: in one run of ours, rounded up to whole batches.
        rounds: how often each candidate runs.
        warmup: runs before that which do not count.
        references: whether the two paths without this library are measured.
        reference_faces: faces in one run of theirs.
        frame_wh: width and height of the frames the detecting path gets.
        bound_bytes: how much may be loaded at once; None takes half of what is free.
        host_loop: whether the time added to a host's loop is measured.
        musetalk: MuseTalk's folder for that; None takes a stand-in.
        out: folder for the JSON file and the plot.
    """

    model: str = "gfpgan-1.4"
    random: bool = False
    device: str = "auto"
    backends: Sequence[str] = ("torch",)
    dtypes: Sequence[str] = ("fp32",)
    regions: Sequence[str] = ("full",)
    batches: Sequence[int] = (1, 4, 8)
    faces: int = 8
    rounds: int = 3
    warmup: int = 1
    references: bool = True
    reference_faces: int = 2
    frame_wh: tuple[int, int] = (256, 256)
    bound_bytes: int | None = None
    host_loop: bool = False
    musetalk: Path | None = None
    out: Path = Path("out/bench")


def run(plan: Plan, log: Callable[[str], object] = print) -> dict[str, Any]:
    """Measure, write `JSON_FILE` and `PLOT_FILE` into ``plan.out``, and return the report.

    Args:
        plan: what is measured.
        log: takes a line of progress.

    Raises:
        ConfigError: there is no such model or device.
        WeightError: the model's weight is missing, corrupt or untrusted.
    """
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(machine.anonymous(line))
        log(line)

    device = pick_device(plan.device)
    if device.type != "cuda":
        note("no GPU is used: the figures below are the CPU's")
    with work_folder() as folder:
        subject = open_subject(plan.model, plan.random, folder, note)
        measurements = _measure(plan, subject, device, folder, log)
        rows = rows_of(measurements, _truth(measurements, subject, plan, log))
        content: dict[str, Any] = {
            "schema": report.SCHEMA,
            "machine": machine.facts(str(device)),
            "model": subject.name,
            "asked": _asked(plan),
            "rows": rows,
            "roofline": roof(roofline.work_of(subject), measurements, rows),
            "host_loop": _host(plan, subject, device, rows, log),
            "notes": notes,
        }
    _write(content, plan.out, note)
    return content


@contextmanager
def work_folder() -> Iterator[Path]:
    """A temporary folder, for random weights of 350 MB; those of runs that were killed go first."""
    from filelock import FileLock, Timeout

    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            with FileLock(folder / _LOCK, timeout=0):  # a process that is killed releases its own
                shutil.rmtree(folder)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        with FileLock(Path(name) / _LOCK):
            yield Path(name)


def _asked(plan: Plan) -> dict[str, Any]:
    names = (
        "backends",
        "dtypes",
        "regions",
        "batches",
        "faces",
        "rounds",
        "warmup",
        "reference_faces",
        "frame_wh",
    )
    values = {name: getattr(plan, name) for name in names}
    return {
        name: list(value) if isinstance(value, (list, tuple)) else value
        for name, value in values.items()
    }


def _measure(
    plan: Plan, subject: Subject, device: torch.device, folder: Path, log: Callable[[str], object]
) -> list[Measurement]:
    base = roofline.probes(device)
    if plan.references:
        base += reference.references(subject, device, plan.reference_faces, plan.frame_wh, folder)
    mine = candidates.every(
        subject, str(device), plan.faces, plan.backends, plan.dtypes, plan.regions, plan.batches
    )
    return measure(mine, Rounds(plan.rounds, plan.warmup, device, plan.bound_bytes, log), base)


def _truth(
    measurements: Sequence[Measurement], subject: Subject, plan: Plan, log: Callable[[str], object]
) -> np.ndarray | None:
    """torch's output in fp32: measured anyway, or computed once for the comparison."""
    options = {"backend": "torch", "dtype": "fp32", "region": "full"}
    for one in measurements:
        if one.output is not None and options.items() <= one.candidate.facts.items():
            if one.candidate.facts["path"] == "ours":
                return one.output
    log("running torch fp32 once, for the comparison")
    candidate = candidates.ours(subject, plan.device, plan.faces, batch=1, **options)
    try:
        runner = candidate.build()
        try:
            return runner.run()
        finally:
            runner.close()
    except EnhanceError as error:
        log(f"no comparison: {error}")
        return None


def _host(
    plan: Plan,
    subject: Subject,
    device: torch.device,
    rows: Sequence[dict[str, Any]],
    log: Callable[[str], object],
) -> dict[str, Any] | None:
    """The time added to a host's loop by the fastest candidate."""
    if not plan.host_loop:
        return None
    row = best(rows)
    if row is None:
        return {"reason": "no candidate could be measured"}
    log(f"the host's loop, enhanced with {row['name']}")
    values = {key: row[key] for key in ("backend", "dtype", "region", "batch")}
    try:
        runner = candidates.ours(subject, str(device), int(row["batch"]), **values).build()
        try:
            host = host_loop.open_host(device, int(row["batch"]), plan.musetalk, log)
            assert isinstance(runner, candidates.EnhancerRunner)
            added = host_loop.added(host, runner.enhancer, plan.rounds)
        finally:
            runner.close()
    except (
        Exception
    ) as error:  # MuseTalk's own code may raise anything; the table is printed anyway
        return {"reason": machine.anonymous(f"{type(error).__name__}: {error}")}
    return {**added, "enhancer": f"{row['name']}, {dtype_of(row)}"}


def _write(content: dict[str, Any], folder: Path, note: Callable[[str], object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{content['model']}: {content['machine'].get('gpu', content['machine']['cpu'])}"
    try:
        plot.save_plot(content["rows"], title, folder / PLOT_FILE)
    except MissingDependencyError as error:
        note(f"no plot, JSON only: {error}")
    (folder / JSON_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
