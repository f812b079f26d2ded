"""SadTalker's and Linly-Talker's ``AnimateFromCoeff.generate``: all that follows the rendering.

Videos are written, muxed with the audio by ffmpeg, read and enhanced by the host's own code; the
detector is YuNet. Stand-ins are the renderer, and the stages before it. Needs the host's pydub and
imageio-ffmpeg.
"""

from __future__ import annotations

import inspect
import sys
import wave
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from .stand_ins import (
    SIZE,
    MissingPackages,
    compare,
    expect,
    need,
    replace_missing,
    soft,
    talking_head,
    working_folder,
)

COUNT, SIDE = 20, 512
SCRIPT = """
import os, sys, torch
import {caller} as module
module.make_animation = lambda *args, **kwargs: torch.load("rendered.pt")
animate = object.__new__(module.{name})
animate.device = "cpu"
for part in ("generator", "kp_extractor", "he_estimator", "mapping"):
    setattr(animate, part, None)
x = dict.fromkeys(("source_image", "source_semantics", "target_semantics_list"), torch.zeros(1))
x.update(frame_num={count}, video_name="talk", audio_path="voice.wav")
animate.generate(x, os.getcwd(), "face.png", (({side}, {side}),), img_size={side})
"""


def check(folder: Path) -> None:
    """Render a clip, and let the host enhance it."""
    from musetalk_enhance import weights
    from musetalk_enhance.cli import main
    from musetalk_enhance.hosts.sadtalker import EnhancedFrames
    from musetalk_enhance.media import index_video, read_segment

    need("pydub", "imageio_ffmpeg", "skimage")
    if weights.find("YuNet") is None:
        raise MissingPackages("needs YuNet: musetalk-enhance weights fetch YuNet")
    replace_missing("safetensors")
    sys.path.insert(0, str(folder))
    import imageio

    frames, boxes = talking_head(COUNT)
    faces = np.stack([cv2.resize(frame, (SIDE, SIDE))[..., ::-1] for frame in frames])
    images = torch.from_numpy(faces.copy()).permute(0, 3, 1, 2).float() / 255
    plain: list[np.ndarray] = []
    ours: list[np.ndarray] = []
    write = imageio.mimsave

    def mimsave(path: str, images: Any, **options: Any) -> None:
        if isinstance(images, EnhancedFrames):
            video = str(Path.cwd() / "talk.mp4")
            decoded = read_segment(video, index_video(video), 0, len(images))
            plain.extend(np.array(frame.bgr) for frame in decoded)
            images = list(images)
            ours.extend(image[..., ::-1] for image in images)
        write(path, images, **options)

    imageio.mimsave = mimsave
    with working_folder() as work:
        torch.save(soft(images, 2)[None], "rendered.pt")
        with wave.open("voice.wav", "wb") as writer:
            writer.setparams((1, 2, 16000, 0, "NONE", ""))
            writer.writeframes(bytes(2 * 16000))
        caller = "src.facerender.animate"
        text = SCRIPT.format(caller=caller, name="AnimateFromCoeff", count=COUNT, side=SIDE)
        (work / "inference.py").write_text(text, encoding="utf-8")
        flags = ["--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_device", "cpu"]
        code = main(["run", "inference.py", *flags, "--gfpgan_upscale", "1"])
        expect(code == 0, f"inference.py ended with {code}")
        count = len(index_video(str(work / "talk_enhanced.mp4")))
    expect(count == COUNT, f"{count} of {COUNT} frames in the video")
    host = sys.modules[caller].AnimateFromCoeff.generate
    expect(str(folder) in inspect.getsourcefile(inspect.unwrap(host)), "the host's own code ran")
    scale = SIDE / SIZE
    margin = 96  # the template is larger than the face
    grown = [
        (
            max(0, round(left * scale) - margin),
            max(0, round(top * scale) - margin),
            min(SIDE, round(right * scale) + margin),
            min(SIDE, round(bottom * scale) + margin),
        )
        for left, top, right, bottom in boxes
    ]
    compare(f"{folder.name}, AnimateFromCoeff.generate", plain, ours, grown)
