"""The engine on a real Ray cluster of this machine with two workers, one of which is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, MediaError, MissingDependencyError, RestorerError
from musetalk_enhance.jobs import ImageSettings, LocalEngine, restore_images
from musetalk_enhance.jobs.job import Job
from musetalk_enhance.jobs.models import RunInfo
from musetalk_enhance.jobs.ray_engine import RayEngine
from musetalk_enhance.jobs.ray_steps import ATTEMPTS, ElsewhereError, Failure, pack, unpack

FACTS = RunInfo("none", "none", None, None, None, None, "cpu", 1, 3, {}, [])


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """One cache for all tests of this file: workers are started for it once."""
    folder = tmp_path_factory.getbasetemp() / "ray-cache"
    monkeypatch.setenv("MUSETALK_ENHANCE_CACHE", str(folder))
    monkeypatch.setenv("MUSETALK_ENHANCE_TUNING", "off")
    return folder


@pytest.fixture(scope="module")
def kept():
    """An engine whose cluster is kept; at the end nothing of it is left."""
    pytest.importorskip("ray.data")
    with RayEngine(workers=2) as engine:
        yield engine
    assert holds_soon(lambda: rays() == [])


def rays(name: str = "ra") -> list:
    """Processes of Ray below this one whose title begins with `name`."""
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if line.startswith(name) or (name == "ra" and "/ray/" in line):
            found.append(child)
    return found


def is_gone(process) -> bool:
    """Whether it has ended, be it that nobody has asked for its exit code yet."""
    import psutil

    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return True


def holds_soon(condition, seconds: float = 60) -> bool:
    """Whether `condition()` becomes true: a signal is sent, not delivered, when `kill` returns."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return holds


PROCESSORS = "ray::MapWorker(MapBatches(ProcessStep)"


@dataclass(frozen=True)
class Steps:
    """Steps that do what a unit says: it names what happens in which step."""

    folder: Path

    def read(self, unit):
        if unit.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        return unit, np.full(10, unit["id"])

    def open(self):
        return Processor(self.folder)

    def write(self, made):
        unit, total, process = made
        if unit.get("full"):
            raise MediaError(self.folder / "x.png", "the disk is full")
        return {"unit": unit, "total": total, **process}

    def job(self, units):
        return Job(units, self.read, self.open, self.write, threads=FACTS.threads)


class Processor:
    run_info = FACTS

    def __init__(self, folder):
        self.folder = folder

    def prepare(self, loaded):
        return loaded

    def process(self, loaded):
        unit, array = loaded
        if unit.get("waits") and not (self.folder / "killed").exists():
            (self.folder / "pid").write_text(str(os.getpid()))
            time.sleep(120)
        names = ("OMP_NUM_THREADS", "MUSETALK_ENHANCE_CACHE")
        return (
            unit,
            int(array.sum()),
            {"pid": os.getpid(), **{name: os.environ.get(name) for name in names}},
        )

    def finish(self, made):
        return made

    def close(self):
        pass


def refuse():
    raise ConfigError("model", "x", "y")


def done_by(engine, job):
    states = []
    engine.run(job, states.append)
    return sorted(states, key=lambda state: state["unit"]["id"])


def kill_when_there(folder):
    """Kill the process that a maker named."""
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        time.sleep(0.05)
    (folder / "killed").touch()
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)


def test_the_work_is_done_though_a_worker_is_killed(kept, tmp_path, own_cache):
    units = [{"id": number, "waits": number == 1} for number in range(6)]
    killer = threading.Thread(target=kill_when_there, args=[tmp_path], daemon=True)
    killer.start()
    states = done_by(kept, Steps(tmp_path).job(units))
    killer.join()
    assert [state["unit"] for state in states] == units
    assert [state["total"] for state in states] == [10 * unit["id"] for unit in units]
    assert states[1]["pid"] != int((tmp_path / "pid").read_text())
    assert {state["OMP_NUM_THREADS"] for state in states} == {str(FACTS.threads)}
    assert {state["MUSETALK_ENHANCE_CACHE"] for state in states} == {str(own_cache)}


def test_an_error_stops_the_work_and_arrives_as_it_was(kept, tmp_path):
    units = [{"id": number, "full": number == 2} for number in range(30)]
    states = []
    with pytest.raises(MediaError, match="the disk is full") as caught:
        kept.run(Steps(tmp_path).job(units), states.append)
    assert caught.value.path == tmp_path / "x.png"
    assert isinstance(caught.value.__cause__, ElsewhereError) and "in write" in str(
        caught.value.__cause__
    )
    assert len(states) < len(units)
    assert holds_soon(lambda: rays(PROCESSORS) == [])


def test_a_unit_that_kills_every_worker_is_given_up(kept, tmp_path):
    with pytest.raises(
        RestorerError, match=f"unit 1, step 'read': its worker process died {ATTEMPTS} times"
    ):
        done_by(kept, Steps(tmp_path).job([{"id": 0}, {"id": 1, "dies": True}]))


def test_what_the_caller_raises_goes_through_and_a_cluster_of_others_is_left(kept, tmp_path):
    import ray

    def stop(state):
        raise KeyboardInterrupt

    kept.run_info(Steps(Path()).open)
    with pytest.raises(KeyboardInterrupt):
        RayEngine(workers=1).run(Steps(tmp_path).job([{"id": 0}]), stop)
    assert ray.is_initialized()


def test_a_worker_of_a_closed_cluster_says_what_runs_or_why_nothing_does(kept):
    import ray

    assert kept.run_info(Steps(Path()).open) == FACTS
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
    with pytest.raises(ConfigError, match="model") as caught:
        kept.run_info(refuse)
    assert (caught.value.key, caught.value.value, caught.value.allowed) == ("model", "x", "y")


def test_more_workers_than_there_is_room_for_are_refused(kept, tmp_path):
    start = time.monotonic()
    kept.run_info(Steps(Path()).open)
    with pytest.raises(ConfigError, match="workers: invalid value 1000; expected at most"):
        RayEngine(workers=1000).run(Steps(tmp_path).job([{"id": 0}]), print)
    assert time.monotonic() - start < 30


def digests(folder):
    paths = [
        path
        for path in folder.rglob("*")
        if path.is_file() and ".musetalk_enhance" not in path.parts
    ]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


@pytest.mark.slow
def test_pictures_come_out_as_on_this_machine_alone(kept, tmp_path, rng, monkeypatch):
    import cv2

    (tmp_path / "in" / "sub").mkdir(parents=True)
    for number in range(40):
        picture = cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (150 + number, 160))
        cv2.imwrite(str(tmp_path / "in" / ("sub" if number % 2 else "") / f"{number}.png"), picture)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)  # workers have another folder
    settings = ImageSettings(model="lite", face_detector="none", save_comparison=True)
    killed = []

    def kill_one(done, total):
        if 0 < done < total and not killed:
            killed.append(rays(PROCESSORS)[0])
            killed[0].kill()

    restore_images("in", "alone", settings, engine=LocalEngine())
    result = restore_images("in", "cluster", settings, engine=kept, progress=kill_one)
    assert killed and holds_soon(lambda: is_gone(killed[0]))
    assert result.stats["pictures"]["with_restored_faces"] == 40 and result.errors == 1
    assert len(digests(tmp_path / "alone")) == 40 * 2 + 1
    assert digests(tmp_path / "cluster") == digests(tmp_path / "alone")
    again = restore_images("in", "cluster", settings, engine=LocalEngine())
    assert again.resumed == 41 and digests(tmp_path / "cluster") == digests(tmp_path / "alone")


@pytest.mark.parametrize("address", ["nonsense", "host:port", ":6379", "127.0.0.1:99999"])
def test_an_address_that_is_none(address, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="address: .* expected auto | HOST:PORT"):
        RayEngine(address).run_info(refuse)


def test_an_address_where_nobody_answers(monkeypatch):
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(ConfigError, match="The connection failed"):
        RayEngine(f"127.0.0.1:{port}").run_info(refuse)
    assert time.monotonic() - start < 10


def test_a_process_that_takes_its_time_to_end_is_waited_for():
    import psutil

    command = [sys.executable, "-c", "import time; time.sleep(1.5)"]
    with subprocess.Popen(command) as child:
        process = psutil.Process(child.pid)
        assert not is_gone(process) and not holds_soon(lambda: is_gone(process), 0.1)
        assert holds_soon(lambda: is_gone(process))
    assert is_gone(process)  # also when its exit code was asked for


def test_no_workers_are_refused():
    with pytest.raises(ConfigError, match="workers: invalid value 0"):
        RayEngine(workers=0)


def test_ray_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[ray\]") as caught:
        RayEngine().run(Steps(tmp_path).job([{"id": 0}]), print)
    assert caught.value.extra == "ray"


def test_no_work_starts_nothing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    RayEngine().run(Steps(tmp_path).job([]), print)


def test_an_error_that_cannot_be_sent_becomes_one_that_can():
    error = ValueError(threading.Lock())
    found = Failure.of(error).error
    assert type(found) is RestorerError and "ValueError" in str(found)


def test_what_is_packed_is_unpacked():
    pytest.importorskip("pyarrow")
    number, (unit, array) = unpack(pack(7, ({"id": 3}, np.arange(6).reshape(2, 3))))
    assert (
        (number, unit) == (7, {"id": 3})
        and (array == np.arange(6).reshape(2, 3)).all()
        and array.flags.writeable
    )
