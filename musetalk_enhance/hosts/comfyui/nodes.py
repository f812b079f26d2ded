"""The nodes. An IMAGE is a float32 tensor (B, H, W, C), RGB, 0..1; a MASK is (B, H, W), 0..1."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config.settings import EnhancerSettings
from ...config.settings import options as enhancer_options
from ...errors import FrameError
from ...faces.identity import ReferenceFaces, SFace
from ...jobs.model_loader import load_detector, load_parser, make_enhancer
from ...jobs.models import LoadedModel, load
from ...jobs.options import ImageSettings, VideoSettings
from ...restorers.catalog import model_names
from ..whole_images import BATCH, WholeImages, to_bytes
from . import host

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from ...faces.detect import FaceDetector

logger = logging.getLogger("musetalk_enhance")

CATEGORY = "image/face restoration"
RESTORER, OUTCOMES = "FACE_RESTORER", "FACE_OUTCOMES"
"""Socket types: a loaded network, and a note on the main face of each image."""
STRENGTH = {
    "default": 1.0,
    "min": 0.0,
    "max": 1.0,
    "step": 0.05,
    "tooltip": "Blend of the restored face over the input.",
}
DECISIONS = ("strength", "color_match", "guard", "sharpness_gate")
FPS = {
    "default": 25.0,
    "min": 1.0,
    "max": 240.0,
    "step": 0.01,
    "tooltip": "Frames per second of the video.",
}
STABILITY = {
    "default": 1.0,
    "min": 0.0,
    "max": 1.0,
    "step": 0.05,
    "tooltip": "How strongly detail is kept steady over time.",
}
IMAGES = {"tooltip": "Whole images, or the consecutive frames of a video."}


def _switches() -> dict[str, Any]:
    """Inputs for the decisions that either restoring node takes."""
    helps = {option.name: option.metadata["help"] for option in enhancer_options()}
    names = ("color_match", "guard", "sharpness_gate")
    return {name: (["auto", "on", "off"], {"tooltip": helps[name]}) for name in names}


@dataclass(frozen=True, eq=False)
class FaceRestorer:
    """What a socket of type `RESTORER` carries.

    Attributes:
        loaded: the network.
        settings: that it was loaded with.
        source: IMAGE that results are matched to; None: not matched.
    """

    loaded: LoadedModel
    settings: VideoSettings
    source: torch.Tensor | None = None

    @property
    def match(self) -> str:
        """The option of that name."""
        return "none" if self.source is None else "source"

    def sources(self, images: torch.Tensor) -> NDArray[Any] | None:
        """The source of each image, (B, h, w, 3).

        Raises:
            FrameError: there is another number of them.
        """
        if self.source is None:
            return None
        if len(self.source) not in (1, len(images)):
            expected = f"1, or {len(images)} as images"
            raise FrameError("length", f"{len(self.source)} sources", expected)
        return _rgb(self.source.expand(len(images), -1, -1, -1))


class LoadRestorer:
    """Loads a network that restores faces."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    DESCRIPTION = "Loads a network that restores faces; one loader serves any number of nodes."
    RETURN_TYPES, RETURN_NAMES = (RESTORER,), ("restorer",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs."""
        return {
            "required": {
                "model": (
                    [*model_names(), *host.model_files()],
                    {
                        "default": "lite",
                        "tooltip": "lite is part of the package; the others are downloaded once, "
                        f"or are files in models/{host.MODEL_FOLDER}.",
                    },
                ),
            },
            "optional": {
                "region": (
                    ["full", "lower", "mouth"],
                    {
                        "tooltip": "Part of the face that may change. lower: from the eyes down, "
                        "and faster with GFPGAN. mouth: lips and chin."
                    },
                ),
                "fidelity": (
                    "FLOAT",
                    {
                        "default": EnhancerSettings.fidelity,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.05,
                        "tooltip": "CodeFormer's w; leave it at its default for other models.",
                    },
                ),
                "device": (["default", "cpu"], {"tooltip": "default: the device of ComfyUI."}),
                "backend": (["auto", "torch", "onnx", "openvino", "ncnn"],),
                "dtype": (
                    ["auto", "fp32", "bf16", "fp16"],
                    {"tooltip": "auto: fp32. Others are checked against it."},
                ),
                "download": (
                    "BOOLEAN",
                    {"default": True, "tooltip": "Download a missing weight."},
                ),
                "trust_unpinned": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Load a .pth that is none of the published files. Only for "
                        "files from a source that you trust.",
                    },
                ),
            },
        }

    def load(
        self,
        model: str,
        region: str = "full",
        fidelity: float = EnhancerSettings.fidelity,
        device: str = "default",
        backend: str = "auto",
        dtype: str = "auto",
        download: bool = True,
        trust_unpinned: bool = False,
    ) -> tuple[FaceRestorer]:
        """Load the network.

        Raises:
            EnhanceError: an option is invalid, or the network cannot be loaded.
        """
        settings = VideoSettings(
            model=host.model_path(model),
            region=region,
            fidelity=None if fidelity == EnhancerSettings.fidelity else fidelity,
            device=host.device_name() if device == "default" else device,
            backend=backend,
            dtype=dtype,
            download=download,
            trust_unpinned=trust_unpinned,
        )
        return (FaceRestorer(load(settings), settings),)


class MatchToSource:
    """Makes a restorer match what it restores to the original."""

    CATEGORY, FUNCTION = CATEGORY, "match"
    DESCRIPTION = (
        "The mouth becomes as sharp as it is in the original of the same frame, not more, with the "
        "original's grain and the color of the face around it. For the nodes that get the restorer."
    )
    RETURN_TYPES, RETURN_NAMES = (RESTORER,), ("restorer",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs."""
        source = {
            "tooltip": "The frames, or face crops, that the talking-head model was given: as many "
            "as are restored, or one for all."
        }
        return {"required": {"restorer": (RESTORER,), "source": ("IMAGE", source)}}

    def match(self, restorer: FaceRestorer, source: torch.Tensor) -> tuple[FaceRestorer]:
        """The same network with a source.

        Raises:
            FrameError: `source` has another shape.
        """
        _rgb(source)
        return (replace(restorer, source=source),)


class RestoreFaces:
    """Restores every face in whole images, or in the consecutive frames of a video."""

    CATEGORY, FUNCTION = CATEGORY, "restore"
    DESCRIPTION = (
        "Detects the faces of images or of a video's frames, restores them and pastes them back. "
        "Other pixels keep their values."
    )
    RETURN_TYPES = ("IMAGE", "MASK", OUTCOMES)
    RETURN_NAMES = ("images", "mask", "outcomes")
    OUTPUT_TOOLTIPS = ("The images.", "1 where a pixel changed.", "For the node Report.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs."""
        return {
            "required": {
                "restorer": (RESTORER,),
                "images": ("IMAGE", IMAGES),
                "mode": (
                    ["images", "video"],
                    {
                        "tooltip": "video: the batch is one clip; faces are tracked, and their "
                        "detail is kept steady over time."
                    },
                ),
                "strength": ("FLOAT", STRENGTH),
            },
            "optional": {
                "fps": ("FLOAT", FPS),
                "face_detector": (
                    ["yunet", "retinaface", "retinaface-mobile"],
                    {"tooltip": "retinaface needs the package facexlib."},
                ),
                "min_face": (
                    "FLOAT",
                    {
                        "default": ImageSettings.min_face,
                        "min": 0.0,
                        "max": 16384.0,
                        "step": 1.0,
                        "tooltip": "Leave faces alone that are smaller than this, in pixels.",
                    },
                ),
                "only_center_face": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Restore only the face nearest to the center."},
                ),
                "reference": (
                    "IMAGE",
                    {
                        "tooltip": "Restore only the faces of people on these photos, each with "
                        "one face. Needs the weight sface, 39 MB."
                    },
                ),
                "stability": ("FLOAT", {**STABILITY, "tooltip": f"{STABILITY['tooltip']} Video."}),
                **_switches(),
            },
        }

    def restore(
        self,
        restorer: FaceRestorer,
        images: torch.Tensor,
        mode: str,
        strength: float,
        fps: float = 25.0,
        face_detector: str = "yunet",
        min_face: float = ImageSettings.min_face,
        only_center_face: bool = False,
        reference: torch.Tensor | None = None,
        stability: float = 1.0,
        color_match: str = "auto",
        guard: str = "auto",
        sharpness_gate: str = "auto",
    ) -> tuple[torch.Tensor, torch.Tensor, list[dict[str, Any]]]:
        """Restore the faces.

        Returns:
            IMAGE of the same shape; MASK, 1 where a pixel changed; and a note on each image.

        Raises:
            EnhanceError: an option is invalid, or the detector or the recognizer cannot be loaded.
        """
        import torch

        is_video = mode == "video"
        decisions = _decided(
            strength=strength, color_match=color_match, guard=guard, sharpness_gate=sharpness_gate
        )
        settings = (VideoSettings if is_video else ImageSettings)(
            **decisions,
            face_detector=face_detector,
            min_face=min_face,
            only_center_face=only_center_face,
            device=restorer.settings.device,
            download=restorer.settings.download,
        )
        changes = {name: getattr(settings, name) for name in DECISIONS}
        detector = load_detector(settings, 0 if is_video else min_face)
        whole_images = WholeImages(
            make_enhancer(
                restorer.loaded,
                settings,
                stability=stability if is_video else 0,
                match=restorer.match,
                **changes,
            ),
            detector,
            fps=fps if is_video else None,
            min_face=min_face,
            only_center_face=only_center_face,
            reference=_reference(reference, detector, restorer.settings.download),
            parser=load_parser(settings, restorer.loaded)
            if isinstance(settings, ImageSettings)
            else None,
        )
        frames, sources = _rgb(images), restorer.sources(images)
        notes: list[dict[str, Any]] = []
        result, mask = images.clone(), torch.zeros(images.shape[:3])
        batches = (
            (frames[batch], None if sources is None else sources[batch])
            for batch in host.batches(len(frames), BATCH)
        )
        for restored, batch_notes in whole_images.restore_batches(batches):
            batch = slice(len(notes), len(notes) + len(restored))
            result[batch, ..., :3] = torch.from_numpy(restored).to(result)
            mask[batch] = torch.from_numpy((restored != frames[batch]).any(-1)).float()
            notes += batch_notes
        return result, mask, notes


class RestoreTalkingHead:
    """Restores aligned face crops, the consecutive frames of one talking head."""

    CATEGORY, FUNCTION = CATEGORY, "restore"
    DESCRIPTION = (
        "Restores the face crops that a talking-head model (MuseTalk, LatentSync, Wav2Lip, ...) "
        "made, before they are pasted. The batch is one clip, whose detail is kept steady."
    )
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", OUTCOMES), ("images", "outcomes")
    OUTPUT_TOOLTIPS = ("The crops.", "For the node Report.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs."""
        helps = {option.name: option.metadata["help"] for option in enhancer_options()}
        return {
            "required": {
                "restorer": (RESTORER,),
                "images": ("IMAGE", {"tooltip": "Consecutive crops of one face."}),
                "strength": ("FLOAT", STRENGTH),
            },
            "optional": {
                "occlusion": (
                    "MASK",
                    {"tooltip": "Not 0 where something covers the face, which stays unchanged."},
                ),
                "align": (["none", "ffhq"], {"tooltip": helps["align"]}),
                "output_size": (["same", "native"], {"tooltip": helps["output_size"]}),
                "stability": ("FLOAT", STABILITY),
                **_switches(),
            },
        }

    def restore(
        self,
        restorer: FaceRestorer,
        images: torch.Tensor,
        strength: float,
        occlusion: torch.Tensor | None = None,
        align: str = "none",
        output_size: str = "same",
        stability: float = 1.0,
        color_match: str = "auto",
        guard: str = "auto",
        sharpness_gate: str = "auto",
    ) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Restore the crops.

        Returns:
            IMAGE, of another height and width with ``output_size="native"``; a note on each crop.

        Raises:
            EnhanceError: an option or a size is invalid.
        """
        import torch

        enhancer = make_enhancer(
            restorer.loaded,
            restorer.settings,
            strength=strength,
            stability=stability,
            color_match=color_match,
            guard=guard,
            sharpness_gate=sharpness_gate,
            color="rgb",
            value_range="0..1",
            align=align,
            output_size=output_size,
            match=restorer.match,
        )
        notes: list[dict[str, Any]] = []
        enhancer.observe(lambda frame, result, outcome: notes.append(outcome.as_dict()))
        frames, results = _rgb(images), []
        hints = {"occlusion": _covers(occlusion, images), "sources": restorer.sources(images)}
        for batch in host.batches(len(frames), BATCH):
            parts = {name: None if hint is None else hint[batch] for name, hint in hints.items()}
            results.append(torch.from_numpy(enhancer(frames[batch], **parts)))
        logger.info("%s", enhancer.stats.summary())
        warning = enhancer.stats.warning()
        if warning is not None:
            logger.warning("%s", warning)
        return torch.cat(results), notes


class Report:
    """Measures how restoration changed a clip."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "write", True
    DESCRIPTION = (
        "Writes report.html and report.json to the output folder: sharpness, flicker, mouth and "
        "eye movement, color and seams before and after, against limits."
    )
    RETURN_TYPES, RETURN_NAMES = ("STRING", "STRING"), ("path", "summary")
    OUTPUT_TOOLTIPS = ("Path of report.html.", "The verdicts, one a line.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The node's inputs."""
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "Before restoration."}),
                "restored": ("IMAGE", {"tooltip": "After restoration."}),
                "fps": ("FLOAT", FPS),
                "filename_prefix": ("STRING", {"default": "report"}),
            },
            "optional": {
                "outcomes": (
                    OUTCOMES,
                    {"tooltip": "Of the node that restored; tells where the face is."},
                ),
            },
        }

    def write(
        self,
        images: torch.Tensor,
        restored: torch.Tensor,
        fps: float,
        filename_prefix: str,
        outcomes: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Measure the clips and write the report.

        Returns:
            The path of report.html and the verdicts.

        Raises:
            EnhanceError: the batches differ in length, are empty or too small to be measured, or a
                package is missing.
        """
        from ...report import ReportBuilder
        from ...report.region import follow

        if len(images) != len(restored):
            lengths = f"{len(images)} images and {len(restored)} restored"
            raise FrameError("length", lengths, "as many restored images as images")
        notes = outcomes or []
        boxes = [(i, note["box_xyxy"]) for i, note in enumerate(notes) if note.get("box_xyxy")]
        track = follow(boxes) if boxes and images.shape == restored.shape else None
        builder = ReportBuilder(fps, title=filename_prefix)
        clips = _rgb(images), _rgb(restored)
        for batch in host.batches(len(images), 1):
            index = batch.start
            crops = [to_bytes(clip[batch])[0, ..., ::-1] for clip in clips]
            if track is not None:
                left, top, right, bottom = track.at(index, (images.shape[2], images.shape[1]))
                crops = [crop[top:bottom, left:right] for crop in crops]
            note = dict(notes[index]) if index < len(notes) else {}
            note.pop("box_xyxy", None)
            builder.add(*crops, notes=note)
        report = builder.finish()
        paths = report.write(host.output_folder(filename_prefix))
        page = next(str(path) for path in paths if path.suffix == ".html")
        summary = "\n".join(report.lines())
        return {"ui": {"text": [page, summary]}, "result": (page, summary)}


def _decided(**options: Any) -> dict[str, Any]:
    """The options without those that are ``auto``: their default depends on the job."""
    return {name: value for name, value in options.items() if value != "auto"}


def _reference(
    photos: torch.Tensor | None, detector: FaceDetector, download: bool
) -> ReferenceFaces | None:
    """The faces of an IMAGE of reference photos.

    Raises:
        ConfigError: a photo has no face, or more than one.
        WeightError: the recognizer cannot be loaded.
    """
    if photos is None:
        return None
    images = to_bytes(_rgb(photos))[..., ::-1]
    names = {f"photo {index}": np.ascontiguousarray(image) for index, image in enumerate(images)}
    return ReferenceFaces(SFace(download=download), detector, names)


def _rgb(images: torch.Tensor) -> NDArray[Any]:
    """An IMAGE as an array (B, H, W, 3); alpha stays behind.

    Raises:
        FrameError: it has another shape, or no image.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or 0 in images.shape:
        expected = "an IMAGE of (B, H, W, 3), or 4 with alpha, with at least one image"
        raise FrameError("shape", str(tuple(images.shape)), expected)
    array: NDArray[Any] = images[..., :3].float().cpu().contiguous().numpy()
    return array


def _covers(mask: torch.Tensor | None, images: torch.Tensor) -> NDArray[Any] | None:
    """A MASK as an occlusion (B, H, W) of the images' size; one mask may serve all images.

    Raises:
        FrameError: there is another number of masks.
    """
    import torch

    if mask is None:
        return None
    masks = mask.reshape(-1, 1, *mask.shape[-2:]).float().cpu()
    if len(masks) not in (1, len(images)):
        raise FrameError("length", f"{len(masks)} masks", f"1, or {len(images)} as images")
    sized = torch.nn.functional.interpolate(masks, images.shape[1:3], mode="nearest")
    array: NDArray[Any] = sized[:, 0].expand(len(images), -1, -1).numpy()
    return array


_PREFIX = "MuseTalkEnhance"
NODE_CLASS_MAPPINGS = {
    f"{_PREFIX}LoadRestorer": LoadRestorer,
    f"{_PREFIX}MatchToSource": MatchToSource,
    f"{_PREFIX}RestoreFaces": RestoreFaces,
    f"{_PREFIX}RestoreTalkingHead": RestoreTalkingHead,
    f"{_PREFIX}Report": Report,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    f"{_PREFIX}LoadRestorer": "Load Restorer",
    f"{_PREFIX}MatchToSource": "Match to Source",
    f"{_PREFIX}RestoreFaces": "Restore Faces",
    f"{_PREFIX}RestoreTalkingHead": "Restore Talking Head",
    f"{_PREFIX}Report": "Restoration Report",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
