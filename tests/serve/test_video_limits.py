"""Limits of video jobs: their number and length, the disk, and how long they are kept."""

from __future__ import annotations

import shutil
import sqlite3
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from musetalk_enhance.media import VideoWriter
from musetalk_enhance.serve.job_store import JobStore
from tests.serve.test_restore import wait_for

FRAMES = 5


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "gray.mp4"
    with VideoWriter(path, Fraction(24), (72, 64)) as writer:
        for index in range(FRAMES):
            writer.write(np.full((64, 72, 3), 90 + index, np.uint8))
    return path


@pytest.fixture
def idle(monkeypatch) -> None:
    """No job ever begins."""
    monkeypatch.setattr(JobStore, "claim", lambda _: None)


def post(client, data: bytes):
    return client.post("/restore/video", files={"video": ("gray.mp4", data)})


def folders(data_dir: Path) -> set[str]:
    return {path.name for path in data_dir.glob("videos/*") if path.is_dir()}


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"max_frames": FRAMES - 1}, f"{FRAMES} frames; at most {FRAMES - 1} are allowed"),
        ({"max_pixels": 4096}, "72x64 pixels; too many"),
    ],
    ids=["frames", "pixels"],
)
def test_a_video_over_the_limits_fails_before_its_first_frame(serve, tmp_path, clip, limit, words):
    with serve(data_dir=str(tmp_path), **limit) as client:
        path = f"/restore/video/{post(client, clip.read_bytes()).json()['id']}"
        wait_for(lambda: client.get(path).json()["state"] == "failed", 60)
        job = client.get(path).json()
        assert job["error"] == words and job["frames_processed"] == 0
        assert client.get(f"{path}/result").status_code == 409


def test_the_jobs_that_wait_are_limited(serve, idle, tmp_path):
    with serve(data_dir=str(tmp_path), max_jobs=2) as client:
        first, second, third = (post(client, b"x") for _ in range(3))
        assert first.status_code == second.status_code == 202
        assert third.status_code == 429 and third.json()["error"]["code"] == "busy"
        assert int(third.headers["retry-after"]) > 0
        assert folders(tmp_path) == {first.json()["id"], second.json()["id"]}
        assert client.delete(f"/restore/video/{first.json()['id']}").status_code == 204
        assert post(client, b"x").status_code == 202


def test_a_full_disk_refuses_an_upload(serve, idle, tmp_path, monkeypatch):
    data = bytes(1000)
    with serve(data_dir=str(tmp_path)) as client:
        for free, status in ((2999, 507), (3000, 202)):
            usage = SimpleNamespace(free=free)
            monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
            answer = post(client, data)
            assert answer.status_code == status, free
            assert len(folders(tmp_path)) == (status == 202)


def test_a_job_is_deleted_after_its_hours(serve, tmp_path):
    with serve(data_dir=str(tmp_path), keep_hours=2) as client:
        old, recent = (post(client, b"no video").json()["id"] for _ in range(2))
        for job in (old, recent):
            path = f"/restore/video/{job}"
            wait_for(lambda path=path: client.get(path).json()["state"] == "failed", 60)
        assert folders(tmp_path) == {old, recent}
        connection = sqlite3.connect(tmp_path / "videos" / "jobs.sqlite", timeout=20)
        with connection:
            for job, hours in ((old, 2.1), (recent, 1.9)):
                moment = time.time() - hours * 3600
                connection.execute("UPDATE jobs SET changed = ? WHERE id = ?", (moment, job))
        connection.close()
        wait_for(lambda: folders(tmp_path) == {recent})
        assert client.get(f"/restore/video/{old}").status_code == 404
        assert client.get(f"/restore/video/{recent}").json()["state"] == "failed"
