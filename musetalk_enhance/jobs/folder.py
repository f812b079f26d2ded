"""Lists the images of a folder, splits them into units and names their results."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import ConfigError, MediaError
from ..media import IMAGE_EXTENSIONS, image_size, readable_extensions
from ..media.image import UNREADABLE_EXTENSIONS
from ..runtime.files import real_path
from .manifest import FOLDER

logger = logging.getLogger("musetalk_enhance")

MAX_IMAGES, MAX_PIXELS = 8, 16 * 2**20
"""Upper limits of one unit, unless a single image exceeds them: images, and output pixels."""
RESTORED, COMPARISONS, SAMPLES, SWEEP = "restored", "comparisons", "samples", "sweep"
"""Sub-folders of the output folder."""
_RESULTS = (RESTORED, COMPARISONS)
_SUFFIX = {"png": ".png", "jpg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class ResultNames:
    """Paths of the results of one image, relative to the output folder, with ``/`` as separator."""

    restored: str
    comparison: str


def list_images(
    source: Path,
    skip: Sequence[Path] = (),
    troubles: list[tuple[str, str]] | None = None,
    skipped: list[str] | None = None,
) -> list[str]:
    """List the images below a folder, as sorted paths relative to it with ``/``; or the one image
    named.

    Images are recognized by their extension. Names that start with a dot are skipped, and so is
    everything in `skip`. Links to folders outside are followed, each once, except to where results
    are written. Folders that hold the results of other runs are skipped too. Subfolders that cannot
    be read are added to `troubles`, with the reason, and images of formats that are not read to
    `skipped`.

    Raises:
        MediaError: `source` is missing or cannot be read.
        ConfigError: there is no image; or the first of `skip`, where the results are written,
            is the folder itself; or the folder is where results are written, so that the next run
            would read them as inputs.
    """
    extensions = readable_extensions()
    listed = ", ".join(sorted(extensions))
    if source.is_file():
        if source.suffix.lower() in extensions:
            return [source.name]
        raise ConfigError("INPUT_DIR", str(source), f"a folder, or a file of {listed}")
    if not source.is_dir():
        what = "is neither a folder nor a file" if source.exists() else "does not exist"
        raise MediaError(source, what)
    excluded = {real_path(path) for path in skip}
    folder_path = real_path(source)
    if _takes_results(folder_path, excluded):
        raise ConfigError(
            "--output-dir", str(skip[0]), "a subfolder of the input folder, or a folder outside it"
        )
    names: list[str] = []
    others: list[str] = [] if skipped is None else skipped
    unreadable: list[tuple[str, str]] = [] if troubles is None else troubles
    linked: set[Path] = set()
    walk = os.walk(source, onerror=lambda error: _note(error, source, unreadable), followlinks=True)
    for folder, folders, files in walk:
        folder_path, folders[:] = (
            Path(folder),
            sorted(name for name in folders if not name.startswith(".")),
        )
        folders[:] = [
            name for name in folders if _is_new(folder_path / name, source, excluded, linked)
        ]
        for name in files:
            extension = Path(name).suffix.lower()
            if name.startswith(".") or extension not in (*extensions, *UNREADABLE_EXTENSIONS):
                continue
            path = (folder_path / name).relative_to(source).as_posix()
            (names if extension in extensions else others).append(path)
    others.sort()
    if not names:
        what = f" (of {', '.join(others[:3])} the format is not read)" if others else ""
        raise ConfigError("INPUT_DIR", str(source), f"a folder with images ({listed}){what}")
    return sorted(names)


def _takes_results(folder: Path, excluded: Collection[Path]) -> bool:
    """Whether a resolved folder is one of `excluded`, or a result folder in one of them."""
    return folder in excluded or any(
        place / name in (folder, *folder.parents) for place in excluded for name in _RESULTS
    )


def _holds_results(folder: Path) -> bool:
    """Whether a folder holds the state of a job; for a sweep folder, whether a subfolder does."""
    below = "*/" if folder.name == SWEEP else ""
    return any(folder.glob(f"{below}{FOLDER}/manifest.json"))


def _is_new(folder: Path, source: Path, excluded: Collection[Path], linked: set[Path]) -> bool:
    """Whether to descend into a subfolder: not a result folder, and not a link to a folder already
    covered.

    The targets of links are added to `linked`.
    """
    target, root = real_path(folder), real_path(source)
    if _takes_results(target, excluded):
        return False
    if _holds_results(folder):
        logger.info("skipping %s: it holds the results of another run", folder)
        return False
    if folder.is_symlink():
        if target in linked or target == root or root in target.parents or target in root.parents:
            return False
        linked.add(target)
    return True


def _note(error: OSError, source: Path, troubles: list[tuple[str, str]]) -> None:
    """Record a subfolder that cannot be read; raise if it is the source folder itself."""
    text = f"cannot be read ({error.strerror or error})"
    place = Path(error.filename or source)
    if place == source:
        raise MediaError(source, text) from error
    name = place.relative_to(source).as_posix()
    troubles.append((name, f"{name}: {text}"))


def root_folder(source: Path) -> Path:
    """The folder that image names are relative to."""
    return source.parent if source.is_file() else source


def result_names(pictures: Iterable[str], format: str) -> dict[str, ResultNames]:
    """Name the results of each image.

    Names and subfolders are kept. Formats that are read but not written become PNG. Where two
    results would collide (``a.jpg`` and ``a.png`` as ``png``, or their comparisons), the whole
    input name comes before the new extension: ``a.jpg.png``.
    """
    listed = list(pictures)
    if format == "keep":  # kept names are apart already, also where only capitals tell them apart
        restored = {name: name for name in listed if Path(name).suffix.lower() in IMAGE_EXTENSIONS}
        others = [name for name in listed if name not in restored]
        restored |= _unique_names(others, _SUFFIX["png"], restored)
    else:
        restored = _unique_names(listed, _SUFFIX[format])
    compared = _unique_names(listed, "_compare.jpg")
    return {
        name: ResultNames(f"{RESTORED}/{restored[name]}", f"{COMPARISONS}/{compared[name]}")
        for name in listed
    }


def _unique_names(
    names: Sequence[str], extension: str, reserved: Iterable[str] = ()
) -> dict[str, str]:
    """Replace the extension of each name; names that collide, ignoring case, get longer."""
    short = {name: f"{PurePosixPath(name).with_suffix('')}{extension}" for name in names}
    uses = Counter(path.lower() for path in (*short.values(), *reserved))
    used = {path for path, count in uses.items() if count == 1} | {
        path.lower() for path in reserved
    }
    unique = {}
    for name in names:
        path = short[name]
        if uses[path.lower()] > 1:
            path = f"{name}{extension}"
            while path.lower() in used:
                path = f"{path.removesuffix(extension)}_{extension}"
            used.add(path.lower())
        unique[name] = path
    return unique


def check_no_overwrite(root: Path, output: Path, names: dict[str, ResultNames]) -> None:
    """Refuse results that would overwrite input images.

    Raises:
        ConfigError: a result would overwrite an input.
    """
    sources = {real_path(root / name) for name in names}
    for name in names.values():
        for target in (output / name.restored, output / name.comparison):
            if real_path(target) in sources:
                raise ConfigError(
                    "--output-dir", str(output), f"a folder whose {target} is not one of the inputs"
                )


def split_into_units(root: Path, pictures: Sequence[str], upscale: int) -> list[list[str]]:
    """Group `pictures` into units that are processed together: neighbors, few enough to fit into
    memory.

    The sizes are read from the file headers; an image that cannot be read counts as zero pixels.
    """
    units: list[list[str]] = []
    pixels = 0
    for name in pictures:
        try:
            width, height = image_size(root / name)
        except MediaError:
            width = height = 0
        image_pixels = width * height * upscale**2
        if not units or len(units[-1]) >= MAX_IMAGES or pixels + image_pixels > MAX_PIXELS:
            units.append([])
            pixels = 0
        units[-1].append(name)
        pixels += image_pixels
    return units


def evenly(pictures: Sequence[str], count: int) -> list[str]:
    """Pick `count` of the images, spread evenly over the list; all if there are fewer."""
    if count >= len(pictures):
        return list(pictures)
    return [pictures[(2 * index + 1) * len(pictures) // (2 * count)] for index in range(count)]
