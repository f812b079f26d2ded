"""The JSON of a face analyser, in the shapes that such programs write; ``docs/onnx.md`` lists them.

What cannot be read at all is an error; a face that cannot be read is skipped and counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AnalysisError
from ..runtime.files import open_regular

BOXES = ("bounding_box", "bbox", "box")
LANDMARKS = (
    *(("5/68", 5), ("landmark_5", 5), ("kps", 5), ("5", 5)),
    *(("landmark_68", 68), ("landmark_3d_68", 68), ("68", 68)),
    *(("landmark_106", 106), ("landmark_2d_106", 106), ("106", 106)),
)
"""Keys of landmarks with their number of points, the preferred first."""
SETS = ("landmark_set", "landmarks")
"""Keys of an object with several sets of landmarks; ``landmarks`` may be one set, too."""
_FIVE_OF_106 = (38, 88, 86, 52, 61)
"""Eyes, nose and mouth corners in the order of insightface's 2d106det."""
_HUGE = 1e6  # pixels; more than a side of any image


@dataclass(frozen=True, eq=False)
class AnalyzedFace:
    """One face of an analysis.

    Attributes:
        index: its position in the analysis.
        landmarks: float64 (5, 2), x, y in pixels: left eye, right eye, nose, left and right mouth
            corner, left and right in the image.
        box_xyxy: float64 (4,), left, top, right, bottom, in pixels; None where there is none.
        score: the analyser's confidence; None where there is none.
    """

    index: int
    landmarks: NDArray[np.float64]
    box_xyxy: NDArray[np.float64] | None = None
    score: float | None = None


@dataclass(frozen=True)
class SkippedFace:
    """A face that is left as it is: its position, a stable word for counting, and why."""

    index: int
    reason: str
    detail: str


def read_analysis(analysis: Any) -> tuple[list[AnalyzedFace], list[SkippedFace]]:
    """The faces of an analysis.

    Args:
        analysis: the path of a JSON file, JSON text, or its content: a list of faces, an object
            with the list ``faces``, or one face.

    Returns:
        The faces that can be read, in their order, and the others.

    Raises:
        AnalysisError: the file cannot be read, is not JSON, or holds no list of faces.
    """
    if isinstance(analysis, (str, Path)):
        analysis = _parsed(analysis)
    faces = analysis.get("faces", analysis) if isinstance(analysis, Mapping) else analysis
    if isinstance(faces, Mapping):
        names = {*BOXES, *SETS, *(name for name, _ in LANDMARKS)}
        if not names & faces.keys():
            keys = ", ".join(map(str, list(faces)[:5])) or "no key"
            raise AnalysisError(f"an object with {keys}")
        faces = [faces]
    if not isinstance(faces, (list, tuple)):
        raise AnalysisError(f"a value of type {type(faces).__name__}")
    readable: list[AnalyzedFace] = []
    skipped: list[SkippedFace] = []
    for index, entry in enumerate(faces):
        face = _face(index, entry)
        if isinstance(face, AnalyzedFace):
            readable.append(face)
        else:
            skipped.append(face)
    return readable, skipped


def _parsed(analysis: str | Path) -> Any:
    text = str(analysis)
    try:
        if not text.lstrip().startswith(("{", "[")):
            with open_regular(Path(text).expanduser()) as stream:
                text = stream.read().decode("utf-8-sig")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise AnalysisError(f"{str(analysis)[:200]!r}: {error}") from error


def _face(index: int, entry: Any) -> AnalyzedFace | SkippedFace:
    if not isinstance(entry, Mapping):
        return SkippedFace(index, "form", f"a face is a {type(entry).__name__}, not an object")
    box = None
    for key in BOXES:
        if entry.get(key) is not None:
            box = _array(entry[key], (4,))
            if box is None or not _is_sane(box) or (box[:2] >= box[2:]).any():
                return SkippedFace(index, "box", f"{key} is not left, top, right, bottom")
            break
    sets: dict[str, Any] = {}
    for key in SETS:
        value = entry.get(key)
        if isinstance(value, Mapping):
            sets.update(value)
        elif value is not None:
            counts = (each for each in (5, 68, 106) if _points(value, each) is not None)
            sets.setdefault(str(next(counts, 5)), value)
    sets = {**sets, **entry}
    for key, count in LANDMARKS:
        if sets.get(key) is not None:
            points = _points(sets[key], count)
            if points is None:
                detail = f"{key} is not {count} points of two numbers"
                return SkippedFace(index, "form", detail)
            if not _is_sane(points):
                return SkippedFace(index, "nonfinite", f"{key} has NaN, infinite or huge values")
            return _checked(index, _five(points), box, _score(entry))
    return SkippedFace(index, "missing", "the face has no landmarks")


def _checked(
    index: int, landmarks: NDArray[np.float64], box: NDArray[np.float64] | None, score: float | None
) -> AnalyzedFace | SkippedFace:
    center = landmarks.mean(axis=0)
    if box is not None and ((center < box[:2]).any() or (center > box[2:]).any()):
        detail = f"the landmarks' center {center.round(1).tolist()} is outside the bounding box"
        return SkippedFace(index, "box", detail)
    return AnalyzedFace(index, landmarks, box, score)


def _is_sane(values: NDArray[np.float64]) -> bool:
    return bool((np.abs(values) < _HUGE).all())  # False for NaN


def _score(entry: Mapping[str, Any]) -> float | None:
    several = [entry.get(key) for key in ("score_set", "scores")]
    values = [each.get("detector") for each in several if isinstance(each, Mapping)]
    for value in (entry.get("score"), entry.get("det_score"), *values):
        array = _array(value, ())
        if array is not None and np.isfinite(array):
            return float(array)
    return None


def _five(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Five landmarks of 5, 68 (the order of iBUG 300-W) or 106."""
    if len(points) == 68:
        eyes = [points[36:42].mean(axis=0), points[42:48].mean(axis=0)]
        return np.array([*eyes, points[30], points[48], points[54]])
    return points[list(_FIVE_OF_106)] if len(points) == 106 else points


def _points(value: Any, count: int) -> NDArray[np.float64] | None:
    """(count, 2), of pairs, of triples (x, y, z) or of one flat list; None for anything else."""
    for shape in ((count, 2), (count, 3), (2 * count,)):
        array = _array(value, shape)
        if array is not None:
            return array[:, :2] if array.ndim == 2 else array.reshape(count, 2)
    return None


def _array(value: Any, shape: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Numbers of a shape; None for anything else, words and booleans included."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return array.astype(np.float64) if array.dtype.kind in "iuf" and array.shape == shape else None
