"""OpenAvatarChat's MuseTalk avatar in miniature: threads, queues, padding and sizes are its own."""

from __future__ import annotations

import importlib
import runpy
import sys

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, HostError
from musetalk_enhance.hosts.openavatarchat import attach
from musetalk_enhance.hosts.registry import recognize
from tests.conftest import ROOT
from tests.hosts.host_folder import host_folder, run_host

AVATAR = """
import cv2, numpy as np

class MuseAvatarV15:
    def __init__(self):
        self.frame_list_cycle = [np.full((120, 100, 3), 40, np.uint8) for _ in range(6)]
        self.coord_list_cycle = [[20, 30, 84, 94]] * 6

    def generate_frames_vae(self, latents, idx_list, batch_size):
        faces = np.full((batch_size, 256, 256, 3), 200, np.uint8)
        return [(faces[i], idx_list[i]) for i in range(batch_size)]

    def res2combined(self, res_frame, idx):
        frame = self.frame_list_cycle[idx % 6].copy()
        if np.all(res_frame == 0):
            return frame
        x1, y1, x2, y2 = self.coord_list_cycle[idx % 6]
        frame[y1:y2, x1:x2] = cv2.resize(res_frame.astype(np.uint8), (x2 - x1, y2 - y1))
        return frame
"""
PROCESSOR = """
import queue, threading
from handlers.avatar.musetalk.avatar_musetalk_algo import MuseAvatarV15

class AvatarMuseTalkProcessor:
    def __init__(self, avatar):
        self._avatar, self.frames, self.spoken = avatar, [], threading.Event()
        self._whisper_queue, self._compose_queue = queue.Queue(), queue.Queue()
        self._threads = []

    def start(self):
        if self._threads:
            return  # the host logs an error
        self._threads = [threading.Thread(target=self._vae), threading.Thread(target=self._compose)]
        for thread in self._threads:
            thread.start()

    def _vae(self):
        self._avatar.generate_frames_vae(None, [0, 1], 2)  # warm-up
        self.spoken.wait()
        number, items = 0, []
        while (item := self._whisper_queue.get()) is not None:
            items.append(item)
            if len(items) == 2 or item["end_of_speech"]:
                faces = self._avatar.generate_frames_vae(None, [number, number + 1], 2)
                for face, idx in faces[: len(items)]:
                    self._compose_queue.put((face, idx))
                number, items = number + len(items), []
        self._compose_queue.put(None)

    def _compose(self):
        while (item := self._compose_queue.get()) is not None:
            self.frames.append(self._avatar.res2combined(*item))

    def stop(self):
        queue.Queue.put(self._whisper_queue, None)
        for thread in self._threads:
            thread.join()
        self._threads = []
"""
DEMO = """
import json, pathlib
from chat_engine.chat_engine import ChatEngine
processor = ChatEngine().processor
processor.start()
for number in range(7):
    processor._whisper_queue.put({"end_of_speech": number == 6})
processor.spoken.set()
processor.stop()
result = [[frame.shape, int(frame[60, 50, 2]), int(frame[5, 5, 2])] for frame in processor.frames]
pathlib.Path("result.json").write_text(json.dumps(result))
raise KeyboardInterrupt
"""
ENGINE = """
import importlib
class ChatEngine:
    def __init__(self):
        package = "handlers.avatar.musetalk.avatar_musetalk_"
        self.avatar = importlib.import_module(package + "algo").MuseAvatarV15()
        processor = importlib.import_module(package + "processor")
        self.processor = processor.AvatarMuseTalkProcessor(self.avatar)
"""
FLAGS = ("--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_backend", "torch")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    files = {
        "handlers/avatar/musetalk/avatar_musetalk_algo.py": AVATAR,
        "handlers/avatar/musetalk/avatar_musetalk_processor.py": PROCESSOR,
        "chat_engine/chat_engine.py": ENGINE,
        "src/demo.py": DEMO,
    }
    with host_folder(tmp_path, files, monkeypatch) as folder:
        monkeypatch.syspath_prepend(str(tmp_path))
        yield folder


@pytest.fixture
def enhancer(make_enhancer):
    return make_enhancer(lambda batch: batch * 0.5)


def engine():
    return importlib.import_module("chat_engine.chat_engine").ChatEngine()


def speak(processor, number=7, ends=None):
    """Frames of a session with `number` faces; speech ends with those in `ends`, the last."""
    processor.start()
    for each in range(number):
        processor._whisper_queue.put({"end_of_speech": each in (ends or [number - 1])})
    processor.spoken.set()
    processor.stop()
    frames, processor.frames = processor.frames, []
    return frames


def test_the_service_shows_every_frame_restored(folder, capsys):
    assert recognize("src/demo.py").name == "openavatarchat"
    code, result = run_host("src/demo.py", *FLAGS)
    assert code == 0 and [row[0] for row in result] == [[120, 100, 3]] * 7
    shares = np.array([1, 2, 3, 4, 3, 2, 1]) / 5
    assert [row[1] for row in result] == pytest.approx(40 + 160 * shares, abs=4)
    assert all(row[2] == 40 for row in result)
    assert "of 7 faces restored" in capsys.readouterr().err


def test_only_faces_that_are_shown_reach_the_stream(folder, enhancer):
    with attach(enhancer, fade_frames=0):
        processor = engine().processor
        frames = speak(processor)
        assert [int(frame[60, 50, 0]) for frame in frames] == [100] * 7
        assert enhancer.stats.frames == 7, "neither warm-up nor padding, and the session has ended"
    assert int(speak(processor)[0][60, 50, 0]) == 200, "detached"


@pytest.mark.parametrize(
    ("number", "ends", "values"),
    [
        (5, [4], [60, 80, 100, 80, 60]),
        (5, [1, 4], [60, 60, 60, 80, 60]),  # the next speech is queued already
        (9, [5, 8], [60, 80, 100, 100, 80, 60, 60, 80, 60]),
        (6, [9], [60, 80, 100, 100, 100, 100]),  # its end is not known yet
        (1, [0], [60]),
    ],
)
def test_a_restored_face_fades_beside_silence(folder, enhancer, number, ends, values):
    with attach(enhancer, fade_frames=2):
        processor = engine().processor
        for _ in range(2):  # the second session begins anew
            frames = speak(processor, number, ends)
            assert [int(frame[60, 50, 0]) for frame in frames] == values


def test_a_session_that_is_started_twice_fades_as_before(folder, enhancer):
    with attach(enhancer, fade_frames=2):
        processor = engine().processor
        processor.start()
        processor._whisper_queue.put({"end_of_speech": False})
        assert [int(frame[60, 50, 0]) for frame in speak(processor, 4)] == [60, 80, 100, 80, 60]


def test_the_queue_of_a_session_is_the_hosts_own_after_detaching(folder, enhancer):
    with attach(enhancer):
        processor = engine().processor
        processor.start()
        assert "put" in vars(processor._whisper_queue)
    assert "put" not in vars(processor._whisper_queue)
    speak(processor)


def test_a_host_without_that_queue_does_not_fade(folder, enhancer):
    path = folder / "handlers/avatar/musetalk/avatar_musetalk_processor.py"
    path.write_text(PROCESSOR.replace("_whisper_queue", "_features"))
    with attach(enhancer, fade_frames=2):
        processor = engine().processor
        processor.start()
        processor._features.put({"end_of_speech": True})
        processor.spoken.set()
        processor.stop()
    assert [int(frame[60, 50, 0]) for frame in processor.frames] == [100]


def test_the_number_of_faded_frames_is_checked(enhancer):
    with pytest.raises(ConfigError, match="fade_frames"):
        attach(enhancer, fade_frames=-1)


def test_each_session_is_a_stream(folder, enhancer):
    opened = []
    open_stream = enhancer.stream
    enhancer.stream = lambda **options: opened.append(open_stream(**options)) or opened[-1]
    with attach(enhancer):
        processors = [engine().processor for _ in range(2)]
        for processor in (*processors, processors[0]):
            speak(processor, 3)
    assert [stream.stats.frames for stream in opened] == [3, 3, 3]
    assert all(stream.closed for stream in opened) and enhancer.stats.frames == 9


def test_a_lost_batch_stays_black_so_that_the_host_sees_it(folder, make_enhancer):
    enhancer = make_enhancer(lambda batch: batch + 0.5)
    with attach(enhancer):
        frame = engine().avatar.res2combined(np.zeros((256, 256, 3), np.uint8), 8)
    assert (frame == 40).all() and enhancer.stats.frames == 0


def test_an_error_of_ours_costs_no_frame(folder, make_enhancer):
    enhancer = make_enhancer(lambda batch: 1 / 0, on_error="raise")
    with attach(enhancer, fade_frames=0):
        frames = speak(engine().processor)
    assert [int(frame[60, 50, 0]) for frame in frames] == [200] * 7
    assert enhancer.stats.failed == 7


def test_the_avatars_original_is_the_source(folder, make_enhancer, monkeypatch):
    hints = []
    enhancer = make_enhancer(match="source")
    open_stream = enhancer.stream

    def stream(**options):
        opened = open_stream(**options)
        call = type(opened).__call__
        monkeypatch.setattr(
            type(opened),
            "__call__",
            lambda self, frames, **each: hints.append(each) or call(self, frames, **each),
        )
        return opened

    enhancer.stream = stream
    with attach(enhancer):
        engine().avatar.res2combined(np.full((256, 256, 3), 9, np.uint8), 8)
    (hint,) = hints
    assert hint["keys"] == [2] and hint["sources"][0].shape == (64, 64, 3)


def test_another_version_is_an_error(folder, enhancer):
    path = folder / "handlers/avatar/musetalk/avatar_musetalk_algo.py"
    path.write_text(AVATAR.replace("res2combined", "combine"))
    with attach(enhancer), pytest.raises(HostError, match=r"MuseAvatarV15\.res2combined"):
        engine()


def test_the_example_runs_the_hosts_script(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["openavatarchat.py"])
    monkeypatch.setattr(sys, "path", ["examples", *sys.path])
    runpy.run_path(str(ROOT / "examples" / "openavatarchat.py"), run_name="__main__")
    assert "of 7 faces restored" in capsys.readouterr().out
