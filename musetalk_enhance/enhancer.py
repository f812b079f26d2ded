"""`FaceEnhancer`, alias `GFPGANEnhancer`: N frames in, the same N frames with sharp faces out."""

from __future__ import annotations

import argparse
import logging
import os
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

from .config.flags import given_flags
from .config.loader import alone, merge, section_of
from .config.settings import EnhancerSettings
from .errors import ConfigError, FrameError, RestorerError
from .frames.batch import is_frame
from .frames.resize import resize_image
from .pipeline.deadline import DeadlineEngine
from .pipeline.engine import Engine, Request
from .pipeline.stats import EnhancerStats
from .pipeline.stream import Observer, Stream
from .runtime.memory import monitor_gpu_memory

if TYPE_CHECKING:
    import torch

    from .restorers.base import Restorer

logger = logging.getLogger("musetalk_enhance")

STREAM_OPTIONS = ("color", "value_range", "output_size", "on_error")
"""Options that a stream may change."""


class FaceEnhancer:
    """Restores the faces of a talking-head pipeline between its decoder and its blending.

    ``enhancer(frames)`` takes (N, H, W, 3) uint8 or float arrays, (N, 3, H, W) tensors, or lists
    and tuples of frames, and returns exactly N frames: same order, container, dtype, color order
    and value range, C-contiguous, by default of the same size. The input is never modified. A frame
    that cannot be restored is returned unchanged and counted in `stats`, unless
    ``on_error="raise"``.

    It is one engine, which holds the network, and one stream, which holds the state of a sequence
    of frames. `stream` opens another one over the same network, for another face, clip or user. The
    constructor loads the network, so that a missing weight is reported before a long run.

    >>> import numpy as np
    >>> enhancer = FaceEnhancer(model="lite", color="bgr")
    >>> enhancer(np.zeros((2, 256, 256, 3), np.uint8)).shape
    (2, 256, 256, 3)

    Args:
        model_path: path of a GFPGAN, RestoreFormer or CodeFormer checkpoint or of an ONNX file, or
            a name as for `model`; None uses `model`.
        upscale: size of the faces from `enhance_face`, `enhance_batch` and
            `enhance_batch_optimized`, as a multiple of the input's.
        arch: of the checkpoint: ``clean | bilinear | original | RestoreFormer | CodeFormer``.
        channel_multiplier: width of the checkpoint's StyleGAN2 decoder, 1 or 2.
        bg_upsampler: background upsampler for ``engine="official"``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, a `torch.device`; None is auto.
        model: ``"auto"``, a name such as ``"gfpgan-1.4"`` or ``"lite"``, or a path.
        onnx_input_size: side of the input of an unknown ONNX file, in pixels, or ``"auto"``.
        onnx_value_range: its value range, ``"0..1"``, ``"-1..1"`` or ``"0..255"``.
        onnx_template: its warp template, a key of `faces.templates.TEMPLATES`.
        color: channel order of the frames, ``"bgr"`` (MuseTalk) or ``"rgb"``.
        value_range: of float frames: ``"auto"``, ``"0..1"``, ``"0..255"`` or ``"-1..1"``.
        output_size: ``"same"``, ``"native"`` (the network's), ``"upscale"``, or a side in pixels.
        strength: 0..1, blend of the restored face over the input.
        fidelity: 0..1, CodeFormer's ``w``; other models take only the default.
        region: part that may change: ``"full"``, ``"lower"`` (all that MuseTalk keeps, and faster)
            or ``"mouth"``. Outside it the host's pixels are returned bit for bit.
        align: ``"none"``, or ``"ffhq"``: align each face to the FFHQ template and warp it back.
        landmarks: detector if the host passes no landmarks: ``"embedded"`` or ``"yunet"``.
        stability: 0..1, how strongly detail is kept steady over time, or ``"auto"``.
        color_match: keep the input's colors at low frequencies, or ``"auto"``.
        guard: lower the strength where mouth, eyes or structure moved, or ``"auto"``.
        sharpness_gate: leave faces that are sharp already unchanged, or ``"auto"``.
        match: ``"none"``, or ``"source"``: sharpness, color and grain of the host's `sources`.
        occluder: path of an ONNX occlusion model (``dfl_xseg.onnx``).
        mode: ``"batch"`` for throughput, ``"memory"`` to stay within `memory_budget`. In both, a
            batch that runs out of memory is halved and its frames are tried again.
        batch_size: faces in one run of the network, or ``"auto"``.
        memory_budget: bytes, ``"2GiB"``, a share of what is free (float), or ``"auto"``.
        cpu_fallback: in memory mode, finish on the CPU when not even one face fits.
        deadline_ms: milliseconds that a call may take; 0 sets no limit.
        budget_ms: the same for each frame of a call.
        dtype: arithmetic, ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        backend: runtime, ``"auto"``, ``"torch"``, ``"onnx"``, ``"openvino"`` or ``"ncnn"``.
        provider: of ``backend="onnx"``: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        allow_cpu: fall back to the CPU, with a warning, if the device is unavailable.
        engine: ``"native"`` or ``"official"`` (gfpgan.GFPGANer, face by face).
        on_error: ``"passthrough"`` or ``"raise"``.
        download: download a missing weight.
        trust_unpinned: load a ``.pth`` that is not in the table of published weights.

    Raises:
        ConfigError: an invalid value.
        WeightError: the weight is missing, damaged, not to be trusted, or another network.
        MissingDependencyError: an optional package is needed.
    """

    def __init__(
        self,
        model_path: str | None = None,
        upscale: float = 2,
        arch: str = "clean",
        channel_multiplier: int = 2,
        bg_upsampler: Any = None,
        device: Any = None,
        *,
        model: str = "auto",
        onnx_input_size: str | int = "auto",
        onnx_value_range: str = "auto",
        onnx_template: str = "auto",
        color: str = "bgr",
        value_range: str = "auto",
        output_size: str | int = "same",
        strength: float = 1.0,
        fidelity: float = 0.7,
        region: str = "full",
        align: str = "none",
        landmarks: str = "embedded",
        stability: str | float = "auto",
        color_match: str | bool = "auto",
        guard: str | bool = "auto",
        sharpness_gate: str | bool = "auto",
        match: str = "none",
        occluder: str | None = None,
        mode: str = "batch",
        batch_size: str | int = "auto",
        memory_budget: str | int | float = "auto",
        cpu_fallback: bool = True,
        deadline_ms: float = 0,
        budget_ms: float = 0,
        dtype: str = "auto",
        backend: str = "auto",
        provider: str = "auto",
        allow_cpu: bool = False,
        engine: str = "native",
        on_error: str = "passthrough",
        download: bool = False,
        trust_unpinned: bool = False,
    ) -> None:
        options = {name: value for name, value in locals().items() if name != "self"}
        if model == "auto" and isinstance(model_path, str) and not os.path.exists(model_path):
            from .restorers.catalog import is_path

            if not is_path(model_path):  # FaceEnhancer("lite")
                options |= {"model": model_path, "model_path": None}
        self._start(EnhancerSettings(enabled=True, **options))

    @classmethod
    def from_settings(
        cls, settings: EnhancerSettings, restorer: Restorer | None = None
    ) -> FaceEnhancer:
        """Create an enhancer from checked settings, or around the caller's own restorer.

        With ``settings.enabled`` false nothing is loaded and every call returns its frames.
        """
        enhancer = cls.__new__(cls)
        enhancer._start(settings, restorer)
        return enhancer

    @classmethod
    def from_config(cls, cfg: Any) -> FaceEnhancer:
        """An enhancer from a host's configuration.

        Args:
            cfg: mapping, OmegaConf node or path of a YAML file: either the whole tree with a
                section ``gfpgan:`` (on only with ``enabled: true``) or the section itself (on
                unless it says ``enabled: false``).

        Raises:
            ConfigError: an unknown key or an invalid value.
        """
        section = section_of(cfg)
        if section is None:
            section = {"enabled": True, **alone(cfg)}
        return cls.from_settings(merge(section))

    @classmethod
    def from_args(cls, args: argparse.Namespace, cfg: Any = None) -> FaceEnhancer:
        """An enhancer from flags (`add_gfpgan_arguments`) over a configuration over defaults.

        Args:
            args: the parsed namespace of the host.
            cfg: the host's whole configuration; its section ``gfpgan:`` is used, if it has one.

        Raises:
            ConfigError: an unknown key or an invalid value.
        """
        return cls.from_settings(merge(section_of(cfg), given_flags(args)))

    def _start(self, settings: Any, restorer: Restorer | None = None) -> None:
        if not isinstance(settings, EnhancerSettings):
            expected = "EnhancerSettings; from_config takes a mapping or a YAML file"
            raise ConfigError("settings", type(settings).__name__, expected)
        self.settings = settings
        self._engine: Engine | None = None
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self._disabled_stats = EnhancerStats()
        if not settings.enabled:
            return
        if settings.mode == "batch" and settings.memory_budget != "auto":
            _warn_that_the_budget_is_unused()
        limited = settings.deadline_ms > 0 or settings.budget_ms > 0
        self._engine = (DeadlineEngine if limited else Engine)(settings, restorer)
        self._stream = self._engine.stream()
        self._streams.add(self._stream)

    def __repr__(self) -> str:
        where = "disabled" if self._engine is None else f"{self.model_name} on {self.device}"
        return f"<{type(self).__name__} {where}, {self.stats.frames} frames>"

    @property
    def enabled(self) -> bool:
        """Whether frames are restored at all."""
        return self.settings.enabled

    @property
    def stats(self) -> EnhancerStats:
        """Counters of this enhancer's own stream."""
        return self._disabled_stats if self._engine is None else self._stream.stats

    @property
    def model_name(self) -> str:
        """Name of the model that runs; ``"none"`` when disabled or closed."""
        if self._engine is None or self._engine.closed:
            return "none"
        return self._engine.model.info.name

    @property
    def known_range(self) -> tuple[float, float] | None:
        """Lowest and highest value of this stream's float frames, once known."""
        return None if self._engine is None else self._stream.value_range

    @property
    def loaded(self) -> bool:
        """Whether the network is in memory, ready to run."""
        return self._engine is not None and not self._engine.closed and self._engine.model.loaded

    @property
    def device(self) -> torch.device:
        """Where the network runs; after `unload`, where it ran last."""
        if self._engine is None or self._engine.closed:
            from .runtime.devices import torch_device

            return torch_device("cpu")
        return self._engine.device

    @property
    def backend(self) -> tuple[str, str] | None:
        """Backend and dtype that run the network, in the words of these options.

        None if nothing is loaded, or with ``engine: official``.
        """
        return self._engine.model.backend if self._engine is not None and self.loaded else None

    @property
    def engine(self) -> Engine:
        """The engine, for restoring frames of many streams in one call.

        Raises:
            RestorerError: the enhancer is disabled or closed.
        """
        if self._engine is None or self._engine.closed:
            raise RestorerError("this enhancer is disabled, or was closed; create a new one")
        return self._engine

    def stream(self, **hints: Any) -> Stream:
        """Another stream over the same network, with its own state and `stats`.

        Args:
            hints: options of its frames: ``color``, ``value_range``, ``output_size``, ``on_error``.

        Returns:
            A stream that is called as the enhancer, by one thread at a time. `Stream.close` frees
            its state; so does the garbage collector.

        Raises:
            ConfigError: an option that is not one of these, or an invalid value.
            RestorerError: the enhancer is disabled or closed.
        """
        for name, value in hints.items():
            if name not in STREAM_OPTIONS:
                raise ConfigError.unknown(name, value, STREAM_OPTIONS)
        stream = self.engine.stream(self.settings.replace(**hints) if hints else None)
        self._streams.add(stream)
        return stream

    def memory_plan(self) -> dict[str, int | None]:
        """The plan of the next batches.

        Returns:
            ``batch`` (faces in the next batch), ``planned`` (its final size), ``budget_bytes``
            (None with ``mode="batch"``), ``fixed_bytes`` and ``bytes_per_face`` in addition to the
            loaded network, and ``measured`` (faces of the largest measured batch; 0: estimates).

        Raises:
            RestorerError: the enhancer is disabled or closed.
        """
        engine = self.engine
        with engine.lock:
            planner = engine.planner
            fixed, per_face = planner.costs.line()
            return {
                "batch": planner.size,
                "planned": planner.planned,
                "budget_bytes": planner.budget,
                "fixed_bytes": fixed,
                "bytes_per_face": per_face,
                "measured": planner.costs.largest,
            }

    monitor_gpu_memory = staticmethod(monitor_gpu_memory)

    def __call__(
        self,
        frames: Any,
        *,
        landmarks: Any = None,
        occlusion: Any = None,
        keys: Any = None,
        cuts: Any = None,
        sources: Any = None,
    ) -> Any:
        """Restore a batch of frames; see the class for the containers.

        Args:
            frames: the next frames of the stream.
            landmarks: (N, 5, 2), or a sequence with None where unknown: x and y in pixels of left
                eye, right eye, nose, left and right corner of the mouth as seen in the image.
            occlusion: (N, H, W), a sequence with None, or one (H, W) for all: not 0 where something
                covers the face, which stays unchanged.
            keys: hashable names of the frames, such as the position in a looping avatar; landmarks
                are detected once for each key.
            cuts: whether each frame begins another scene, independent of the previous frame.
                Visible cuts are detected anyway; all true makes every frame a still image.
            sources: (N, h, w, 3), or a sequence with None: the host's original crop of each frame,
                in the color order and value range of the frames, of any size; with
                ``match="source"`` the restored faces are matched to it. Where it is the frame
                itself, the face around the mouth is what counts.

        Raises:
            FrameError: `frames` is not a batch of frames; landmarks or keys are invalid, or their
                number is not that of the frames; or, with ``on_error="raise"``, a frame or its
                occlusion mask is bad, or the batch is empty.
            RestorerError: with ``on_error="raise"``, the network failed.
        """
        hints = (landmarks, occlusion, keys, cuts, sources)
        return self._run(frames, self.settings.output_size, hints)

    def observe(self, observer: Observer) -> None:
        """Call `observer` with every frame of this enhancer's stream; see `Stream.observe`."""
        if self._engine is not None:
            self._stream.observe(observer)

    @property
    def observers(self) -> tuple[Observer, ...]:
        """What observes this enhancer's own stream."""
        return () if self._engine is None else tuple(self._stream.observers)

    def enhance_face(self, face: Any) -> Any:
        """Restore one frame.

        Args:
            face: (H, W, 3) uint8 or float array, or (3, H, W) tensor.

        Returns:
            The face at ``upscale`` times its size, same dtype, color order and range.

        Raises:
            FrameError: `face` is neither an array nor a tensor; others as ``enhancer(frames)``.
        """
        if not is_frame(face):
            expected = "one frame: an (H, W, 3) array or a (3, H, W) tensor"
            raise FrameError("type", type(face).__name__, expected)
        return self._run([face], "upscale")[0]

    def enhance_batch(self, faces: Any) -> Any:
        """Restore many frames as `enhance_face` does; returned in the same container."""
        return self._run(faces, "upscale")

    def enhance_batch_optimized(self, faces: Any, batch_size: int = 4) -> Any:
        """Restore many frames, `batch_size` at a time; halved when memory runs out."""
        size = self.settings.replace(batch_size=batch_size).batch_size
        return self._run(faces, "upscale", batch_size=size)

    @staticmethod
    def resize_to_original(face: Any, size_wh: tuple[int, int]) -> Any:
        """Bring a face to (width, height) in pixels: area when shrinking, Lanczos when enlarging.

        Args:
            face: (H, W, 3) uint8 or float array, or (3, H, W) tensor.
            size_wh: (width, height).

        Returns:
            The face in that size: same container, dtype and device.

        Raises:
            FrameError: `face` is neither, or empty; or a side is below 1.
        """
        return resize_image(face, size_wh)

    def reset(self) -> None:
        """Clear the state of the stream; call it between clips."""
        if self._engine is not None:
            self._stream.reset()

    def unload(self) -> None:
        """Free the network's memory; the next call loads it again, with the same settings.

        Its weight is checked and its memory measured again then. A restorer that was passed to
        `from_settings` cannot be loaded again, so it is moved to the CPU and back; if it runs on
        the CPU already, it stays there, with a warning. ``stats`` continues.

        Raises:
            RestorerError: a restorer that was passed in cannot be moved; it stays where it is.
        """
        if self._engine is not None:
            self._engine.unload(list(self._streams))

    def close(self) -> None:
        """Free the network for good; later calls raise RestorerError."""
        if self._engine is not None:
            self._engine.close()
            self._stream.begin_again()
            self._stream.last = None

    def __enter__(self) -> FaceEnhancer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(
        self,
        frames: Any,
        output_size: str | int,
        hints: tuple[Any, ...] = (),
        batch_size: Any = None,
    ) -> Any:
        if self._engine is None:
            return frames
        size = batch_size if isinstance(batch_size, int) else None
        request = Request(self._stream, frames, hints, output_size, size)
        return self._engine.restore([request])[0].frames


GFPGANEnhancer = FaceEnhancer
"""The name in the usual GFPGAN integration."""


@cache
def _warn_that_the_budget_is_unused() -> None:
    logger.warning("memory_budget is ignored with mode: batch; set mode: memory to keep within it")
