"""Which pictures a folder holds, in which units they are worked on, and what their results are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import ConfigError, MediaError
from ..pictures import PICTURE_SUFFIXES, picture_size

MOST_PICTURES, MOST_PIXELS = 8, 16 * 2**20
"""What one unit of work holds at most, unless a single picture has more: pictures, and pixels as handed back."""
_SUFFIX = {"png": ".png", "jpg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class Names:
    """Where the results of one picture go, relative to the output folder, with ``/`` between folders."""

    restored: str
    comparison: str


def list_pictures(source: Path, skip: Sequence[Path] = ()) -> list[str]:
    """The pictures below a folder, as paths relative to it with ``/``, sorted; or the one picture named.

    A picture is told by its suffix. Names that begin with a dot are left out, and so is what lies in `skip`.

    Raises:
        MediaError: `source` is missing, or cannot be read.
        ConfigError: there is no picture.
    """
    if source.is_file():
        if source.suffix.lower() in PICTURE_SUFFIXES:
            return [source.name]
        raise ConfigError("INPUT_DIR", str(source), f"a folder, or a file of {', '.join(sorted(PICTURE_SUFFIXES))}")
    if not source.is_dir():
        raise MediaError(source, "does not exist")
    left_out = {path.resolve() for path in skip}
    found = []
    for folder, folders, files in os.walk(source, onerror=_raise):
        here = Path(folder)
        folders[:] = [one for one in folders if not one.startswith(".") and (here / one).resolve() not in left_out]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in PICTURE_SUFFIXES:
                found.append((here / name).relative_to(source).as_posix())
    if not found:
        raise ConfigError("INPUT_DIR", str(source), f"a folder with pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise MediaError(error.filename or "", f"cannot be read ({error.strerror or error})") from error


def root_of(source: Path) -> Path:
    """The folder that names are relative to."""
    return source.parent if source.is_file() else source


def names_of(pictures: Iterable[str], format: str) -> dict[str, Names]:
    """What the results of each picture are called.

    Names and sub-folders are kept. Where two results would have one name (``a.jpg`` and ``a.png`` as ``png``, or
    their comparisons), the whole old name stands before the suffix: ``a.jpg.png``.
    """
    listed = list(pictures)
    wanted = {name: _restored(name, format) for name in listed}
    taken = Counter(path.lower() for path in wanted.values())
    stems = Counter(str(PurePosixPath(name).with_suffix("")).lower() for name in listed)
    found = {}
    for name in listed:
        path = PurePosixPath(name)
        restored = wanted[name] if taken[wanted[name].lower()] == 1 else f"{name}{_SUFFIX.get(format, path.suffix)}"
        alone = stems[str(path.with_suffix("")).lower()] == 1
        compared = path.with_name(f"{path.stem if alone else path.name}_compare.jpg")
        found[name] = Names(f"restored/{restored}", f"comparisons/{compared}")
    return found


def _restored(name: str, format: str) -> str:
    return name if format == "keep" else str(PurePosixPath(name).with_suffix(_SUFFIX[format]))


def check_apart(root: Path, output: Path, names: dict[str, Names]) -> None:
    """Refuse results that would be written over pictures that are read.

    Raises:
        ConfigError: one would be.
    """
    sources = {(root / name).resolve() for name in names}
    for name in names.values():
        for target in (output / name.restored, output / name.comparison):
            if target.resolve() in sources:
                raise ConfigError("--output-dir", str(output), f"a folder whose {target} is not one of the inputs")


def in_units(root: Path, pictures: Sequence[str], upscale: int) -> list[list[str]]:
    """`pictures` in groups that are worked on together: neighbours, few enough to fit into memory.

    The sizes are read from the files' headers; a picture that cannot be read counts as nothing.
    """
    units: list[list[str]] = []
    pixels = 0
    for name in pictures:
        try:
            width, height = picture_size(root / name)
        except MediaError:
            width = height = 0
        mine = width * height * upscale**2
        if not units or len(units[-1]) >= MOST_PICTURES or pixels + mine > MOST_PIXELS:
            units.append([])
            pixels = 0
        units[-1].append(name)
        pixels += mine
    return units


def evenly(pictures: Sequence[str], count: int) -> list[str]:
    """`count` of the pictures, spread evenly over the list; all where there are no more."""
    if count >= len(pictures):
        return list(pictures)
    return [pictures[(2 * index + 1) * len(pictures) // (2 * count)] for index in range(count)]
