"""LiveTalking in miniature: one thread infers, frames with and without speech, several sessions."""

from __future__ import annotations

import importlib
import sys
from queue import Queue
from threading import Event, Thread
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.errors import ConfigError, HostError
from musetalk_enhance.hosts.fade import fade_weights
from musetalk_enhance.hosts.livetalking import attach
from tests.hosts.host_folder import host_folder, run_host

BASE = """
import queue
from dataclasses import dataclass
@dataclass
class AudioFrameData:
    data: object
    type: int = 0
def mirror_index(size, index):
    return index % size if index // size % 2 == 0 else size - index % size - 1
class BaseAvatar:
    def __init__(self, batch_size, asr):
        self.batch_size, self.asr = batch_size, asr
        self.res_frame_queue = queue.Queue()
    def get_avatar_length(self):
        return len(self.frame_list_cycle)
    def inference(self, quit_event):
        index = 0
        while not quit_event.is_set():
            try:
                features = self.asr.feat_queue.get(block=True, timeout=0.02)
            except queue.Empty:
                continue
            audio = [self.asr.output_queue.get() for _ in range(self.batch_size * 2)]
            if all(frame.type for frame in audio):
                faces = [None] * self.batch_size
            else:
                faces = self.inference_batch(index, features)
            for i, face in enumerate(faces):
                number = mirror_index(self.get_avatar_length(), index)
                self.res_frame_queue.put((face, audio[2 * i : 2 * i + 2], number))
                index += 1
"""

AVATAR = """
import numpy as np
from avatars.base_avatar import BaseAvatar
class Avatar(BaseAvatar):
    def __init__(self, batch_size, asr, frames, side, dtype, failing=False):
        super().__init__(batch_size, asr)
        self.frame_list_cycle, self.side, self.dtype = frames, side, dtype
        self.face_list_cycle = [np.full((168, 168, 3), 240, np.uint8)] * len(frames)
        self.coord_list_cycle = [COORD] * len(frames)
        self.failing, self.calls = failing, []
    def inference_batch(self, index, features):
        if self.failing:
            raise ValueError("the host's own")
        self.calls.append(index)
        return np.full((self.batch_size, self.side, self.side, 3), 100).astype(self.dtype)
"""

APP = """
import json, pathlib
from queue import Queue
from types import SimpleNamespace
import numpy as np
from avatars.base_avatar import AudioFrameData, BaseAvatar
from avatars.wav2lip_avatar import Avatar
asr = SimpleNamespace(feat_queue=Queue(), output_queue=Queue())
avatar = Avatar(4, asr, [np.full((300, 300, 3), 240, np.uint8)] * 5, 96, "float32")
class Quit:
    def is_set(self):
        return asr.feat_queue.empty()
for _ in range(2):
    asr.feat_queue.put(None)
    for _ in range(8):
        asr.output_queue.put(AudioFrameData(None, 0))
avatar.inference(Quit())
faces = [avatar.res_frame_queue.get()[0] for _ in range(8)]
pathlib.Path("result.json").write_text(json.dumps([float(face.mean()) for face in faces]))
if QUIT:
    raise KeyboardInterrupt
"""

FILES = {
    "avatars/base_avatar.py": BASE,
    "avatars/musetalk_avatar.py": AVATAR.replace("COORD", "(40, 60, 140, 180)"),
    "avatars/wav2lip_avatar.py": AVATAR.replace("COORD", "(60, 180, 40, 140)"),
    "avatars/ultralight_avatar.py": AVATAR.replace("COORD", "(40, 60, 140, 180)"),
    "avatars/other_avatar.py": AVATAR.replace("COORD", "()"),
    "app.py": APP.replace("QUIT", "False"),
    "server.py": APP.replace("QUIT", "True"),
}
FORMS = {
    "musetalk": (256, "uint8"),
    "wav2lip": (256, "float32"),
    "ultralight": (160, "float32"),
    "other": (128, "float32"),
}
ORIGINAL, HOST, OURS = 240, 100, 50
"""Gray values of the original frames, of the host's faces, and of them halved."""
SPEAK, SILENT = 0, 1


def halve(batch: torch.Tensor) -> torch.Tensor:
    return batch * 0.5


@pytest.fixture
def host(tmp_path, monkeypatch):
    with host_folder(tmp_path, FILES, monkeypatch) as folder:
        monkeypatch.syspath_prepend(str(folder))
        yield folder


def new_avatar(name: str, batch_size: int = 4, **options):
    module = importlib.import_module(f"avatars.{name}_avatar")
    asr = SimpleNamespace(feat_queue=Queue(), output_queue=Queue())
    frames = [np.full((300, 300, 3), ORIGINAL, np.uint8)] * 5
    return module.Avatar(batch_size, asr, frames, *FORMS[name], **options)


def talk(avatar, types: str):
    """Run the host's thread on audio: ``s`` a frame with speech, ``.`` one without.

    Returns what the host puts into its queue for each frame.
    """
    frame_data = sys.modules["avatars.base_avatar"].AudioFrameData
    for start in range(0, len(types), avatar.batch_size):
        for letter in types[start : start + avatar.batch_size]:
            for _ in range(2):
                avatar.asr.output_queue.put(frame_data(None, SPEAK if letter == "s" else SILENT))
        avatar.asr.feat_queue.put(None)
    stop = Event()
    thread = Thread(target=avatar.inference, args=(stop,))
    thread.start()
    rows = [avatar.res_frame_queue.get(timeout=60) for _ in types]
    stop.set()
    thread.join()
    return rows


def grays(rows) -> list[int | None]:
    return [None if face is None else round(float(face.mean())) for face, _, _ in rows]


@pytest.mark.parametrize("name", FORMS)
def test_faces_are_restored_in_the_avatars_form(host, make_enhancer, name):
    enhancer = make_enhancer(halve)
    avatar = new_avatar(name)
    with attach(enhancer, fade_frames=0):
        rows = talk(avatar, "ssssssss")
        assert "inference_batch" not in vars(avatar), "the session has ended"
        assert "get" not in vars(avatar.asr.output_queue)
    side, dtype = FORMS[name]
    assert grays(rows) == [OURS] * 8
    assert all(face.shape == (side, side, 3) and face.dtype == dtype for face, _, _ in rows)
    assert enhancer.stats.frames == enhancer.stats.restored == 8
    assert grays(talk(avatar, "ssss")) == [HOST] * 4, "detached"


@pytest.mark.parametrize(("name", "side"), [("musetalk", 512), ("ultralight", 160), ("other", 128)])
def test_only_avatars_that_resize_get_another_size(host, make_enhancer, name, side):
    enhancer = make_enhancer(halve, output_size="native")
    with attach(enhancer):
        rows = talk(new_avatar(name), "..ss")
    assert all(face.shape == (side, side, 3) for face, _, _ in rows)


def test_silence_is_left_to_the_host(host, make_enhancer):
    """All-silent batches never come to us; silent frames of mixed ones are not restored."""
    enhancer = make_enhancer(halve)
    with attach(enhancer, fade_frames=0):
        rows = talk(new_avatar("musetalk"), "....s..ssss.....")
    assert grays(rows) == ([None] * 4 + [OURS, HOST, HOST, OURS] + [OURS] * 3 + [HOST] + [None] * 4)
    assert enhancer.stats.frames == 5 and enhancer.stats.cuts == 2, "silence ends a sequence"


@pytest.mark.parametrize("name", ["musetalk", "wav2lip", "ultralight"])
def test_the_restored_face_fades_in_and_out_beside_silence(host, make_enhancer, name):
    avatar = new_avatar(name, batch_size=8)
    with attach(make_enhancer(halve), fade_frames=2):
        rows = talk(avatar, "......ssssssssss........")
    step = (ORIGINAL - OURS) / 3
    expected = [ORIGINAL - step, ORIGINAL - 2 * step, OURS]
    faces = [face for face, _, _ in rows]
    assert np.allclose([face.mean() for face in faces[6:9]], expected, atol=1)
    assert np.allclose([face.mean() for face in faces[9:16]], OURS, atol=1)
    # speech ends within a batch
    rows = talk(avatar, "")
    with attach(make_enhancer(halve), fade_frames=2):
        rows = talk(avatar, "sssssss.")
    values = [face.mean() for face, _, _ in rows][:7]
    assert np.allclose(values, expected + [OURS] + expected[::-1], atol=1)
    assert all(face.dtype == FORMS[name][1] for face, _, _ in rows)


@pytest.mark.parametrize(
    ("speech", "frames", "weights"),
    [
        ("....", 2, [0, 0, 0, 0]),
        (".ssss", 3, [0, 0.25, 0.5, 0.75, 1]),
        ("ss.s", 1, [0.5, 0.5, 0, 0.5]),
        (".s.", 4, [0, 0.2, 0]),
        (".ss", 0, [0, 1, 1]),
    ],
)
def test_weights_of_the_fade(speech, frames, weights):
    assert fade_weights([letter == "s" for letter in speech], frames) == pytest.approx(weights)


@pytest.mark.parametrize("match", ["none", "source"])
def test_keys_and_sources_are_those_of_the_loops_frames(host, make_enhancer, monkeypatch, match):
    keys, sources = [], []
    run = sys.modules["musetalk_enhance.pipeline.stream"].Stream.__call__

    def noting(stream, frames, **hints):
        keys.append(hints["keys"])
        sources.extend(hints["sources"] or [None])
        return run(stream, frames, **hints)

    monkeypatch.setattr("musetalk_enhance.pipeline.stream.Stream.__call__", noting)
    avatar = new_avatar("wav2lip")
    avatar.frame_list_cycle = [np.full((300, 300, 3), value, np.uint8) for value in range(5)]
    with attach(make_enhancer(halve, match=match)):
        talk(avatar, "ssssss.s")
    assert keys == [[0, 1, 2, 3], [4, 4, 2]]
    if match == "none":
        assert sources == [None, None]
        return
    assert [int(source.mean()) for source in sources] == [0, 1, 2, 3, 4, 4, 2]
    assert all(source.shape == (120, 100, 3) for source in sources)


def test_sessions_have_streams_of_their_own_over_one_network(host, make_enhancer):
    enhancer = make_enhancer(halve)
    streams = []
    open_stream = enhancer.stream
    enhancer.stream = lambda **options: streams.append(open_stream(**options)) or streams[-1]
    avatars = [new_avatar(name) for name in ("musetalk", "ultralight", "wav2lip")]
    results = {}
    with attach(enhancer):
        threads = [
            Thread(target=lambda avatar=avatar: results.update({avatar: talk(avatar, "s" * 12)}))
            for avatar in avatars
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(streams) == 3 and all(stream.closed for stream in streams)
    assert [stream.stats.frames for stream in streams] == [12, 12, 12]
    assert enhancer.stats.frames == 36 and len(results) == 3


def test_no_error_of_ours_costs_a_frame_or_its_audio(host, make_enhancer, caplog):
    def fail(batch):
        raise RuntimeError("ours")

    for enhancer in (make_enhancer(fail), make_enhancer(halve, on_error="raise")):
        avatar = new_avatar("wav2lip")
        avatar.coord_list_cycle = []  # what the fade needs
        with attach(enhancer):
            rows = talk(avatar, "..ssssss")
        assert len(rows) == 8 and all(len(audio) == 2 for _, audio, _ in rows)
        assert grays(rows)[2:] == [HOST] * 6
    closed = make_enhancer(halve)
    with attach(closed):
        closed.close()
        assert grays(talk(new_avatar("wav2lip"), "ssss")) == [HOST] * 4
    assert "the faces of this session are not restored" in caplog.text


def test_the_hosts_own_error_stays_its_own(host, make_enhancer):
    avatar = new_avatar("wav2lip", failing=True)
    avatar.asr.feat_queue.put(None)
    for _ in range(8):
        avatar.asr.output_queue.put(SimpleNamespace(type=SPEAK))
    with attach(make_enhancer(halve)), pytest.raises(ValueError, match="the host's own"):
        avatar.inference(Event())


def test_attach_before_the_host_is_imported(host, make_enhancer):
    patches = attach(make_enhancer(halve), fade_frames=0)
    assert "avatars.base_avatar" not in sys.modules
    assert grays(talk(new_avatar("musetalk"), "ssss")) == [OURS] * 4
    patches.close()
    assert grays(talk(new_avatar("musetalk"), "ssss")) == [HOST] * 4


def test_another_version_of_the_host_is_an_error(host, make_enhancer):
    (host / "avatars/base_avatar.py").write_text("class BaseReal:\n    pass")
    with attach(make_enhancer(halve)), pytest.raises(HostError, match="no BaseAvatar"):
        importlib.import_module("avatars.base_avatar")


@pytest.mark.parametrize("fade_frames", [-1, 1.5, True, "4"])
def test_wrong_options(make_enhancer, fade_frames):
    with pytest.raises(ConfigError, match="fade_frames"):
        attach(make_enhancer(halve), fade_frames=fade_frames)
    with pytest.raises(ConfigError, match="nothing beside an enhancer"):
        attach(make_enhancer(halve), model="lite")


@pytest.mark.parametrize("script", ["app.py", "server.py"])
def test_run_recognizes_it_and_ends_when_it_is_interrupted(host, capsys, script):
    flags = ["--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_backend", "torch"]
    assert run_host(script, *flags, "--gfpgan_sharpness_gate", "false")[0] == 0
    assert "8 faces" in capsys.readouterr().err
    code, values = run_host("app.py")
    assert code == 0 and np.allclose(values, HOST)


def test_without_speech_a_run_is_no_error(host, capsys):
    text = (
        (host / "app.py").read_text().replace("AudioFrameData(None, 0)", "AudioFrameData(None, 1)")
    )
    (host / "app.py").write_text(text.replace("float(face.mean())", "face is None"))
    code, values = run_host("app.py", "--enable_gfpgan", "--gfpgan_model", "lite")
    assert code == 0 and values == [True] * 8
    assert "without decoding a single frame" in capsys.readouterr().err


def test_the_original_is_resized_to_the_face(host, make_enhancer):
    """The crop under a face that fades in is that of the face's own frame and box."""
    avatar = new_avatar("wav2lip", batch_size=2)
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    avatar.frame_list_cycle = [np.broadcast_to(ramp[:, None, None], (300, 300, 3)).copy()] * 5
    with attach(make_enhancer(lambda batch: batch * 0), fade_frames=1):
        face = talk(avatar, ".s")[1][0]
    crop = cv2.resize(avatar.frame_list_cycle[0][60:180, 40:140], (256, 256))
    assert np.abs(face - crop / 2).max() < 2


def test_a_model_by_name(host):
    with attach(model="lite", device="cpu", backend="torch", output_size="native"):
        rows = talk(new_avatar("musetalk"), "ssss")
    assert rows[0][0].shape == (512, 512, 3)
    with pytest.raises(ConfigError, match="strength"):
        attach(model="lite", strength=7)
