"""The JSON file beside a video: what was done to it as a whole, and to each frame.

However long the video is, the notes on its frames are never held in memory together: each is on a
line of its own, after everything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ..errors import MediaError
from ..runtime.files import open_regular

_NOTES = '"notes": ['
_MOST = 2**20  # characters before the notes in a file of ours, at most


def sidecar_path(output: Path) -> Path:
    """Path of the JSON file of a video: its name and ``.json``."""
    return output.with_name(f"{output.name}.json")


def write_sidecar(path: Path, head: Mapping[str, Any], notes: Iterable[Mapping[str, Any]]) -> None:
    """Write the file. It is not written atomically, so `path` must be a temporary place.

    Args:
        path: of the file.
        head: values of the video as a whole.
        notes: values of each frame, in order.

    Raises:
        MediaError: it cannot be written; or as `notes` raises it.
    """
    try:
        path.unlink(missing_ok=True)  # a link in its place would be written through
        with path.open("x", encoding="utf-8") as file:
            file.write(
                json.dumps(head, indent=1, sort_keys=True, allow_nan=False).removesuffix("\n}")
            )
            file.write(f",\n {_NOTES}")
            for number, note in enumerate(notes):
                text = json.dumps(note, sort_keys=True, allow_nan=False)
                file.write(f"{',' if number else ''}\n  {text}")
            file.write("\n ]\n}\n")
    except MediaError:  # an OSError too, but it is the notes that it tells of
        raise
    except OSError as error:
        raise MediaError(path, f"cannot be written ({error.strerror or error})") from error


def read_head(path: Path) -> Any:
    """Values of the video as a whole; None if the file is missing, damaged or not ours."""
    text = ""
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            while line := file.readline(_MOST):
                if line.strip() == _NOTES:
                    return json.loads(text.rstrip().rstrip(",") + "}")
                text += line
                if len(text) > _MOST:
                    return None
    except (OSError, ValueError, RecursionError):
        pass
    return None
