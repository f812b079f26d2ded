"""LatentSync's ``scripts/inference.py``: its pipeline, masks, alignment and pasting are real.

Stand-ins are the networks (also the detector's and the audio's), the reader of the audio, and the
writer of the video. Needs the host's kornia, einops and diffusers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch

from .stand_ins import (
    Anything,
    Box,
    compare,
    expect,
    import_libraries,
    need,
    replace_missing,
    run_without_and_with,
    soft,
    talking_head,
    working_folder,
)
from .wav2lip import write_video

COUNT = 18
CAPTURED: list[np.ndarray] = []


class Autoencoder(torch.nn.Module):
    """Decodes the images that it has encoded last, softened; RGB, -1..1."""

    device = torch.device("cpu")

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Autoencoder:
        return cls()

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(block_out_channels=[1] * 4, latent_channels=4)
        self.images = torch.empty(0)

    def encode(self, images: torch.Tensor) -> Any:
        self.images = images
        latents = torch.zeros(len(images), 4, *(side // 8 for side in images.shape[2:]))
        distribution = SimpleNamespace(sample=lambda generator=None: latents.to(images.dtype))
        return SimpleNamespace(latent_dist=distribution)

    def decode(self, latents: torch.Tensor) -> Any:
        return SimpleNamespace(sample=soft(self.images[: len(latents)]).to(latents.dtype))


class Denoiser(torch.nn.Module):
    """Finds no noise."""

    device = torch.device("cpu")
    add_audio_layer = True
    config = SimpleNamespace(sample_size=64, _diffusers_version="0.32.2")

    def forward(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(sample=torch.zeros_like(latents[:, :4]))


class AudioFeatures:
    """Those of `COUNT` frames."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def audio2feat(self, path: str) -> None:
        pass

    def feature2chunks(self, feature_array: None, fps: int) -> list[torch.Tensor]:
        return [torch.zeros(50, 384)] * COUNT


class Detector:
    """Finds the same 106 points in every frame: eyes and nose of a face that fills the box."""

    def __init__(self, box: Box) -> None:
        left, top, right, bottom = box
        points = np.zeros((106, 2))
        for numbers, (x, y) in {
            (43, 48, 49, 51, 50): (0.30, 0.30),
            (101, 102, 103, 104, 105): (0.70, 0.30),
            (74, 77, 83, 86): (0.50, 0.55),
        }.items():
            points[list(numbers)] = left + x * (right - left), top + y * (bottom - top)
        self.box, self.points = box, points

    def __call__(self, frame: np.ndarray) -> tuple[Box, np.ndarray]:
        return self.box, self.points


def check(folder: Path) -> None:
    """Run the script at both of the host's resolutions."""
    need("kornia", "einops", "diffusers")
    import_libraries()
    replace_missing("decord", "insightface", "insightface.app", "librosa", "librosa.filters")
    replace_missing("soundfile", "accelerate", "accelerate.utils", "matplotlib")
    replace_missing("matplotlib.pyplot", "imageio", "scipy", "ffmpeg", "tiktoken", "decord.bridge")
    sys.path.insert(0, str(folder))
    sys.modules["DeepCache"] = ModuleType("DeepCache")  # it takes a real network apart
    vars(sys.modules["DeepCache"])["DeepCacheSDHelper"] = Anything
    import diffusers
    import latentsync.pipelines.lipsync_pipeline as module
    from latentsync.models.unet import UNet3DConditionModel
    from latentsync.utils import affine_transform, image_processor
    from latentsync.whisper import audio2feature

    frames, boxes = talking_head(COUNT)
    constructor = image_processor.ImageProcessor

    def processor(resolution: int, device: str, mask_image: Any) -> Any:
        result = constructor(resolution, "cpu", mask_image)
        result.face_detector = Detector(boxes[0])
        return result

    diffusers.AutoencoderKL = Autoencoder
    UNet3DConditionModel.from_pretrained = lambda *args, **kwargs: (Denoiser(), None)
    audio2feature.Audio2Feature = AudioFeatures
    # half precision, of a GPU
    affine_transform.AlignRestore.__init__.__defaults__ = (3, 256, "cpu", torch.float32)
    pipeline: Any = module.LipsyncPipeline
    pipeline.to = lambda self, device: self
    module.ImageProcessor = processor
    module.check_ffmpeg_installed = lambda: None
    module.read_audio = lambda path: torch.zeros(16000)
    module.write_video = lambda path, written, fps: CAPTURED.extend(written[..., ::-1])
    os.chdir(folder)  # its paths of configurations and of the mask are relative
    module.subprocess = SimpleNamespace(run=lambda *args, **kwargs: None)

    def collect() -> list[np.ndarray]:
        written = list(CAPTURED)
        CAPTURED.clear()
        return written

    for name in ("stage2.yaml", "stage2_512.yaml"):
        if not (folder / "configs/unet" / name).is_file():
            continue
        _check_configuration(folder, name, frames, boxes[0], collect)


def _check_configuration(
    folder: Path, name: str, frames: list[np.ndarray], box: Box, collect: Any
) -> None:
    with working_folder() as work:
        video = str(work / "face.mp4")
        write_video(video, frames)
        (work / "voice.wav").touch()
        os.chdir(folder)
        words = ["scripts/inference.py", "--unet_config_path", f"configs/unet/{name}"]
        words += ["--inference_ckpt_path", "weights.pt", "--inference_steps", "2"]
        words += ["--video_path", video, "--audio_path", str(work / "voice.wav")]
        words += ["--video_out_path", str(work / "out.mp4")]
        if "--temp_dir" in (folder / words[0]).read_text(encoding="utf-8"):
            words += ["--temp_dir", str(work / "temp")]
        plain, ours = run_without_and_with(words, collect)
    expect(len(plain) == COUNT, f"{len(plain)} of {COUNT} frames")
    height, width = frames[0].shape[:2]
    left, top, right, bottom = box
    # the host's mask begins between the eyes and the nose, and covers the cheeks
    across, down = (right - left) // 4, (bottom - top) // 4
    mouth = (
        max(0, left - across),
        top + down,
        min(width, right + across),
        min(height, bottom + down),
    )
    compare(f"{words[0]}, {name}", plain, ours, [mouth] * COUNT)
