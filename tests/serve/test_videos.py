"""Video jobs on a real server process: progress, ranges, cancelling, a kill in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from musetalk_enhance.jobs import VideoSettings, restore_video
from musetalk_enhance.media import VideoWriter
from tests.serve.test_restore import wait_for

pytestmark = pytest.mark.shared
FRAMES = 17
YUNET = "face_detection_yunet_2023mar.onnx"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "talk.mp4", FRAMES)


def write_clip(path: Path, frames: int) -> Path:
    """A face that moves over a plain ground, 192x192."""
    data = pytest.importorskip("skimage.data")
    face = cv2.resize(data.astronaut()[0:256, 96:352, ::-1], (160, 160))
    face = cv2.GaussianBlur(face, (0, 0), 1.5)
    with VideoWriter(path, Fraction(24), (192, 192)) as writer:
        for index in range(frames):
            frame = np.full((192, 192, 3), 90, np.uint8)
            x = 16 + round(8 * np.sin(index / 6))
            frame[16:176, x : x + 160] = face
            writer.write(frame)
    return path


SHORT_SEGMENTS = """
import sys
from musetalk_enhance.cli import main
from musetalk_enhance.serve import ServeSettings
plain = ServeSettings.videos
ServeSettings.videos = lambda self, **changes: plain(self, segment=16, **changes)
sys.exit(main(sys.argv[1:]))
"""
"""The command with segments of the least length: by default they have 240 frames."""


@contextmanager
def server(shared: Path, folder: Path, program=("-m", "musetalk_enhance")):
    """A server in a process of its own; its URL and process."""
    command = [
        *(sys.executable, *program, "serve", "--port", "0", "--model", "lite"),
        *("--backend", "torch", "--data-dir", str(folder), "--keep-hours", "1"),
        *("--detector-path", str(shared / "weights" / YUNET)),
    ]
    log = folder.with_suffix(".log")
    with log.open("ab") as stderr:
        begin = log.stat().st_size
        process = subprocess.Popen(command, stderr=stderr)
    try:
        pattern = re.compile(r"serving on (http://\S+)")
        wait_for(lambda: pattern.search(log.read_text()[begin:]) or process.poll(), 120)
        url = pattern.search(log.read_text()[begin:])[1]
        wait_for(lambda: responds(url), 60)
        yield url, process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def responds(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def start(url: str, clip: Path, **options) -> str:
    with clip.open("rb") as file:
        answer = httpx.post(
            f"{url}/restore/video", files={"video": ("../../my talk.mp4", file)}, data=options
        )
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["name"] == "my talk.mp4" and job["state"] in ("queued", "running")
    return f"{url}/restore/video/{job['id']}"


def ended(job: str, seconds: float = 180) -> dict:
    wait_for(lambda: httpx.get(job).json()["state"] not in ("queued", "running"), seconds)
    return httpx.get(job).json()


@pytest.fixture(scope="module")
def restored(clip, shared, tmp_path_factory) -> bytes:
    return restored_alone(clip, tmp_path_factory.mktemp("whole") / "restored.mp4", shared)


def restored_alone(clip: Path, path: Path, shared: Path, **changes) -> bytes:
    """What the library makes of a clip without a service and without a break."""
    detector = str(shared / "weights" / YUNET)
    options = {"model": "lite", "backend": "torch", "strength": 0.6, "detector_path": detector}
    restore_video(clip, path, VideoSettings(**options, **changes))
    return path.read_bytes()


def test_a_job_survives_a_kill_in_the_middle_and_gives_the_same_bytes(
    shared, clip, restored, tmp_path
):
    folder = tmp_path / "data"
    with server(shared, folder) as (url, process):
        job = start(url, clip)
        wait_for(lambda: httpx.get(job).json()["frames_processed"] > 0, 120)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with server(shared, folder) as (url, _):
        job = f"{url}{httpx.URL(job).path}"
        with httpx.stream("GET", f"{job}/events", timeout=180) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = list(stream.iter_lines())
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        last = events[-1]
        assert lines[-3:-1] == ["event: end", f"data: {json.dumps(last, separators=(',', ':'))}"]
        assert last["state"] == "finished", last
        assert last["frames_processed"] == last["frames_total"] == FRAMES
        assert last["result"]["restored"] > FRAMES // 2 and last["result"]["model"] == "lite"
        whole = httpx.get(f"{job}/result")
        assert whole.content == restored
        assert whole.headers["content-type"] == "video/mp4"
        assert "my%20talk_restored.mp4" in whole.headers["content-disposition"]
        part = httpx.get(f"{job}/result", headers={"range": "bytes=100-199"})
        assert part.status_code == 206 and part.content == whole.content[100:200]
        assert httpx.get(f"{job}/report").status_code == 404
        assert httpx.delete(job).status_code == 204 and httpx.get(job).status_code == 404
        assert not (folder / "videos" / job[-32:]).exists()


@pytest.mark.long
def test_a_kill_after_two_segments_loses_neither(shared, tmp_path):
    segment, frames, folder = 16, 40, tmp_path / "data"
    clip, program = write_clip(tmp_path / "talk.mp4", frames), ("-c", SHORT_SEGMENTS)
    with server(shared, folder, program) as (url, process):
        job = start(url, clip)
        wait_for(lambda: len(list(folder.rglob("units/*.json"))) == 2, 400)
        assert httpx.get(job).json()["state"] == "running"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with server(shared, folder, program) as (url, _):
        job = f"{url}{httpx.URL(job).path}"
        with httpx.stream("GET", f"{job}/events", timeout=200) as stream:
            lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
        events = [json.loads(line) for line in lines]
        assert events[-1]["state"] == "finished" and events[-1]["result"]["frames"] == frames
        resumed = [each["frames_processed"] for each in events if each["frames_total"]]
        assert min(resumed[1:]) >= 2 * segment, "it began with the third segment"
        content = httpx.get(f"{job}/result").content
    assert content == restored_alone(clip, tmp_path / "whole.mp4", shared, segment=segment)


def test_a_job_is_canceled_or_fails(serve, clip, shared, tmp_path):
    options = {"data_dir": str(tmp_path), "detector_path": str(shared / "weights" / YUNET)}
    with serve(**options) as client:
        url = str(client.base_url).rstrip("/")
        job, refused = start(url, clip), start(url, Path(__file__))
        wait_for(lambda: httpx.get(job).json()["state"] == "running", 60)
        assert httpx.get(f"{job}/result").status_code == 409
        assert httpx.delete(job).status_code == 204
        assert ended(job)["state"] == "canceled"
        assert not (tmp_path / "videos" / job[-32:]).exists()
        assert "not a readable video" in ended(refused)["error"]
        assert str(tmp_path) not in ended(refused)["error"]
        for name in ("x", "../jobs.sqlite", "0" * 32):
            assert client.get(f"/restore/video/{name}").status_code == 404


@pytest.mark.long
def test_the_report_is_shown(shared, clip, tmp_path):
    with server(shared, tmp_path / "data") as (url, _):
        job = start(url, clip, report="true", container="mkv")
        assert ended(job)["state"] == "finished"
        page = httpx.get(f"{job}/report")
        assert page.status_code == 200 and "before and after" in page.text
        assert page.headers["content-security-policy"].startswith("sandbox")


def test_limits(serve, tmp_path):
    with serve(data_dir=str(tmp_path), max_video="1MiB") as client:
        large = client.post("/restore/video", files={"video": bytes(3 * 2**20)})
        assert large.status_code == 413
        assert client.post("/restore/video", json={}).status_code == 415
        assert client.post("/restore/video", data={"crf": "1"}).status_code == 415
        invalid = client.post("/restore/video", files={"video": b"x"}, data={"crf": "99"})
        assert invalid.status_code == 422
        assert list(tmp_path.glob("videos/*/input")) == []
