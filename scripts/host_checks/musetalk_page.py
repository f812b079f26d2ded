"""MuseTalk's ``app.py``: two requests at the same time, without us, with us, and one alone.

The page, the loop, the video files, boxes and blending are the host's. Stand-ins are the networks,
the face boxes and the face parser, and, where they are missing, the packages of the page, of the
downloads and of the final video; compared are the images that the host would write into it.
"""

from __future__ import annotations

import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch

from .stand_ins import (
    FLAGS,
    Anything,
    compare,
    expect,
    import_libraries,
    replace_missing,
    soft,
    talking_head,
    working_folder,
)

COUNT = 10
WEIGHTS = (
    *("musetalkV15/musetalk.json", "sd-vae/config.json", "whisper/config.json"),
    *("dwpose/dw-ll_ucoco_384.pth", "syncnet/latentsync_syncnet.pt"),
    *("face-parse-bisent/79999_iter.pth", "face-parse-bisent/resnet18-5c106cde.pth"),
)
REQUESTS: dict[str, Any] = {"functions": {}, "clips": [], "boxes": {}}


class Finished(Exception):
    """Raised where the host would write its video: its frames are on disk by then."""


class Autoencoder(torch.nn.Module):
    """A latent is the number of an image that was encoded, and decodes to it, softened."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.images: list[torch.Tensor] = []
        self.lock = threading.Lock()

    def encode(self, images: torch.Tensor) -> Any:
        with self.lock:
            self.images.append(images[0].clone())
            latent = torch.full((1, 4, 32, 32), float(len(self.images) - 1))
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: latent))

    def decode(self, latents: torch.Tensor) -> Any:
        numbers = latents[:, 0, 0, 0].round().long().tolist()
        return SimpleNamespace(sample=soft(torch.stack([self.images[n] for n in numbers])))


class Network(torch.nn.Module):
    """Returns the latents of the reference."""

    dtype = torch.float32

    def forward(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return SimpleNamespace(sample=latents[:, 4:8])


class AudioProcessor:
    """As many chunks of audio as a clip has frames."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def get_audio_feature(self, path: str, **kwargs: Any) -> tuple[None, int]:
        return None, COUNT

    def get_whisper_chunk(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(COUNT, 50, 384)


class FaceParsing:
    """An ellipse in the middle of the crop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, image: Any, size: Any = (512, 512), mode: str = "raw") -> Any:
        from PIL import Image

        mask = np.zeros((512, 512), np.uint8)
        cv2.ellipse(mask, (256, 262), (165, 215), 0, 0, 360, 255, -1)
        return Image.fromarray(mask).resize(image.size)


class Button(Anything):
    """A button of the page: its function is kept under its label."""

    def __init__(self, label: str = "", **kwargs: Any) -> None:
        self.label = label

    def click(self, fn: Any, **kwargs: Any) -> None:
        REQUESTS["functions"][self.label] = fn


class Blocks(Anything):
    """The page: when it is launched, every clip is a request in a thread of its own."""

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def queue(self) -> Blocks:
        return self

    def launch(self, **kwargs: Any) -> None:
        generate = next(fn for label, fn in REQUESTS["functions"].items() if "Generate" in label)
        errors: list[BaseException] = []

        def serve(clip: str) -> None:
            try:
                generate("voice.wav", clip, 0)
            except Finished:
                pass
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=serve, args=(clip,)) for clip in REQUESTS["clips"]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in errors:
            raise error


def boxes_of(paths: list[str], shift: int = 0) -> tuple[list[Any], list[np.ndarray]]:
    """The boxes that the talking head has itself."""
    frames = [cv2.imread(path) for path in paths]
    clip = Path(paths[0]).parent.name
    return [REQUESTS["boxes"][clip]] * len(frames), frames


def module(name: str, **values: Any) -> None:
    """Put a module with these names in the place of one of the host's."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(values)


def replace_networks() -> None:
    """Put stand-ins in the place of what loads weights, and of the page."""
    import transformers

    page = {name: type(name, (Anything,), {}) for name in "Row Column Markdown Video".split()}
    page |= {name: type(name, (Anything,), {}) for name in "Audio Image Number Slider".split()}
    page |= {name: type(name, (Anything,), {}) for name in "Radio Textbox Progress".split()}
    for kind in page.values():
        kind.__enter__, kind.__exit__ = lambda self: self, lambda self, *exception: None
    module("gradio", Button=Button, Blocks=Blocks, **page)
    module(
        "musetalk.utils.preprocessing",
        get_landmark_and_bbox=boxes_of,
        read_imgs=lambda paths: [cv2.imread(path) for path in paths],
        coord_placeholder=(0.0, 0.0, 0.0, 0.0),
        get_bbox_range=lambda paths, shift: "",
    )
    module("musetalk.utils.face_parsing", FaceParsing=FaceParsing)
    module("musetalk.utils.audio_processor", AudioProcessor=AudioProcessor)
    transformers.WhisperModel.from_pretrained = lambda *args, **kwargs: torch.nn.Identity()
    import musetalk.models.vae as vae_module
    import musetalk.utils.utils as utils

    def load_all_model(*args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        vae = object.__new__(vae_module.VAE)
        vae.vae, vae.device, vae.scaling_factor = Autoencoder(), torch.device("cpu"), 1.0
        vae._use_float16, vae._resized_img = False, 256
        vae.transform = vae_module.transforms.Normalize(mean=[0.5] * 3, std=[0.5] * 3)
        vae._mask_tensor = vae.get_mask_tensor()
        return vae, SimpleNamespace(model=Network()), torch.nn.Identity()

    utils.load_all_model = load_all_model


def write_clip(folder: Path, frames: list[np.ndarray]) -> None:
    """A clip as a folder of images, which the host takes as well."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:08d}.png"), frame)


def run_page(clips: list[str], flags: tuple[str, ...]) -> dict[str, list[np.ndarray]]:
    """Run the page with one request for each clip at the same time; the frames of each."""
    from musetalk_enhance.cli import main

    shutil.rmtree("results", ignore_errors=True)
    REQUESTS.update(functions={}, clips=clips)
    code = main(["run", "app.py", *flags])
    expect(code == 0, f"app.py ended with {code}")
    frames = {}
    for clip in clips:
        paths = sorted(Path("results", "output", "v15", f"{clip}_voice").glob("*.png"))
        frames[clip] = [cv2.imread(str(path)) for path in paths]
    return frames


def check(folder: Path) -> None:
    """Two requests at the same time, and each with the frames that it has alone."""
    import_libraries()
    replace_missing("gdown", "ffmpeg", "moviepy", "moviepy.editor", "librosa", "soundfile")
    frames, boxes = talking_head(COUNT)
    left, top, right, bottom = boxes[0]
    width = frames[0].shape[1]
    REQUESTS["boxes"] = {
        "first": boxes[0],
        "second": (width - right, top, width - left, bottom),
    }
    with working_folder() as work:
        sys.path.insert(0, str(work))
        for name in ("app.py", "musetalk"):
            (work / name).symlink_to(folder / name)
        for name in WEIGHTS:
            path = work / "models" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        write_clip(work / "first", frames)
        write_clip(work / "second", [frame[:, ::-1] for frame in frames])
        replace_networks()
        import imageio

        def finish(*args: Any, **kwargs: Any) -> None:
            raise Finished

        imageio.mimwrite = finish
        plain = run_page(["first", "second"], ())
        ours = run_page(["first", "second"], FLAGS)
        for clip in ours:
            left, top, right, bottom = REQUESTS["boxes"][clip]
            # the host enlarges the box downward by 10 pixels, and blurs the border of its mask
            box = (max(0, left - 20), top, right + 20, bottom + 30)
            expect(len(ours[clip]) == COUNT, f"{len(ours[clip])} of {COUNT} frames")
            compare(f"app.py, {clip} request", plain[clip], ours[clip], [box] * COUNT)
            alone = run_page([clip], FLAGS)[clip]
            same = all(map(np.array_equal, alone, ours[clip]))
            expect(same, f"the {clip} request has other frames beside another")
