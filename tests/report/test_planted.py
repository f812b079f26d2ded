"""Harmful restorers on the frames of the talking head: each one fails the right check."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_enhance.report import Report, ReportBuilder

from .conftest import FPS, Clip


def report(clip: Clip, out: np.ndarray, reference: bool = False) -> Report:
    builder = ReportBuilder(FPS)
    for index, (face_in, face_out) in enumerate(zip(clip.soft, out, strict=True)):
        builder.add(face_in, face_out, clip.sharp[index] if reference else None)
    return builder.finish()


def failed(result: Report) -> set[str]:
    return {verdict.key for verdict in result.failed}


def oval(center_xy: tuple[float, float], radii: tuple[float, float], side: int = 256) -> np.ndarray:
    """A soft-edged mask (side, side, 1), 0..1."""
    y, x = np.mgrid[:side, :side] / side
    distance = np.hypot((x - center_xy[0]) / radii[0], (y - center_xy[1]) / radii[1])
    return np.clip((1.2 - distance) / 0.2, 0, 1)[..., None]


def blended(face: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.rint(face + mask * (other.astype(np.float32) - face)).astype(np.uint8)


MOUTH, EYES = ((0.5, 0.79), (0.25, 0.15)), ((0.5, 0.4), (0.42, 0.13))


def close_mouth(clip: Clip) -> np.ndarray:
    shut = clip.sharp[int(np.argmin(clip.opening))]
    return np.stack([blended(face, shut, oval(*MOUTH)) for face in clip.sharp])


def never_blink(clip: Clip) -> np.ndarray:
    return np.stack([blended(face, clip.sharp[10], oval(*EYES)) for face in clip.sharp])


def tint(clip: Clip) -> np.ndarray:
    return np.clip(clip.sharp.astype(int) + (-2, 0, 2), 0, 255).astype(np.uint8)


def flicker(clip: Clip) -> np.ndarray:
    rng, out = np.random.default_rng(3), clip.sharp.astype(np.float32)
    for index in range(0, len(out), 2):
        out[index] += 0.8 * (out[index] - cv2.GaussianBlur(out[index], (0, 0), 1.5))
        out[index] += rng.normal(0, 4, out[index].shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def shift_eyes(clip: Clip) -> np.ndarray:
    shifted = [
        cv2.warpAffine(face, np.float32([[1, 0, 5], [0, 1, 0]]), (256, 256)) for face in clip.sharp
    ]
    return np.stack(
        [blended(*faces, oval(*EYES)) for faces in zip(clip.sharp, shifted, strict=True)]
    )


def lag(clip: Clip) -> np.ndarray:
    return np.concatenate([clip.sharp[:1], clip.sharp[:1], clip.sharp[:-2]])


def brighten_below(clip: Clip) -> np.ndarray:
    """The lower half is brighter, with a hard edge; the upper one is the host's."""
    out = clip.soft.copy()
    out[:, 128:] = np.clip(clip.sharp[:, 128:].astype(int) + 5, 0, 255)
    return out


@pytest.mark.parametrize("reference", [False, True])
def test_the_unsoftened_original_passes_every_line(clip, reference):
    result = report(clip, clip.sharp, reference)
    assert failed(result) == set()
    judged = {verdict.key for verdict in result.verdicts if verdict.state == "pass"}
    assert {"sharpness", "warping", "mouth_correlation", "mouth_lag", "eyes_correlation"} <= judged
    assert {"drift", "colour", "seam", "structure", "movement"} <= judged
    assert result.verdict("mouth_correlation").value > 0.995


@pytest.mark.parametrize(
    ("harm", "lines", "kind"),
    [
        (close_mouth, {"mouth_correlation", "mouth_opening"}, "mouth"),
        (never_blink, {"eyes_correlation"}, "eyes"),
        (tint, {"drift"}, "colour"),
        (flicker, {"warping"}, "flicker"),
        (shift_eyes, {"movement"}, "movement"),
        (lag, {"mouth_lag"}, "mouth"),
        (brighten_below, {"seam"}, "seam"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_harm_is_a_failed_line_with_pictures(clip, harm, lines, kind):
    result = report(clip, harm(clip))
    assert lines <= failed(result), "\n".join(result.lines())
    assert result.worst.of(kind)
    if harm is shift_eyes:
        assert "the eyes" in result.verdict("movement").text
    if harm is lag:
        assert result.verdict("mouth_lag").value == 2 and "late" in result.verdict("mouth_lag").text
    if harm in (tint, flicker):  # and what is well is not accused
        assert not failed(result) & {
            "mouth_correlation",
            "mouth_lag",
            "mouth_opening",
            "eyes_correlation",
        }


def test_flicker_of_a_head_that_holds_still(clip):
    still = Clip(
        np.repeat(clip.sharp[:1], 24, 0), np.repeat(clip.soft[:1], 24, 0), clip.opening[:24]
    )
    honest, harmed = report(still, still.sharp), report(still, flicker(still))
    assert honest.verdict("flicker").value < 0.01 and not failed(honest)
    assert {"warping", "flicker"} <= failed(harmed)
    assert not failed(harmed) & {"drift", "mouth_opening", "eyes_opening"}
