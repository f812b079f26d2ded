"""Metrics: sharpness, similarity of images, flicker of a clip, timing of the lips.

Images are BGR uint8 ``(H, W, 3)`` or gray uint8 ``(H, W)``; a gray level is a step of 1/255.
Every function is pure and cites the source of its formula.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FrameError, MissingDependencyError
from ..media.arrays import Image, resize_image

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Curve = NDArray[np.floating[Any]]

FEWEST_MOMENTS = 8
"""Frames that `flicker_energy` needs at least."""

SMALLEST_SIDE = 11
"""Pixels that `similarity` needs on each side: the width of its window."""


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels: ``10 log10(255² / MSE)``.

    The usual definition, e.g. Huynh-Thu and Ghanbari, "Scope of validity of PSNR in image/video
    quality assessment", 2008. Equal images give infinity.

    Args:
        a: uint8 image.
        b: uint8 image of the same shape.

    Raises:
        FrameError: not uint8, or of two shapes.
    """
    _check_pair(a, b)
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def laplacian_energy(image: Image) -> float:
    """Sharpness: the variance of the 3x3 Laplacian of the 8-bit gray image, gray levels squared.

    The measure LAPV of Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000.
    It grows with edges and with noise, and depends on the image's size: compare images of one
    view and size only.

    Args:
        image: BGR uint8 ``(H, W, 3)`` or gray uint8 ``(H, W)``.

    Raises:
        FrameError: another dtype or shape, or an empty image.
    """
    import cv2

    _check(image)
    return float(cv2.Laplacian(gray(image), cv2.CV_64F).var())


def fine_detail_energy(image: Image) -> float:
    """Mean square of the Laplacian after a Gaussian of 0.8 px, in gray levels squared.

    The Laplacian alone counts single pixels most: the texture that a latent decoder leaves, and the
    blocks of a codec, raise it although the face is softer. Compare images of one view and size.

    Args:
        image: BGR uint8 ``(H, W, 3)`` or gray uint8 ``(H, W)``.

    Raises:
        FrameError: another dtype or shape, or an empty image.
    """
    import cv2

    _check(image)
    smooth = cv2.GaussianBlur(gray(image).astype(np.float32), (0, 0), 0.8)
    return float(np.mean(np.square(cv2.Laplacian(smooth, cv2.CV_32F)), dtype=np.float64))


def color_drift(a: Image, b: Image) -> float:
    """The largest difference between the per-channel means of two images, in steps of 1/255.

    ``max over c of |mean(a[..., c]) - mean(b[..., c])|``. The two may differ in size.

    Raises:
        FrameError: not uint8, or unequal numbers of channels.
    """
    _check(a)
    _check(b)
    if a.shape[2:] != b.shape[2:]:
        raise FrameError("channels", f"shapes {a.shape} and {b.shape}", "equal numbers of channels")
    return float(np.max(np.abs(a.mean(axis=(0, 1)) - b.mean(axis=(0, 1)))))


# --- between two images of one moment


def similarity(a: Image, b: Image, side: int | None = None) -> float:
    """Structural similarity of the gray images, -1..1: the mean of `similarity_map`."""
    return float(similarity_map(a, b, side).mean())


def similarity_map(a: Image, b: Image, side: int | None = None) -> Floats:
    """Structural similarity of the gray images by pixel, -1..1, 1 where they are equal.

    scikit-image's `structural_similarity` with the settings of Wang et al., "Image quality
    assessment: from error visibility to structural similarity", 2004 (Gaussian window of 1.5 px, no
    sample covariance). With `side` both are first averaged down until the longer edge has that many
    pixels: what is left at 64 px is who it is and where the features lie, not how sharp they are.

    Args:
        a: BGR uint8 ``(H, W, 3)`` or gray uint8 ``(H, W)``.
        b: the same shape.
        side: pixels of the longer edge; None compares at full size. Images are never enlarged.

    Returns:
        float32, of the size that was compared.

    Raises:
        FrameError: not uint8, of two shapes, or under 11 px on a side (after shrinking).
        MissingDependencyError: scikit-image is not installed.
    """
    _check_pair(a, b)
    small_a, small_b = (gray(shrunk(image, side) if side else image) for image in (a, b))
    if min(small_a.shape) < SMALLEST_SIDE:
        raise FrameError(
            "size", f"shape {small_a.shape}", f"at least {SMALLEST_SIDE} pixels on each side"
        )
    structural_similarity = from_skimage("metrics", "structural_similarity")
    _, similarities = structural_similarity(
        small_a,
        small_b,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    return np.asarray(similarities, np.float32)


def gradient_energy(image: Image) -> float:
    """Mean of the squared differences to the pixel below and to the right, in gray levels squared.

    What a displacement by a pixel costs: an estimate of motion that is wrong by d pixels leaves
    about ``d² / 2`` times this much (Horn and Schunck's linearisation, "Determining optical flow",
    1981), so a clip with more detail has a larger `warping_error` along the same estimate of
    motion.

    Args:
        image: BGR uint8 ``(H, W, 3)`` or gray uint8 ``(H, W)``.

    Raises:
        FrameError: another dtype or shape.
    """
    _check(image)
    levels = gray(image).astype(np.float32)
    return float(sum(np.mean(np.diff(levels, axis=axis) ** 2, dtype=np.float64) for axis in (0, 1)))


def color_change(a: Image, b: Image, cells: int = 16) -> Floats:
    """Change of low-frequency color: CIEDE2000 between the images averaged to a few cells.

    scikit-image's `deltaE_ciede2000` (Sharma, Wu and Dalal, 2005) in CIELAB, D65. About 1 is what
    an eye just tells apart, side by side.

    Args:
        a: BGR uint8 ``(H, W, 3)``.
        b: BGR uint8, of the same proportions; the sizes may differ.
        cells: rows and columns of the grid.

    Returns:
        float32 ``(cells, cells)``, 0 or more.

    Raises:
        FrameError: not BGR uint8.
        MissingDependencyError: scikit-image is not installed.
    """
    _check_color(a)
    _check_color(b)
    rgb2lab, delta = from_skimage("color", "rgb2lab"), from_skimage("color", "deltaE_ciede2000")
    labs = [rgb2lab(_averaged(image, cells)[..., ::-1] / 255) for image in (a, b)]
    return np.asarray(delta(*labs), np.float32)


def changed_region(a: Image, b: Image, over: float = 1.0) -> Mask:
    """The region where two images differ, without holes, for an output pasted into its input.

    The largest difference of the channels, averaged over 5 px, is over the threshold; gaps are
    closed, the largest connected part is kept and filled.

    Args:
        a: BGR uint8 ``(H, W, 3)``.
        b: the same shape.
        over: gray levels.

    Returns:
        bool ``(H, W)``; all False where nothing differs.

    Raises:
        FrameError: not uint8, or of two shapes.
    """
    import cv2

    _check_pair(a, b)
    difference = cv2.absdiff(a, b)
    if difference.ndim == 3:
        difference = difference.max(axis=2)
    mask = (cv2.blur(difference.astype(np.float32), (5, 5)) > over).astype(np.uint8)
    reach = max(3, round(max(mask.shape) / 32)) | 1
    return largest_part(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8)))


def largest_part(mask: NDArray[Any]) -> Mask:
    """The largest connected part of a mask ``(H, W)``, with its holes filled; bool ``(H, W)``."""
    import cv2

    outlines, _ = cv2.findContours(
        np.asarray(mask, np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    filled = np.zeros(mask.shape, np.uint8)
    if outlines:
        cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return filled.astype(bool)


def seam_step(a: Image, b: Image, region: Mask, band: int | None = None, sectors: int = 8) -> float:
    """Largest step of brightness that `b` has over `a` at the edge of a region, in gray levels.

    Of ``b - a`` (gray) the mean over a band just inside the edge minus that over a band just
    outside, by sector around the region's center, and the largest of them by size; of either band
    the middle half of the values counts, by size. Differences to the input cancel what the face
    itself has there; detail lies on both sides of zero and does not count; a feathered edge has no
    step. Outside the image the output is taken for unchanged, as a host pastes crops back. The
    formula is original; sectors with fewer pixels than a square of the band's width do not count.

    Args:
        a: the input, BGR uint8 ``(H, W, 3)`` or gray ``(H, W)``.
        b: the output, the same shape.
        region: bool ``(H, W)``, see `changed_region`.
        band: width of either band in pixels; default: 1/32 of the longer edge, 2 at least.
        sectors: parts that the edge is cut into.

    Returns:
        0 or more; 0 for an empty region.

    Raises:
        FrameError: of two shapes, or not uint8.
    """
    import cv2

    _check_pair(a, b)
    if region.shape != a.shape[:2]:
        raise FrameError("shape", f"a region of shape {region.shape}", f"{a.shape[:2]}")
    if not region.any():
        return 0.0
    band = band or max(2, round(max(region.shape) / 32))
    pad = ((band, band), (band, band))
    inside = np.pad(region, pad).astype(np.uint8)
    step = np.pad(gray(b).astype(np.float32) - gray(a).astype(np.float32), pad)
    square = np.ones((2 * band + 1, 2 * band + 1), np.uint8)
    inner = inside - cv2.erode(inside, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    outer = cv2.dilate(inside, square) - inside
    rows, columns = np.nonzero(inside)
    y, x = np.mgrid[: inside.shape[0], : inside.shape[1]]
    angle = np.arctan2(y - rows.mean(), x - columns.mean())
    sector = np.floor((angle + np.pi) / (2 * np.pi) * sectors).astype(int) % sectors
    sides = [(step[side == 1], sector[side == 1]) for side in (inner, outer)]
    steps = [0.0]
    for number in range(sectors):
        within, without = (values[where == number] for values, where in sides)
        if min(within.size, without.size) >= band**2:
            steps.append(abs(_middle(within) - _middle(without)))
    return max(steps)


def _middle(values: Floats) -> float:
    """Mean between the quartiles: robust to edges, and finer than a median of whole levels."""
    low, high = np.percentile(values, (25, 75))
    return float(values[(values >= low) & (values <= high)].mean())


# --- between two moments of one clip


class Motion:
    """Where the pixels of one frame are in the next, and which of them can be trusted.

    Dense inverse search (Kroeger et al., "Fast optical flow using dense inverse search", 2016),
    OpenCV's `DISOpticalFlow` with its medium preset, both ways. A pixel is occluded where the way
    there and back does not end where it began, ``|f + b|² > 0.01 (|f|² + |b|²) + 0.5``, or the way
    leaves the image (Sundaram, Brox and Keutzer, "Dense point trajectories by GPU-accelerated
    large displacement optical flow", 2010; so used for videos by Ruder et al., 2016, and Lai et
    al., 2018).

    Attributes:
        flow: float32 ``(H, W, 2)``, x and y in pixels from this frame to the next.
        visible: bool ``(H, W)``, False where occluded.
    """

    def __init__(self, flow: Floats, back: Floats) -> None:
        """Args:
        flow: from this frame to the next, float32 ``(H, W, 2)``.
        back: from the next to this one.
        """
        self.flow = flow
        ways = self.warp(back)
        error = ((flow + ways) ** 2).sum(2)
        bound = 0.01 * ((flow**2).sum(2) + (ways**2).sum(2)) + 0.5
        x, y = self._targets()
        height, width = flow.shape[:2]
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        self.visible: Mask = (error <= bound) & inside

    @classmethod
    def between(cls, first: Image, second: Image) -> Motion:
        """Estimate it from two images, BGR or gray uint8 of one shape, sides of 16 px or more.

        Raises:
            FrameError: not uint8, of two shapes, or too small.
        """
        import cv2

        _check_pair(first, second)
        if min(first.shape[:2]) < 16:
            raise FrameError("size", f"shape {first.shape}", "at least 16 pixels on each side")
        images = gray(first), gray(second)
        search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        flows = [search.calc(*pair, None) for pair in (images, images[::-1])]
        return cls(*(np.asarray(flow, np.float32) for flow in flows))

    def _targets(self) -> tuple[Floats, Floats]:
        y, x = np.mgrid[: self.flow.shape[0], : self.flow.shape[1]].astype(np.float32)
        return x + self.flow[..., 0], y + self.flow[..., 1]

    def warp(self, following: NDArray[Any]) -> NDArray[Any]:
        """The next frame, or any map of its size, warped to this one; bilinear."""
        import cv2

        x, y = self._targets()
        return np.asarray(
            cv2.remap(following, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        )

    @property
    def speed(self) -> Floats:
        """float32 ``(H, W)``, pixels a frame."""
        return np.asarray(np.hypot(self.flow[..., 0], self.flow[..., 1]), np.float32)


def warping_error(first: Image, second: Image, motion: Motion) -> float:
    """How much changes between two frames beyond what moves, in gray levels squared (0..255²).

    ``mean over visible pixels and channels of (first - warp(second))²``: the warping error of Lai
    et al., "Learning blind video temporal consistency", 2018, on 0..255 instead of 0..1. Lei, Xing
    and Chen, "Blind video temporal consistency via deep video prior", 2020, take the absolute
    difference instead. Detail that moves costs some even in a flawless clip, because flow is never
    exact: compare clips of one scene under one motion only.

    Args:
        first: BGR or gray uint8, of the motion's size.
        second: the next frame.
        motion: of the *input's* frames, so that every version of the clip is measured along the
            same ways.

    Returns:
        NaN where no pixel is visible.

    Raises:
        FrameError: not uint8, or of another shape than the motion.
    """
    _check_pair(first, second)
    if first.shape[:2] != motion.visible.shape:
        raise FrameError("shape", f"shape {first.shape}", f"the motion's {motion.visible.shape}")
    if not motion.visible.any():
        return float("nan")
    error = first.astype(np.float32) - motion.warp(second.astype(np.float32))
    return float(np.mean(error[motion.visible] ** 2, dtype=np.float64))


def flicker_energy(luminance: Floats, fps: float, over_hz: float = 5.0) -> Floats:
    """Energy of the changes faster than `over_hz`, by pixel, in gray levels squared.

    The power spectrum over time of each pixel (mean taken out, Hann window; Welch, "The use of fast
    Fourier transform for the estimation of power spectra", 1967), summed over the bins over
    `over_hz`, scaled so that a sine of amplitude A among them gives A²/2, its variance. The eye is
    most sensitive to flicker at 5 to 20 Hz (Kelly, "Visual responses to time-dependent stimuli",
    1961); speech and heads move slower.

    Args:
        luminance: float32 ``(T, H, W)``, 0..255; 8 moments at least.
        fps: frames per second.
        over_hz: hertz.

    Returns:
        float32 ``(H, W)``, 0 or more.

    Raises:
        FrameError: another number of axes, or too few moments.
        ConfigError: `fps` does not reach `over_hz`.
    """
    if luminance.ndim != 3 or len(luminance) < FEWEST_MOMENTS:
        raise FrameError(
            "shape", f"shape {luminance.shape}", f"(T, H, W), T {FEWEST_MOMENTS} or more"
        )
    if not fps / 2 > over_hz:
        raise ConfigError(
            "fps",
            fps,
            f"over {2 * over_hz:g} frames per second, to sample changes of {over_hz:g} Hz",
        )
    window = np.hanning(len(luminance) + 1)[:-1].astype(np.float32)[:, None, None]
    changes = (luminance - (luminance * window).sum(0) / window.sum()) * window
    power = np.abs(np.fft.rfft(changes, axis=0)) ** 2 / (len(luminance) * float((window**2).sum()))
    hertz = np.fft.rfftfreq(len(luminance), 1 / fps)
    # the negative half of the spectrum
    twice = np.where((hertz > 0) & (hertz < fps / 2 - 1e-9), 2.0, 1.0)
    return np.asarray(np.tensordot(twice[hertz > over_hz], power[hertz > over_hz], 1), np.float32)


# --- between two curves


def correlation(a: Curve, b: Curve) -> float:
    """Pearson's correlation of two curves, -1..1, over the moments at which neither is NaN.

    0 where either does not vary, NaN with under three moments.
    """
    valid = ~(np.isnan(a) | np.isnan(b))
    if valid.sum() < 3:
        return float("nan")
    x, y = (np.asarray(curve, np.float64)[valid] - np.mean(curve[valid]) for curve in (a, b))
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / size) if size > 1e-12 else 0.0


def opening_lag(a: Curve, b: Curve, max_lag: int = 10) -> tuple[int, float]:
    """By how many frames `b` comes later than `a`, and how well it fits there.

    The lag at which the normalized cross-correlation is largest, within ±`max_lag` frames;
    each lag is judged by `correlation` over the moments that overlap, of which at least half the
    curve must be left. Between equals the lag nearest to 0 wins.

    Args:
        a: float ``(N,)``; NaN where unknown.
        b: float ``(N,)``.
        max_lag: frames.

    Returns:
        ``(lag, correlation)``; the lag is over 0 where `b` is late. ``(0, NaN)`` for curves too
        short.
    """
    best, at = float("nan"), 0
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):
        if len(a) - abs(lag) < max(3, len(a) / 2):
            continue
        fit = (
            correlation(a[: len(a) - lag], b[lag:]) if lag >= 0 else correlation(a[-lag:], b[:lag])
        )
        if not np.isnan(fit) and not fit <= best + 1e-9:
            best, at = fit, lag
    return at, best


# --- shared


def gray(image: Image) -> Image:
    """The luma of a BGR image (BT.601, as OpenCV rounds it); a gray one as it is."""
    import cv2

    return (
        np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8) if image.ndim == 3 else image
    )


def shrunk(image: Image, side: int) -> Image:
    """The image averaged down until its longer edge has `side` pixels; never enlarged."""
    share = min(1.0, side / max(image.shape[:2]))
    height, width = (max(1, round(length * share)) for length in image.shape[:2])
    return resize_image(image, (width, height))


def from_skimage(module: str, name: str) -> Any:
    """A function of scikit-image.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return getattr(import_module(f"skimage.{module}"), name)
    except ImportError as error:
        raise MissingDependencyError(
            "scikit-image", "report", "this measure", str(error)
        ) from error


def _averaged(image: Image, cells: int) -> Floats:
    import cv2

    return np.asarray(
        cv2.resize(image.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA),
        np.float32,
    )


def _check(image: NDArray[Any]) -> None:
    if image.dtype != np.uint8:
        raise FrameError("dtype", f"{image.dtype}", "uint8")
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise FrameError("shape", f"shape {image.shape}", "(H, W, 3) or (H, W), not empty")


def _check_pair(a: NDArray[Any], b: NDArray[Any]) -> None:
    _check(a)
    _check(b)
    if a.shape != b.shape:
        raise FrameError("shape", f"shapes {a.shape} and {b.shape}", "two images of one shape")


def _check_color(image: NDArray[Any]) -> None:
    _check(image)
    if image.ndim != 3:
        raise FrameError("shape", f"shape {image.shape}", "(H, W, 3)")
