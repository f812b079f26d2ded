"""The three steps of a unit of images: read, restore, write."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import FrameError, MediaError
from ..media.image import StillImage, decode_image, encode_image, losses_in
from ..runtime.files import open_regular, write_bytes
from .folder import ResultNames
from .image_restorer import Item, RestoredImage
from .manifest import State, Unit, make_folder, write_begun, write_state
from .model_loader import ImageModels, load_image_models
from .models import RunInfo
from .options import ImageSettings

RESTORED, NO_FACE, FAILED, UNREADABLE = "restored", "no face restored", "failed", "unreadable"
"""States of an image. Every readable one is written, unless it exceeds the limits of its format
(failed)."""


@dataclass
class SourceImage:
    """One input image.

    Attributes:
        name: relative to the input folder.
        data: the file; empty if it could not be read.
        sha256: of the file, None if it could not be read.
        image: the decoded image.
        error: why there is no image.
        ms: milliseconds spent on it so far.
    """

    name: str
    data: bytes = b""
    sha256: str | None = None
    image: StillImage | None = None
    error: str | None = None
    ms: float = 0.0


@dataclass
class ProcessedImage:
    """One image with its faces restored; `restored` is None if it could not be read."""

    read: SourceImage
    restored: RestoredImage | None = None


@dataclass(frozen=True)
class ReadUnit:
    """First step: read, hash and decode.

    Attributes:
        root: the input folder.
    """

    root: Path

    def __call__(self, unit: Unit) -> tuple[Unit, list[SourceImage]]:
        return unit, [self._read(name) for name in unit["items"]]

    def _read(self, name: str) -> SourceImage:
        start = time.perf_counter()
        path, item = self.root / name, SourceImage(name)
        try:
            with open_regular(path) as file:
                item.data = file.read()
            item.sha256 = hashlib.sha256(item.data).hexdigest()
            item.image = decode_image(item.data, name)
        except MediaError as error:
            item.error = str(error)
        except OSError as error:
            item.error = f"{name}: cannot be read ({error.strerror or error})"
        item.ms = (time.perf_counter() - start) * 1e3
        return item


@dataclass(frozen=True)
class ImageProcessorFactory:
    """Loads the networks in a worker, as recorded in `run_info`.

    Attributes:
        settings: of the job.
        run_info: of an earlier run, None the first time.
    """

    settings: ImageSettings
    run_info: RunInfo | None = None

    def __call__(self) -> ImageProcessor:
        return ImageProcessor(load_image_models(self.settings, self.run_info))


class ImageProcessor:
    """Second step: restore the faces.

    Args:
        models: the networks.
    """

    def __init__(self, models: ImageModels) -> None:
        self.models = models

    @property
    def run_info(self) -> RunInfo:
        """What runs."""
        return self.models.run_info

    def prepare(
        self, source: tuple[Unit, list[SourceImage]]
    ) -> tuple[Unit, list[SourceImage], list[Item]]:
        """Detect the faces and crop them."""
        unit, items = source
        start = time.perf_counter()
        face_items = self.models.restorer.find(
            [item.image.bgr for item in items if item.image is not None]
        )
        return unit, _timed(items, start), face_items

    def process(
        self, prepared: tuple[Unit, list[SourceImage], list[Item]]
    ) -> tuple[Unit, list[SourceImage], list[Item]]:
        """Restore the faces of all images together."""
        unit, items, face_items = prepared
        start = time.perf_counter()
        restored = self.models.restorer.restore_faces(face_items)
        return unit, _timed(items, start), restored

    def finish(
        self, processed: tuple[Unit, list[SourceImage], list[Item]]
    ) -> tuple[Unit, list[ProcessedImage]]:
        """Paste the faces back."""
        unit, items, face_items = processed
        start = time.perf_counter()
        images = iter(self.models.restorer.paste(face_items))
        items = _timed(items, start)
        return unit, [
            ProcessedImage(item, next(images) if item.image is not None else None) for item in items
        ]

    def close(self) -> None:
        """Close the networks."""
        self.models.close()


def _timed(items: list[SourceImage], start: float) -> list[SourceImage]:
    """The items, with the time since `start` shared among those that were decoded."""
    decoded = sum(item.image is not None for item in items)
    each = (time.perf_counter() - start) * 1e3 / max(1, decoded)
    return [item if item.image is None else replace(item, ms=item.ms + each) for item in items]


@dataclass(frozen=True)
class WriteUnit:
    """Last step: encode, record what is about to be written, write each file atomically, then the
    state.

    Attributes:
        output: output folder.
        settings: of the job.
        names: paths of the results of each image.
    """

    output: Path
    settings: ImageSettings
    names: dict[str, ResultNames] = field(repr=False)

    def __call__(self, processed: tuple[Unit, list[ProcessedImage]]) -> State:
        unit, items = processed
        files: dict[str, bytes] = {}
        state: State = {"unit": unit, "items": [self._recorded(item, files) for item in items]}
        write_begun(
            self.output,
            unit,
            {name: sha for item in state["items"] for name, sha in item["outputs"].items()},
        )
        for item in state["items"]:
            self._write(item, files)
        write_state(self.output, state)
        return state

    def _write(self, item: dict[str, Any], files: dict[str, bytes]) -> None:
        """Write the files of an image; one that cannot be written fails, the others go on."""
        for name in list(item["outputs"]):
            try:
                make_folder((self.output / name).parent)
                write_bytes(self.output / name, files[name])
            except MediaError as error:
                del item["outputs"][name]
                item |= {"state": FAILED, "error": str(error)}

    def _recorded(self, item: ProcessedImage, files: dict[str, bytes]) -> dict[str, Any]:
        """The record of an image; the files to be written are added to `files`."""
        start = time.perf_counter()
        read, restored = item.read, item.restored
        record: dict[str, Any] = {
            "name": read.name,
            "input_sha256": read.sha256,
            "outputs": {},
            "faces": [],
            "losses": [],
        }
        if restored is None or read.image is None:
            record |= {"state": UNREADABLE, "error": read.error}
        else:
            record["faces"] = [face.as_dict() for face in restored.faces]
            record["size_wh"] = [restored.bgr.shape[1], restored.bgr.shape[0]]
            record["state"] = (
                FAILED if restored.error else RESTORED if restored.restored else NO_FACE
            )
            record["error"] = restored.error
            try:
                image_files = self._files(read, restored)
                if not self._is_copied(read, restored):
                    suffix = Path(self.names[read.name].restored).suffix
                    record["losses"] = losses_in(read.image, suffix)
            except FrameError as error:  # larger than its format can be; the others go on
                image_files = {}
                record |= {
                    "state": FAILED,
                    "error": f"{read.name}: cannot be written ({error})",
                    "faces": [],
                }
            files |= image_files
            record["outputs"] = {
                name: hashlib.sha256(data).hexdigest() for name, data in image_files.items()
            }
        record["ms"] = round(read.ms + (time.perf_counter() - start) * 1e3, 1)
        return record

    def _files(self, read: SourceImage, restored: RestoredImage) -> dict[str, bytes]:
        names = self.names[read.name]
        files = {names.restored: self._encoded(read, restored, names.restored)}
        if self.settings.save_comparison:
            files[names.comparison] = self._compared(read, restored)
        return files

    def _is_copied(self, read: SourceImage, restored: RestoredImage) -> bool:
        """Whether the result is the input byte for byte: nothing changed."""
        assert read.image is not None
        result = self.names[read.name].restored
        same_format = Path(result).suffix.lower() == Path(read.name).suffix.lower()
        same_size = restored.bgr.shape == read.image.bgr.shape
        is_plain = same_format and same_size and self.settings.bg_upsampler == "none"
        return is_plain and not restored.restored

    def _encoded(self, read: SourceImage, restored: RestoredImage, name: str) -> bytes:
        """The file; the input bytes if nothing changed."""
        assert read.image is not None
        if self._is_copied(read, restored):
            return read.data
        image = read.image.replace_pixels(restored.bgr)
        return encode_image(image, Path(name).suffix, quality=self.settings.quality)

    def _compared(self, read: SourceImage, restored: RestoredImage) -> bytes:
        from ..media.contact_sheet import comparison_sheet

        assert read.image is not None
        boxes = [face.box_xyxy for face in restored.faces if face.state == RESTORED]
        sheet = comparison_sheet(read.image.bgr, restored.bgr, boxes)
        return encode_image(StillImage(sheet), ".jpg", quality=self.settings.quality)
