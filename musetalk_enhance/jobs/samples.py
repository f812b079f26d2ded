"""Samples: a few images of a folder, or one option at several values, side by side on a contact
sheet."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import schema
from ..errors import ConfigError, MediaError
from ..media.contact_sheet import contact_sheet, side_by_side
from ..media.image import StillImage, decode_image, encode_image
from ..runtime.files import write_bytes
from .folder import SAMPLES, SWEEP, evenly, list_images, root_folder
from .images import ImagesResult, Progress, restore_images
from .job import Engine
from .manifest import sweep_parts
from .models import RunInfo
from .options import ImageSettings, option_named

logger = logging.getLogger("musetalk_enhance")

SHEET = "contact_sheet.jpg"
MAX_ON_SHEET = 100
"""Images on a contact sheet; of a larger number, this many, spread evenly."""
_CELL, _STRIP = 480, 4096  # widest picture on a contact sheet; longest strip, in pixels


@dataclass(frozen=True)
class Sweep:
    """One option at several values.

    Attributes:
        name: of the option.
        values: checked, in display order.
    """

    name: str
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> Sweep:
        """From ``fidelity=0.5,0.7,0.9``.

        Raises:
            ConfigError: another format, an unknown option, or an invalid value.
        """
        name, equals, listed = text.partition("=")
        words = [word.strip() for word in listed.split(",")]
        allowed = "OPTION=VALUE,VALUE,... with at least two different values"
        if not equals or not all(words):
            raise ConfigError("--sweep", text, allowed)
        option = option_named(ImageSettings, name.strip(), listed)
        values = tuple(schema.checked(option, word, f"--sweep {name}") for word in words)
        if len(values) < 2 or len(set(values)) < len(values):
            raise ConfigError("--sweep", text, allowed)
        return cls(option.name, values)

    def label(self, value: Any) -> str:
        """Name of a value on sheets and in folder names."""
        return f"{self.name}={value}"


@dataclass(frozen=True)
class SampleResult:
    """Result of restoring samples.

    Attributes:
        output: folder of the sheets.
        sheet: the contact sheet; None if no image could be restored.
        results: one for each value; a single one without a sweep.
    """

    output: Path
    sheet: Path | None
    results: tuple[ImagesResult, ...]

    @property
    def errors(self) -> int:
        """Number of images that could not be read or restored with some value."""
        return len({error["name"] for result in self.results for error in result.stats["errors"]})


def restore_samples(
    source: str | Path,
    output: str | Path,
    settings: ImageSettings,
    count: int,
    *,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> SampleResult:
    """Restore `count` images, spread over the folder, below ``output/samples``, with a contact
    sheet.

    Raises:
        ConfigError: `count` is under 1; and whatever `restore_images` raises.
    """
    source, folder_path = Path(source), Path(output) / SAMPLES
    names = select_images(source, Path(output), count)
    result = restore_images(
        source, folder_path, settings, engine=engine, pictures=names, progress=progress
    )
    rows = [
        (
            name,
            _strip(
                [_read(root_folder(source) / name), *_restored(result, name)],
                ["before", "after"],
                _CELL,
            ),
        )
        for name in evenly(names, MAX_ON_SHEET)
        if _restored(result, name)
    ]
    return SampleResult(folder_path, _write_sheet(folder_path, rows), (result,))


def restore_sweep(
    source: str | Path,
    output: str | Path,
    settings: ImageSettings,
    sweep: Sweep,
    count: int | None = None,
    *,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> SampleResult:
    """Restore images once per value, below ``output/sweep``: a strip per image, and a contact
    sheet.

    Args:
        source: the folder, or one image.
        output: output folder.
        settings: of all options but the one that varies.
        sweep: the option and its values.
        count: number of images, spread over the folder; None: all.
        engine: see `restore_images`.
        progress: see `restore_images`; starts over for each value.

    Raises:
        ConfigError: the model that runs does not have the option; and whatever `restore_images`
            raises.
    """
    source, folder_path = Path(source), Path(output) / SWEEP
    settings_by_value = [
        settings.replace(**{sweep.name: value}) for value in sweep.values
    ]  # refused now, not after hours
    names = select_images(source, Path(output), count)
    results = []
    for value, value_settings in zip(sweep.values, settings_by_value, strict=True):
        folder = folder_path / re.sub(r"[^\w.=+-]+", "_", sweep.label(value))
        approve = None if sweep.name != "fidelity" else _has_fidelity
        results.append(
            restore_images(
                source,
                folder,
                value_settings,
                engine=engine,
                pictures=names,
                approve=approve,
                progress=progress,
            )
        )
    labels = ["input", *(sweep.label(value) for value in sweep.values)]
    rows, sheet_names = [], set(evenly(names, MAX_ON_SHEET))
    sweep_parts(folder_path, {name.partition("/")[0] for name in names if "/" in name})
    for name in names:
        restored = [picture for result in results for picture in _restored(result, name)]
        if len(restored) != len(results):
            continue
        pictures = [_read(root_folder(source) / name), *restored]
        _write_jpeg(folder_path / f"{name}_{sweep.name}.jpg", _strip(pictures, labels, None))
        if name in sheet_names:
            rows.append((name, _strip(pictures, labels, _CELL)))
    return SampleResult(folder_path, _write_sheet(folder_path, rows), tuple(results))


def select_images(source: Path, output: Path, count: int | None) -> list[str]:
    """Select `count` images of a folder, evenly spread; all of them if it is None.

    Raises:
        ConfigError: `count` is under 1, or there is no image.
    """
    if count is not None and count < 1:
        raise ConfigError("--num-samples", count, "1 or more")
    unreadable: list[tuple[str, str]] = []
    listed = list_images(source, [output], unreadable)
    for _, text in unreadable:
        logger.warning("%s", text)
    return listed if count is None else evenly(listed, count)


def _has_fidelity(run_info: RunInfo) -> None:
    if run_info.fidelity is None:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in run_info.passed_over)
        raise ConfigError(
            "--sweep",
            "fidelity",
            f"a model that has it (codeformer); {run_info.model} would run ({reasons})",
        )


def _restored(result: ImagesResult, name: str) -> list[Any]:
    """The restored image as it was written; empty if there is none."""
    items = [item for item in result.stats["items"] if item["name"] == name]
    paths = [path for item in items for path in item["outputs"] if path.startswith("restored/")]
    return [_read(result.output / path) for path in paths]


def _read(path: Path) -> Any:
    try:
        return decode_image(path.read_bytes(), path).bgr
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror or error})") from error


def _strip(images: Sequence[Any], labels: Sequence[str], max_width: int | None) -> Any:
    """One row; with `max_width` small enough for a contact sheet."""
    import cv2

    if max_width is None:
        return side_by_side(images, labels, max_side=_STRIP)
    scaled = []
    for image in images:
        scale = min(1.0, max_width / image.shape[1])
        size_wh = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        scaled.append(
            cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA) if scale < 1 else image
        )
    return side_by_side(scaled, labels, max_side=_STRIP)


def _write_sheet(folder_path: Path, rows: Sequence[tuple[str, Any]]) -> Path | None:
    if not rows:
        return None
    width = min(_STRIP, max(row.shape[1] for _, row in rows))
    _write_jpeg(
        folder_path / SHEET,
        contact_sheet([row for _, row in rows], [name for name, _ in rows], width=width),
    )
    return folder_path / SHEET


def _write_jpeg(path: Path, picture_bgr: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encode_image(StillImage(picture_bgr), ".jpg"))
