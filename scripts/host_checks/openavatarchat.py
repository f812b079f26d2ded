"""OpenAvatarChat's processor of its MuseTalk avatar: its threads, queues, padding and pasting.

Stand-ins are the networks and the features of the audio. The host decodes in one thread or in two.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch

from .stand_ins import compare, expect, import_libraries, replace_missing, soft, talking_head

COUNT, BATCH, LENGTH = 25, 2, 8
"""Frames of one second of speech, in batches that do not divide them, over a loop of frames."""
RATE = 24000


class Denoiser:
    """Returns the latents that it was given."""

    dtype = torch.float32

    def __call__(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(sample=latents)


def check(folder: Path) -> None:
    """One session without us and one with us, each with one second of speech."""
    from musetalk_enhance import FaceEnhancer
    from musetalk_enhance.hosts.openavatarchat import attach

    import_libraries()
    replace_missing("librosa", "soundfile", "loguru", "pydantic", "transformers", "dynaconf")
    names = (
        "face_detection",
        "face_parsing",
        "utils",
        "blending",
        "audio_processor",
        "preprocessing",
    )
    replace_missing("musetalk", "musetalk.utils", *(f"musetalk.utils.{name}" for name in names))
    replace_missing("mmpose", "mmpose.apis", "mmpose.structures", "face_alignment", "fastrtc")
    sys.path[:0] = [str(folder), str(folder / "src")]
    with attach(FaceEnhancer(model="lite", device="cpu")):
        import handlers.avatar.musetalk.avatar_musetalk_processor as module
        from handlers.avatar.musetalk.avatar_musetalk_algo import MuseAvatarV15
    module.librosa = SimpleNamespace(resample=_resampled)
    frames, boxes = talking_head(LENGTH)
    avatar = _avatar(MuseAvatarV15, frames, boxes)
    for is_threaded in (False, True):
        plain = _speech(module, avatar, is_threaded)
        enhancer = FaceEnhancer(model="lite", device="cpu")
        with attach(enhancer):
            ours = _speech(module, avatar, is_threaded)
        expect(enhancer.stats.frames == COUNT, f"{enhancer.stats.frames} faces in the stream")
        order = [number % LENGTH for number in range(COUNT)]
        label = "decoding in a thread of its own" if is_threaded else "one thread for both networks"
        compare(label, plain, ours, [boxes[number] for number in order])
        own = [frames[number].astype(np.float32) for number in order]
        jumps = []
        for run in (plain, ours):
            jumps.append(np.mean([np.abs(run[row] - own[row]).mean() for row in (0, -1)]))
        print(f"    change at the borders of silence, of 255: {jumps[0]:.2f} -> {jumps[1]:.2f}")
        expect(jumps[1] < jumps[0], "the borders of silence are smoother")


def _resampled(audio: np.ndarray, orig_sr: int, target_sr: int) -> np.ndarray:
    count = len(audio) * target_sr // orig_sr
    places = np.linspace(0, len(audio) - 1, count)
    return np.interp(places, np.arange(len(audio)), audio).astype(np.float32)


def _avatar(owner: Any, frames: list[np.ndarray], boxes: list[Any]) -> Any:
    crops = [
        cv2.resize(frame[top:bottom, left:right], (256, 256))
        for frame, (left, top, right, bottom) in zip(frames, boxes, strict=True)
    ]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()

    def decode_latents(latents: torch.Tensor) -> np.ndarray:
        numbers = latents[:, 0, 0, 0].round().long()
        return soft(images[numbers]).permute(0, 2, 3, 1).round().byte().numpy()

    avatar = object.__new__(owner)
    avatar.device, avatar.weight_dtype = torch.device("cpu"), torch.float32
    avatar.fps, avatar.debug, avatar.timesteps = 25, False, torch.tensor([0])
    avatar.pe, avatar.unet = torch.nn.Identity(), SimpleNamespace(model=Denoiser())
    inner = SimpleNamespace(dtype=torch.float32)
    avatar.vae = SimpleNamespace(vae=inner, decode_latents=decode_latents)
    avatar.extract_whisper_feature = lambda audio, rate: torch.zeros(COUNT, 50, 384)
    avatar.input_latent_list_cycle = [
        torch.full((1, 4, 32, 32), float(number)) for number in range(LENGTH)
    ]
    avatar.frame_list_cycle, avatar.coord_list_cycle = frames, boxes
    avatar.mask_coords_list_cycle = boxes
    avatar.mask_list_cycle = []
    for left, top, right, bottom in boxes:
        mask = np.zeros((bottom - top, right - left), np.uint8)
        mask[(bottom - top) // 2 :] = 255
        avatar.mask_list_cycle.append(mask)
    return avatar


def _speech(module: Any, avatar: Any, is_threaded: bool) -> list[np.ndarray]:
    """The frames with speech of a session, BGR."""
    config = SimpleNamespace(
        **{"fps": 25, "batch_size": BATCH, "debug": False, "debug_save_handler_audio": False},
        **{"algo_audio_sample_rate": 16000, "output_audio_sample_rate": RATE},
        multi_thread_inference=is_threaded,
    )
    processor = module.AvatarMuseTalkProcessor(avatar, config)
    frames: list[np.ndarray] = []

    def notify(result: Any) -> None:
        if result.avatar_status == module.AvatarStatus.SPEAKING:
            frames.append(result.video_frame.to_ndarray(format="bgr24"))

    processor._notify_video = notify
    processor.start()
    audio = np.zeros(RATE, np.float32)
    speech = SimpleNamespace(audio_data=audio, speech_id="1", end_of_speech=True, sample_rate=RATE)
    processor.add_audio(speech)
    deadline = time.monotonic() + 120
    while len(frames) < COUNT and time.monotonic() < deadline:
        time.sleep(0.1)
    processor.stop()
    expect(len(frames) == COUNT, f"{len(frames)} of {COUNT} frames with speech")
    return frames
