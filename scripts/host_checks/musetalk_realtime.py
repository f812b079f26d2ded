"""MuseTalk's ``scripts/realtime_inference.py``: its avatar, its two threads and its blending.

Stand-ins are those of `musetalk_page`; the network takes 40 ms a frame, as the host's loop would
wait for nothing otherwise.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from .live import Watch, measure
from .musetalk_page import REQUESTS, AudioProcessor, Network, replace_networks, write_clip
from .stand_ins import LiveRun, import_libraries, replace_missing, talking_head, working_folder

LENGTH, BATCH = 10, 20
"""Frames of the avatar; the host's own number of frames in a batch."""


def check(folder: Path) -> None:
    """A short run."""
    live(folder, LiveRun(0.5))


def live(folder: Path, run: LiveRun) -> None:
    """One avatar and one audio; the host never shows its last frame."""
    import_libraries()
    replace_missing("ffmpeg", "librosa", "soundfile")
    every = talking_head(3 * LENGTH)
    frames, box = every[0][::3], every[1][0]
    REQUESTS["boxes"] = {"full_imgs": box}
    watches: list[Watch] = []

    def forward(network: Any, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        watches[-1].pace.wait(len(latents))
        return original_forward(network, latents)

    original_forward = Network.forward
    Network.forward = forward  # type: ignore[method-assign]
    with working_folder() as work:
        sys.path.insert(0, str(work))
        for name in ("scripts", "musetalk"):
            (work / name).symlink_to(folder / name)
        write_clip(work / "clip", frames)
        config = "avatar:\n  preparation: true\n  bbox_shift: 0\n  video_path: clip\n"
        (work / "task.yaml").write_text(config + "  audio_clips: {a: voice.wav}\n", "utf-8")
        replace_networks()
        import musetalk.utils.blending as blending

        blend = blending.get_image_blending

        def get_image_blending(*args: Any, **kwargs: Any) -> Any:
            frame = blend(*args, **kwargs)
            watches[-1].show(frame)
            return frame

        blending.get_image_blending = get_image_blending

        def begin(count: int) -> Watch:
            shutil.rmtree("results", ignore_errors=True)
            chunks = torch.zeros(1, 50, 384).expand(count, -1, -1)
            processor: Any = AudioProcessor
            processor.get_whisper_chunk = lambda *args, **kwargs: chunks
            watches.append(Watch(frames + frames[::-1], box, run.fps))
            return watches[-1]

        words = ["scripts/realtime_inference.py", "--inference_config", "task.yaml"]
        words += ["--skip_save_images", "--batch_size", str(BATCH)]
        measure("realtime_inference.py", words, run, BATCH, begin)
