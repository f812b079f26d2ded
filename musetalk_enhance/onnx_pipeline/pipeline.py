"""The three services in a row: from a path and a JSON to a path and a JSON."""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

from ..errors import ConfigError, LicenseError, MediaError
from ..media.arrays import Image, as_bgr_image
from ..media.image import StillImage, decode_image, encode_image
from ..runtime.files import PathLike, open_regular, write_bytes
from ..weights.onnx_models import RANGES
from .analysis import SkippedFace
from .inference import Inference
from .options import PipelineOptions
from .postprocess import FaceResult, Postprocess
from .preprocess import Prepared, Preprocess
from .templates import PreparedFace

REQUEST_IMAGE = "input_image_1"
"""Key of the image in a request's ``args``; the others are arguments of `Pipeline`."""


@dataclass(frozen=True, eq=False)
class Services:
    """The three services with open networks, for any number of images. One thread at a time."""

    preprocess: Preprocess
    inference: Inference
    postprocess: Postprocess

    @classmethod
    def open(cls, options: PipelineOptions | None = None) -> Services:
        """Open the networks that the options name.

        Raises:
            LicenseError: with ``commercial``, the model's license does not allow it.
            EnhanceError: see `Inference`.
        """
        chosen = options or PipelineOptions()
        inference = Inference(
            chosen.model,
            input_size=chosen.input_size if isinstance(chosen.input_size, int) else None,
            value_range=RANGES.get(chosen.value_range),
            template=None if chosen.template == "auto" else chosen.template,
            fidelity=chosen.fidelity,
            occluder=chosen.occluder,
            provider=chosen.provider,
            allow_cpu=chosen.allow_cpu,
            threads=chosen.threads,
            batch_size=chosen.batch_size,
        )
        model = inference.model
        if chosen.commercial and not model.commercial:
            raise LicenseError("model", model.name, model.license)

        @cache
        def detector() -> Any:
            from ..faces.detect import YuNet

            return YuNet(chosen.detector_path, download=chosen.download)

        preprocess = Preprocess(model, lambda image_bgr: detector().detect(image_bgr))
        postprocess = Postprocess(model, blend=chosen.blend, region=chosen.region)
        return cls(preprocess, inference, postprocess)


class Pipeline:
    """Restores the faces of one image: preprocess, inference, postprocess.

    >>> Pipeline("talk.png", "talk.json", model="gfpgan_1.4.onnx").run()  # doctest: +SKIP

    Args:
        image: a path, BGR uint8 (H, W, 3), or a decoded image; not modified.
        analysis: of a face analyser, a path or its content, see `read_analysis`; None detects faces
            with YuNet, through OpenCV.
        output: the file to write; None returns the image as base64 of a PNG.
        services: open networks; the options are then theirs.
        options: fields of `PipelineOptions`.

    Raises:
        ConfigError: an unknown option or an invalid value.
        EnhanceError: a network cannot be opened, see `Services.open`.
    """

    def __init__(
        self,
        image: PathLike | Image | StillImage,
        analysis: Any = None,
        *,
        output: PathLike | None = None,
        services: Services | None = None,
        **options: Any,
    ) -> None:
        names = [field.name for field in dataclasses.fields(PipelineOptions)]
        for key in options.keys() - set(names):
            raise ConfigError.unknown(key, options[key], names)
        if services is not None and options:
            key = min(options)
            raise ConfigError(key, options[key], "no option beside open services")
        self.image, self.analysis, self.output = image, analysis, output
        self.services = services or Services.open(PipelineOptions(**options))
        self._ready: tuple[StillImage, Prepared, float] | None = None

    @classmethod
    def from_request(cls, request: Mapping[str, Any], **options: Any) -> Pipeline:
        """A pipeline from ``{"args": {"input_image_1": ..., ...}}``.

        Args:
            request: ``args`` has the image (a path, base64, a ``data:`` URL or an array), and may
                have ``analysis``, ``output`` and options. Paths are opened as they are: pass no
                request of a stranger.
            options: defaults for those that ``args`` lacks, and `services`.

        Raises:
            ConfigError: another form, or an unknown option.
            MediaError: the image is neither a file nor base64 of one.
        """
        args = request.get("args") if isinstance(request, Mapping) else None
        if not isinstance(args, Mapping) or args.get(REQUEST_IMAGE) is None:
            form = f'an object {{"args": {{"{REQUEST_IMAGE}": a path or base64}}}}'
            raise ConfigError("request", str(request)[:80], form)
        rest = {str(key): value for key, value in args.items() if key != REQUEST_IMAGE}
        image = args[REQUEST_IMAGE]
        if isinstance(image, str) and (image.startswith("data:") or not _is_file(image)):
            image = _from_base64(image)
        return cls(image, **{**options, **rest})

    def prepare(self) -> Pipeline:
        """Read and preprocess the image already, while another pipeline runs in another thread.

        Returns:
            The pipeline itself, whose `run` goes on from there.

        Raises:
            AnalysisError: the analysis cannot be read.
            MediaError: the image cannot be read.
        """
        start = perf_counter()
        still = self._read()
        read_ms = 1000 * (perf_counter() - start)
        prepared = self.services.preprocess.run(still.bgr, self.analysis)
        self._ready = still, prepared, read_ms
        return self

    def run(self) -> dict[str, Any]:
        """Restore, and return what JSON can hold; ``docs/onnx.md`` lists it.

        Raises:
            AnalysisError: the analysis cannot be read.
            MediaError: the image cannot be read or written.
            RestorerError: a network failed.
        """
        if self._ready is None:
            self.prepare()
        assert self._ready is not None
        still, prepared, read_ms = self._ready
        self._ready = None  # a second run reads the image again
        services, start = self.services, perf_counter()
        crops = [face.crop.aligned for face in prepared.faces]
        inferred = services.inference.run(prepared.batch, crops)
        composite = services.postprocess.run(
            still.bgr, prepared.faces, inferred.restored, inferred.visibility
        )
        written = perf_counter()
        image = self._write(still.replace_pixels(composite.image_bgr))
        end = perf_counter()
        faces = [
            self._face(face, result)
            for face, result in zip(prepared.faces, composite.faces, strict=True)
        ]
        faces += [_skipped(face) for face in prepared.skipped]
        faces.sort(key=lambda face: face["index"])
        counts = Counter(face["status"] for face in faces)
        states = ("restored", "unchanged", "failed", "skipped")
        return {
            "status": "restored" if counts["restored"] else "unchanged" if faces else "no_face",
            "image": image,
            "size_wh": list(still.size_wh),
            "faces": faces,
            "counts": {"faces": len(faces), **{state: counts[state] for state in states}},
            "skipped_reasons": dict(Counter(face.reason for face in prepared.skipped)),
            "timings_ms": {
                "read": read_ms,
                "preprocess": prepared.elapsed_ms,
                "inference": inferred.elapsed_ms,
                "postprocess": composite.elapsed_ms,
                "write": 1000 * (end - written),
                "total": read_ms + prepared.elapsed_ms + 1000 * (end - start),
            },
            "model": self._model(),
        }

    def _read(self) -> StillImage:
        if isinstance(self.image, StillImage):
            return self.image
        if not isinstance(self.image, (str, Path)):
            return StillImage(as_bgr_image(self.image))
        path = Path(self.image).expanduser()
        try:
            with open_regular(path) as stream:
                data = stream.read()
        except OSError as error:
            raise MediaError(path, f"cannot be read ({error.strerror or error})") from error
        return decode_image(data, path)

    def _write(self, still: StillImage) -> dict[str, str]:
        if self.output is None:
            return {"base64_png": base64.b64encode(encode_image(still, ".png")).decode("ascii")}
        path = Path(self.output).expanduser()
        write_bytes(path, encode_image(still, path.suffix))
        return {"path": str(path)}

    def _face(self, face: PreparedFace, result: FaceResult) -> dict[str, Any]:
        box, postprocess = face.face.box_xyxy, self.services.postprocess
        return {
            "index": result.index,
            "status": result.status,
            "bounding_box": None if box is None else box.tolist(),
            "landmark_5": face.face.landmarks.tolist(),
            "score": face.face.score,
            "affine_matrix": face.affine_matrix.tolist(),
            "occlusion_share": result.occlusion_share,
            "blend": postprocess.blend,
            **({"detail": result.detail} if result.detail else {}),
        }

    def _model(self) -> dict[str, Any]:
        inference = self.services.inference
        facts = dataclasses.asdict(inference.model)
        del facts["files"], facts["summary"], facts["fidelity_inputs"]
        return {
            **facts,
            "fidelity": inference.model.fidelity,
            "commercial": inference.model.commercial,
            "value_range": list(inference.model.value_range),
            "file": inference.path.name,
            "sha256": inference.sha256,
            "provider": inference.provider,
        }


def _skipped(face: SkippedFace) -> dict[str, Any]:
    return {
        "index": face.index,
        "status": "skipped",
        "reason": face.reason,
        "detail": face.detail,
    }


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, ValueError):  # too long for a path
        return False


def _from_base64(text: str) -> StillImage:
    name = f"{REQUEST_IMAGE} ({text[:40]}...)" if len(text) > 40 else text
    try:
        data = base64.b64decode(
            text.partition(",")[2] if text[:5] == "data:" else text, validate=True
        )
    except (binascii.Error, ValueError) as error:
        raise MediaError(name, "is neither a file nor base64 of one") from error
    return decode_image(data, name)
