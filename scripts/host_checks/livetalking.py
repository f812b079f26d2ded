"""LiveTalking's ``app.py``, with each of its avatars: threads, queues and pasting are real.

The avatar is read from files in the host's own layout. Stand-ins are the networks, the features of
the audio, and the packages for web and speech; what would be streamed is captured.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch

from .live import Watch, measure
from .stand_ins import (
    FLAGS,
    LiveRun,
    compare,
    expect,
    import_libraries,
    replace_missing,
    soft,
    talking_head,
    working_folder,
)

LENGTH, BATCH = 10, 8
SPEECH = "............ssssssssssssssss............sssssss........."
"""Video frames with speech (s) and without, in the order in which the host hears them."""
DELAY = 5
"""Frames of silence that the host puts before them: its context of 10 audio frames."""
FEATURES = {"wav2lip": (80, 16), "musetalk": (50, 384), "ultralight": (16, 32, 32)}
LABEL = np.s_[:30, :90]
"""Where the host writes its name, into the avatar's own frames, again and again."""
NUMBERS = 30000
"""Audio carries the number of its video frame, of so many."""
SILENT = np.zeros(0, np.int16)
CAPTURED: dict[str, dict[str, Any]] = {}
"""Avatar, frames and audio of each session, by its id."""
SESSIONS: list[str] = []
"""Sessions of a run; the host begins the first itself."""


class Output:
    """Stands in for a stream: keeps every frame and the audio."""

    def __init__(self, opt: Any = None, parent: Any = None) -> None:
        self.frames: list[np.ndarray] = []
        self.audio: list[np.ndarray] = []
        CAPTURED[parent.sessionid] = {"avatar": parent, "frames": self.frames, "audio": self.audio}

    def start(self) -> None:
        pass

    stop = start

    def push_video_frame(self, frame: np.ndarray) -> None:
        frame = frame.copy()
        frame[LABEL] = 0
        self.frames.append(frame)

    def push_audio_frame(self, frame: np.ndarray, userdata: Any = None) -> None:
        self.audio.append(frame.copy())


class LiveOutput(Output):
    """Stands in for a stream that takes 25 frames a second."""

    watch: Watch

    def push_video_frame(self, frame: np.ndarray) -> None:
        self.watch.pace.wait()
        self.watch.show(frame)

    def push_audio_frame(self, frame: np.ndarray, userdata: Any = None) -> None:
        number = self.watch.audio // 2 - DELAY
        self.watch.hear(int(frame[-1]), max(0, number + 1) % NUMBERS)
        self.audio.append(SILENT)


class Loop(asyncio.SelectorEventLoop):  # type: ignore[misc, valid-type]
    """An event loop that is interrupted, as with Ctrl-C, when the session has said everything."""

    _runs_one = False

    def run_until_complete(self, future: Any) -> Any:
        self._runs_one = True
        try:
            return super().run_until_complete(future)
        finally:
            self._runs_one = False

    def run_forever(self) -> None:
        if self._runs_one:
            super().run_forever()
            return
        from server.session_manager import session_manager

        stop = threading.Event()
        for name in SESSIONS[1:]:
            avatar = session_manager.build_session_fn(name, {})
            threading.Thread(target=avatar.render, args=(stop,), name="render").start()
        deadline = time.monotonic() + 240 + len(SPEECH) / 10
        while not all(map(is_complete, SESSIONS)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for session in CAPTURED.values():
            session["avatar"].quit_event.set()
        while host_threads():
            time.sleep(0.2)
        raise KeyboardInterrupt


def is_complete(name: str) -> bool:
    """Whether everything that a session hears was streamed."""
    return name in CAPTURED and len(CAPTURED[name]["audio"]) >= 2 * len(SPEECH)


def host_threads() -> list[threading.Thread]:
    """Threads that run the host's code."""
    names = ("inference", "process_frames", "process_tts", "render")
    return [each for each in threading.enumerate() if any(name in each.name for name in names)]


def audio_features(base: Any, shape: tuple[int, ...]) -> type:
    """The host's class of audio features, fed with `SPEECH` instead of a microphone."""
    from avatars.base_avatar import AudioFrameData

    class Scripted(base):  # type: ignore[misc, valid-type]
        def __init__(self, opt: Any, parent: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(opt, parent)
            self.sent = 0

        def run_step(self) -> None:
            letters = SPEECH[self.sent : self.sent + BATCH]
            if not letters:
                time.sleep(0.05)
                return
            for number, letter in enumerate(letters, self.sent + 1):
                data = np.full(self.chunk, (number % NUMBERS + 0.5) / 32767, np.float32)
                for _ in range(2):
                    self.output_queue.put(AudioFrameData(data, int(letter == ".")))
            self.feat_queue.put([np.zeros(shape, np.float32)] * BATCH)
            self.sent += BATCH

    return Scripted


class MouthNetwork:
    """Wav2Lip's and Ultralight's: (N, 3, H, W), BGR, 0..1; the order of the arguments differs."""

    def __init__(self, channels: slice) -> None:
        self.channels = channels

    def __call__(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        images = one if one.shape[1] == 6 else other
        return soft(images[:, self.channels])


class Autoencoder:
    """MuseTalk's: a latent is the number of an image, and decodes to it, softened; -1..1, RGB."""

    dtype = torch.float32

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def decode(self, latents: torch.Tensor) -> Any:
        numbers = latents[:, 0, 0, 0].round().long().tolist()
        return SimpleNamespace(sample=soft(self.images[numbers]))


def write_avatar(folder: Path, frames: list[np.ndarray], box: Any, kind: str) -> None:
    """An avatar in the host's files."""
    left, top, right, bottom = box
    side = 168 if kind == "ultralight" else 256
    for name in ("full_imgs", "face_imgs", "mask"):
        (folder / name).mkdir(parents=True)
    for number, frame in enumerate(frames):
        face = cv2.resize(frame[top:bottom, left:right], (side, side))
        cv2.imwrite(str(folder / "full_imgs" / f"{number:08d}.png"), frame)
        cv2.imwrite(str(folder / "face_imgs" / f"{number:08d}.png"), face)
        mask = np.zeros((bottom - top, right - left, 3), np.uint8)
        mask[len(mask) // 2 : -4, 4:-4] = 255
        cv2.imwrite(str(folder / "mask" / f"{number:08d}.png"), mask)
    coords = (top, bottom, left, right) if kind == "wav2lip" else (left, top, right, bottom)
    for name, value in {"coords": coords, "mask_coords": (left, top, right, bottom)}.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps([value] * len(frames)))
    numbers = torch.arange(len(frames)).float()[:, None, None, None, None]
    torch.save(list(numbers.expand(-1, 1, 8, 32, 32).clone()), folder / "latents.pt")


def replace_networks(kind: str, frames: list[np.ndarray], box: Any) -> None:
    """Put stand-ins in the place of what loads weights and computes features of audio."""
    from avatars.audio_features.base_asr import BaseASR

    scripted = audio_features(BaseASR, FEATURES[kind])
    if kind == "wav2lip":
        import avatars.wav2lip_avatar as module

        module.MelASR, module.load_model = scripted, lambda path: MouthNetwork(slice(3, 6))
    elif kind == "ultralight":
        import avatars.ultralight_avatar as module
        from avatars.wav2lip_avatar import load_avatar

        module.HubertASR, module.load_model = scripted, lambda opt: (None, None)
        module.load_avatar = lambda name: (MouthNetwork(slice(0, 3)), *load_avatar(name))
        if not torch.cuda.is_available():
            torch.Tensor.cuda = lambda self: self  # type: ignore[method-assign, assignment]
    else:
        import avatars.musetalk_avatar as module
        from avatars.musetalk.models.vae import VAE

        left, top, right, bottom = box
        crops = [cv2.resize(frame[top:bottom, left:right], (256, 256)) for frame in frames]
        images = torch.from_numpy(np.stack(crops)[..., ::-1].copy()).permute(0, 3, 1, 2)
        vae = object.__new__(VAE)
        vae.vae, vae.scaling_factor = Autoencoder(images / 127.5 - 1), 1.0

        def network(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return SimpleNamespace(sample=latents[:, 4:])

        model = type("Network", (), {"dtype": torch.float32, "__call__": staticmethod(network)})()
        unet = SimpleNamespace(device="cpu", model=model)
        parts = (vae, unet, lambda features: features, torch.tensor([0]), None)
        module.WhisperASR, module.load_model = scripted, lambda: parts
        module.warm_up = lambda *args: None  # its latents are of no image


def words_of(folder: Path, kind: str) -> list[str]:
    """The script with its arguments."""
    words = [str(folder / "app.py"), "--transport", "rtmp", "--model", kind, "--avatar_id", kind]
    return [*words, "--batch_size", str(BATCH), "--listenport", "0"]


def run_app(
    folder: Path, kind: str, flags: tuple[str, ...], sessions: int = 1
) -> list[dict[str, Any]]:
    """Run ``app.py`` until its sessions have said everything; what was captured of each."""
    from musetalk_enhance.cli import main

    CAPTURED.clear()
    SESSIONS[:] = map(str, range(sessions))
    try:
        code = main(["run", *words_of(folder, kind), *flags])
        expect(code == 0, f"app.py ended with {code}")
    except KeyboardInterrupt:
        pass
    return [CAPTURED[name] for name in SESSIONS]


def prepare(folder: Path, output: type[Output]) -> None:
    """Replace what a run of the host needs and this machine has not."""
    import_libraries()
    replace_missing(
        *("flask", "aiortc", "aiortc.rtcrtpsender", "aiortc.mediastreams", "dotenv", "edge_tts"),
        *("resampy", "soundfile", "librosa", "librosa.filters", "aiohttp_cors", "python_speech"),
    )
    sys.path.insert(0, str(folder))
    with working_folder():  # the host writes its log where it is imported
        import registry
    sys.modules["streamout.rtmp"] = ModuleType("streamout.rtmp")
    registry.register("streamout", "rtmp")(output)
    asyncio.new_event_loop = Loop
    torch.multiprocessing.set_start_method = lambda *args, **kwargs: None


def check(folder: Path) -> None:
    """Run the page for each kind of avatar: without us, with us in two sessions, and failing."""
    prepare(folder, Output)
    frames, boxes = talking_head(LENGTH)
    box = boxes[0]
    for kind in FEATURES:
        with working_folder() as work:
            (work / "web").mkdir()  # the pages of the host
            write_avatar(work / "data" / "avatars" / kind, frames, box, kind)
            replace_networks(kind, frames, box)
            (plain,) = run_app(folder, kind, ())
            ours, second = run_app(folder, kind, FLAGS, sessions=2)
            with FailingStreams():
                (broken,) = run_app(folder, kind, FLAGS)
        judge(kind, box, plain, ours, broken)
        same = all(map(np.array_equal, ours["frames"], second["frames"]))
        expect(same and len(second["frames"]) == len(SPEECH), "the sessions mix")


def live(folder: Path, run: LiveRun) -> None:
    """One session of the musetalk avatar, which speaks three of every four seconds."""
    prepare(folder, LiveOutput)
    every = talking_head(3 * LENGTH)
    frames, box = every[0][::3], every[1][0]

    def begin(count: int) -> Watch:
        global SPEECH
        SPEECH = ("s" * 75 + "." * 25) * (count // 100 + 1)
        SPEECH = SPEECH[:count]
        CAPTURED.clear()
        SESSIONS[:] = ["0"]
        LiveOutput.watch = Watch(frames + frames[::-1], box, run.fps)
        return LiveOutput.watch

    with working_folder() as work:
        (work / "web").mkdir()
        write_avatar(work / "data" / "avatars" / "musetalk", frames, box, "musetalk")
        replace_networks("musetalk", frames, box)
        name = "app.py, musetalk avatar"
        measure(name, words_of(folder, "musetalk"), run, BATCH, begin)


class FailingStreams:
    """While inside, every stream of ours raises."""

    def __enter__(self) -> None:
        from musetalk_enhance.pipeline.stream import Stream

        self.original: Callable[..., Any] = Stream.__call__
        Stream.__call__ = lambda *args, **kwargs: 1 / 0  # type: ignore[method-assign]

    def __exit__(self, *exception: object) -> None:
        from musetalk_enhance.pipeline.stream import Stream

        Stream.__call__ = self.original  # type: ignore[method-assign]


def judge(
    kind: str, box: Any, plain: dict[str, Any], ours: dict[str, Any], broken: dict[str, Any]
) -> None:
    """What must hold of the three runs."""
    heard = ("." * DELAY + SPEECH)[: len(plain["frames"])]
    for name, run in {"with us": ours, "with us failing": broken}.items():
        expect(len(run["frames"]) == len(SPEECH), f"{len(run['frames'])} frames {name}")
        same = all(map(np.array_equal, run["audio"], plain["audio"]))
        expect(same and len(run["audio"]) == 2 * len(SPEECH), f"audio {name}")
    expect(all(map(np.array_equal, broken["frames"], plain["frames"])), "frames with us failing")
    silent = [row for row, letter in enumerate(heard) if letter == "."]
    spoken = [row for row, letter in enumerate(heard) if letter == "s"]
    for row in silent:
        expect(np.array_equal(ours["frames"][row], plain["frames"][row]), f"silent frame {row}")
    before, after = ([run["frames"][row] for row in spoken] for run in (plain, ours))
    compare(f"{kind} avatar", before, after, [box] * len(spoken))
    left, top, right, bottom = box
    jumps = []
    for run in (plain, ours):
        crops = np.stack([frame[top:bottom, left:right] for frame in run["frames"]])
        change = np.abs(np.diff(crops.astype(np.float32), axis=0)).mean((1, 2, 3))
        edges = [row for row in range(1, len(heard)) if heard[row] != heard[row - 1]]
        jumps.append(float(np.mean([change[row - 1] for row in edges])))
    print(f"    change at the borders of silence, of 255: {jumps[0]:.2f} -> {jumps[1]:.2f}")
    expect(jumps[1] < jumps[0], "the borders of silence are smoother")
