"""The state of a job on disk, so that it can be killed at any moment and resume to the very same
files.

Beside the results is a folder ``.musetalk_enhance`` with ``manifest.json`` (the settings and their
hash, what runs, and how the job is split into units) and ``units/ID.json`` (the state of a unit:
hashes of inputs and results). Every file is written under a temporary name and then renamed, so
that it is either complete or missing; temporary files of a killed run are removed by the next. The
results of a unit are recorded in its state before they are written, so that a killed run leaves no
untracked file.

Whatever is read from these files may have been written by somebody else. A name in them is relative
and stays inside its folder, also where a link leads elsewhere; otherwise the file counts as
damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MediaError
from ..runtime.files import open_regular, read_json, write_bytes

FOLDER = ".musetalk_enhance"
VERSION = 3
RESULTS = ("restored", "comparisons", "segments")
"""Subfolders of the results. A state that names a file elsewhere counts as damaged."""
_MAX_ID = 10**9
_STATE_NAME = re.compile(r"[0-9]{6,}\.json")
_PART = re.compile(r"\.[0-9a-f]{32}\.part")  # what `write_bytes` calls a file that is not whole yet

Unit = dict[str, Any]
"""What is processed at once; ``"id"`` is its number. It may hold other values that decide about the
result."""
State = dict[str, Any]
"""State of a unit; ``"unit"`` is the unit."""


def digest(value: Any) -> str:
    """sha256 of plain values, 64 lower-case hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_digest(path: Path) -> str | None:
    """sha256 of a file; None if it cannot be read."""
    sha256 = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(2**20):
                sha256.update(block)
    except OSError:
        return None
    return sha256.hexdigest()


def _has_digest(sha256: Any, value: Any) -> bool:
    """Whether `sha256` is the digest of a value read from a file, which may hold anything."""
    try:
        return bool(sha256 == digest(value))
    except (ValueError, RecursionError):  # an infinite number; too deep
        return False


def is_relative_name(name: Any) -> bool:
    """Whether a name read from a file is a plain relative one: no drive, ``..`` or empty part."""
    if not isinstance(name, str) or not name.strip(".") or "\0" in name:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    path = Path(name)
    return not path.anchor and ".." not in path.parts and path.as_posix() == name


def _is_result(folder: Path, name: Any) -> bool:
    """Whether a name read from a file is that of a result in `folder`, links resolved."""
    if not is_relative_name(name) or "/" not in name or name.partition("/")[0] not in RESULTS:
        return False
    try:
        return Path(folder, name).parent.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links that lead to one another
        return False


def _is_unit(unit: Any) -> bool:
    if not isinstance(unit, dict) or type(unit.get("id")) is not int:
        return False
    items = unit.get("items", [])
    is_list = isinstance(items, list) and all(is_relative_name(name) for name in items)
    return is_list and bool(0 <= unit["id"] < _MAX_ID)


def _is_state(folder: Path, state: Any) -> bool:
    items = state.get("items")
    if not _is_unit(state.get("unit")) or not isinstance(items, list):
        return False
    if not all(isinstance(item, dict) for item in items):
        return False
    if not all(isinstance(item.get("name", ""), str) for item in items):
        return False
    outputs = [item.get("outputs", {}) for item in items]
    return all(
        isinstance(files, dict)
        and all(_is_result(folder, name) and isinstance(files[name], str) for name in files)
        for files in outputs
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        MediaError: it cannot be written.
    """
    make_folder(path.parent)
    write_bytes(
        path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    )


@dataclass
class Manifest:
    """The stored state of one job.

    Attributes:
        folder: where the results are written.
        settings: named plain values that decide the output.
        run_info: what runs, as plain values; ``"facts"`` in the file.
        units: how the job is split, in order.
        source: the folder of the units' inputs, if they are in one.
    """

    folder: Path
    settings: dict[str, Any]
    run_info: dict[str, Any]
    units: list[Unit] = field(default_factory=list)
    source: str | None = None

    @property
    def place(self) -> Path:
        """The folder of the manifest."""
        return self.folder / FOLDER

    @property
    def job(self) -> str:
        """Digest that separates its units from those of other settings, networks, or versions of
        the format."""
        return digest([VERSION, self.settings, self.run_info])

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """Read the manifest of an earlier run in `folder`; None if there is none or it cannot be
        read."""
        raw = read_json(folder / FOLDER / "manifest.json")
        if not isinstance(raw, dict) or raw.get("version") != VERSION:
            return None
        kinds = {"settings": dict, "facts": dict, "units": list}
        if any(not isinstance(raw.get(name), kind) for name, kind in kinds.items()):
            return None
        content = [raw["settings"], raw["facts"], raw["units"], raw.get("source")]
        if not _has_digest(raw.get("sha256"), content):
            return None
        is_source = isinstance(content[3], (str, type(None)))
        if not is_source or not all(_is_unit(unit) for unit in raw["units"]):
            return None
        return cls(folder, raw["settings"], raw["facts"], raw["units"], raw.get("source"))

    def write(self) -> None:
        """Write ``manifest.json``."""
        value = {
            "version": VERSION,
            "settings": self.settings,
            "settings_sha256": digest(self.settings),
            "sha256": digest([self.settings, self.run_info, self.units, self.source]),
            "source": self.source,
            "facts": self.run_info,
            "units": self.units,
        }
        write_json(self.place / "manifest.json", value)

    def state(self, unit: Unit) -> State | None:
        """State of a unit; None if it is not done, or if the job was split differently then."""
        state = _read_state(self.folder, state_path(self.folder, unit))
        return (
            state
            if state is not None and state["unit"] == unit and not state.get("begun")
            else None
        )

    def undo(self, unit: Unit, keep: Container[str] = ()) -> None:
        """Delete the results of a unit, finished or not, as far as they are unchanged since they
        were written.

        Args:
            unit: the unit.
            keep: names of items whose results stay.
        """
        path = state_path(self.folder, unit)
        discard(self.folder, _read_state(self.folder, path), keep)
        path.unlink(missing_ok=True)

    def recorded(self) -> set[str]:
        """Results of all units of earlier runs, finished or not, whatever became of them."""
        states = [_read_state(self.folder, path) for path in self.place.glob("units/*.json")]
        return {name for state in states if state is not None for name in outputs_of(state)}

    def forget(self) -> None:
        """Delete the results of all other units of earlier runs, as far as they are unchanged."""
        units = {state_path(self.folder, unit): unit for unit in self.units}
        for path in sorted(self.place.glob("units/*.json")):
            if not _STATE_NAME.fullmatch(path.name):
                continue
            state = _read_state(self.folder, path)
            if state is None or state["unit"] != units.get(path):
                discard(self.folder, state)
                path.unlink(missing_ok=True)

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """Describe how `settings` differ from those of this manifest."""
        names = sorted({*self.settings, *settings})
        return [
            f"{name}: {self.settings.get(name)!r} then, {settings.get(name)!r} now"
            for name in names
            if self.settings.get(name) != settings.get(name)
        ]


def state_path(folder: Path, unit: Unit) -> Path:
    """Path of the state of a unit."""
    return folder / FOLDER / "units" / f"{unit['id']:06d}.json"


def write_state(folder: Path, state: State) -> None:
    """Mark a unit as done: its results must already be in place.

    Raises:
        MediaError: it cannot be written.
    """
    write_json(state_path(folder, state["unit"]), {**state, "sha256": digest(state)})


def write_begun(folder: Path, unit: Unit, outputs: Mapping[str, str]) -> None:
    """Record which results of a unit are about to be written, relative to the folder, and their
    sha256.

    Raises:
        MediaError: it cannot be written.
    """
    write_state(folder, {"unit": unit, "begun": True, "items": [{"outputs": dict(outputs)}]})


def _read_state(folder: Path, path: Path) -> State | None:
    """Read the undamaged state of a unit that is done or begun."""
    raw = read_json(path)
    if not isinstance(raw, dict) or not _has_digest(raw.pop("sha256", None), raw):
        return None
    return raw if _is_state(folder, raw) else None


def outputs_of(state: State, skip: Container[str] = ()) -> dict[str, str]:
    """Results in a state: relative path to sha256; without those of items in `skip`."""
    outputs: dict[str, str] = {}
    for item in state.get("items", ()):
        if item.get("name") not in skip:
            outputs.update(item.get("outputs", {}))
    return outputs


def outputs_intact(folder: Path, state: State) -> bool:
    """Whether every result of a state exists, bit for bit."""
    return all(file_digest(folder / name) == sha256 for name, sha256 in outputs_of(state).items())


def discard(folder: Path, state: State | None, keep: Container[str] = ()) -> None:
    """Delete the results in a state that are unchanged since they were written; not those of items
    in `keep`."""
    for name, sha256 in outputs_of(state or {}, keep).items():
        if not _is_result(folder, name):
            continue
        path = folder / name
        with contextlib.suppress(OSError):
            if file_digest(path) == sha256:
                path.unlink()
                for parent in path.parents[: name.count("/")]:  # folders that are empty now
                    parent.rmdir()


def sweep_parts(folder: Path, below: Iterable[str] = ()) -> None:
    """Delete temporary files of a killed run in `folder`, in its state folder and below its
    subfolders `below`.

    No other process may be writing there.
    """
    places = [*folder.glob(".*.part"), *(folder / FOLDER).rglob(".*.part")]
    for name in below:
        places += (folder / name).rglob(".*.part")
    root = folder.resolve()
    for path in places:
        if _PART.fullmatch(path.name):
            with contextlib.suppress(OSError, RuntimeError):
                if path.parent.resolve().is_relative_to(root):
                    path.unlink()


def refuse_links(*paths: Path) -> None:
    """Refuse links in the place of the state of a job: its files would be written elsewhere.

    Raises:
        MediaError: one of them is a link.
    """
    for path in paths:
        if path.is_symlink():
            what = "is a link, which is not followed. Remove it, or choose another output"
            raise MediaError(path, what)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        MediaError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(folder, f"cannot be created ({error.strerror or error})") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the results against a second run; a killed run holds no lock.

    If the state folder is empty in the end, because nothing could start, it is removed again.

    Raises:
        ConfigError: another run is using the folder.
        MediaError: the folder cannot be created or written to; its state is a link.
    """
    from filelock import FileLock, Timeout

    state_folder, missing_folders = (
        folder / FOLDER,
        [path for path in (folder, *folder.parents) if not path.exists()],
    )
    refuse_links(state_folder, state_folder / "lock", state_folder / "units")
    make_folder(state_folder)
    lock = FileLock(str(state_folder / "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError("output", str(folder), "a folder that no other run is using") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(state_folder / "lock", f"cannot be locked ({reason})") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # where an open file cannot be deleted, it stays
            if [path.name for path in state_folder.iterdir()] == ["lock"]:
                (state_folder / "lock").unlink()
                state_folder.rmdir()
                for path in missing_folders:
                    path.rmdir()
        lock.release()
