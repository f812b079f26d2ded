"""`restore_video`: the faces of a film, resumable, on one machine or many."""

from __future__ import annotations

import contextlib
import logging
import os
import re
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
from ..media import (
    SegmentWriter,
    VideoIndex,
    check_output,
    concat_segments,
    index_video,
    read_segment,
)
from ..pipeline.stats import mean_or_none
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
    state_path,
)
from .models import RunInfo
from .options import VideoSettings
from .sidecar import read_head, sidecar_path, write_sidecar
from .stats import settings_stats
from .video_processor import CHUNK, PREROLL, PassUnit, VideoProcessorFactory, WriteSegmentState

logger = logging.getLogger("musetalk_enhance")

Progress = Callable[[int, int], None]
"""Called with how many frames are done, and how many there are."""


MAX_COUNTED_SEGMENTS = 8
"""Most segments of a film without time stamps: there is no going to a place in it."""


@dataclass(frozen=True)
class VideoResult:
    """What a run over a film came to.

    Attributes:
        output: the film.
        stats: what stands in the JSON file beside it, less the notes on each frame.
        seconds: that this run took.
        resumed: frames that an earlier run had finished.
    """

    output: Path
    stats: dict[str, Any]
    seconds: float
    resumed: int

    @property
    def errors(self) -> int:
        """Faces at which the network failed; their frames are as they came, and the next run does the film again."""
        return int(self.stats["totals"]["faces_failed"])


def parts_folder(output: Path) -> Path:
    """Where the segments of an unfinished film are kept."""
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
    """Restore the faces of a film.

    Frames, their times, sound, rotation, colours and everything outside the faces stay as they are. Beside the film
    a JSON file of its name says what was done. Until then segments lie in a hidden folder beside it: a run that was
    stopped in any way goes on where it was, to the same bytes.

    Args:
        source: the film.
        output: the new one; its ending tells the container.
        settings: None takes the defaults.
        start: seconds after the first frame; what is before is left out.
        end: frames from here on are left out.
        engine: where the work is done; None: here.
        progress: told how far the work is.

    Raises:
        ConfigError: an option is impossible, or `output` is `source`.
        MediaError: the film cannot be read, or the new one not be written.
        WeightError, MissingDependencyError: a network cannot be loaded.
    """
    settings, source, output = settings or VideoSettings(), Path(source), Path(output)
    start_time = time.perf_counter()
    if source.resolve() == output.resolve():
        raise ConfigError("OUT", str(output), "another file than IN")
    index = index_video(source, start, end)
    check_output(index, source, output)
    sha256 = file_digest(source)
    if sha256 is None:
        raise MediaError(source, "cannot be read")
    input_info = {
        "input_sha256": sha256,
        "start": start,
        "end": end,
        "preroll": PREROLL,
        "chunk": CHUNK,
    }
    folder = parts_folder(output)
    is_locked = False
    try:
        with locked(folder):
            is_locked = True
            _sweep_probe_files(output)
            stats, resumed = _restored(
                source, output, settings, index, input_info, engine, progress
            )
    except BaseException:
        if is_locked and not _is_resumable(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
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
            logger.info("%s is done already", output)
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


def _sweep_probe_files(output: Path) -> None:
    """Take away the unfinished file of a run that was killed while it looked whether `output` can be written."""
    name = re.compile(
        re.escape(f".{output.stem}.part-") + "[0-9a-f]{32}" + re.escape(output.suffix)
    )
    for path in output.parent.iterdir():
        if name.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _is_resumable(folder: Path) -> bool:
    """Whether something lies there that a later run can go on with, or does not understand."""
    return any(path.name != "lock" for path in folder.rglob("*") if path.is_file())


def segment_of(index: VideoIndex, settings: VideoSettings) -> int:
    """Frames of a segment; more where every segment has to be decoded from the film's beginning."""
    return (
        max(settings.segment, -(-len(index) // MAX_COUNTED_SEGMENTS))
        if index.counted
        else settings.segment
    )


class _FrameCallback:
    """Passes on the number of frames that were just finished, once somebody wants to hear it."""

    def __init__(self) -> None:
        self.callback: Callable[[int], None] | None = None

    def __call__(self, frames: int) -> None:
        if self.callback is not None:
            self.callback(frames)


class _ProgressCounter:
    """Keeps the states and says how far the work is: in frames here, in segments where the work is elsewhere."""

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
        """Some frames are finished."""
        self._by_frames = True
        self._frames_done += frames
        _report(self._progress, self._frames_done, self._total)

    def __call__(self, state: State) -> None:
        self.states.append(_without_notes(state))
        if not self._by_frames:
            self._frames_done += _frames(state["unit"])
            _report(self._progress, self._frames_done, self._total)


def _without_notes(state: State) -> State:
    """A state without what it says of each frame: that is kept on disk."""
    items = [
        {name: value for name, value in item.items() if name != "notes"} for item in state["items"]
    ]
    return {**state, "items": items}


def _notes(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """What is said of each frame, segment by segment.

    Raises:
        MediaError: somebody has taken a segment's state away.
    """
    for unit in manifest.units:
        state = manifest.state(unit)
        if state is None:
            raise MediaError(state_path(manifest.folder, unit), "is gone or damaged")
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
    """What the file beside a film says of the job; nothing where it is no such file."""
    job = head.get("job") if isinstance(head, dict) else None
    return job if isinstance(job, dict) else {}


def _is_done(output: Path, head: Any, decisive: dict[str, Any]) -> bool:
    """Whether the film is there as an earlier run with the same settings left it."""
    job = _job(head)
    if (
        job.get("settings_sha256") != digest(decisive)
        or not isinstance(head.get("totals"), dict)
        or _failed(head)
    ):
        return False
    return job.get("output_sha256") is not None and job["output_sha256"] == file_digest(output)


def _failed(head: dict[str, Any]) -> bool:
    """Whether the network failed at some faces of the film that is there."""
    totals = head.get("totals")
    return isinstance(totals, dict) and bool(totals.get("faces_failed"))


def _warn_of_restart(output: Path, head: Any, decisive: dict[str, Any]) -> None:
    """Say why a film that is there is made again."""
    previous_sha256 = _job(head).get("settings_sha256")
    if previous_sha256 == digest(decisive) and _failed(head):
        logger.warning("%s holds faces at which the network failed: starting afresh", output)
    elif previous_sha256 is not None and previous_sha256 != digest(decisive):
        logger.warning(
            "%s was made with other settings or from another film: starting afresh", output
        )
    elif previous_sha256 is not None:
        what = "is not as it was left" if output.exists() else "is gone"
        logger.warning("%s %s: starting afresh", output, what)


def _manifest(
    previous: Manifest | None,
    folder: Path,
    decisive: dict[str, Any],
    run_info: RunInfo,
    index: VideoIndex,
    settings: VideoSettings,
) -> Manifest:
    if previous is None and (folder / FOLDER / "manifest.json").exists():
        logger.warning("the manifest in %s cannot be read: starting afresh", folder)
    elif previous is not None and previous.settings != decisive:
        logger.warning(
            "other settings than in the last run (%s): starting afresh",
            "; ".join(previous.differences(decisive)),
        )
        previous = None
    elif previous is not None and not run_info.same_bits(previous.run_info):
        logger.warning("what ran in the last run is not to be had any more: starting afresh")
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
    """States of segments that are there, and the units that are to be done."""
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
    """Whether a state says all that is asked of it in the end."""
    try:
        frames = _frames(state["unit"])
        (item,) = state["items"]
        counts, notes = item["counts"], item["notes"]
        parts = [
            counts,
            *(item[name] for name in ("left", "partial", "passed_through", "restored")),
        ]
    except (KeyError, TypeError, ValueError):
        return False
    forms = all(isinstance(part, dict) for part in parts) and isinstance(notes, list)
    return forms and counts.get("frames") == len(notes) == frames and len(outputs_of(state)) == 1


def _stats(
    settings: VideoSettings,
    run_info: RunInfo,
    index: VideoIndex,
    input_info: dict[str, Any],
    states: list[State],
    output: Path,
    decisive: dict[str, Any],
) -> dict[str, Any]:
    """What is said of the film as a whole; ``musetalk-enhance report`` reads the totals."""
    counts: Counter[str] = Counter()
    left_alone: Counter[str] = Counter()
    partial: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    strength = change = 0.0
    for item in (item for state in states for item in state["items"]):
        counts.update(item["counts"])
        left_alone.update(item["left"])
        partial.update(item["partial"])
        passed.update(item["passed_through"])
        strength += item["restored"]["strength"]
        change += item["restored"]["change"]
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
    return {"job": job, "totals": totals}


@contextlib.contextmanager
def excerpt(source: Path, output: Path, start: float | None, end: float | None) -> Iterator[Path]:
    """The film, or a copy without loss of the stretch from `start` to `end`, which goes when the block ends.

    Args:
        source: the film.
        beside: in whose folder the copy may lie for a while.
        start: see `restore_video`.
        end: see `restore_video`.
    """
    if start is None and end is None:
        yield source
        return
    index = index_video(source, start, end)
    with TemporaryDirectory(prefix=".excerpt-", dir=output.parent) as folder:
        part, whole = Path(folder) / "part.mp4", Path(folder) / f"excerpt{output.suffix}"
        with SegmentWriter(part, index, crf=0, preset="ultrafast") as writer:
            for frame in read_segment(source, index, 0, len(index)):
                writer.write(frame)
        concat_segments([part], index, source, whole)
        yield whole
