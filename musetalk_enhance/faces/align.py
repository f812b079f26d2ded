"""Face crops to the FFHQ template that restorers were trained on, and back.

Coordinates are in pixels, x to the right, y down. An image spans 0..W and 0..H: the center of its
first pixel is (0.5, 0.5), so coordinates scale with the image. Faces are float32 (n, 3, H, W),
0..1, in any color order, and are processed on their own device.
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
from ..media.arrays import Image
from .detect import FFHQ_512, FaceDetector
from .one_euro import OneEuroFilter
from .templates import TEMPLATE_SIDE, template_points

if TYPE_CHECKING:
    import torch

MIN_STRETCH, MAX_STRETCH = 0.5, 1.5
"""Range of a crop's pixel aspect ratio (width / height): how much the host squashed its box."""
MIN_SPREAD = 2.0
"""Root mean square distance of landmarks from their mean, in pixels, below which they collapsed."""
MIN_MATCH = 0.6
"""Share of the template's spread that landmarks must explain; a full profile explains less."""

_MARGIN = 0.25  # share of a side by which a landmark may lie outside the crop
_NOSE_DEPTH = 0.45  # how far the nose stands out of the plane of eyes and mouth, in eye distances
_MIN_COS = 0.5  # of the yaw that is corrected for: 60 degrees


@dataclass(frozen=True, eq=False)
class Alignment:
    """The transforms of n face crops to the FFHQ template.

    Attributes:
        to_template: float64 (n, 2, 3): ``A @ (x, y, 1)`` maps a point of the crop to the 512 px
            template.
        size_hw: height and width of the crops, in pixels.
        aspect: float64 (n,): width / height of the box in the host's frame that each crop was made
            from, as passed in or as estimated.
    """

    to_template: NDArray[np.float64]
    size_hw: tuple[int, int]
    aspect: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.to_template)

    @property
    def to_crop(self) -> NDArray[np.float64]:
        """The inverse: float64 (n, 2, 3), maps a point of the 512 px template to the crop."""
        inverse = np.linalg.inv(self.to_template[:, :, :2])
        return np.concatenate((inverse, -inverse @ self.to_template[:, :, 2:]), axis=2)

    @property
    def corners_xy(self) -> NDArray[np.float64]:
        """The template's corners in the crop: float64 (n, 4, 2), clockwise from the upper left."""
        side = float(TEMPLATE_SIDE)
        corners = np.array([(0.0, 0.0, 1.0), (side, 0.0, 1.0), (side, side, 1.0), (0.0, side, 1.0)])
        return np.swapaxes(self.to_crop @ corners.T, 1, 2)

    def select(self, indices: Sequence[int]) -> Alignment:
        """The alignment of the faces at `indices` only."""
        chosen = list(indices)
        return Alignment(self.to_template[chosen], self.size_hw, self.aspect[chosen])


class Aligner:
    """Warps face crops to the FFHQ template, and restored faces back to their crops.

    The transform from crop to template is the similarity (rotation, scale, translation) with the
    least squared distance from the five landmarks to the template's, after the crop has been
    stretched to the face's shape in the host's frame: MuseTalk squashes its box to a square.

    Args:
        side: side of aligned faces, in pixels: the network's input size.
        template: a key of `templates.TEMPLATES`: the network's; None is FFHQ's.
        feather: width, in pixels of the 512 px template, over which the coverage fades at the
            template's border.

    Raises:
        ConfigError: an invalid value.
    """

    def __init__(
        self, side: int = TEMPLATE_SIDE, feather: float = 32.0, template: str | None = None
    ) -> None:
        if side < 16:
            raise ConfigError("side", side, "at least 16 pixels")
        if not 0 < feather <= TEMPLATE_SIDE / 2:
            allowed = f"more than 0, at most {TEMPLATE_SIDE // 2} pixels"
            raise ConfigError("feather", feather, allowed)
        self.side, self.feather = side, feather
        self._target = template_points(template)

    @staticmethod
    def problems(landmarks: Any, size_hw: tuple[int, int]) -> dict[int, FrameError]:
        """Which faces cannot be aligned, and why.

        Args:
            landmarks: (n, 5, 2) x, y in pixels of the crop, in the order of `Face.landmarks`; array
                or tensor.
            size_hw: height and width of the crops.

        Returns:
            Index to error; its reason is one of ``"nonfinite"``, ``"outside"``, ``"collapsed"`` and
            ``"landmarks"``.

        Raises:
            FrameError: `landmarks` has another shape.
        """
        errors = {}
        for index, points in enumerate(_checked(landmarks)):
            problem = _problem(points, size_hw)
            if problem:
                errors[index] = FrameError(*problem, index=index)
        return errors

    def fit(self, landmarks: Any, size_hw: tuple[int, int], aspect: Any = None) -> Alignment:
        """Fit the transform from crop to template for every face.

        Without `aspect`, the stretch ``a`` with the smallest least-squares error is used. With
        centered landmarks ``x + iy`` and template ``q`` as complex numbers, ``X = sum(x q)``,
        ``Y = -i sum(y q)``, ``R = Re(X conj(Y))`` and the sums of squares ``S_x``, ``S_y``, it is
        the positive root of ::

            R S_x a^2 - (|X|^2 S_y - |Y|^2 S_x) a - R S_y = 0

        A face with a large yaw is narrow, too, without being squashed by the host: the nose is then
        off center, which gives the yaw, and its cosine is factored out. The result is clamped to
        `MIN_STRETCH` and `MAX_STRETCH`.

        Args:
            landmarks: (n, 5, 2) x, y in pixels of the crop, in the order of `Face.landmarks`; array
                or tensor.
            size_hw: height and width of the crops.
            aspect: width / height of the box in the host's frame, one number or (n,); the crop's
                own W / H for a crop that is not squashed; None estimates it.

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
            aspects = np.broadcast_to(np.asarray(aspect, np.float64), (len(points),))
            if not (np.isfinite(aspects) & (aspects > 0)).all():
                raise ConfigError("aspect", aspect, "width / height of a box, above 0")
            stretch = aspects * size_hw[0] / size_hw[1]
        pairs = zip(points, stretch, strict=True)
        matrices = [_similarity(face, by, self._target)[0] for face, by in pairs]
        to_template = np.array(matrices).reshape(-1, 2, 3)
        size = (int(size_hw[0]), int(size_hw[1]))
        return Alignment(to_template, size, stretch * size_hw[1] / size_hw[0])

    def warp(
        self, faces: torch.Tensor, landmarks: Any, aspect: Any = None
    ) -> tuple[torch.Tensor, Alignment]:
        """Warp face crops to the template.

        Bicubic, and antialiased where it shrinks. Outside the crop its border is replicated.

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
            expected = f"one for each of {len(faces)} faces"
            raise FrameError("count", f"{len(alignment)} sets of landmarks", expected)
        maps = alignment.to_crop.copy()
        maps[:, :, :2] *= TEMPLATE_SIDE / self.side
        return _sampled(faces, maps, (self.side, self.side)).clamp_(0, 1), alignment

    def unwarp(
        self,
        restored: torch.Tensor,
        alignment: Alignment,
        size_hw: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Warp aligned faces back to their crops.

        With a network that changes nothing, blending the result over a smooth crop by its coverage
        changes no value by more than 0.5/255, or 3/255 in the crop's outermost pixels, beyond which
        the network's input was the replicated border; `composite` changes none at all, whatever the
        crop.

        Args:
            restored: float32 (n, 3, T, T), the whole template at any size T.
            alignment: as returned by `warp`.
            size_hw: height and width of the result, which covers the whole crop; None uses the
                crop's own.

        Returns:
            The faces, float32 (n, 3, h, w), and the coverage (n, 1, h, w): 1 inside the template, 0
            outside, with a ramp of `feather` on the inside. Same device.

        Raises:
            FrameError: the number of faces differs from the alignment's.
        """
        if len(alignment) != len(restored):
            expected = f"as many as were aligned, {len(alignment)}"
            raise FrameError("count", f"{len(restored)} faces", expected)
        height, width = size_hw or alignment.size_hw
        maps = alignment.to_template.copy()
        maps[:, :, 0] *= alignment.size_hw[1] / width
        maps[:, :, 1] *= alignment.size_hw[0] / height
        coverage = self._coverage(maps, (height, width), restored)
        maps[:, 0] *= restored.shape[3] / TEMPLATE_SIDE
        maps[:, 1] *= restored.shape[2] / TEMPLATE_SIDE
        return _sampled(restored, maps, (height, width)), coverage

    def composite(
        self,
        faces: torch.Tensor,
        aligned: torch.Tensor,
        restored: torch.Tensor,
        alignment: Alignment,
        size_hw: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """Add the network's changes to the crops, so that warping loses none of their detail.

        ``faces + coverage * (unwarp(restored) - unwarp(aligned))``: exactly `faces` for a network
        that changes nothing, and outside the template.

        Args:
            faces: the crops, float32 (n, 3, H, W), 0..1.
            aligned: the network's input, (n, 3, S, S).
            restored: its output, (n, 3, T, T).
            alignment: as returned by `warp`.
            size_hw: height and width of the result; None uses the crop's own.

        Returns:
            float32 (n, 3, h, w), about 0..1 (not clamped), same device.
        """
        size = size_hw or alignment.size_hw
        output, coverage = self.unwarp(restored, alignment, size)
        reference, _ = self.unwarp(aligned, alignment, size)
        return resize(faces, size) + coverage * (output - reference)

    def _coverage(
        self, maps: NDArray[Any], size_hw: tuple[int, int], like: torch.Tensor
    ) -> torch.Tensor:
        x, y = _mapped(maps, size_hw, like)
        inside = x.minimum(TEMPLATE_SIDE - x).minimum(y.minimum(TEMPLATE_SIDE - y))
        ramp = (inside / self.feather).clamp_(0, 1)
        return (ramp * ramp * (3 - 2 * ramp))[:, None]


def fit(landmarks: Any, template: str | None) -> NDArray[np.float64]:
    """The similarity from an image to a template of 512 px, by least squares.

    Args:
        landmarks: (5, 2) x, y in pixels, not all the same.
        template: a key of `templates.TEMPLATES`; None is FFHQ's.

    Returns:
        float64 (2, 3).
    """
    return _similarity(np.asarray(landmarks, np.float64), 1.0, template_points(template))[0]


class LandmarkTrack:
    """The smoothed landmarks of one stream, frame by frame, from the host or from a detector.

    Landmarks are normalized by the spread of the first face (the root mean square distance from
    their mean, about 0.3 of a MuseTalk crop's side) and smoothed by a `OneEuroFilter`, so that its
    options mean the same at every size. The filter restarts where a face jumps by more than half
    its spread. Where no face is detected, the last landmarks are kept for a few frames, so that the
    network's input does not alternate between aligned and unaligned crops. Results are cached by
    key, so that each frame of a looping avatar is detected once.

    Args:
        detector: finds landmarks where the host gives none; None uses only the host's.
        fps: frames per second of the stream.
        min_cutoff: see `OneEuroFilter`, in Hz.
        beta: see `OneEuroFilter`, in Hz per (spread per second).
        d_cutoff: see `OneEuroFilter`, in Hz.
        hold: number of frames without a face for which the last landmarks are kept.
        cache_size: maximum number of cached keys; the least recently used is evicted first.

    Raises:
        ConfigError: an invalid value.
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
        """Clear the state; with `keep_cache` the landmarks cached for this avatar's keys remain."""
        self._filter.reset()
        self._last: NDArray[np.float64] | None = None
        self._unit = 1.0
        self._missed = 0
        if not keep_cache:
            self._cache: OrderedDict[Hashable, NDArray[np.float64] | None] = OrderedDict()

    def is_cached(self, key: Hashable) -> bool:
        """Whether `update` needs neither landmarks nor an image for `key`."""
        return key is not None and key in self._cache

    def update(
        self, *, landmarks: Any = None, face_bgr: Image | None = None, key: Hashable = None
    ) -> NDArray[np.float64] | None:
        """The landmarks of the next frame.

        Args:
            landmarks: the host's own, (5, 2) x, y in pixels of the crop, NaN where it found no
                face; None uses the detector.
            face_bgr: the crop for the detector, BGR uint8 (H, W, 3); used only where it is needed.
            key: identifies an image that comes again, such as an avatar's frame; the same key gives
                the same landmarks until `reset`. None caches nothing.

        Returns:
            float64 (5, 2), or None where there is no face.

        Raises:
            FrameError: landmarks of another shape, or an invalid image.
            RestorerError: the detector failed.
        """
        if self.is_cached(key):
            self._cache.move_to_end(key)
            cached = self._cache[key]
            if cached is not None:
                self._start(cached)
            return None if cached is None else cached.copy()
        smoothed = self._follow(self._raw(landmarks, face_bgr))
        if key is not None:
            self._cache[key] = smoothed
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return None if smoothed is None else smoothed.copy()

    def _raw(self, landmarks: Any, face_bgr: Image | None) -> NDArray[np.float64] | None:
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
        change = self._filter(points / self._unit) - points / self._unit
        self._last = points + change * self._unit
        return self._last

    def _start(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        self._filter.reset()
        self._unit = max(_rms(points - points.mean(axis=0)), MIN_SPREAD)
        self._filter(points / self._unit)
        self._last = points
        self._missed = 0
        return points


def _checked(landmarks: Any, single: bool = False) -> NDArray[np.float64]:
    """Landmarks as float64 (n, 5, 2), (1, 5, 2) for a `single` set."""
    try:
        array = landmarks.detach().cpu() if is_tensor(landmarks) else landmarks
        points = np.asarray(array, np.float64)
    except (TypeError, ValueError) as error:
        actual = f"landmarks of type {type(landmarks).__name__}"
        raise FrameError("landmarks", actual, "numbers (n, 5, 2)") from error
    points = points[None] if single else points
    if points.ndim != 3 or points.shape[1:] != (5, 2):
        expected = f"{'(5, 2)' if single else '(n, 5, 2)'} x, y in pixels"
        raise FrameError("landmarks", f"landmarks of shape {points.shape[single:]}", expected)
    return points


def _problem(points: NDArray[np.float64], size_hw: tuple[int, int]) -> tuple[str, str, str] | None:
    """Reason, actual and expected of the `FrameError` for one set of landmarks."""
    height, width = size_hw
    if not np.isfinite(points).all():
        return "nonfinite", "landmarks with NaN or infinite values", "five finite points"
    low, high = points.min(axis=0), points.max(axis=0)
    center = points.mean(axis=0)
    size = np.array((width, height), np.float64)
    if (
        (low < -_MARGIN * size).any()
        or (high > (1 + _MARGIN) * size).any()
        or (center < 0).any()
        or (center > size).any()
    ):
        actual = f"landmarks from {low.round().tolist()} to {high.round().tolist()}"
        return "outside", actual, f"points in the crop of {width}x{height} pixels"
    spread = _rms(points - center)
    if spread < MIN_SPREAD:
        actual = f"landmarks within {spread:.1f} px of one point"
        return "collapsed", actual, f"a spread of at least {MIN_SPREAD} px"
    match = _similarity(points, _stretch(points))[1]
    if match < MIN_MATCH:
        actual = f"landmarks that match a face's by {match:.0%}"
        return "landmarks", actual, f"at least {MIN_MATCH:.0%}"
    return None


def _rms(vectors: NDArray[np.float64]) -> float:
    return float(np.sqrt((vectors**2).sum(axis=-1).mean()))


def _sums(
    points: NDArray[np.float64], target: NDArray[np.float64] = FFHQ_512
) -> tuple[complex, complex, float, float]:
    """X, Y, S_x, S_y of `Aligner.fit`."""
    centered = points - points.mean(axis=0)
    template = (target - target.mean(axis=0)) @ (1, 1j)
    x, y = centered[:, 0], centered[:, 1]
    x_sum, y_sum = complex((x * template).sum()), complex(-1j * (y * template).sum())
    return x_sum, y_sum, float(x @ x), float(y @ y)


def _stretch(points: NDArray[np.float64]) -> float:
    """Estimated pixel aspect ratio of the crop in the host's frame; see `Aligner.fit`."""
    x_sum, y_sum, x_square, y_square = _sums(points)
    both = (x_sum * y_sum.conjugate()).real
    if both <= 0 or x_square <= 0:
        return 1.0
    half = (abs(x_sum) ** 2 * y_square - abs(y_sum) ** 2 * x_square) / 2
    root = np.sqrt(half**2 + both**2 * x_square * y_square)
    best = float((half + root) / (both * x_square))
    mapped = _apply(_similarity(points, best)[0], points)
    eyes_and_mouth = [0, 1, 3, 4]
    template_offset = FFHQ_512[2, 0] - FFHQ_512[eyes_and_mouth, 0].mean()
    nose_offset = mapped[2, 0] - mapped[eyes_and_mouth, 0].mean() - template_offset
    tangent = nose_offset / (_NOSE_DEPTH * (FFHQ_512[1, 0] - FFHQ_512[0, 0]))
    cosine = max(_MIN_COS, float(1 / np.sqrt(1 + tangent**2)))
    return min(MAX_STRETCH, max(MIN_STRETCH, best * cosine))


def _similarity(
    points: NDArray[np.float64], stretch: float, target: NDArray[np.float64] = FFHQ_512
) -> tuple[NDArray[np.float64], float]:
    """The transform (2, 3) from crop to template for a stretch, and the match, 0..1.

    The match is the share of the template's spread that the transformed points explain. The
    least-squares similarity of Umeyama, "Least-squares estimation of transformation parameters
    between two point patterns", 1991, in two dimensions and without reflection, written with
    complex numbers.
    """
    x_sum, y_sum, x_square, y_square = _sums(points, target)
    square = stretch**2 * x_square + y_square
    turn = (stretch * x_sum + y_sum) / square
    linear = np.array([(turn.real * stretch, -turn.imag), (turn.imag * stretch, turn.real)])
    shift = target.mean(axis=0) - linear @ points.mean(axis=0)
    spread = ((target - target.mean(axis=0)) ** 2).sum()
    match = float(abs(turn) ** 2 * square / spread)
    return np.column_stack((linear, shift)), match


def _apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


def _mapped(
    maps: NDArray[Any], size_hw: tuple[int, int], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y, each float32 (n, h, w): `maps` (n, 2, 3) applied to the center of every pixel.

    Plain products instead of ``affine_grid``, whose matrix product a GPU may round to TF32: a
    quarter of a pixel.
    """
    import torch

    height, width = size_hw
    row = torch.arange(width, device=like.device, dtype=torch.float32) + 0.5
    column = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5)[:, None]
    part = torch.as_tensor(maps, dtype=torch.float32, device=like.device)[..., None, None]
    x = part[:, 0, 0] * row + part[:, 0, 1] * column + part[:, 0, 2]
    y = part[:, 1, 0] * row + part[:, 1, 1] * column + part[:, 1, 2]
    return x, y


def _sampled(source: torch.Tensor, maps: NDArray[Any], size_hw: tuple[int, int]) -> torch.Tensor:
    """Images of `size_hw` whose pixel p is `source` at ``map @ p``; the border is replicated.

    A source that is finer than the result is first reduced to its density, antialiased and face by
    face, so that a face's result does not depend on its batch. Values between pixels are linear
    ones of a bicubic enlargement to twice the density: ``grid_sample``'s own bicubic (a = -0.75)
    does not keep even a plain slope.
    """
    import torch
    from torch.nn.functional import grid_sample, interpolate

    height, width = source.shape[2:]
    # source pixels per pixel, x and y
    density = np.maximum(1.0, np.sqrt((maps[:, :, :2] ** 2).sum(axis=2)))
    sizes = [(max(1, round(height / y)), max(1, round(width / x))) for x, y in density]
    x, y = _mapped(maps, size_hw, source)
    grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), dim=-1)
    shape = (len(source), source.shape[1], *size_hw)
    out = torch.empty(shape, dtype=torch.float32, device=source.device)
    for size in set(sizes):
        chosen = [index for index, one in enumerate(sizes) if one == size]
        part = source[chosen].float()
        if size != (height, width):
            part = interpolate(part, size=size, mode="bicubic", align_corners=False, antialias=True)
        twice = (2 * size[0], 2 * size[1])
        part = interpolate(part, size=twice, mode="bicubic", align_corners=False, antialias=True)
        out[chosen] = grid_sample(
            part, grid[chosen], mode="bilinear", padding_mode="border", align_corners=False
        )
    return out
