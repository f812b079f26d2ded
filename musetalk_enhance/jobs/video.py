"""`restore_video`: restores the faces in a video, resumable, on one machine or many."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import ConfigError, MediaError
from ..faces.selection import LOOK_AHEAD
from ..media import (
    SegmentWriter,
    VideoIndex,
    check_output,
    concat_segments,
    index_video,
    read_segment,
)
from ..pipeline.stats import counted, mean_or_none
from ..runtime.files import real_path
from .job import Engine, Job, load_run_info
from .local import LocalEngine
from .manifest import (
    FOLDER,
    Manifest,
    State,
    Unit,
    digest,
    file_digest,
    locked,
    outputs_intact,
    outputs_of,
    refuse_links,
    state_path,
)
from .models import RunInfo
from .options import VideoSettings
from .sidecar import read_head, sidecar_path, write_sidecar
from .stats import settings_stats
from .video_processor import (
    CHUNK,
    PREROLL,
    SEGMENTS,
    PassUnit,
    VideoProcessorFactory,
    WriteSegmentState,
    add_damage,
)

logger = logging.getLogger("musetalk_enhance")

Progress = Callable[[int, int], None]
"""Called with the number of frames done and the total."""


MAX_COUNTED_SEGMENTS = 8
"""Most segments of a video without timestamps: it cannot be seeked."""
_MAX_RUNS = 1000  # of damaged frames that the JSON file lists as a whole; each frame has its note


@dataclass(frozen=True)
class VideoResult:
    """Result of a run over a video.

    Attributes:
        output: the video.
        stats: content of the JSON file beside it, without the notes on each frame.
        seconds: duration of this run.
        resumed: frames that an earlier run had finished.
    """

    output: Path
    stats: dict[str, Any]
    seconds: float
    resumed: int

    @property
    def errors(self) -> int:
        """Number of faces at which the network failed; they are unchanged, and the next run
        processes the video again."""
        return int(self.stats["totals"]["faces_failed"])


def parts_folder(output: Path) -> Path:
    """Folder of the segments of an unfinished video."""
    return output.with_name(f".{output.name}.parts")


def restore_video(
    source: str | Path,
    output: str | Path,
    settings: VideoSettings | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> VideoResult:
    """Restore the faces in a video.

    Frames, timestamps, audio, rotation, colors and everything outside the faces are kept. A JSON
    file beside the video, with its name, records what was done. Until the end, segments are stored
    in a hidden folder beside it: an interrupted run resumes where it stopped and produces the same
    bytes.

    Args:
        source: the video.
        output: the new video; its extension selects the container.
        settings: None uses the defaults.
        start: seconds after the first frame; earlier frames are left out.
        end: frames from this second on are left out.
        engine: runs the job; None runs it in this process.
        progress: called as frames are finished.

    Raises:
        ConfigError: an option is invalid, or `output` is `source`.
        MediaError: the video cannot be read, or the output cannot be written.
        WeightError, MissingDependencyError: a network cannot be loaded.
    """
    settings, source, output = settings or VideoSettings(), Path(source), Path(output)
    start_time = time.perf_counter()
    if real_path(source) == real_path(output):
        raise ConfigError("OUT", str(output), "another file than IN")
    _check_names(output)
    if not settings.overwrite:
        _check_foreign(output)
    index = index_video(source, start, end, strict=settings.strict)
    _check_point(settings, index)
    losses = check_output(index, source, output)
    if losses:
        logger.warning("%s will not hold of %s: %s", output, source, "; ".join(losses))
    if index.interlaced:
        first = {"tff": "top", "bff": "bottom"}[index.interlaced]
        logger.info("%s: interlaced, %s field first; the output keeps that", source, first)
    sha256 = file_digest(source)
    if sha256 is None:
        raise MediaError(source, "cannot be read")
    input_info = {
        "input_sha256": sha256,
        "start": start,
        "end": end,
        "preroll": PREROLL,
        "chunk": CHUNK,
        "look_ahead": LOOK_AHEAD,
    }
    folder = parts_folder(output)
    refuse_links(folder, folder / SEGMENTS)
    is_locked = False
    try:
        with locked(folder):
            is_locked = True
            stats, resumed = _restored(
                source, output, settings, index, input_info, engine, progress
            )
    except BaseException:
        if is_locked and not _is_resumable(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    _warn_of_damage(output, index, stats["totals"].get("damage", []))
    return VideoResult(output, stats, time.perf_counter() - start_time, resumed)


def _restored(
    source: Path,
    output: Path,
    settings: VideoSettings,
    index: VideoIndex,
    input_info: dict[str, Any],
    engine: Engine | None,
    progress: Progress | None,
) -> tuple[dict[str, Any], int]:
    folder = parts_folder(output)
    previous, head = Manifest.load(folder), read_head(sidecar_path(output))
    frame_callback = _FrameCallback() if engine is None or isinstance(engine, LocalEngine) else None
    factory = VideoProcessorFactory(
        settings.absolute(),
        _pinned(previous, head),
        source.absolute(),
        index,
        folder.absolute(),
        frame_callback,
    )
    with closing(engine or LocalEngine()) as runner:
        run_info = load_run_info(runner, factory)
        decisive = settings.decisive() | run_info.decisive() | input_info
        if _is_done(output, head, decisive):
            logger.info("%s is already done", output)
            _report(progress, len(index), len(index))
            return dict(head), len(index)
        if previous is None:
            _warn_of_restart(output, head, decisive)
        manifest = _manifest(previous, folder, decisive, run_info, index, settings)
        valid, todo = _split_by_state(manifest)
        resumed = sum(_frames(state["unit"]) for state in valid)
        counter = _ProgressCounter(progress, resumed, len(index), valid)
        if frame_callback is not None:
            frame_callback.callback = counter.add_frames
        gpu, write = run_info.device != "cpu", WriteSegmentState(factory.folder)
        runner.run(
            Job(
                todo, PassUnit(), replace(factory, run_info=run_info), write, gpu, run_info.threads
            ),
            counter,
        )
    states = sorted(counter.states, key=lambda state: state["unit"]["id"])
    segments = [folder / name for state in states for name in outputs_of(state)]
    video, sidecar = (
        folder / f"film{output.suffix}",
        folder / "film.json",
    )  # so that a kill leaves no litter
    concat_segments(segments, index, source, video)
    stats = _stats(settings, run_info, index, input_info, states, video, decisive)
    write_sidecar(sidecar, stats, _notes(manifest))
    _move(video, output)
    _move(sidecar, sidecar_path(output))
    return stats, resumed


def _move(path: Path, target: Path) -> None:
    try:
        os.replace(path, target)
    except OSError as error:
        raise MediaError(target, f"cannot be written ({error.strerror or error})") from error


def _check_point(settings: VideoSettings, index: VideoIndex) -> None:
    """Check that the point of a face lies in the frame.

    Raises:
        ConfigError: it does not.
    """
    if settings.at is not None:
        x, y = settings.at
        if x > index.width or y > index.height:
            allowed = f"a point in the frame of {index.width}x{index.height} pixels"
            raise ConfigError("at", settings.at, allowed)


def _check_names(output: Path) -> None:
    """Check that the files beside `output`, whose names are longer, can have theirs.

    Raises:
        MediaError: a name is too long, or a folder is in the place of the JSON file.
    """
    for path in (sidecar_path(output), parts_folder(output)):
        try:
            path.lstat()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            what = f"cannot be written: {path.name} beside it has no valid name"
            raise MediaError(output, f"{what} ({getattr(error, 'strerror', error)})") from error
    if sidecar_path(output).is_dir():
        raise MediaError(sidecar_path(output), "is a folder; the JSON file goes there")


def _check_foreign(output: Path) -> None:
    """Refuse to replace a file that this command has not written; ours has a JSON file beside it.

    Raises:
        ConfigError: there is one, in the place of the video or of the JSON file.
    """
    sidecar = sidecar_path(output)
    if "settings_sha256" in _job(read_head(sidecar)):
        return
    foreign = [sidecar] if sidecar.is_file() else []
    if output.is_file() and Manifest.load(parts_folder(output)) is None:
        foreign.insert(0, output)
    if foreign:
        allowed = f"a path without {foreign[0].name}, which this command has not written"
        raise ConfigError("OUT", str(output), f"{allowed}; --overwrite replaces it")


def _warn_of_damage(output: Path, index: VideoIndex, damage: list[list[Any]]) -> None:
    """Log once which frames of the source were damaged, and what was done with them."""
    kinds = {
        "concealed": "damaged and concealed by the decoder",
        "repeated": "undecodable and replaced by a neighbor",
        "scaled": "of another size or format and converted",
    }
    parts = []
    for kind, words in kinds.items():
        runs = [(first, last) for name, first, last in damage if name == kind]
        if runs:
            count = sum(last - first + 1 for first, last in runs)
            named = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs[:8]]
            more = ", ..." if len(runs) > 8 else ""
            parts.append(f"{counted(count, 'frame')} {words} ({', '.join(named)}{more})")
    if index.damaged_packets:
        parts.append(
            f"{counted(index.damaged_packets, 'packet')} marked as damaged by the container"
        )
    if index.unlisted_frames:
        parts.append(
            f"{counted(index.unlisted_frames, 'frame')} missing from the container's table of "
            "times, so that some are shown too early or not at all"
        )
    if parts:
        logger.warning("%s: %s. --strict ends the run there", output, "; ".join(parts))


def _is_resumable(folder: Path) -> bool:
    """Whether the folder holds files that a later run can resume from, or does not know."""
    return any(path.name != "lock" for path in folder.rglob("*") if path.is_file())


def segment_of(index: VideoIndex, settings: VideoSettings) -> int:
    """Frames per segment; more if every segment has to be decoded from the start of the video."""
    return (
        max(settings.segment, -(-len(index) // MAX_COUNTED_SEGMENTS))
        if index.counted
        else settings.segment
    )


class _FrameCallback:
    """Passes on the number of frames just finished, once a callback is set."""

    def __init__(self) -> None:
        self.callback: Callable[[int], None] | None = None

    def __call__(self, frames: int) -> None:
        if self.callback is not None:
            self.callback(frames)


class _ProgressCounter:
    """Collects the states and reports progress: in frames locally, in segments on a cluster."""

    def __init__(
        self, progress: Progress | None, frames: int, total: int, states: list[State]
    ) -> None:
        self.states = list(states)
        self._progress, self._frames_done, self._total, self._by_frames = (
            progress,
            frames,
            total,
            False,
        )
        _report(progress, frames, total)

    def add_frames(self, frames: int) -> None:
        """Count frames that are finished."""
        self._by_frames = True
        self._frames_done += frames
        _report(self._progress, self._frames_done, self._total)

    def __call__(self, state: State) -> None:
        self.states.append(_without_notes(state))
        if not self._by_frames:
            self._frames_done += _frames(state["unit"])
            _report(self._progress, self._frames_done, self._total)


def _without_notes(state: State) -> State:
    """A state without its notes on each frame: those stay on disk."""
    items = [
        {name: value for name, value in item.items() if name != "notes"} for item in state["items"]
    ]
    return {**state, "items": items}


def _notes(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The notes on each frame, segment by segment.

    Raises:
        MediaError: the state of a segment is missing or damaged.
    """
    for unit in manifest.units:
        state = manifest.state(unit)
        if state is None:
            raise MediaError(state_path(manifest.folder, unit), "is missing or damaged")
        for item in state["items"]:
            yield from item["notes"]


def _report(progress: Progress | None, frames: int, total: int) -> None:
    if progress is not None:
        progress(min(frames, total), total)


def _frames(unit: Unit) -> int:
    return int(unit["stop"] - unit["first"])


def _pinned(previous: Manifest | None, head: Any) -> RunInfo | None:
    return RunInfo.of(_job(head).get("facts") if previous is None else previous.run_info)


def _job(head: Any) -> dict[str, Any]:
    """The job section of the JSON file beside a video; empty if it is not such a file."""
    job = head.get("job") if isinstance(head, dict) else None
    return job if isinstance(job, dict) else {}


def _is_done(output: Path, head: Any, decisive: dict[str, Any]) -> bool:
    """Whether the video is intact as an earlier run with the same settings wrote it."""
    job = _job(head)
    if job.get("settings_sha256") != digest(decisive) or not _is_readable(head) or _failed(head):
        return False
    return job.get("output_sha256") is not None and job["output_sha256"] == file_digest(output)


def _is_readable(head: dict[str, Any]) -> bool:
    """Whether a JSON file beside a video has all the values that are shown in the end."""
    try:
        totals, job = head["totals"], head["job"]
        counts = [totals[name] for name in ("frames", "restored", "faces_restored", "faces_failed")]
        counts += [totals.get("faces", 0), *totals["left"].values()]
        counts += [*totals.get("partial", {}).values(), *totals["passed_through"].values()]
        numbers = [totals.get("mean_strength"), totals.get("mean_change")]
        numbers += [job["model_that_ran"]["fidelity"]]
        strength, model = job["settings"]["strength"], job["model_that_ran"]["model"]
    except (AttributeError, KeyError, TypeError):
        return False
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and all(number is None or type(number) in (int, float) for number in numbers)
        and type(strength) in (int, float)
        and isinstance(model, str)
        and _is_damage(totals.get("damage", []))
    )


def _failed(head: dict[str, Any]) -> bool:
    """Whether the network failed at some faces of the existing video."""
    totals = head.get("totals")
    return isinstance(totals, dict) and bool(totals.get("faces_failed"))


def _warn_of_restart(output: Path, head: Any, decisive: dict[str, Any]) -> None:
    """Log why an existing video is made again."""
    previous_sha256 = _job(head).get("settings_sha256")
    if previous_sha256 == digest(decisive) and _failed(head):
        logger.warning("%s has faces at which the network failed: starting over", output)
    elif previous_sha256 is not None and previous_sha256 != digest(decisive):
        logger.warning(
            "%s was made with other settings or from another video: starting over", output
        )
    elif previous_sha256 is not None:
        what = "was modified" if output.exists() else "is missing"
        logger.warning("%s %s: starting over", output, what)


def _manifest(
    previous: Manifest | None,
    folder: Path,
    decisive: dict[str, Any],
    run_info: RunInfo,
    index: VideoIndex,
    settings: VideoSettings,
) -> Manifest:
    if previous is None and (folder / FOLDER / "manifest.json").exists():
        logger.warning("the manifest in %s cannot be read: starting over", folder)
    elif previous is not None and previous.settings != decisive:
        logger.warning(
            "the settings differ from the last run (%s): starting over",
            "; ".join(previous.differences(decisive)),
        )
        previous = None
    elif previous is not None and not run_info.same_bits(previous.run_info):
        logger.warning(
            "the backend, dtype or batch size of the last run is no longer available: starting over"
        )
        previous = None
    manifest = previous or Manifest(folder, decisive, run_info.as_dict())
    size, job = segment_of(index, settings), manifest.job
    manifest.units = [
        {"id": number, "job": job, "first": first, "stop": min(first + size, len(index))}
        for number, first in enumerate(range(0, len(index), size))
    ]
    manifest.forget()  # what is left there may be of other settings
    manifest.write()
    return manifest


def _split_by_state(manifest: Manifest) -> tuple[list[State], list[Unit]]:
    """States of intact segments, and the units still to be processed."""
    valid, todo = [], []
    for unit in manifest.units:
        state = manifest.state(unit)
        if state is not None and _is_whole(state) and outputs_intact(manifest.folder, state):
            valid.append(_without_notes(state))
        else:
            manifest.undo(unit)
            todo.append(unit)
    return valid, todo


def _is_whole(state: State) -> bool:
    """Whether a state has all the values that are used in the end."""
    try:
        frames = _frames(state["unit"])
        (item,) = state["items"]
        counts, notes, damage = item["counts"], item["notes"], item["damage"]
        parts = [
            counts,
            *(item[name] for name in ("left", "partial", "passed_through", "restored")),
        ]
    except (KeyError, TypeError, ValueError):
        return False
    if not all(isinstance(part, dict) for part in parts) or not isinstance(notes, list):
        return False
    values = [value for part in parts for value in part.values()]
    forms = (
        _is_damage(damage)
        and {"strength", "change"} <= set(item["restored"])
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )
    return forms and counts.get("frames") == len(notes) == frames and len(outputs_of(state)) == 1


def _is_damage(runs: Any) -> bool:
    """Whether a value from a file is a list of ``[kind, first, last]``."""
    return isinstance(runs, list) and all(
        isinstance(run, list)
        and [type(value) for value in run] == [str, int, int]
        and 0 <= run[1] <= run[2]
        for run in runs
    )


def _stats(
    settings: VideoSettings,
    run_info: RunInfo,
    index: VideoIndex,
    input_info: dict[str, Any],
    states: list[State],
    output: Path,
    decisive: dict[str, Any],
) -> dict[str, Any]:
    """Values of the video as a whole; ``musetalk-enhance report`` reads the totals."""
    counts: Counter[str] = Counter()
    left_alone: Counter[str] = Counter()
    partial: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    damage: list[list[Any]] = []
    strength = change = 0.0
    for item in (item for state in states for item in state["items"]):
        counts.update(item["counts"])
        left_alone.update(item["left"])
        partial.update(item["partial"])
        passed.update(item["passed_through"])
        strength += item["restored"]["strength"]
        change += item["restored"]["change"]
        for run in item["damage"]:
            add_damage(damage, run)
    job = (
        settings_stats(settings, run_info)
        | input_info
        | {
            "settings_sha256": digest(decisive),
            "output_sha256": file_digest(output),
            "fps": str(index.fps),
            "size_wh": [index.width, index.height],
            "coded_wh": list(index.coded_wh),
            "facts": run_info.as_dict(),
        }
    )
    totals = {
        "frames": counts["frames"],
        "restored": counts["frames_with_restored_faces"],
        "faces_restored": counts["faces_restored"],
        "faces_held": counts["faces_held"],
        "faces_failed": counts["faces_failed"],
        "passed_through": {"no face": 0} | dict(sorted(passed.items())),
        "left": dict(sorted(left_alone.items())),
        "faces": counts["faces"],
        "partial": dict(sorted(partial.items())),
        "mean_strength": mean_or_none(strength, counts["faces_restored"], 4),
        "mean_change": mean_or_none(change, counts["faces_restored"], 3),
    }
    if damage:
        totals["damage"] = damage[:_MAX_RUNS]
    return {"job": job, "totals": totals}


@contextlib.contextmanager
def excerpt(
    source: Path,
    output: Path,
    start: float | None,
    end: float | None,
    *,
    damaged: bool = False,
) -> Iterator[Path]:
    """The video, or a lossless copy of the range from `start` to `end`, deleted when the block
    ends.

    Args:
        source: the video.
        output: the copy is stored in its folder, with its extension.
        start: see `restore_video`.
        end: see `restore_video`.
        damaged: copy the video in any case, with its damaged frames as they were restored.
    """
    if start is None and end is None and not damaged:
        yield source
        return
    index = index_video(source, start, end, strict=False)
    with TemporaryDirectory(prefix=".excerpt-", dir=output.parent) as folder:
        part, whole = Path(folder) / "part.mp4", Path(folder) / f"excerpt{output.suffix}"
        with SegmentWriter(part, index, crf=0, preset="ultrafast") as writer:
            for frame in read_segment(source, index, 0, len(index)):
                writer.write(frame)
        concat_segments([part], index, source, whole)
        yield whole
