"""What a job remembers on disk, so that it can be killed at any moment and go on to the very same files.

Beside the results lies a folder ``.musetalk_enhance`` with ``manifest.json`` (the settings and their hash, what runs,
and how the work is cut into units) and ``units/ID.json`` (what became of a unit: hashes of inputs and results). Every
file is written under another name and then renamed, so that it is whole or not there; what a killed run left under
such another name is swept away by the next. The results of a unit are named in its file before they are written, so
that no killed run leaves one that nobody knows of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MediaError
from ..runtime.files import write_bytes

FOLDER = ".musetalk_enhance"
VERSION = 3
_PART = re.compile(r"\.[0-9a-f]{32}\.part")  # what `write_bytes` calls a file that is not whole yet

Unit = dict[str, Any]
"""What is worked on at once; ``"id"`` is its number. Whatever else decides about it may stand in it, too."""
State = dict[str, Any]
"""What became of a unit; ``"unit"`` is the unit."""


def digest(value: Any) -> str:
    """sha256 of plain values, 64 lower-case hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_digest(path: Path) -> str | None:
    """sha256 of a file; None where it cannot be read."""
    sha256 = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                sha256.update(block)
    except OSError:
        return None
    return sha256.hexdigest()


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        MediaError: it cannot be written.
    """
    make_folder(path.parent)
    write_bytes(
        path, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    )


@dataclass
class Manifest:
    """The memory of one job.

    Attributes:
        folder: where the results go.
        settings: plain values that decide what comes out, with their names.
        facts: what runs, as plain values.
        units: how the work is cut, in order.
        source: the folder that the units' inputs are in, where they are in one.
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
        """What tells its units from those of other settings, of other networks, or of older rules, as a digest."""
        return digest([VERSION, self.settings, self.run_info])

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """What an earlier run left in `folder`; None where there is none that can be read."""
        raw = read_json(folder / FOLDER / "manifest.json")
        if not isinstance(raw, dict) or raw.get("version") != VERSION:
            return None
        kinds = {"settings": dict, "facts": dict, "units": list}
        if any(not isinstance(raw.get(name), kind) for name, kind in kinds.items()):
            return None
        if raw.get("sha256") != digest(
            [raw["settings"], raw["facts"], raw["units"], raw.get("source")]
        ):
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
        """What became of a unit; None where it is not done, or was cut otherwise then."""
        state = _read_state(state_path(self.folder, unit))
        return (
            state
            if state is not None and state["unit"] == unit and not state.get("begun")
            else None
        )

    def undo(self, unit: Unit, keep: Container[str] = ()) -> None:
        """Take away what was made of a unit, done or begun, so far as it still is what was made.

        Args:
            unit: which one.
            keep: names of items whose results stay.
        """
        path = state_path(self.folder, unit)
        discard(self.folder, _read_state(path), keep)
        path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Take away what earlier runs made of anything but these units, so far as it still is what they made."""
        units = {state_path(self.folder, unit): unit for unit in self.units}
        for path in sorted(self.place.glob("units/*.json")):
            state = _read_state(path)
            if state is None or state["unit"] != units.get(path):
                discard(self.folder, state)
                path.unlink(missing_ok=True)

    def differences(self, settings: Mapping[str, Any]) -> list[str]:
        """How `settings` differ from those of this manifest, in words."""
        names = sorted({*self.settings, *settings})
        return [
            f"{name}: {self.settings.get(name)!r} then, {settings.get(name)!r} now"
            for name in names
            if self.settings.get(name) != settings.get(name)
        ]


def state_path(folder: Path, unit: Unit) -> Path:
    """Where the state of a unit is kept."""
    return folder / FOLDER / "units" / f"{unit['id']:06d}.json"


def write_state(folder: Path, state: State) -> None:
    """Say that a unit is done: its results must be in their places already.

    Raises:
        MediaError: it cannot be written.
    """
    write_json(state_path(folder, state["unit"]), {**state, "sha256": digest(state)})


def write_begun(folder: Path, unit: Unit, outputs: Mapping[str, str]) -> None:
    """Say which results of a unit are about to be written, relative to the folder, and their sha256.

    Raises:
        MediaError: it cannot be written.
    """
    write_state(folder, {"unit": unit, "begun": True, "items": [{"outputs": dict(outputs)}]})


def _read_state(path: Path) -> State | None:
    """A state that is whole, of a unit that is done or begun."""
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.pop("sha256", None) != digest(raw):
        return None
    return raw


def outputs_of(state: State, skip: Container[str] = ()) -> dict[str, str]:
    """The results that a state names, relative to the folder, and their sha256; without those of items in `leave`."""
    outputs: dict[str, str] = {}
    for item in state.get("items", ()):
        if item.get("name") not in skip:
            outputs.update(item.get("outputs", {}))
    return outputs


def outputs_intact(folder: Path, state: State) -> bool:
    """Whether every result of a state is there, bit for bit."""
    return all(file_digest(folder / name) == sha256 for name, sha256 in outputs_of(state).items())


def discard(folder: Path, state: State | None, keep: Container[str] = ()) -> None:
    """Take away the results that a state names, so far as they still are what was written then; not those of items
    in `keep`."""
    for name, sha256 in outputs_of(state or {}, keep).items():
        path = folder / name
        with contextlib.suppress(OSError):
            if file_digest(path) == sha256:
                path.unlink()
                for parent in path.parents[: name.count("/")]:  # folders that are empty now
                    parent.rmdir()


def sweep_parts(folder: Path, below: Iterable[str] = ()) -> None:
    """Take away the unfinished files of a killed run in `folder`, in its memory, and anywhere in its sub-folders
    `below`. Nobody else may be writing there."""
    places = [*folder.glob(".*.part"), *(folder / FOLDER).rglob(".*.part")]
    for name in below:
        places += (folder / name).rglob(".*.part")
    for path in places:
        if _PART.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        MediaError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(folder, f"cannot be made ({error.strerror or error})") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second run away from the same results; a killed one holds nothing.

    Where nothing was noted in the end, because nothing could begin, nothing is left behind.

    Raises:
        ConfigError: another run is at work there.
        MediaError: the folder cannot be made, or not be written to.
    """
    from filelock import FileLock, Timeout

    state_folder, missing_folders = (
        folder / FOLDER,
        [path for path in (folder, *folder.parents) if not path.exists()],
    )
    make_folder(state_folder)
    lock = FileLock(str(state_folder / "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            "output", str(folder), "a folder on which no other run is at work"
        ) from None
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
