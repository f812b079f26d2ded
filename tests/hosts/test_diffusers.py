"""Outputs of diffusers pipelines, of real ones with random weights among them."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image

from musetalk_enhance import FaceEnhancer
from musetalk_enhance.errors import ConfigError, FrameError, HostError, RestorerError
from musetalk_enhance.faces.detect import Face, FaceDetector
from musetalk_enhance.hosts.diffusers import PostProcessor, attach, restore
from tests.diffusion import animate_diff, stable_diffusion
from tests.jobs.conftest import ADDED, SMALL, Middle

PROMPT = {"prompt": "a face", "num_inference_steps": 2, "width": 64, "height": 64}
AMOUNT = ADDED / 255


class Always(FaceDetector):
    """Takes the middle of every image for a face, but is blind in calls of given numbers."""

    def __init__(self, *blind: int) -> None:
        self.calls, self.blind = 0, blind

    def detect(self, picture_bgr) -> list[Face]:
        self.calls += 1
        faces = Middle().detect(np.full_like(picture_bgr, 90))
        return [] if self.calls - 1 in self.blind else faces


@dataclasses.dataclass
class Output(OrderedDict):
    """As diffusers' ``BaseOutput``."""

    images: object = None
    frames: object = None
    nsfw: object = None


@pytest.fixture
def enhancer(make_enhancer):
    return make_enhancer(lambda faces: faces + AMOUNT, SMALL)


@pytest.fixture
def process(enhancer):
    return PostProcessor(enhancer, face_detector=Always(), min_face=8)


def floats(*shape: int) -> np.ndarray:
    """Smooth values 0.2..0.6, no whole bytes."""
    ramp = np.linspace(0.2, 0.6, int(np.prod(shape))).reshape(shape)
    return ramp.astype(np.float32)


def brightened(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Per image (..., H, W, C): how much brighter the middle is; the border must be as it was."""
    assert after.shape == before.shape and after.dtype == before.dtype
    assert np.array_equal(after[..., :4, :, :], before[..., :4, :, :])
    middle = np.s_[..., 28:36, 28:36, :3]
    return (after[middle].astype(np.float64) - before[middle]).mean((-1, -2, -3))


@pytest.mark.parametrize("shape", [(64, 64, 3), (3, 64, 64, 3), (10, 64, 64, 4), (2, 3, 64, 64, 3)])
@pytest.mark.parametrize("kind", ["np", "pt", "pt16", "bytes"])
def test_arrays_and_tensors(process, shape, kind):
    before = floats(*shape)
    if kind == "np":
        source, back = before, lambda result: result
    elif kind == "bytes":
        source = before = (before * 255).astype(np.uint8)
        back = lambda result: result  # noqa: E731
    else:
        source = torch.from_numpy(before).movedim(-1, -3).contiguous()
        source = source.to(torch.bfloat16) if kind == "pt16" else source
        before = source.float().movedim(-3, -1).numpy()
        back = lambda result: result.float().movedim(-3, -1).numpy()  # noqa: E731
    copy = source.clone() if isinstance(source, torch.Tensor) else source.copy()
    result = process(source)
    assert type(result) is type(source) and result.dtype == source.dtype
    assert (source == copy).all()
    amount = ADDED if kind == "bytes" else AMOUNT
    assert np.abs(brightened(before, back(result)) - amount).max() < 0.02 * amount + 0.003
    if shape[-1] == 4:
        assert np.array_equal(back(result)[..., 3], before[..., 3])


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pil_images_of_any_sizes(process, mode):
    images = [
        Image.fromarray((floats(64, width, len(mode)) * 255).astype(np.uint8))
        for width in (64, 64, 80)
    ]
    images[0].info["text"] = "kept"
    results = process(images)
    assert isinstance(results, list) and results[0].info == {"text": "kept"}
    for before, after in zip(images, results, strict=True):
        assert after.mode == mode and after.size == before.size
        assert abs(brightened(np.asarray(before), np.asarray(after)) - ADDED) < 1
    assert np.array_equal(np.asarray(process(images[0])), np.asarray(results[0]))


def changed(before, after) -> list[bool]:
    return [
        bool((np.asarray(a) != np.asarray(b)).any()) for a, b in zip(before, after, strict=True)
    ]


def frames(count: int = 5) -> list[Image.Image]:
    return [Image.fromarray((floats(64, 64, 3) * 255).astype(np.uint8)) for _ in range(count)]


def test_nested_frames_are_videos_and_flat_ones_stills(enhancer):
    def run(wrap, **options):
        process = PostProcessor(enhancer, face_detector=Always(2), min_face=8, **options)
        return process(wrap(frames()))

    held, missed = [True] * 5, [True, True, False, True, True]
    assert changed(frames(), run(lambda clip: [clip])[0]) == held
    assert changed(frames(), run(lambda clip: clip)) == missed
    assert changed(frames(), run(lambda clip: clip, fps=30)) == held
    assert changed(frames(), run(lambda clip: Output(frames=[clip])).frames[0]) == held
    assert changed(frames(), run(lambda clip: Output(frames=clip)).frames) == held
    assert changed(frames(), run(lambda clip: Output(images=[clip])).images[0]) == missed
    stack = floats(1, 1, 64, 64, 3).repeat(5, 1)
    process = PostProcessor(enhancer, face_detector=Always(2), min_face=8)
    assert changed(stack[0], process(stack)[0]) == held


def test_outputs_and_tuples(process):
    images = frames(2)
    output = process(Output(images=images, nsfw=[False, True]))
    assert isinstance(output, Output) and output.nsfw == [False, True] and output.frames is None
    assert changed(images, output.images) == [True, True]
    result, flags = process((images, [False]))
    assert changed(images, result) == [True, True] and flags == [False]
    assert process([]) == [] and len(process(floats(2, 64, 64, 3)[:0])) == 0


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(1, 16, 8, 8),
        frames(1)[0].convert("L"),
        "text",
        np.zeros((2, 8, 8, 3), int),
        None,
    ],
    ids=["latents", "gray", "text", "integers", "none"],
)
def test_what_is_no_image_is_returned_with_a_warning_or_raises(make_enhancer, caplog, other):
    process = PostProcessor(make_enhancer(None, SMALL), face_detector=Always())
    with caplog.at_level(logging.WARNING, "musetalk_enhance"):
        assert process(other) is other
    assert "no face is restored" in caplog.text
    process = PostProcessor(make_enhancer(None, SMALL, on_error="raise"), face_detector=Always())
    with pytest.raises(FrameError):
        process(other)


def test_no_image_is_lost_to_an_error(make_enhancer, caplog):
    class Broken(FaceDetector):
        def detect(self, picture_bgr):
            raise OSError("no more memory")

    clip = [frames()]
    for detector, function in ((Broken(), None), (Always(), lambda faces: 1 / 0)):
        process = PostProcessor(make_enhancer(function, SMALL), face_detector=detector, min_face=8)
        assert changed(clip[0], process(clip)[0]) == [False] * 5
        assert changed(clip[0], process(clip[0])) == [False] * 5
    enhancer = make_enhancer(lambda faces: 1 / 0, SMALL, on_error="raise")
    with pytest.raises(RestorerError):
        PostProcessor(enhancer, face_detector=Always(), min_face=8)(clip)


def test_options_are_checked_before_a_generation(enhancer):
    for options in ({"fps": 0}, {"min_face": -1}, {"face_detector": "nothing"}):
        with pytest.raises(ConfigError):
            PostProcessor(enhancer, **{"face_detector": Always(), **options})
    images = floats(2, 64, 64, 3)
    assert np.array_equal(restore(images, enhancer, face_detector=Always(), min_face=60), images)


@pytest.fixture(scope="module")
def image_pipe(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def video_pipe(tmp_path_factory):
    return animate_diff(tmp_path_factory.mktemp("video"))


def generated(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**PROMPT, generator=torch.Generator().manual_seed(3), **options)


def as_arrays(images, kind: str) -> np.ndarray:
    if kind == "pil":
        return np.stack([np.asarray(image) for image in images])
    return images.movedim(-3, -1).numpy() if kind == "pt" else images


@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about themselves
@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_a_real_image_pipeline(image_pipe, enhancer, kind):
    before = generated(image_pipe, output_type=kind)
    with attach(image_pipe, enhancer, face_detector=Always(), min_face=8):
        assert isinstance(image_pipe, type(image_pipe).__mro__[1])
        attached = generated(image_pipe, output_type=kind)
        pair = generated(image_pipe, output_type=kind, return_dict=False)
    assert type(attached) is type(before)
    old, new = (as_arrays(output.images, kind) for output in (before, attached))
    assert (brightened(old, new) > 0).all()
    after = restore(before, enhancer, face_detector=Always(), min_face=8)
    assert np.array_equal(as_arrays(after.images, kind), new)
    assert np.array_equal(as_arrays(pair[0], kind), new) and pair[1] is None
    assert np.array_equal(as_arrays(generated(image_pipe, output_type=kind).images, kind), old)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_a_real_video_pipeline(video_pipe, enhancer, kind):
    before = generated(video_pipe, output_type=kind, num_frames=4)
    with attach(video_pipe, enhancer, face_detector=Always(), min_face=8) as attachment:
        attached = generated(video_pipe, output_type=kind, num_frames=4)
    old, new = (as_arrays(output.frames[0], kind) for output in (before, attached))
    assert (brightened(old, new) > 0).all()
    after = attachment.process(before)
    assert np.array_equal(as_arrays(after.frames[0], kind), new)


@pytest.mark.filterwarnings("ignore")
def test_attach_and_detach(image_pipe, enhancer, tmp_path):
    cls = type(image_pipe)
    latents = generated(image_pipe, output_type="latent").images
    first = attach(image_pipe, enhancer, face_detector=Always(), min_face=8)
    assert torch.equal(generated(image_pipe, output_type="latent").images, latents)
    assert inspect.signature(image_pipe.__call__) == inspect.signature(cls.__call__.__get__(0))
    image_pipe.save_pretrained(tmp_path)  # under the name of its own class
    assert cls.from_pretrained(tmp_path, safety_checker=None).__class__ is cls
    second = attach(image_pipe, enhancer, face_detector=Always(), min_face=8)
    with pytest.raises(HostError, match="wrapped again"):
        first.detach()
    second.detach()
    first.detach()
    first.detach()
    assert type(image_pipe) is cls
    for wrong in (cls, print, 3):
        with pytest.raises(HostError, match="attach takes a pipeline"):
            attach(wrong, enhancer, face_detector=Always())


@pytest.fixture
def yunet(shared, own_cache):
    own_cache.mkdir()
    shutil.copy(shared / "weights" / "face_detection_yunet_2023mar.onnx", own_cache)


@pytest.mark.shared
def test_a_face_is_detected_and_restored_alike_in_every_container(yunet):
    face = pytest.importorskip("skimage.data").astronaut()
    small = Image.fromarray(face).resize((256, 256), Image.Resampling.BOX)
    process = PostProcessor(FaceEnhancer("lite"))
    result = np.asarray(process([small])[0])
    array = np.asarray(small)[None].astype(np.float32) / 255
    tensor = torch.from_numpy(array).movedim(-1, 1)
    assert 0.01 < (result != np.asarray(small)).any(-1).mean() < 0.2
    assert np.array_equal(np.rint(process(array)[0] * 255), result)
    assert np.array_equal(process(tensor)[0].movedim(0, -1).numpy(), process(array)[0])


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
def test_the_example(image_pipe, yunet, tmp_path):
    import diffusers_pipeline

    image_pipe.save_pretrained(tmp_path / "model")
    words = [str(tmp_path / "model"), "a face", "--steps", "2", "--out", str(tmp_path / "out")]
    diffusers_pipeline.main(words)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["0000_generated.png", "0000_restored.png"]
