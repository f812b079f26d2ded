"""What a host knows about its frames beyond pixels: landmarks, occlusion, keys, scene cuts, and the
originals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError
from .batch import is_frame, is_tensor, same_bits


@dataclass(frozen=True)
class Hints:
    """One entry per frame; None where the host passes none.

    Attributes:
        landmarks: float32 (5, 2), x and y in pixels of the frame: left eye, right eye, nose, left
            and right corner of the mouth as seen in the image.
        occlusion: (H, W), not 0 where something covers the face.
        keys: names of the frames; landmarks are detected once for each key.
        cuts: whether another scene begins with the frame.
        sources: the host's original of the frame, as a frame of any size.
    """

    landmarks: list[NDArray[np.float32] | None]
    occlusion: list[Any]
    keys: list[Hashable | None]
    cuts: list[bool]
    sources: list[Any]

    @classmethod
    def of(
        cls,
        count: int,
        landmarks: Any = None,
        occlusion: Any = None,
        keys: Any = None,
        cuts: Any = None,
        sources: Any = None,
    ) -> Hints:
        """The hints of `count` frames.

        Args:
            count: how many frames there are.
            landmarks: (N, 5, 2), or a sequence of (5, 2) and None.
            occlusion: (N, H, W), a sequence of (H, W) and None, or one (H, W) for all frames.
            keys: a sequence of hashable things and None.
            cuts: a sequence of true and false; None is false.
            sources: (N, h, w, 3), or a sequence of frames and None.

        Raises:
            FrameError: another number of entries than of frames, landmarks of another shape, or a
                key that cannot be hashed.
        """
        points = _each(landmarks, count, "landmarks")
        return cls(
            [
                None if each is None else _landmarks(each, index)
                for index, each in enumerate(points)
            ],
            [occlusion] * count if _is_mask(occlusion) else _each(occlusion, count, "occlusion"),
            [_key(each, index) for index, each in enumerate(_each(keys, count, "keys"))],
            [bool(each) for each in _each(cuts, count, "cuts")],
            _each(sources, count, "sources"),
        )

    def with_landmarks(self, landmarks: list[Any]) -> Hints:
        """The same with other landmarks."""
        return replace(self, landmarks=landmarks)

    def same(self, index: int, other: Hints, at: int) -> bool:
        """Whether frame `index` has the same hints as frame `at` of `other`, except the key."""
        landmarks = same_bits(self.landmarks[index], other.landmarks[at])
        occlusion = same_bits(self.occlusion[index], other.occlusion[at])
        return landmarks and occlusion and same_bits(self.sources[index], other.sources[at])

    def at(self, indices: Sequence[int]) -> Hints:
        """Those of some frames."""
        return Hints(
            [self.landmarks[index] for index in indices],
            [self.occlusion[index] for index in indices],
            [self.keys[index] for index in indices],
            [self.cuts[index] for index in indices],
            [self.sources[index] for index in indices],
        )

    def own(self, index: int) -> Hints:
        """Those of one frame, as copies: a host may go on using its arrays."""
        landmarks, occlusion = _copied(self.landmarks[index]), _copied(self.occlusion[index])
        source = _copied(self.sources[index])
        return Hints([landmarks], [occlusion], [self.keys[index]], [self.cuts[index]], [source])


def _is_mask(occlusion: Any) -> bool:
    """Whether one mask is given for all frames."""
    return is_frame(occlusion) and occlusion.ndim == 2


def _copied(value: Any) -> Any:
    if value is None:
        return None
    return value.detach().clone() if is_tensor(value) else np.array(value)


def _each(values: Any, count: int, name: str) -> list[Any]:
    if values is None:
        return [None] * count
    if not isinstance(values, Sequence) and not getattr(values, "shape", ()):
        raise FrameError(
            name,
            f"{name} of type {type(values).__name__}",
            f"one entry for each of the {count} frames",
        )
    if isinstance(values, str) or len(values) != count:
        raise FrameError(
            name, f"{len(values)} entries in {name}", f"one for each of the {count} frames"
        )
    return list(values)


def _key(key: Any, index: int) -> Hashable | None:
    """A checked key; numbers in arrays and tensors become plain ones, which compare by value."""
    plain: Hashable | None = key.tolist() if hasattr(key, "tolist") else key
    try:
        hash(plain)
    except TypeError as error:
        raise FrameError(
            "keys", f"a key of type {type(key).__name__}", "something hashable", index=index
        ) from error
    return plain


def _landmarks(points: Any, index: int) -> NDArray[np.float32] | None:
    """Checked landmarks; None where they are not finite numbers, as a detector's answer may be."""
    detached = points.detach().float().cpu() if hasattr(points, "detach") else points
    try:
        array = np.asarray(detached, np.float32)
    except (ValueError, TypeError) as error:
        raise FrameError(
            "landmarks", f"{type(points).__name__} ({error})", "(5, 2) numbers", index=index
        ) from error
    if array.shape != (5, 2):
        raise FrameError(
            "landmarks", f"shape {array.shape}", "(5, 2): x and y of five points", index=index
        )
    return array if np.isfinite(array).all() else None
