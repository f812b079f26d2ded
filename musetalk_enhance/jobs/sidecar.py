"""The JSON file beside a film: what was done to it as a whole, and to each frame.

However long the film is, its notes are never held in memory together: each stands in a line of its own, after
everything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import MediaError

_NOTES = '"notes": ['
_MOST = 2**20  # characters before the notes in a file of ours, at most


def sidecar_path(output: Path) -> Path:
    """Where what was done to a film is written: its name and ``.json``."""
    return output.with_name(f"{output.name}.json")


def write_sidecar(path: Path, head: Mapping[str, Any], notes: Iterable[Mapping[str, Any]]) -> None:
    """Write the file; it is not whole before the end, so `path` is a place where nobody looks for it.

    Args:
        path: where to.
        head: what is said of the film as a whole.
        notes: what is said of each frame, in order.

    Raises:
        MediaError: it cannot be written; or as `notes` raises it.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(
                json.dumps(head, indent=1, sort_keys=True, allow_nan=False).removesuffix("\n}")
            )
            file.write(f",\n {_NOTES}")
            for number, note in enumerate(notes):
                file.write(
                    f"{',' if number else ''}\n  {json.dumps(note, sort_keys=True, allow_nan=False)}"
                )
            file.write("\n ]\n}\n")
    except MediaError:  # an OSError too, but it is the notes that it tells of
        raise
    except OSError as error:
        raise MediaError(path, f"cannot be written ({error.strerror or error})") from error


def read_head(path: Path) -> Any:
    """What such a file says of the film as a whole; None where it is missing, damaged or another's."""
    text = ""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip() == _NOTES:
                    return json.loads(text.rstrip().rstrip(",") + "}")
                text += line
                if len(text) > _MOST:
                    return None
    except (OSError, ValueError):
        pass
    return None
