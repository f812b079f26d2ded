"""Training data for the lite sharpener: crops with true detail, and what a talking-head VAE does to them.

Arrays are RGB, uint8, height x width x 3. A *target* is 512 px, an *input* is 256 px of the same view.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Image = NDArray[np.uint8]
TARGET, INPUT, HOST = 512, 256, 96

# Whole people kept out of training. d11 and s11 show the same child, so both stay on the training side.
HELD_OUT = frozenset({"musetalk_sun", "d3", "d9", "d18", "s32", "s1", "s42", "s8", "astronaut"})
KINDS = ("tight", "head", "patch")
KIND_SHARE = (0.55, 0.27, 0.18)
MIN_SHARPNESS = 12.0  # variance of the Laplacian, 8-bit grey: under this a target teaches blur


@dataclass(frozen=True)
class Crop:
    """One cached 512 px target: who, how framed, and the face height it was enlarged or reduced from."""

    source: str
    kind: str
    frame: int
    native_px: int
    sharpness: float


def sharpness(image_rgb: Image) -> float:
    """Laplacian energy: variance of ``cv2.Laplacian`` of the 8-bit grey picture."""
    return float(cv2.Laplacian(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def resize(image_rgb: Image, size: int) -> Image:
    """Square resize: area when shrinking (no aliasing), Lanczos when enlarging."""
    shrink = min(image_rgb.shape[:2]) >= size
    mode = cv2.INTER_AREA if shrink else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(image_rgb, (size, size), interpolation=mode), np.uint8)


def read_frames(path: Path, count: int) -> Iterator[tuple[int, Image]]:
    """About ``count`` evenly spaced RGB frames of a clip, or the one picture of an image file."""
    if path.suffix != ".mp4":
        picture = cv2.imread(str(path))
        if picture is not None:
            yield 0, np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
        return
    video = cv2.VideoCapture(str(path))
    step = max(1, int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // count)
    index = 0
    while video.grab():
        if index % step == step // 2:
            ok, frame = video.retrieve()
            if ok:
                yield index, np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        index += 1
    video.release()


class FaceFinder:
    """YuNet; ``find`` gives the best face as ``x, y, w, h`` in pixels, or None."""

    def __init__(self, model: Path) -> None:
        self._net = cv2.FaceDetectorYN.create(str(model), "", (320, 320), 0.7, 0.3, 50)

    def find(self, image_rgb: Image) -> tuple[float, float, float, float] | None:
        height, width = image_rgb.shape[:2]
        scale = min(1.0, 640 / max(height, width))
        small = cv2.resize(image_rgb[..., ::-1], (round(width * scale), round(height * scale)))
        self._net.setInputSize((small.shape[1], small.shape[0]))
        faces: Any = self._net.detect(small)[1]
        if faces is None:
            return None
        x, y, w, h = (float(v) / scale for v in max(faces, key=lambda face: face[2] * face[3])[:4])
        return x, y, w, h


def tight_crop(image_rgb: Image, box_xywh: tuple[float, float, float, float], grow: float = 0.0) -> Image:
    """Forehead to chin, squashed to a 512 px square, as MuseTalk boxes a face; ``grow`` widens the box."""
    height, width = image_rgb.shape[:2]
    x, y, w, h = box_xywh
    x1, x2 = max(0, round(x - grow * w)), min(width, round(x + w + grow * w))
    y1, y2 = max(0, round(y - grow * h)), min(height, round(y + h + grow * h))
    return resize(image_rgb[y1:y2, x1:x2], TARGET)


def head_crop(image_rgb: Image, box_xywh: tuple[float, float, float, float], zoom: float = 1.8) -> Image:
    """Face and hair in a square, framed about as FFHQ frames them; mirrored where the picture ends."""
    x, y, w, h = box_xywh
    side = round(zoom * max(w, h))
    left, top = round(x + w / 2 - side / 2), round(y + 0.42 * h - side / 2)
    pad = max(0, -left, -top, left + side - image_rgb.shape[1], top + side - image_rgb.shape[0])
    pad = min(pad, min(image_rgb.shape[:2]) - 1)
    framed = cv2.copyMakeBorder(image_rgb, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
    top, left = top + pad, left + pad
    return resize(np.asarray(framed[top : top + side, left : left + side], np.uint8), TARGET)


def patch_crops(image_rgb: Image, rng: np.random.Generator, still: bool) -> Iterator[tuple[int, Image]]:
    """512 px windows at native or reduced scale: never enlarged by more than 15 %."""
    for scale in (1.0, 0.7, 0.5) if still else (1.0, 0.7):
        height, width = (int(side * scale) for side in image_rgb.shape[:2])
        window = min(TARGET, height, width)
        if window < 445:
            return
        view = cv2.resize(image_rgb, (width, height), interpolation=cv2.INTER_AREA)
        for _ in range(4 if still else 1):
            top, left = int(rng.integers(height - window + 1)), int(rng.integers(width - window + 1))
            yield window, resize(np.asarray(view[top : top + window, left : left + window], np.uint8), TARGET)


def list_sources(data: Path) -> list[Path]:
    """``clips/*.mp4``, ``portraits/*`` and ``public_domain/*`` under ``data``, sorted by folder and name."""
    return [
        path
        for folder in ("clips", "portraits", "public_domain")
        for path in sorted((data / folder).glob("*"))
        if path.suffix.lower() in {".mp4", ".jpg", ".png"}
    ]


def crops_of(
    path: Path, finder: FaceFinder, rng: np.random.Generator, held_out: bool
) -> Iterator[tuple[Crop, Image]]:
    """Every usable crop of one file; a held-out file gives only plainly framed faces, few and any size."""
    still = path.suffix != ".mp4"
    for index, frame in read_frames(path, 4 if held_out else 40):
        box = finder.find(frame)
        if box is not None:
            face_px = round(max(box[2:]))
            for _ in range(3 if still and not held_out else 1):
                if held_out or face_px >= 225:
                    grow = 0.0 if held_out else float(rng.uniform(-0.05, 0.12))
                    target = tight_crop(frame, box, grow)
                    yield Crop(path.stem, "tight", index, face_px, sharpness(target)), target
                if held_out or face_px >= 170:
                    zoom = 1.8 if held_out else float(rng.uniform(1.4, 2.2))
                    target = head_crop(frame, box, zoom)
                    yield Crop(path.stem, "head", index, round(zoom * face_px), sharpness(target)), target
        if not held_out:
            for window, target in patch_crops(frame, rng, still):
                yield Crop(path.stem, "patch", index, window, sharpness(target)), target


def build_cache(data: Path, yunet: Path, work: Path, seed: int) -> None:
    """Write ``train.npy``/``val.npy`` (uint8, N x 512 x 512 x 3) and their ``.json`` lists to ``work``."""
    finder, rng = FaceFinder(yunet), np.random.default_rng(seed)
    for split in ("train", "val"):
        if (work / f"{split}.json").exists():
            continue
        records: list[dict[str, Any]] = []
        images: list[Image] = []
        for path in list_sources(data):
            if (path.stem in HELD_OUT) != (split == "val"):
                continue
            for crop, image in crops_of(path, finder, rng, split == "val"):
                if split == "val" or crop.sharpness >= MIN_SHARPNESS:
                    records.append(asdict(crop))
                    images.append(image)
        np.save(work / f"{split}.npy", np.stack(images))
        (work / f"{split}.json").write_text(json.dumps(records))


def load_cache(work: Path, split: str) -> tuple[list[Crop], Image]:
    """Records and memory-mapped pictures of ``train`` or ``val``."""
    records = [Crop(**entry) for entry in json.loads((work / f"{split}.json").read_text())]
    return records, np.load(work / f"{split}.npy", mmap_mode="r")


def _scale(image_rgb: Image, size: int, mode: str) -> Image:
    """``F.interpolate`` on a uint8 picture; antialiased for anything but area when it shrinks."""
    tensor = torch.from_numpy(np.ascontiguousarray(image_rgb)).permute(2, 0, 1)[None].float()
    shrink = mode != "area" and size < image_rgb.shape[0]
    options: dict[str, Any] = {} if mode == "area" else {"align_corners": False, "antialias": shrink}
    out = F.interpolate(tensor, size=(size, size), mode=mode, **options)
    return out[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def soften(image_rgb: Image, size: int) -> Image:
    """The hosts' softening: area down to ``size``, bicubic back; shape and dtype are kept."""
    side = image_rgb.shape[0]
    tensor = torch.from_numpy(np.ascontiguousarray(image_rgb)).permute(2, 0, 1)[None].float()
    small = F.interpolate(tensor, size=(size, size), mode="area")
    out = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)
    return out[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def degrade(target_rgb: Image, rng: np.random.Generator, host_share: float = 0.3) -> Image:
    """512 px target to 256 px input: shrink, lose detail, then (not always) a little noise and JPEG.

    ``host_share`` of the draws are exactly the hosts' softening (96 px, nothing else), about an eighth
    stay as sharp as 256 px can be. No draw shifts the colour.
    """
    image = _scale(target_rgb, INPUT, "area" if rng.random() < 0.65 else "bicubic")
    draw = float(rng.random())
    if draw < host_share:
        return soften(image, HOST)
    if draw > host_share + 0.13:
        kind = float(rng.random())
        if kind < 0.65:
            size = round(float(rng.uniform(80, INPUT)))
            small = _scale(image, size, "area" if rng.random() < 0.7 else "bilinear")
            image = _scale(small, INPUT, "bicubic")
        if kind > 0.5:
            sigma = float(rng.uniform(0.2, 1.5))
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
        if rng.random() < 0.12:
            image = np.asarray(cv2.bilateralFilter(image, 5, 14, 2.0), np.uint8)
    if rng.random() < 0.35:
        sigma = float(rng.uniform(0.2, 2.0))
        channels = 1 if rng.random() < 0.5 else 3
        noise = rng.normal(0, sigma, (INPUT, INPUT, channels))
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = int(rng.integers(78, 98))
        packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        image = np.ascontiguousarray(np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR))[..., ::-1], np.uint8)
    return image


def conditions(target_rgb: Image, seed: int) -> dict[str, Image]:
    """256 px inputs of one 512 px target, by name of the loss of detail."""
    small = resize(target_rgb, INPUT)
    rng = np.random.default_rng(seed)
    noisy = soften(small, HOST) + rng.normal(0, 1.2, small.shape)
    return {
        "host 96": soften(small, HOST),
        "host 80": soften(small, 80),
        "host 128": soften(small, 128),
        "host 192": soften(small, 192),
        "blur 1.2": np.asarray(cv2.GaussianBlur(small, (0, 0), 1.2), np.uint8),
        "96 + noise": np.clip(np.rint(noisy), 0, 255).astype(np.uint8),
        "sharp": small,
    }


def recolour(image_rgb: Image, rng: np.random.Generator) -> Image:
    """Exposure, contrast and white balance drawn anew, on the target: more skins and lights, no new blur."""
    gain = rng.uniform(0.8, 1.15) * rng.uniform(0.93, 1.07, 3)
    table = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.8, 1.25) * gain * 255
    lookup = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(image_rgb), lookup[None]), np.uint8)


class PatchSampler:
    """Seeded batches: a kind by its share, then a source, then a crop of it, then places inside it."""

    def __init__(self, records: list[Crop], images: Image, seed: int, patch: int = 64) -> None:
        self.images, self.seed, self.patch = images, seed, patch
        self.groups: dict[str, list[list[int]]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            by_source: dict[str, list[int]] = {}
            for index, record in enumerate(records):
                if record.kind == kind:
                    by_source.setdefault(record.source, []).append(index)
            self.groups[kind] = list(by_source.values())

    def _pick(self, rng: np.random.Generator) -> Image:
        share = np.array([p if self.groups[kind] else 0.0 for kind, p in zip(KINDS, KIND_SHARE, strict=True)])
        groups = self.groups[KINDS[int(rng.choice(len(KINDS), p=share / share.sum()))]]
        weight = np.sqrt([len(group) for group in groups])
        group = groups[int(rng.choice(len(groups), p=weight / weight.sum()))]
        return np.asarray(self.images[group[int(rng.integers(len(group)))]])

    def batch(self, step: int, count: int, per_image: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch of step ``step``: inputs ``(count,3,p,p)`` and targets ``(count,3,2p,2p)``, 0..1 float."""
        rng = np.random.default_rng((self.seed, step))
        inputs: list[Image] = []
        targets: list[Image] = []
        while len(inputs) < count:
            target = recolour(self._pick(rng), rng)
            if rng.random() < 0.5:
                target = np.ascontiguousarray(target[:, ::-1])
            if rng.random() < 0.02:  # a flat picture has no detail to add
                target = np.full_like(target, rng.integers(0, 256, 3).astype(np.uint8))
            image = degrade(target, rng)
            for _ in range(min(per_image, count - len(inputs))):
                top, left = (int(v) * 2 for v in rng.integers(0, (INPUT - self.patch) // 2 + 1, 2))
                inputs.append(image[top : top + self.patch, left : left + self.patch])
                rows, cols = slice(2 * top, 2 * (top + self.patch)), slice(2 * left, 2 * (left + self.patch))
                targets.append(target[rows, cols])
        return to_tensor(np.stack(inputs)), to_tensor(np.stack(targets))


def to_tensor(images_rgb: Image) -> torch.Tensor:
    """uint8 ``(N,H,W,3)`` to float ``(N,3,H,W)``, 0..1."""
    return torch.from_numpy(np.array(images_rgb)).permute(0, 3, 1, 2).float() / 255
