"""`restore_images`: restores the faces in a folder of images, resumable, on one machine or many."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..runtime.files import real_path
from . import folder as folders
from .image_processor import FAILED, ImageProcessorFactory, ReadUnit, WriteUnit
from .job import Engine, Job, load_run_info
from .local import LocalEngine
from .manifest import (
    FOLDER,
    Manifest,
    State,
    Unit,
    file_digest,
    is_relative_name,
    locked,
    outputs_intact,
    sweep_parts,
    write_json,
)
from .models import RunInfo
from .options import ImageSettings
from .stats import image_stats, is_image_state

logger = logging.getLogger("musetalk_enhance")

STATS = "restoration_stats.json"
Progress = Callable[[int, int], None]
"""Called with the number of images done and the total."""
Approve = Callable[[RunInfo], None]


@dataclass(frozen=True)
class ImagesResult:
    """Result of a run over a folder.

    Attributes:
        output: output folder.
        stats: content of ``restoration_stats.json``.
        seconds: duration of this run.
        resumed: images that an earlier run had finished.
    """

    output: Path
    stats: dict[str, Any]
    seconds: float
    resumed: int

    @property
    def errors(self) -> int:
        """Number of images and folders that could not be read or restored."""
        counts = self.stats["pictures"]
        return int(counts["unreadable"] + counts["failed"] + counts["unreadable_folders"])


def restore_images(
    source: str | Path,
    output: str | Path,
    settings: ImageSettings | None = None,
    *,
    engine: Engine | None = None,
    pictures: Sequence[str] | None = None,
    approve: Approve | None = None,
    progress: Progress | None = None,
) -> ImagesResult:
    """Restore the faces of every image below a folder.

    Written below `output`: ``restored/`` (names and subfolders kept), ``comparisons/`` if enabled,
    and ``restoration_stats.json``. An interrupted run resumes where it stopped and produces the
    same bytes; images that are new, changed, or failed in an earlier run are then processed too.
    Results of images that no longer exist are kept.

    Args:
        source: the folder, or one image.
        output: output folder; created if missing.
        settings: None uses the defaults.
        engine: runs the job; None runs it in this process.
        pictures: restore only these, named as by `folder.list_images`.
        approve: called with what is going to run before anything is written; may raise.
        progress: called as images are finished.

    Raises:
        ConfigError: there is no image, one of `pictures` is not in the folder, or an option is
            invalid.
        MediaError: the input folder is missing, or the output cannot be written.
        WeightError, MissingDependencyError: a network cannot be loaded.
    """
    settings, source, output = settings or ImageSettings(), Path(source), Path(output)
    start = time.perf_counter()
    troubles: list[tuple[str, str]] = []
    skipped: list[str] = []
    if pictures is None:
        listed = folders.list_images(source, [output], troubles, skipped)
    else:
        listed = list(dict.fromkeys(pictures))
        for name in listed:
            if not is_relative_name(name):
                allowed = "names relative to the input folder, without .."
                raise ConfigError("pictures", name, allowed)
    root = folders.root_folder(source)
    portable_settings = settings.absolute()
    with locked(output), contextlib.closing(engine or LocalEngine()) as runner:
        sweep_parts(output, (folders.RESTORED, folders.COMPARISONS))
        previous = Manifest.load(output)
        if previous is not None and not all("items" in unit for unit in previous.units):
            previous = None  # of something else than a folder of images
        _check_source(previous, output, root)
        pinned = RunInfo.of(previous.run_info) if previous is not None else None
        run_info = load_run_info(runner, ImageProcessorFactory(portable_settings, pinned))
        if approve is not None:
            approve(run_info)
        plan = _planned(previous, output, root, listed, settings, run_info)
        read, write = (
            ReadUnit(root.absolute()),
            WriteUnit(output.absolute(), portable_settings, plan.names),
        )
        gpu = run_info.device != "cpu"
        job = Job(
            plan.todo,
            read,
            ImageProcessorFactory(portable_settings, run_info),
            write,
            gpu,
            run_info.threads,
        )
        count = _ProgressCounter(progress, listed, plan.valid)
        resumed = count.done
        runner.run(job, count)
        stats = image_stats(settings, run_info, count.states, listed, sorted(troubles), skipped)
        write_json(output / STATS, stats)
        return ImagesResult(output, stats, time.perf_counter() - start, resumed)


@dataclass(frozen=True)
class _Plan:
    """Units still to be processed, and the states of those already done."""

    names: dict[str, folders.ResultNames]
    todo: list[Unit]
    valid: list[State]


class _ProgressCounter:
    """Collects unit states and reports progress."""

    def __init__(
        self, progress: Progress | None, listed: Sequence[str], states: Sequence[State]
    ) -> None:
        self.states: list[State] = []
        self.done = 0
        self._progress: Progress | None = None
        self._listed = set(listed)
        for state in states:
            self(state)
        self._progress = progress
        self._tell()

    def __call__(self, state: State) -> None:
        self.states.append(state)
        self.done += sum(item["name"] in self._listed for item in state["items"])
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.done, len(self._listed))


def _planned(
    previous: Manifest | None,
    output: Path,
    root: Path,
    listed: Sequence[str],
    settings: ImageSettings,
    run_info: RunInfo,
) -> _Plan:
    """Resume or start: write the manifest, and remove results that must be made again."""
    manifest = _manifest(previous, output, settings, run_info)
    unit_names = {name for unit in manifest.units for name in unit["items"]}
    names = folders.result_names(sorted({*listed, *unit_names}), settings.format)
    folders.check_no_overwrite(root, output, names)
    if not settings.overwrite:
        earlier = {name for unit in previous.units for name in unit["items"]} if previous else set()
        recorded = manifest.recorded()
        for name in earlier & set(names):
            recorded |= {names[name].restored, names[name].comparison}
        results = [names[name].restored for name in listed]
        results += [names[name].comparison for name in listed if settings.save_comparison]
        _check_foreign(output, [name for name in results if name not in recorded])
    new = [name for name in listed if name not in unit_names]
    first = 1 + max((unit["id"] for unit in manifest.units), default=-1)
    for index, items in enumerate(folders.split_into_units(root, new, settings.upscale)):
        manifest.units.append({"id": first + index, "job": manifest.job, "items": items})
    manifest.forget()
    manifest.source = str(real_path(root))
    manifest.write()
    listed_names = set(listed)
    valid, todo = [], []
    for unit in manifest.units:
        if not listed_names & set(unit["items"]):
            continue
        state = manifest.state(unit)
        if state is not None and _is_valid(output, root, state, listed_names, names, settings):
            valid.append(state)
        else:
            manifest.undo(unit, keep=set(unit["items"]) - listed_names)
            todo.append(unit)
    return _Plan(names, todo, valid)


def _check_foreign(output: Path, names: Sequence[str]) -> None:
    """Refuse to replace files that this command has not written.

    Raises:
        ConfigError: there are some.
    """
    foreign = [name for name in names if (output / name).is_file()]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        allowed = f"a folder without {foreign[0]}{more}, which this command has not written"
        allowed += "; --overwrite replaces such files"
        raise ConfigError("--output-dir", str(output), allowed)


def _check_source(previous: Manifest | None, output: Path, root: Path) -> None:
    """Refuse to mix the results of two folders; a folder may be moved, or have another path
    elsewhere."""
    if previous is None or previous.source is None or not os.path.exists(previous.source):
        return
    if not root.exists() or not os.path.samefile(
        previous.source, root
    ):  # one folder may have two names
        allowed = f"another folder: that one holds the results of {previous.source}"
        raise ConfigError("--output-dir", str(output), allowed)


def _manifest(
    previous: Manifest | None, output: Path, settings: ImageSettings, run_info: RunInfo
) -> Manifest:
    decisive = settings.decisive() | run_info.decisive()
    if previous is not None and previous.settings != decisive:
        changed = "; ".join(previous.differences(decisive))
        logger.warning("the settings differ from the last run (%s): starting over", changed)
        (output / STATS).unlink(missing_ok=True)
        previous = None
    elif previous is not None and not run_info.same_bits(previous.run_info):
        logger.warning(
            "the backend, dtype or batch size of the last run is no longer available: starting over"
        )
        (output / STATS).unlink(missing_ok=True)
        previous = None
    elif previous is None and (output / FOLDER / "manifest.json").exists():
        logger.warning("the manifest of the last run in %s cannot be read: starting over", output)
    return previous or Manifest(output, decisive, run_info.as_dict())


def _is_valid(
    output: Path,
    root: Path,
    state: State,
    listed_names: set[str],
    names: dict[str, folders.ResultNames],
    settings: ImageSettings,
) -> bool:
    """Whether every input is unchanged and every result is intact under the name it would get now.

    Failed images are not valid: they may succeed next time, after an out-of-memory error for one.
    """
    if not is_image_state(state):
        return False
    for item in state["items"]:
        if item["name"] not in listed_names:
            continue
        sha256 = item["input_sha256"]
        if sha256 is None or item["state"] == FAILED or file_digest(root / item["name"]) != sha256:
            return False
        item_names = names[item["name"]]
        paths = (
            {item_names.restored, item_names.comparison}
            if settings.save_comparison
            else {item_names.restored}
        )
        if item["outputs"] and set(item["outputs"]) != paths:
            return False
    return outputs_intact(output, state)
