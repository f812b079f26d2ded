"""What a report reads beside the clips: a face detector, and the JSON file of a restored video."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..runtime.files import open_regular


def find_locator(path: str | Path | None = None) -> Any:
    """A YuNet face detector as `report.region.Locate`; None if its weight is not installed.

    Args:
        path: the user's own weight of YuNet; None uses the one in the cache.
    """
    from ..errors import MissingWeightError
    from ..faces.detect import make_detector

    try:
        detector = make_detector("yunet", path)
    except MissingWeightError:
        return None

    def locate(frame_bgr: Any) -> Any:
        faces = detector.detect(frame_bgr)
        return tuple(round(float(side)) for side in faces[0].box_xyxy) if faces else None

    return locate


def read_sidecar(
    sidecar: Path | None, video: Path
) -> tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]:
    """Notes on each frame and totals from ``{"notes": [{...}, ...], "totals": {...}}``.

    Args:
        sidecar: the file; None reads `video`'s name plus ``.json``, and returns empty notes and
            totals if there is no such file.
        video: the restored video.

    Raises:
        ConfigError: `sidecar` is missing, or the file has another structure.
    """
    path = sidecar or video.with_name(f"{video.name}.json")
    if sidecar is None and not path.is_file():
        return (), {}
    try:
        with open_regular(path) as file:
            content = json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("--sidecar", str(path), f"a readable JSON file ({error})") from error
    notes, totals = None, None
    if isinstance(content, dict):
        notes, totals = content.get("notes", []), content.get("totals", {})
    is_list = isinstance(notes, list) and all(isinstance(note, dict) for note in notes)
    if notes is None or not is_list or not isinstance(totals, dict):
        structure = '{"notes": [{...} for each frame], "totals": {...}}'
        raise ConfigError("--sidecar", str(path), structure)
    return notes, totals
