"""From a host's face crop to the template that restorers were trained on, and back.

Coordinates are in pixels, x to the right, y down, and a picture spans 0..W and 0..H: the middle of its first pixel is
(0.5, 0.5), so that coordinates in a picture of another size are the same shares of it. Faces are float32
(n, 3, H, W), 0..1, in any colour order; all work on them happens on their own device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FrameError
from ..frames.batch import is_tensor
from ..frames.resize import resize
from .detect import FFHQ_512, FaceDetector, Picture
from .smoothing import OneEuroFilter

if TYPE_CHECKING:
    import torch

TEMPLATE_SIDE = 512
"""Side of the square that `FFHQ_512` lies in, in pixels."""
LEAST_STRETCH, MOST_STRETCH = 0.5, 1.5
"""How much wider than tall a pixel of a crop may have been before the host squashed its box to the crop."""
LEAST_SPREAD = 2.0
"""Root mean square distance of landmarks from their middle, in pixels, under which they have collapsed."""
LEAST_LIKENESS = 0.6
"""Share of the template's spread that landmarks must explain; a face in full profile explains less."""

_MARGIN = 0.25  # share of a side by which a landmark may lie outside the crop
_NOSE_DEPTH = 0.45  # how far the nose stands out of the plane of eyes and mouth, as a share of the eyes' distance
_LEAST_COS = 0.5  # of the yaw that is reckoned with: 60 degrees
_CENTRED = FFHQ_512 - FFHQ_512.mean(axis=0)


@dataclass(frozen=True, eq=False)
class Alignment:
    """How n face crops lie on the FFHQ template.

    Attributes:
        to_template: float64 (n, 2, 3): ``A @ (x, y, 1)`` are the coordinates in the 512 px template of a place in the
            crop.
        size_hw: height and width of the crops, in pixels.
        aspect: float64 (n,): width / height of the box in the host's picture that each crop was made from, as given
            or as estimated.
    """

    to_template: NDArray[np.float64]
    size_hw: tuple[int, int]
    aspect: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.to_template)

    @property
    def to_crop(self) -> NDArray[np.float64]:
        """The way back: float64 (n, 2, 3), coordinates in the crop of a place in the 512 px template."""
        inverse = np.linalg.inv(self.to_template[:, :, :2])
        return np.concatenate((inverse, -inverse @ self.to_template[:, :, 2:]), axis=2)

    @property
    def corners_xy(self) -> NDArray[np.float64]:
        """Where the template's corners lie in the crop: float64 (n, 4, 2), clockwise from the upper left."""
        side = float(TEMPLATE_SIDE)
        corners = np.array([(0.0, 0.0, 1.0), (side, 0.0, 1.0), (side, side, 1.0), (0.0, side, 1.0)])
        return np.swapaxes(self.to_crop @ corners.T, 1, 2)

    def select(self, indices: Sequence[int]) -> Alignment:
        """The alignment of the faces at `indices` alone."""
        chosen = list(indices)
        return Alignment(self.to_template[chosen], self.size_hw, self.aspect[chosen])


class Aligner:
    """Lays face crops on the FFHQ template, and what a network made of them back on the crops.

    The way from crop to template is the similarity (turn, scale, shift) that brings the five landmarks nearest to the
    template's in the sense of least squares, after the crop has been stretched to the shape that the face had in the
    host's picture: MuseTalk squashes its box to a square.

    Args:
        side: side of aligned faces, in pixels: the network's input size.
        feather: width in pixels of the 512 px template over which the coverage fades at the template's border.

    Raises:
        ConfigError: an impossible value.
    """

    def __init__(self, side: int = TEMPLATE_SIDE, feather: float = 32.0) -> None:
        if side < 16:
            raise ConfigError("side", side, "16 pixels at least")
        if not 0 < feather <= TEMPLATE_SIDE / 2:
            raise ConfigError("feather", feather, f"more than 0, at most {TEMPLATE_SIDE // 2} pixels")
        self.side, self.feather = side, feather

    @staticmethod
    def problems(landmarks: Any, size_hw: tuple[int, int]) -> dict[int, FrameError]:
        """Which faces cannot be aligned, and why.

        Args:
            landmarks: (n, 5, 2) x, y in pixels of the crop, in the order of `Face.landmarks`; array or tensor.
            size_hw: height and width of the crops.

        Returns:
            Index to error, its reason one of ``"nonfinite"``, ``"outside"``, ``"collapsed"`` and ``"landmarks"``.

        Raises:
            FrameError: `landmarks` has another shape.
        """
        found = {}
        for index, points in enumerate(_checked(landmarks)):
            problem = _problem(points, size_hw)
            if problem:
                found[index] = FrameError(*problem, index=index)
        return found

    def fit(self, landmarks: Any, size_hw: tuple[int, int], aspect: Any = None) -> Alignment:
        """The way from crop to template for every face.

        Where the aspect is not given, the stretch ``a`` that makes the least-squares error smallest is taken. With
        centred landmarks ``x + iy`` and template ``q`` as complex numbers, ``X = sum(x q)``, ``Y = -i sum(y q)``,
        ``R = Re(X conj(Y))`` and the sums of squares ``S_x``, ``S_y``, it is the positive root of ::

            R S_x a^2 - (|X|^2 S_y - |Y|^2 S_x) a - R S_y = 0

        A face that is turned aside is narrow, too, but that is not the host's doing: the nose, which then lies off
        the middle, says how far it is turned, and the cosine of that is taken off. The result is kept within
        `LEAST_STRETCH` and `MOST_STRETCH`.

        Args:
            landmarks: (n, 5, 2) x, y in pixels of the crop, in the order of `Face.landmarks`; array or tensor.
            size_hw: height and width of the crops.
            aspect: width / height of the box in the host's picture, one number or (n,); the crop's own W / H for a
                crop that is not squashed; None estimates it.

        Raises:
            FrameError: the first of `problems`, with its index; or `landmarks` has another shape.
            ConfigError: an aspect is not positive.
        """
        points = _checked(landmarks)
        problems = self.problems(points, size_hw)
        if problems:
            raise problems[min(problems)]
        if aspect is None:
            stretch = np.array([_stretch(face) for face in points])
        else:
            given = np.broadcast_to(np.asarray(aspect, np.float64), (len(points),))
            if not (np.isfinite(given) & (given > 0)).all():
                raise ConfigError("aspect", aspect, "width / height of a box, above 0")
            stretch = given * size_hw[0] / size_hw[1]
        matrices = [_similarity(face, by)[0] for face, by in zip(points, stretch, strict=True)]
        to_template = np.array(matrices).reshape(-1, 2, 3)
        return Alignment(to_template, (int(size_hw[0]), int(size_hw[1])), stretch * size_hw[1] / size_hw[0])

    def warp(self, faces: torch.Tensor, landmarks: Any, aspect: Any = None) -> tuple[torch.Tensor, Alignment]:
        """Bring face crops to the template.

        Bicubic and antialiased where it shrinks. Outside the crop its border is continued.

        Args:
            faces: float32 (n, 3, H, W), 0..1.
            landmarks: (n, 5, 2), see `fit`.
            aspect: see `fit`.

        Returns:
            The aligned faces, float32 (n, 3, side, side), 0..1, same device, and the alignment.

        Raises:
            FrameError: see `fit`; or not one set of landmarks for each face.
        """
        height, width = faces.shape[2:]
        alignment = self.fit(landmarks, (height, width), aspect)
        if len(alignment) != len(faces):
            raise FrameError("count", f"{len(alignment)} sets of landmarks", f"one for each of {len(faces)} faces")
        maps = alignment.to_crop.copy()
        maps[:, :, :2] *= TEMPLATE_SIDE / self.side
        return _sampled(faces, maps, (self.side, self.side)).clamp_(0, 1), alignment

    def unwarp(
        self, restored: torch.Tensor, alignment: Alignment, size_hw: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring aligned faces back to their crops.

        With a network that changes nothing, laying what comes back over a smooth crop by its coverage changes no
        value by more than 0.5/255, or 3/255 in the crop's outermost pixels, beyond which the network saw its border
        go on; `lay_over` changes none at all, whatever the crop.

        Args:
            restored: float32 (n, 3, T, T), the whole template at any size T.
            alignment: what `warp` returned.
            size_hw: height and width of the result, which shows the whole crop; None takes the crop's own.

        Returns:
            The faces, float32 (n, 3, h, w), and the coverage (n, 1, h, w): 1 where the template lies, 0 outside it,
            fading between over `feather` on the inside. Same device.

        Raises:
            FrameError: not as many faces as the alignment has.
        """
        if len(alignment) != len(restored):
            raise FrameError("count", f"{len(restored)} faces", f"as many as were aligned, {len(alignment)}")
        height, width = size_hw or alignment.size_hw
        maps = alignment.to_template.copy()
        maps[:, :, 0] *= alignment.size_hw[1] / width
        maps[:, :, 1] *= alignment.size_hw[0] / height
        coverage = self._coverage(maps, (height, width), restored)
        maps[:, 0] *= restored.shape[3] / TEMPLATE_SIDE
        maps[:, 1] *= restored.shape[2] / TEMPLATE_SIDE
        return _sampled(restored, maps, (height, width)), coverage

    def lay_over(
        self,
        faces: torch.Tensor,
        aligned: torch.Tensor,
        restored: torch.Tensor,
        alignment: Alignment,
        size_hw: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Lay what the network changed over the crops, so that no detail is lost on the way to the template and back.

        ``faces + coverage * (unwarp(restored) - unwarp(aligned))``: exactly `faces` for a network that changes
        nothing, and outside the template.

        Args:
            faces: the crops, float32 (n, 3, H, W), 0..1.
            aligned: what the network was given, (n, 3, S, S).
            restored: what it made, (n, 3, T, T).
            alignment: what `warp` returned.
            size_hw: height and width of the result; None takes the crop's own.

        Returns:
            float32 (n, 3, h, w), about 0..1 (not clamped), same device.
        """
        size = size_hw or alignment.size_hw
        made, coverage = self.unwarp(restored, alignment, size)
        given, _ = self.unwarp(aligned, alignment, size)
        return resize(faces, size) + coverage * (made - given)

    def _coverage(self, maps: NDArray[Any], size_hw: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        x, y = _places(maps, size_hw, like)
        inside = x.minimum(TEMPLATE_SIDE - x).minimum(y.minimum(TEMPLATE_SIDE - y))
        ramp = (inside / self.feather).clamp_(0, 1)
        return (ramp * ramp * (3 - 2 * ramp))[:, None]


class LandmarkTrack:
    """The landmarks of one stream, frame by frame: the host's own or a detector's, smoothed, and found only once for
    every frame of a looping avatar.

    Smoothing is a `OneEuroFilter` on landmarks measured in the spread of the first face (the root mean square
    distance from their middle, about 0.3 of a MuseTalk crop's side), so that its options mean the same at every size.
    It starts afresh where a face jumps by more than half its spread. Where no face is found, the last landmarks hold
    for a few frames, so that a network does not see a crop now aligned and now not.

    Args:
        detector: finds landmarks where the host gives none; None: only the host's count.
        fps: frames per second of the stream.
        min_cutoff: see `OneEuroFilter`, in Hz.
        beta: see `OneEuroFilter`, in Hz per (spread per second).
        d_cutoff: see `OneEuroFilter`, in Hz.
        hold: frames without a face for which the last landmarks hold.
        cache_size: most keys remembered; the longest unused goes first.

    Raises:
        ConfigError: an impossible value.
    """

    def __init__(
        self,
        detector: FaceDetector | None = None,
        *,
        fps: Any = 25.0,
        min_cutoff: float = 1.0,
        beta: float = 2.5,
        d_cutoff: float = 1.0,
        hold: int = 5,
        cache_size: int = 20_000,
    ) -> None:
        self._filter = OneEuroFilter(fps, min_cutoff, beta, d_cutoff)
        for name, value in (("hold", hold), ("cache_size", cache_size)):
            if value < 0:
                raise ConfigError(name, value, "0 or more")
        self.detector, self._hold, self._cache_size = detector, hold, cache_size
        self.reset()

    def reset(self, *, keep_cache: bool = False) -> None:
        """Forget the stream; with `keep_cache` what was found for the keys of this avatar stays."""
        self._filter.reset()
        self._last: NDArray[np.float64] | None = None
        self._unit = 1.0
        self._missed = 0
        if not keep_cache:
            self._cache: OrderedDict[Hashable, NDArray[np.float64] | None] = OrderedDict()

    def knows(self, key: Hashable) -> bool:
        """Whether `update` needs neither landmarks nor a picture for `key`."""
        return key is not None and key in self._cache

    def update(
        self, *, landmarks: Any = None, face_bgr: Picture | None = None, key: Hashable = None
    ) -> NDArray[np.float64] | None:
        """The landmarks of the next frame.

        Args:
            landmarks: the host's own, (5, 2) x, y in pixels of the crop, NaN where it found none; None asks the
                detector.
            face_bgr: the crop for the detector, BGR uint8 (H, W, 3); looked at only where it is needed.
            key: names a picture that comes again, such as the avatar's frame; the same key gives the same landmarks
                until `reset`. None remembers nothing.

        Returns:
            float64 (5, 2), or None where there is no face.

        Raises:
            FrameError: landmarks of another shape, or a bad picture.
            RestorerError: the detector failed.
        """
        if self.knows(key):
            self._cache.move_to_end(key)
            known = self._cache[key]
            if known is not None:
                self._start(known)
            return None if known is None else known.copy()
        smoothed = self._follow(self._seen(landmarks, face_bgr))
        if key is not None:
            self._cache[key] = smoothed
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return None if smoothed is None else smoothed.copy()

    def _seen(self, landmarks: Any, face_bgr: Picture | None) -> NDArray[np.float64] | None:
        if landmarks is not None:
            points: NDArray[np.float64] = _checked(landmarks, single=True)[0]
            return points if np.isfinite(points).all() else None
        if self.detector is None or face_bgr is None:
            return None
        faces = self.detector.detect(face_bgr)
        return np.asarray(faces[0].landmarks, np.float64) if faces else None

    def _follow(self, points: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        if points is None:
            self._missed += 1
            if self._missed > self._hold:
                self.reset(keep_cache=True)
            return self._last
        self._missed = 0
        if self._last is None or _rms(points - self._last) > self._unit / 2:
            return self._start(points)
        self._last = points + (self._filter(points / self._unit) - points / self._unit) * self._unit
        return self._last

    def _start(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        self._filter.reset()
        self._unit = max(_rms(points - points.mean(axis=0)), LEAST_SPREAD)
        self._filter(points / self._unit)
        self._last = points
        self._missed = 0
        return points


def _checked(landmarks: Any, single: bool = False) -> NDArray[np.float64]:
    """Landmarks as float64 (n, 5, 2), (1, 5, 2) for a `single` set."""
    try:
        points = np.asarray(landmarks.detach().cpu() if is_tensor(landmarks) else landmarks, np.float64)
    except (TypeError, ValueError) as error:
        raise FrameError("landmarks", f"landmarks of type {type(landmarks).__name__}", "numbers (n, 5, 2)") from error
    points = points[None] if single else points
    if points.ndim != 3 or points.shape[1:] != (5, 2):
        wanted = "(5, 2)" if single else "(n, 5, 2)"
        raise FrameError("landmarks", f"landmarks of shape {points.shape[single:]}", f"{wanted} x, y in pixels")
    return points


def _problem(points: NDArray[np.float64], size_hw: tuple[int, int]) -> tuple[str, str, str] | None:
    height, width = size_hw
    if not np.isfinite(points).all():
        return "nonfinite", "landmarks with NaN or infinite values", "five finite points"
    low, high = points.min(axis=0), points.max(axis=0)
    middle = points.mean(axis=0)
    size = np.array((width, height), np.float64)
    if (
        (low < -_MARGIN * size).any()
        or (high > (1 + _MARGIN) * size).any()
        or (middle < 0).any()
        or (middle > size).any()
    ):
        where = f"landmarks from {low.round().tolist()} to {high.round().tolist()}"
        return "outside", where, f"points in the crop of {width}x{height} pixels"
    spread = _rms(points - middle)
    if spread < LEAST_SPREAD:
        return "collapsed", f"landmarks {spread:.1f} px around one point", f"a spread of {LEAST_SPREAD} px at least"
    likeness = _similarity(points, _stretch(points))[1]
    if likeness < LEAST_LIKENESS:
        return "landmarks", f"landmarks that are {likeness:.0%} like a face's", f"{LEAST_LIKENESS:.0%} at least"
    return None


def _rms(vectors: NDArray[np.float64]) -> float:
    return float(np.sqrt((vectors**2).sum(axis=-1).mean()))


def _sums(points: NDArray[np.float64]) -> tuple[complex, complex, float, float]:
    """X, Y, S_x, S_y of `Aligner.fit`."""
    centred = points - points.mean(axis=0)
    template = _CENTRED[:, 0] + 1j * _CENTRED[:, 1]
    x, y = centred[:, 0], centred[:, 1]
    return complex((x * template).sum()), complex(-1j * (y * template).sum()), float(x @ x), float(y @ y)


def _stretch(points: NDArray[np.float64]) -> float:
    """How much wider than tall the crop's pixels were in the host's picture, estimated; see `Aligner.fit`."""
    x_sum, y_sum, x_square, y_square = _sums(points)
    both = (x_sum * y_sum.conjugate()).real
    if both <= 0 or x_square <= 0:
        return 1.0
    half = (abs(x_sum) ** 2 * y_square - abs(y_sum) ** 2 * x_square) / 2
    best = float((half + np.sqrt(half**2 + both**2 * x_square * y_square)) / (both * x_square))
    placed = _apply(_similarity(points, best)[0], points)
    aside = placed[2, 0] - placed[[0, 1, 3, 4], 0].mean() - (FFHQ_512[2, 0] - FFHQ_512[[0, 1, 3, 4], 0].mean())
    tangent = aside / (_NOSE_DEPTH * (FFHQ_512[1, 0] - FFHQ_512[0, 0]))
    cosine = max(_LEAST_COS, float(1 / np.sqrt(1 + tangent**2)))
    return min(MOST_STRETCH, max(LEAST_STRETCH, best * cosine))


def _similarity(points: NDArray[np.float64], stretch: float) -> tuple[NDArray[np.float64], float]:
    """(2, 3) from crop to template for a given stretch, and the share of the template's spread it explains, 0..1.

    The least-squares similarity of Umeyama, "Least-squares estimation of transformation parameters between two point
    patterns", 1991, in two dimensions and without reflection, written with complex numbers.
    """
    x_sum, y_sum, x_square, y_square = _sums(points)
    square = stretch**2 * x_square + y_square
    turn = (stretch * x_sum + y_sum) / square
    linear = np.array([(turn.real * stretch, -turn.imag), (turn.imag * stretch, turn.real)])
    shift = FFHQ_512.mean(axis=0) - linear @ points.mean(axis=0)
    return np.column_stack((linear, shift)), float(abs(turn) ** 2 * square / (_CENTRED**2).sum())


def _apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


def _places(maps: NDArray[Any], size_hw: tuple[int, int], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y, each float32 (n, h, w), that `maps` (n, 2, 3) give for the middle of every pixel of a picture.

    Plain products instead of ``affine_grid``, whose matrix product a GPU may round to TF32: a quarter of a pixel.
    """
    import torch

    height, width = size_hw
    row = torch.arange(width, device=like.device, dtype=torch.float32) + 0.5
    column = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5)[:, None]
    part = torch.as_tensor(maps, dtype=torch.float32).to(like.device)[..., None, None]
    x = part[:, 0, 0] * row + part[:, 0, 1] * column + part[:, 0, 2]
    y = part[:, 1, 0] * row + part[:, 1, 1] * column + part[:, 1, 2]
    return x, y


def _sampled(source: torch.Tensor, maps: NDArray[Any], size_hw: tuple[int, int]) -> torch.Tensor:
    """Pictures of `size_hw` whose pixel p shows `source` at ``map @ p``; beyond the source its border goes on.

    A source that is finer than the result is first reduced to its density, antialiased and face by face, so that a
    face comes out the same in every batch. Values between pixels are linear ones of a bicubic enlargement to twice
    the density: ``grid_sample``'s own bicubic (a = -0.75) does not keep even a plain slope.
    """
    import torch
    from torch.nn.functional import grid_sample, interpolate

    height, width = source.shape[2:]
    density = np.maximum(1.0, np.sqrt((maps[:, :, :2] ** 2).sum(axis=2)))  # source pixels per pixel, x and y
    sizes = [(max(1, round(height / y)), max(1, round(width / x))) for x, y in density]
    x, y = _places(maps, size_hw, source)
    grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), dim=-1)
    out = torch.empty((len(source), source.shape[1], *size_hw), dtype=torch.float32, device=source.device)
    for size in set(sizes):
        chosen = [index for index, one in enumerate(sizes) if one == size]
        part = source[chosen].float()
        if size != (height, width):
            part = interpolate(part, size=size, mode="bicubic", align_corners=False, antialias=True)
        twice = (2 * size[0], 2 * size[1])
        part = interpolate(part, size=twice, mode="bicubic", align_corners=False, antialias=True)
        out[chosen] = grid_sample(part, grid[chosen], mode="bilinear", padding_mode="border", align_corners=False)
    return out
