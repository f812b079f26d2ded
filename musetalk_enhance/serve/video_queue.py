"""The queue of video jobs: files, processes, and what becomes of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import Field

from ..errors import ServiceError
from .job_store import CANCELLED, FAILED, FINISHED, QUEUED, JobStore, VideoJob, new_id
from .schemas import Detector, Fields, Weight
from .settings import ServeSettings

logger = logging.getLogger("musetalk_enhance")

POLL_S = 0.3
"""Seconds between two looks at the list of jobs."""
DISK_SHARE = 3
"""Free disk space that an upload needs, in its own sizes: input, segments, output."""
_ID = re.compile("[0-9a-f]{32}")
_UNPRINTABLE = re.compile(r"[^\w.,()\[\] +=@-]")


class VideoFields(Fields):
    """The options of `POST /restore/video`."""

    face_restoration_weight: Weight | None = Field(None, description="As in POST /restore.")
    model: str | None = Field(None, max_length=100)
    det_model: Detector | None = None
    only_center_face: bool = False
    region: Literal["full", "lower", "mouth"] = "full"
    crf: int = Field(18, ge=0, le=51, description="x264's: 0 is lossless.")
    container: Literal["mp4", "mov", "mkv"] = "mp4"
    report: bool = Field(False, description="Also write the report; see GET .../report.")


class VideoOrder(VideoFields):
    """The options with every default decided, so that the job is the same after a restart."""

    det_model: str | None = None  # type: ignore[assignment]
    loads: str
    weight_is: str


class VideoQueue:
    """Runs the jobs one after the other, each in a process.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.folder = settings.folder / "videos"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.store = JobStore(self.folder / "jobs.sqlite")
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="videos", daemon=True)
        self._thread.start()

    def path(self, job: VideoJob | str, name: str = "") -> Path:
        """The folder of a job, or a file in it."""
        return self.folder / (job if isinstance(job, str) else job.id) / name

    def output(self, job: VideoJob) -> Path:
        """The restored video."""
        return self.path(job, f"restored.{job.options['container']}")

    def add(self, file: BinaryIO, size: int, name: str | None, order: VideoOrder) -> str:
        """Store an upload and queue its job; returns the id.

        Args:
            file: the upload, `size` bytes.
            size: see `file`.
            name: as the client calls it.
            order: the options.

        Raises:
            ServiceError: there are too many jobs, or the disk is nearly full.
        """
        if self.store.count_open() >= self.settings.max_jobs:
            raise ServiceError(429, "busy", f"{self.settings.max_jobs} videos wait already", 60)
        if shutil.disk_usage(self.folder).free < DISK_SHARE * size:
            raise ServiceError(507, "disk", "the server's disk is nearly full", 600)
        job_id = new_id()
        folder = self.path(job_id)
        folder.mkdir(mode=0o700)
        try:
            with (folder / "input").open("xb") as target:
                shutil.copyfileobj(file, target, 2**20)
            self.store.add(_display_name(name), order.model_dump(), job_id)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._wake.set()
        return job_id

    def get(self, job_id: str) -> VideoJob:
        """A job.

        Raises:
            ServiceError: there is none.
        """
        job = self.store.get(job_id) if _ID.fullmatch(job_id) else None
        if job is None:
            raise ServiceError(404, "not_found", "there is no such job")
        return job

    def remove(self, job_id: str) -> None:
        """Stop a job and delete its files.

        Raises:
            ServiceError: there is none.
        """
        job = self.get(job_id)
        if job.is_over:
            self.store.delete(job_id)
            shutil.rmtree(self.path(job), ignore_errors=True)
        else:
            self.store.cancel(job_id)
            if self.get(job_id).is_over:
                shutil.rmtree(self.path(job), ignore_errors=True)

    def close(self) -> None:
        """Stop the job that runs; the next server resumes it."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._delete_expired()
                job = self.store.claim()
                if job is not None:
                    self._run(job)
                    continue
            except Exception:  # of the disk, for example: the server goes on
                logger.exception("the queue of videos failed; trying again")
            self._wake.wait(1.0)
            self._wake.clear()

    def _delete_expired(self) -> None:
        for job_id in self.store.expired(self.settings.keep_hours * 3600):
            self.store.delete(job_id)
            shutil.rmtree(self.path(job_id), ignore_errors=True)

    def _run(self, job: VideoJob) -> None:
        order = {
            "source": str(self.path(job, "input")),
            "output": str(self.output(job)),
            "name": job.name,
            "report": job.options["report"],
            "settings": self._settings_of(job),
            "max_frames": self.settings.max_frames,
            "max_pixels": self.settings.max_pixels,
        }
        command = [sys.executable, "-m", "musetalk_enhance.serve.video_worker"]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            news: dict[str, Any] = {}
            reader = threading.Thread(target=_read, args=(process.stdout, news))
            reader.start()
            assert process.stdin is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            goes_on = True
            while reader.is_alive() and not self._stop.is_set() and goes_on:
                goes_on = self.store.beat(job.id, news.get("frames", 0), news.get("total"))
                reader.join(POLL_S)
            process.kill()
            reader.join()
        self._record(job, news, goes_on)

    def _record(self, job: VideoJob, news: dict[str, Any], goes_on: bool) -> None:
        if not goes_on:
            self.store.set_state(job.id, CANCELLED)
            shutil.rmtree(self.path(job), ignore_errors=True)
        elif "result" in news:
            self.store.beat(job.id, news["total"], news["total"])
            self.store.set_state(job.id, FINISHED, result=news["result"])
        elif self._stop.is_set():
            self.store.set_state(job.id, QUEUED)
        else:
            error = news.get("error", "the process ended without a result; see the server's log")
            self.store.set_state(job.id, FAILED, error=error)

    def _settings_of(self, job: VideoJob) -> dict[str, Any]:
        """Options of `VideoSettings` that are not at their defaults."""
        options, service = job.options, self.settings
        changes: dict[str, Any] = {
            name: options[name] for name in ("region", "crf", "only_center_face")
        }
        changes["model"], weight = options["loads"], options["face_restoration_weight"]
        if changes["model"] != service.model:
            changes["model_path"] = None
        if options["weight_is"] == "fidelity":
            changes |= {"fidelity": weight, "strength": 1.0}
        else:
            changes["strength"] = weight
        if options["det_model"] not in (None, service.face_detector):
            changes |= {"face_detector": options["det_model"], "detector_path": None}
        settings = service.videos(**changes)
        return dataclasses.asdict(settings)


def _read(lines: Any, news: dict[str, Any]) -> None:
    """Collect the messages of a process: the latest progress, and the result or the error."""
    for line in lines:
        news.update(json.loads(line))


def _display_name(name: str | None) -> str:
    """The name of an uploaded file, for people: no path, no control characters, not long."""
    return _UNPRINTABLE.sub("_", re.split(r"[/\\]", name or "")[-1])[:100] or "video"
