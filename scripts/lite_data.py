"""Training data for the lite sharpener: crops with true detail, and what hosts do to them.

Arrays are RGB, uint8, height x width x 3. A *target* is 512 px, an *input* is 256 px of the same
view. ``lite_people.json`` lists the files of every person and the split that the person belongs to;
``folder/name`` is a file under ``--data``, ``owner/name:path`` one of a public repository that was
cloned to ``--repositories``/owner/name.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from musetalk_enhance.report.metrics import fine_detail_energy

Image = NDArray[np.uint8]
Box = tuple[float, float, float, float]
Point = tuple[float, float]
TARGET, INPUT, HOST = 512, 256, 96
SPLITS = ("train", "validation", "test")
PEOPLE = Path(__file__).with_name("lite_people.json")

# People of the first split, never trained on (the scripts for the meter and alignment use it).
# d11 and s11 show the same child, so both stay on the training side.
HELD_OUT = frozenset({"musetalk_sun", "d3", "d9", "d18", "s32", "s1", "s42", "s8", "astronaut"})
MIN_WINDOW = 470  # px of the source that a 512 px target may be made of: enlarged by 9 % at most
MIN_DETAIL = 0.9  # gray levels that 256 px cannot hold; with less a target teaches blur
CLIP_FRAMES, STILL_WINDOWS = 14, 8


@dataclass(frozen=True)
class Crop:
    """One cached 512 px target.

    Attributes:
        person: number of the person in its split.
        source: file, as in ``lite_people.json``.
        frame: index in the video, 0 for stills.
        window_px: width of the window in the source.
        detail: see `detail`.
        points: eyes and mouth in pixels of the target.
        next_index: index of the crop of the next frame under the same window, or None.
    """

    person: int
    source: str
    frame: int
    window_px: int
    detail: float
    points: list[Point]
    next_index: int | None = None


def sharpness(image_rgb: Image) -> float:
    """Laplacian energy: variance of ``cv2.Laplacian`` of the 8-bit gray image."""
    return float(cv2.Laplacian(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def fine_energy(image_rgb: Image) -> float:
    """Energy of fine detail: mean square Laplacian of the gray image after a 0.8 px Gaussian."""
    return fine_detail_energy(np.ascontiguousarray(image_rgb[..., ::-1]))


def grid(image_rgb: Image, period: int = 4) -> float:
    """How much detail depends on where a pixel lies in cells of ``period`` px: dots, crosshatch.

    Deviation of the mean ``|Laplacian|`` between the places in a cell, over its mean. Photographs
    have 0.01, their bicubic enlargements 0.02; above 0.1 dots are seen.
    """
    gray = cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    laplacian = np.abs(cv2.Laplacian(gray, cv2.CV_32F))
    rows, columns = (side // period for side in laplacian.shape)
    cells = laplacian[: rows * period, : columns * period].reshape(rows, period, columns, period)
    places = cells[1:-1, :, 1:-1].mean((0, 2))
    return float(places.std() / max(1e-9, places.mean()))


def detail(target_rgb: Image) -> float:
    """RMS in gray levels of what a target loses on its way through half its size."""
    gray = cv2.cvtColor(target_rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    small = cv2.resize(gray, (INPUT, INPUT), interpolation=cv2.INTER_AREA)
    back = cv2.resize(small, (TARGET, TARGET), interpolation=cv2.INTER_CUBIC)
    return float(np.sqrt(np.square(gray - back).mean()))


def resize(image_rgb: Image, size: int) -> Image:
    """Square resize: area when shrinking (no aliasing), Lanczos when enlarging."""
    shrink = min(image_rgb.shape[:2]) >= size
    mode = cv2.INTER_AREA if shrink else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(image_rgb, (size, size), interpolation=mode), np.uint8)


def read_frames(path: Path, count: int, following: int = 0) -> Iterator[tuple[int, Image]]:
    """About ``count`` evenly spaced RGB frames of a video, or the one image of an image file.

    Each frame of a video comes with the ``following`` frames after it.
    """
    if path.suffix != ".mp4":
        image = cv2.imread(str(path))
        if image is not None:
            yield 0, np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
        return
    video = cv2.VideoCapture(str(path))
    step = max(1 + following, int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // count)
    index = 0
    while video.grab():
        if 0 <= index % step - (step - following) // 2 <= following:
            ok, frame = video.retrieve()
            if ok:
                yield index, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        index += 1
    video.release()


class FaceFinder:
    """YuNet; ``find`` gives the best face as ``x, y, w, h`` in pixels, or None."""

    def __init__(self, model: Path) -> None:
        self._net = cv2.FaceDetectorYN.create(str(model), "", (320, 320), 0.7, 0.3, 50)

    def find(self, image_rgb: Image) -> Box | None:
        """Box of the largest face."""
        face = self.detect(image_rgb)
        return None if face is None else face[0]

    def detect(self, image_rgb: Image) -> tuple[Box, list[Point]] | None:
        """Box of the largest face, and its eyes and the middle of its mouth."""
        height, width = image_rgb.shape[:2]
        scale = min(1.0, 640 / max(height, width))
        size = (round(width * scale), round(height * scale))
        small = cv2.resize(image_rgb[..., ::-1], size, interpolation=cv2.INTER_AREA)
        self._net.setInputSize((small.shape[1], small.shape[0]))
        faces: Any = self._net.detect(small)[1]
        if faces is None:
            return None
        values = [float(v) / scale for v in max(faces, key=lambda face: face[2] * face[3])[:14]]
        x, y, w, h = values[:4]
        eyes = [(values[4], values[5]), (values[6], values[7])]
        mouth = ((values[10] + values[12]) / 2, (values[11] + values[13]) / 2)
        return (x, y, w, h), [*eyes, mouth]


def tight_crop(image_rgb: Image, box_xywh: Box, grow: float = 0.0) -> Image:
    """Forehead to chin, squashed to a 512 px square, as MuseTalk boxes a face."""
    height, width = image_rgb.shape[:2]
    x, y, w, h = box_xywh
    x1, x2 = max(0, round(x - grow * w)), min(width, round(x + w + grow * w))
    y1, y2 = max(0, round(y - grow * h)), min(height, round(y + h + grow * h))
    return resize(image_rgb[y1:y2, x1:x2], TARGET)


def face_window(
    shape: tuple[int, ...], box_xywh: Box, zoom: float, aspect: float
) -> tuple[int, int, int, int] | None:
    """Window ``left, top, width, height`` around a face, inside the image.

    ``zoom`` is its width in widths of the face, ``aspect`` its height in widths (hosts squash
    a face that is higher than wide to a square). None where the image has no `MIN_WINDOW` px.
    """
    height, width = shape[:2]
    x, y, w, h = box_xywh
    if min(height, width) < MIN_WINDOW:
        return None
    across = min(max(round(zoom * w), MIN_WINDOW), width, height)
    down = min(max(round(across * aspect), MIN_WINDOW), height)
    left = min(max(round(x + w / 2 - across / 2), 0), width - across)
    top = min(max(round(y + h / 2 - down / 2), 0), height - down)
    return left, top, across, down


def read_people(split: str) -> list[list[str]]:
    """Files of every person of a split; raises ``ValueError`` for a file that must not be used."""
    table = json.loads(PEOPLE.read_text())
    for name in (name for files in table[split] for name in files):
        for pattern in table["never"]:
            if re.search(pattern, name):
                raise ValueError(f"{name} is kept for judging the result")
    people: list[list[str]] = table[split]
    return people


def locate(name: str, data: Path, repositories: Path) -> Path:
    """Path of a file of ``lite_people.json``."""
    if ":" in name:
        repository, _, path = name.partition(":")
        return repositories / repository / path
    return data / name


def load_source(
    name: str, data: Path, repositories: Path, count: int, following: int
) -> Iterator[tuple[int, Image]]:
    """Frames of a video, or the image of a still; scikit-image's ``astronaut`` by its name."""
    if name == "astronaut":
        import skimage.data

        astronaut: Any = skimage.data.astronaut
        yield 0, np.asarray(astronaut(), np.uint8)
    else:
        yield from read_frames(locate(name, data, repositories), count, following)


def crops_of(
    frames: Iterator[tuple[int, Image]],
    finder: FaceFinder,
    rng: np.random.Generator,
    source: str,
    person: int,
    training: bool,
) -> Iterator[tuple[Crop, Image]]:
    """Usable crops of one file; framed plainly, unless they are for training."""
    previous = -2
    window: tuple[int, int, int, int] | None = None
    still = not source.endswith(".mp4")
    for index, frame in frames:
        face = finder.detect(frame)
        if face is None:
            continue
        box, points = face
        for repeat in range(STILL_WINDOWS if still and training else 1):
            following = index == previous + 1 and window is not None
            if not following:
                widest = 1.3 if repeat < 4 else 2.6
                zoom = float(rng.uniform(1.0, widest)) if training else 1.25
                aspect = float(rng.uniform(1.0, 1.3)) if training else 1.15
                window = face_window(frame.shape, box, zoom, aspect)
            if window is None:
                continue
            left, top, across, down = window
            target = resize(frame[top : top + down, left : left + across], TARGET)
            strength = detail(target)
            if strength < MIN_DETAIL:
                continue
            place = [
                ((px - left) * TARGET / across, (py - top) * TARGET / down) for px, py in points
            ]
            yield Crop(person, source, index, across, strength, place), target
        previous = index


def build_cache(
    data: Path, repositories: Path, yunet: Path, work: Path, seed: int, split: str
) -> None:
    """Write ``SPLIT.npy`` (uint8, N x 512 x 512 x 3) and ``SPLIT.json`` once to ``work``."""
    if (work / f"{split}.json").exists():
        return
    finder, rng = FaceFinder(yunet), np.random.default_rng(seed)
    training = split == "train"
    crops: list[Crop] = []
    images: list[Image] = []
    for person, files in enumerate(read_people(split)):
        for name in files:
            count = CLIP_FRAMES if training else 3
            frames = load_source(name, data, repositories, count, int(training))
            for crop, image in crops_of(frames, finder, rng, name, person, training):
                crops.append(crop)
                images.append(image)
    records = [asdict(crop) for crop in crops]
    for index, (first, second) in enumerate(zip(crops, crops[1:], strict=False)):
        if (first.source, first.frame + 1) == (second.source, second.frame):
            records[index]["next_index"] = index + 1
    np.save(work / f"{split}.npy", np.stack(images))
    (work / f"{split}.json").write_text(json.dumps(records))


def load_cache(work: Path, split: str) -> tuple[list[Crop], Image]:
    """Records and memory-mapped images of a split."""
    entries = json.loads((work / f"{split}.json").read_text())
    return [Crop(**entry) for entry in entries], np.load(work / f"{split}.npy", mmap_mode="r")


def _scale(image_rgb: Image, size: int, mode: str) -> Image:
    """``F.interpolate`` on a uint8 image; antialiased for anything but area when it shrinks."""
    tensor = to_tensor(image_rgb[None]) * 255
    shrink = mode != "area" and size < image_rgb.shape[0]
    options: dict[str, Any] = {}
    if mode != "area":
        options = {"align_corners": False, "antialias": shrink}
    out = F.interpolate(tensor, size=(size, size), mode=mode, **options)
    return out[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def soften(image_rgb: Image, size: int) -> Image:
    """torch's area down to ``size``, bicubic back; shape and dtype are kept.

    torch averages whole pixels, so that at ratios between integers it blurs more than OpenCV does
    (`soften_exact`).
    """
    side = image_rgb.shape[0]
    small = F.interpolate(to_tensor(image_rgb[None]) * 255, size=(size, size), mode="area")
    out = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)
    return out[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def soften_exact(image_rgb: Image, size: int) -> Image:
    """OpenCV's area (pixels by the part that is covered) down to ``size``, bicubic back."""
    return _scale(resize(image_rgb, size), image_rgb.shape[0], "bicubic")


def jpeg(image_rgb: Image, quality: int) -> Image:
    """Through a JPEG file."""
    packed = cv2.imencode(".jpg", image_rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    opened = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(opened[..., ::-1], np.uint8)


def h264(frames_rgb: list[Image], crf: int) -> list[Image]:
    """Through an H.264 file (4:2:0, 25 fps)."""
    file = io.BytesIO()
    height, width = frames_rgb[0].shape[:2]
    with av.open(file, "w", format="mp4") as output:
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        stream = output.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in frames_rgb:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as opened:
        return [frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]


def _noisy(image_rgb: Image, rng: np.random.Generator, sigma: float, channels: int) -> Image:
    noise = rng.normal(0, sigma, (*image_rgb.shape[:2], channels))
    return np.clip(np.rint(image_rgb + noise), 0, 255).astype(np.uint8)


def _compressed(image_rgb: Image, rng: np.random.Generator) -> Image:
    """JPEG or H.264 at the qualities that hosts write and streams arrive with."""
    if rng.random() < 0.4:
        return jpeg(image_rgb, int(rng.integers(70, 98)))
    return h264([image_rgb], int(rng.integers(14, 29)))[0]


DECODER_SHARE = 0.5
"""Share of the samples that a latent decoder softens, where there are views of it."""
RESIZE_SHARE, BLUR_SHARE, COMPRESS_SHARE = 0.55, 0.08, 0.1
"""Shares of the other kinds among the rest; what is left stays as sharp as 256 px can be."""


def degrade(
    target_rgb: Image,
    decoded_rgb: Image | None,
    rng: np.random.Generator,
    noise_rng: np.random.Generator | None = None,
) -> Image:
    """512 px target to 256 px input: one kind of softness, or a chain of two or three.

    Args:
        target_rgb: the target.
        decoded_rgb: the 256 px view as a latent decoder gives it back, or None for another kind.
        rng: draws the kind and its strength. No draw shifts the color.
        noise_rng: draws the noise itself; ``rng`` by default.
    """
    if decoded_rgb is not None:
        image = decoded_rgb
        if rng.random() < 0.06:
            image = soften(image, int(rng.integers(144, INPUT)))
        if rng.random() < 0.25:
            image = _compressed(image, rng)
        return image
    area = rng.random() < 0.8
    image = resize(target_rgb, INPUT) if area else _scale(target_rgb, INPUT, "bicubic")
    steps = np.cumsum([RESIZE_SHARE, BLUR_SHARE, COMPRESS_SHARE])
    kinds = ("resize", "blur", "compress", "none")
    kind = kinds[int(np.searchsorted(steps, float(rng.random())))]
    if kind == "none":
        return image
    if kind == "resize":
        size = round(72 * (INPUT / 72) ** float(rng.random()))
        if rng.random() < 0.4:
            small = resize(image, size)
        else:
            small = _scale(image, size, "area" if rng.random() < 0.6 else "bilinear")
        image = _scale(small, INPUT, "bicubic" if rng.random() < 0.9 else "bilinear")
    elif kind == "blur":
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 2))), np.uint8)
    if rng.random() < 0.2:
        sigma, channels = float(rng.uniform(0.2, 2.0)), int(rng.choice([1, 3]))
        image = _noisy(image, noise_rng or rng, sigma, channels)
    if kind == "compress" or rng.random() < 0.25:
        image = _compressed(image, rng)
    return image


Decoder = Any  # ``decoder_soft(crops, blend, noise, generator)`` of a tiny latent autoencoder


def load_decoder(path: Path) -> Decoder:
    """``decoder_soft`` of a file such as the shared ``tiny_autoencoder.py``."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("tiny_autoencoder", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.decoder_soft


def decode(decoder: Decoder, image_rgb: Image, blend: float, noise: float, seed: int) -> Image:
    """``image_rgb`` through a latent decoder."""
    generator = torch.Generator().manual_seed(seed)
    out = decoder(to_tensor(image_rgb[None]), blend, noise, generator)
    decoded: Image = (out[0].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
    return decoded


SOFT_DECODED, SOFT_OTHERS = 0.4, 0.25
"""Shares of the samples, of a decoder and of other kinds, whose target is made softer first: a face
of a soft film.

Else a network learns that every original is as sharp as 512 px can be, and takes the person's own
softness for a host's."""
BLURRED = 0.8
"""Share of a Gaussian among the ways to make one softer, but for a decoder's samples.

The detail of real films falls off early and slowly, and a resize to 96 px leaves that to be seen.
Where a target was resized itself, only what the next resize takes anyway would be missing, and a
soft original could not be told from a crisp one."""


def soft_size(rng: np.random.Generator) -> int:
    """Side in pixels that a soft target holds the detail of."""
    return round(104 * (440 / 104) ** float(rng.random()))


def soften_target(target_rgb: Image, size: int) -> Image:
    """The target with the detail that ``size`` px hold, enlarged as players and hosts do it."""
    return target_rgb if size >= TARGET else _scale(resize(target_rgb, size), TARGET, "bicubic")


def film(target_rgb: Image, rng: np.random.Generator) -> Image:
    """The target as a film shows it: softer, or as it is."""
    if rng.random() >= SOFT_OTHERS:
        return target_rgb
    if rng.random() >= BLURRED:
        return soften_target(target_rgb, soft_size(rng))
    sigma = 0.8 * (4.0 / 0.8) ** float(rng.random())
    return np.asarray(cv2.GaussianBlur(target_rgb, (0, 0), sigma), np.uint8)


PLAIN_SHARE = 0.25
"""Share of the decoded views of latents as they are: what a decoder does to a face by itself."""


def latent_softness(rng: np.random.Generator) -> tuple[float, float]:
    """Share of the latents' blur, 0 to 0.55, and noise, 0 to 0.25 of their spread, to mix in."""
    if rng.random() < PLAIN_SHARE:
        return 0.0, 0.0
    blend = float(rng.uniform(0, 0.55)) if rng.random() < 0.85 else 0.0
    noise = float(rng.uniform(0, 0.25)) if rng.random() < 0.8 else 0.0
    return blend, noise


class DecodedCache:
    """Decoder outputs of the 256 px views of all targets, in ``decoded.npy`` under ``work``.

    ``refresh`` replaces some of them in turn with another blend and noise, so that a long run sees
    ever new ones while each step costs little. A frame and the one after it get the same blend, and
    noise of their own.
    """

    def __init__(
        self, work: Path, crops: list[Crop], targets: Image, decoder: Decoder | None, versions: int
    ) -> None:
        self.crops, self.targets, self.decoder, self.versions = crops, targets, decoder, versions
        shape = (len(targets) * versions, INPUT, INPUT, 3)
        path, self.path = work / "decoded.npy", work / "decoded.json"
        stored: list[int] = json.loads(self.path.read_text()) if self.path.exists() else [0, 0]
        # turns that were decoded, and how many images the ring holds
        self.total = stored[0] if stored[1] == shape[0] and path.exists() else 0
        mode = "r+" if self.total else "w+"
        self.images = np.lib.format.open_memmap(path, mode, np.uint8, shape)
        sizes = work / "decoded_sizes.npy"
        self.sizes = np.lib.format.open_memmap(
            sizes, mode if sizes.exists() else "w+", np.int32, shape[:1]
        )
        """`soft_size` of the target that each view was decoded of."""
        second = {crop.next_index for crop in crops}
        leaders = [index for index in range(len(targets)) if index not in second]
        self.order = [leaders[i] for i in np.random.default_rng(0).permutation(len(leaders))]
        self.turns = np.zeros(len(targets), np.int64)
        full, rest = divmod(self.total, len(self.order))
        for place, index in enumerate(self.order):
            self._mark(index, full + int(place < rest))

    def _mark(self, index: int, turns: int) -> None:
        for each in (index, self.crops[index].next_index):
            if each is not None:
                self.turns[each] = turns

    def refresh(self, count: int) -> None:
        """Decode ``count`` targets more."""
        if self.decoder is None:
            return
        for _ in range(count):
            turn, place = divmod(self.total, len(self.order))
            index = self.order[place]
            rng = np.random.default_rng((17, self.total))
            # other places of the latents' grid, mirrored at the edge
            shift = [int(v) for v in rng.integers(0, 8, 2)] if rng.random() < 0.5 else [0, 0]
            blend, noise = latent_softness(rng)
            size = soft_size(rng)
            if rng.random() >= SOFT_DECODED:
                size = TARGET
            for each in (index, self.crops[index].next_index):
                if each is None:
                    continue
                view = resize(soften_target(np.asarray(self.targets[each]), size), INPUT)
                if any(shift):
                    margins = tuple((s, 8 - s) for s in shift)
                    view = np.pad(view, (*margins, (0, 0)), mode="reflect")
                seed = 2 * self.total + (each != index)
                with torch.autocast("cpu", torch.bfloat16):  # half the time where there is bf16
                    out = decode(self.decoder, view, blend, noise, seed)
                out = out[shift[0] : shift[0] + INPUT, shift[1] : shift[1] + INPUT]
                slot = each * self.versions + turn % self.versions
                self.images[slot], self.sizes[slot] = out, size
            self._mark(index, turn + 1)
            self.total += 1
        self.images.flush()
        self.sizes.flush()
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps([self.total, len(self.images)]))
        partial.replace(self.path)

    def complete(self) -> bool:
        """Whether every target has a view."""
        return self.total >= len(self.order)

    def get(self, index: int, rng: np.random.Generator) -> tuple[Image, int] | None:
        """A decoded view of target ``index`` and the `soft_size` of it; None: there is none yet."""
        ready = min(int(self.turns[index]), self.versions)
        slot = index * self.versions + int(float(rng.random()) * ready)
        return (np.asarray(self.images[slot]), int(self.sizes[slot])) if ready else None


# name: resize side, or blend and noise of the decoder, or "h264"
CONDITIONS: dict[str, Any] = {
    "80 px": 80,
    "96 px": 96,
    "112 px": 112,
    "128 px": 128,
    "160 px": 160,
    "none": None,
    "decoder 0/0": (0.0, 0.0),
    "decoder .25/.1": (0.25, 0.1),
    "decoder .4/.15": (0.4, 0.15),
    "H.264": "h264",
}


def condition(name: str, target_rgb: Image, decoder: Decoder | None, seed: int) -> Image | None:
    """256 px input of one 512 px target; None for decoder softness without a decoder.

    H.264 is 96 px, bicubic back, then CRF 23.
    """
    how, small = CONDITIONS[name], resize(target_rgb, INPUT)
    if how is None:
        return small
    if how == "h264":
        return h264([soften_exact(small, HOST)], 23)[0]
    if isinstance(how, tuple):
        return None if decoder is None else decode(decoder, small, how[0], how[1], seed)
    return soften_exact(small, how)


def recolor(images_rgb: list[Image], rng: np.random.Generator) -> list[Image]:
    """Exposure, contrast and white balance drawn anew, the same for all: more skins and lights."""
    gain = rng.uniform(0.8, 1.12) * rng.uniform(0.93, 1.07, 3)
    table = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.8, 1.25) * gain * 255
    lookup = np.clip(np.rint(table), 0, 255).astype(np.uint8)[None]
    return [
        np.asarray(cv2.LUT(np.ascontiguousarray(image), lookup), np.uint8) for image in images_rgb
    ]


class Patches(NamedTuple):
    """A batch: uint8 inputs (N, p, p, 3) and targets (N, 2p, 2p, 3); the soft faces that they are
    of, (M, 256, 256, 3), and which of them each is of, (N,)."""

    inputs: torch.Tensor
    targets: torch.Tensor
    whole: torch.Tensor
    owner: torch.Tensor


class PatchSampler:
    """Seeded batches: a person, then a crop, then places inside it, often at the eyes and mouth."""

    def __init__(
        self,
        crops: list[Crop],
        images: Image,
        seed: int,
        patch: int = 96,
        decoded: DecodedCache | None = None,
    ) -> None:
        self.crops, self.images, self.seed, self.patch = crops, images, seed, patch
        self.decoded = decoded
        by_person: dict[int, list[int]] = {}
        for index, crop in enumerate(crops):
            by_person.setdefault(crop.person, []).append(index)
        self.groups = list(by_person.values())
        weight = np.sqrt([len(group) for group in self.groups])
        self.weight = weight / weight.sum()
        self.pairs = [
            leaders
            for group in self.groups
            if (leaders := [index for index in group if crops[index].next_index is not None])
        ]

    def place(self, crop: Crop, rng: np.random.Generator, patch: int) -> tuple[int, int]:
        """Even top and left of a patch in the input."""
        free = INPUT - patch
        center = rng.uniform(0, free, 2) + patch / 2
        draw = float(rng.random())
        if crop.points and draw < 0.55:
            x, y = crop.points[2 if draw < 0.3 else int(rng.integers(2))]
            center = np.array([y, x]) / 2 + rng.normal(0, patch / 5, 2)
        top, left = (int(np.clip(v - patch / 2, 0, free)) // 2 * 2 for v in center)
        return top, left

    def batch(self, step: int, count: int, kind: str = "patches", per_image: int = 2) -> Patches:
        """Batch of a step.

        ``kind`` "pairs" puts the following frames in the second half, under the same softness, with
        noise of their own; "faces" gives a quarter of the images, whole. ``per_image`` patches are
        of one face.
        """
        rng = np.random.default_rng((self.seed, step))
        groups, weight, patch = self.groups, self.weight, self.patch
        if kind == "pairs":
            groups, count = self.pairs, count // 2
            weight = np.full(len(groups), 1 / len(groups))
        elif kind == "faces":
            patch, count, per_image = INPUT, max(1, count // 4), 1
        inputs: list[list[Image]] = [[], []]
        targets: list[list[Image]] = [[], []]
        whole: list[list[Image]] = [[], []]
        owners: list[list[int]] = [[], []]
        while len(inputs[0]) < count:
            group = groups[int(rng.choice(len(groups), p=weight))]
            index = group[int(rng.integers(len(group)))]
            indices = [index]
            following = self.crops[index].next_index
            if kind == "pairs" and following is not None:
                indices.append(following)
            flipped, flat = rng.random() < 0.5, rng.random() < 0.05
            patches = min(per_image, count - len(inputs[0]))
            places = [self.place(self.crops[index], rng, patch) for _ in range(patches)]
            seed, tone = (int(v) for v in rng.integers(2**31, size=2))
            for half, each in enumerate(indices):
                target, image = self.view(each, seed, half, tone, flat)
                if flipped:
                    target, image = target[:, ::-1], image[:, ::-1]
                owners[half] += [len(whole[half])] * len(places)
                whole[half].append(image)
                for top, left in places:
                    left = INPUT - patch - left if flipped else left
                    rows, columns = slice(top, top + patch), slice(left, left + patch)
                    inputs[half].append(image[rows, columns])
                    rows, columns = (slice(2 * s.start, 2 * s.stop) for s in (rows, columns))
                    targets[half].append(target[rows, columns])
        owner = owners[0] + [len(whole[0]) + number for number in owners[1]]
        return Patches(
            *(torch.from_numpy(np.stack(each[0] + each[1])) for each in (inputs, targets, whole)),
            torch.tensor(owner),
        )

    def view(self, index: int, seed: int, half: int, tone: int, flat: bool) -> tuple[Image, Image]:
        """Target and input; the same ``seed`` and ``tone`` give the same softness and light."""
        rng, noise = np.random.default_rng(seed), np.random.default_rng((seed, half))
        target = np.asarray(self.images[index])
        view = self.decoded.get(index, rng) if self.decoded else None
        decoded = None
        if view is not None and rng.random() < DECODER_SHARE:
            decoded, size = view
            target = soften_target(target, size)
        else:
            target = film(target, rng)
        if flat:  # a flat image has no detail to add
            colors = np.random.default_rng(tone).integers(0, 256, 3)
            target, decoded = np.full_like(target, colors.astype(np.uint8)), None
        views = [target] if decoded is None else [target, decoded]
        lit = recolor(views, np.random.default_rng(tone))
        return lit[0], degrade(lit[0], None if decoded is None else lit[1], rng, noise)


Batch = tuple[str, int, Patches]


class BatchStream(IterableDataset[Batch]):
    """Batches from a step on, for a ``DataLoader`` with one worker.

    Beside them the worker decodes new views: one every ``decode_every`` steps, twice as many until
    every target has one. Yields the kind of batch, the number decoded so far, and the batch.
    """

    def __init__(self, args: Any, start: int) -> None:
        self.args, self.start = args, start

    def kind(self, step: int, pairs: bool) -> str:
        """Of the batch of a step."""
        args = self.args
        if args.stage == 2 and args.meter and step % args.face_every == 2:
            return "faces"
        if args.stage == 2 and args.flicker and pairs and step % args.pair_every == 1:
            return "pairs"
        return "patches"

    def __iter__(self) -> Iterator[Batch]:
        args = self.args
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        crops, images = load_cache(args.work, "train")
        decoder = load_decoder(args.decoder) if args.decoder else None
        decoded = DecodedCache(args.work, crops, images, decoder, args.versions)
        sampler = PatchSampler(crops, images, args.seed, args.patch, decoded)
        for step in range(self.start, args.steps):
            every = args.decode_every if decoded.complete() else args.decode_every // 2
            if step % max(1, every) == 0:
                decoded.refresh(1)
            kind = self.kind(step, bool(sampler.pairs))
            yield kind, decoded.total, sampler.batch(step, args.batch, kind, args.per_face)


def to_tensor(images_rgb: Image | torch.Tensor) -> torch.Tensor:
    """uint8 ``(N,H,W,3)`` to float ``(N,3,H,W)``, 0..1."""
    pixels = torch.as_tensor(
        np.array(images_rgb) if isinstance(images_rgb, np.ndarray) else images_rgb
    )
    return pixels.permute(0, 3, 1, 2).float() / 255
