"""`GFPGANEnhancer`: N frames in, the same N frames out, their faces sharp."""

from __future__ import annotations

import argparse
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import memory
from .batching import BatchPlanner
from .errors import EnhanceError, FrameError, NoFaceError, OutOfMemoryError, RestorerError
from .finishing import Finisher, FrameNote, Stream, Work
from .frames import FrameBatch, is_frame, is_tensor, same_bits
from .hints import Hints
from .imaging import resize_picture
from .precision import without_autocast
from .settings import EnhancerSettings, alone, given_flags, merge, section_of
from .stats import EnhancerStats, counted

if TYPE_CHECKING:
    import torch

    from .restorers.base import Restorer

logger = logging.getLogger("musetalk_enhance")


PLACES_AT_ONCE = 16
"""Faces whose landmarks are looked for together."""
Observer = Callable[[Any, Any, "FrameNote | str"], None]


class GFPGANEnhancer:
    """Restores the faces a talking-head pipeline has generated, between its decoder and its blending.

    ``enhancer(frames)`` takes (N, H, W, 3) uint8 or float arrays, (N, 3, H, W) tensors, or lists and tuples of
    frames, and hands back exactly N frames: same order, container, dtype, colour order and value range,
    C-contiguous, by default of the same size. The input is never modified. A frame that cannot be restored
    comes back as it came and is counted in `stats`, unless ``on_error="raise"``.

    The network is loaded by the constructor, so that a missing weight is known before a long run begins.

    >>> import numpy as np
    >>> enhancer = GFPGANEnhancer(model="lite", color="bgr")
    >>> enhancer(np.zeros((2, 256, 256, 3), np.uint8)).shape
    (2, 256, 256, 3)

    Args:
        model_path: path of a GFPGAN, RestoreFormer or CodeFormer checkpoint; None takes `model`.
        upscale: size of the faces that `enhance_face` and its kin return, as a multiple of the input's.
        arch: network of the checkpoint: ``clean``, ``bilinear``, ``original``, ``RestoreFormer``,
            ``CodeFormer``.
        channel_multiplier: width of the checkpoint's StyleGAN2 decoder, 1 or 2.
        bg_upsampler: background upsampler for ``engine="official"``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``, a `torch.device`; None takes the best there is.
        model: ``"auto"``, a name such as ``"gfpgan-1.4"`` or ``"lite"``, or a path.
        color: channel order of the frames, ``"bgr"`` (MuseTalk) or ``"rgb"``.
        value_range: of float frames: ``"auto"``, ``"0..1"``, ``"0..255"`` or ``"-1..1"``.
        output_size: ``"same"``, ``"native"`` (what the network made), ``"upscale"``, or a side in pixels.
        strength: 0..1, blend of the restored face over the input.
        fidelity: 0..1, CodeFormer's ``w``; other models take only the default.
        region: which part may change; ``"full"``, ``"lower"`` (all that MuseTalk keeps, and quicker) or
            ``"mouth"``. Outside, the host's pixels come back bit for bit.
        align: ``"none"``, or ``"ffhq"``: bring each face to the FFHQ template for the network, and back.
        landmarks: who finds them where the host gives none: ``"embedded"`` or ``"yunet"``.
        stability: 0..1, how firmly detail is held still over time, or ``"auto"``.
        color_match: whether low frequencies are locked to the input's, or ``"auto"``.
        guard: whether a frame whose mouth, eyes or structure moved is restored less, or ``"auto"``.
        sharpness_gate: whether a face that is sharp already is left alone, or ``"auto"``.
        occluder: path of an ONNX occluder (``dfl_xseg.onnx``); what covers a face is not painted over.
        mode: ``"batch"`` for throughput, ``"memory"`` to stay within `memory_budget`. In both a batch that runs
            out of memory is halved and its frames are tried again.
        batch_size: faces in one run of the network, or ``"auto"``.
        memory_budget: bytes, ``"2GiB"``, a share of what is free (float), or ``"auto"``.
        cpu_fallback: in memory mode, finish on the CPU when not even one face fits.
        dtype: arithmetic, ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        backend: what executes the network, ``"auto"``, ``"torch"``, ``"onnx"``, ``"openvino"`` or ``"ncnn"``.
        provider: of ``backend="onnx"``: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        allow_cpu: run on the CPU, with a warning, where the device or provider asked for is not there.
        engine: ``"native"`` (ours) or ``"official"`` (gfpgan.GFPGANer, face by face).
        on_error: ``"passthrough"`` or ``"raise"``.
        download: fetch a missing weight now.
        trust_unpinned: open a ``.pth`` that is not in the table of published weights.

    Raises:
        ConfigError: an impossible value.
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
        color: str = "bgr",
        value_range: str = "auto",
        output_size: str | int = "same",
        strength: float = 1.0,
        fidelity: float = 0.5,
        region: str = "full",
        align: str = "none",
        landmarks: str = "embedded",
        stability: str | float = "auto",
        color_match: str | bool = "auto",
        guard: str | bool = "auto",
        sharpness_gate: str | bool = "auto",
        occluder: str | None = None,
        mode: str = "batch",
        batch_size: str | int = "auto",
        memory_budget: str | int | float = "auto",
        cpu_fallback: bool = True,
        dtype: str = "auto",
        backend: str = "auto",
        provider: str = "auto",
        allow_cpu: bool = False,
        engine: str = "native",
        on_error: str = "passthrough",
        download: bool = False,
        trust_unpinned: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        self._start(EnhancerSettings(enabled=True, **given))

    @classmethod
    def from_settings(cls, settings: EnhancerSettings, restorer: Restorer | None = None) -> GFPGANEnhancer:
        """An enhancer from checked settings, with a restorer of the caller's own where one is given.

        With ``settings.enabled`` false nothing is loaded and every call hands its frames straight back.
        """
        enhancer = cls.__new__(cls)
        enhancer._start(settings, restorer)
        return enhancer

    @classmethod
    def from_config(cls, cfg: Any) -> GFPGANEnhancer:
        """An enhancer from a host's configuration.

        Args:
            cfg: mapping, OmegaConf node or path of a YAML file: either the whole tree with a section
                ``gfpgan:`` (on only with ``enabled: true``) or the section itself (on unless it says
                ``enabled: false``).

        Raises:
            ConfigError: an unknown key or an impossible value.
        """
        section = section_of(cfg)
        return cls.from_settings(merge({"enabled": True, **alone(cfg)} if section is None else section))

    @classmethod
    def from_args(cls, args: argparse.Namespace, cfg: Any = None) -> GFPGANEnhancer:
        """An enhancer from flags (`add_gfpgan_arguments`) over a configuration over defaults.

        Args:
            args: the parsed namespace of the host.
            cfg: the host's whole configuration; its section ``gfpgan:`` is used, if it has one.

        Raises:
            ConfigError: an unknown key or an impossible value.
        """
        return cls.from_settings(merge(section_of(cfg), given_flags(args)))

    def _start(self, settings: EnhancerSettings, restorer: Restorer | None = None) -> None:
        self.settings = settings
        self.stats = EnhancerStats()
        self._lock = threading.RLock()
        self._said: set[str] = set()
        self._known_range: tuple[float, float] | None = None
        self._finisher = Finisher(settings)
        self._stream = Stream()
        self._last: tuple[Any, Any, Hints] | None = None
        self._told = self._hints = Hints.of(0)
        self._notes: dict[int, FrameNote | str] = {}
        self._observers: list[Observer] = []
        self._closed = not settings.enabled
        self._parked_from: torch.device | None = None
        self._last_device: torch.device  # set by `unload`
        self._no_cpu = False
        self._restorer = restorer
        self._owned = restorer is None
        self._planned: BatchPlanner | None = None
        if not settings.enabled:
            return
        if settings.mode == "batch" and settings.memory_budget != "auto":
            _say_once_that_the_budget_is_unused()
        self._restorer = restorer or self._load(settings)
        self._record = self._restorer.request.info
        self._finisher.open(self._record.input_size)

    @property
    def _planner(self) -> BatchPlanner:
        """Made with the first frames: what the host itself loads until then is no longer free."""
        if self._planned is None:
            self._planned = BatchPlanner(self.settings, self._record, self.device)
        return self._planned

    def _load(self, settings: EnhancerSettings) -> Restorer:
        """The restorer that `settings` mean; on the CPU when it does not fit on its device and that is allowed."""
        from .restorers.catalog import choose

        choice, device = choose(settings), pick_device(settings.device)
        try:
            return choice.load(device)
        except Exception as error:
            if device.type == "cpu" or not self._may_leave_gpu or not memory.is_out_of_memory(error):
                raise
            memory.forget_locals(error)
        logger.warning("out of memory when loading the model on %s: it goes to the CPU", device)
        memory.release(device)
        return choice.load(torch_device("cpu"))

    @property
    def _may_leave_gpu(self) -> bool:
        return self.settings.mode == "memory" and self.settings.cpu_fallback

    @property
    def enabled(self) -> bool:
        """Whether frames are restored at all."""
        return self.settings.enabled

    @property
    def model_name(self) -> str:
        """Name of the model that runs; ``"none"`` when disabled or closed."""
        return "none" if self._closed else self._record.name

    @property
    def known_range(self) -> tuple[float, float] | None:
        """Lowest and highest value of this stream's float frames, once they have shown it."""
        return self._known_range

    @property
    def loaded(self) -> bool:
        """Whether the network is in memory, ready to run."""
        return not self._closed and self._restorer is not None and self._parked_from is None

    @property
    def device(self) -> torch.device:
        """Where the network runs; after `unload`, where it ran last."""
        if self._closed:
            return torch_device("cpu")
        return self._restorer.device if self._restorer is not None and self.loaded else self._last_device

    @property
    def backend(self) -> tuple[str, str] | None:
        """What executes the network and its arithmetic, as the options `backend` and `dtype` call them.

        None where nothing is loaded, or where the restorer is more than a network (``engine: official``).
        """
        from .restorers.base import NetworkRestorer

        if not self.loaded or not isinstance(self._restorer, NetworkRestorer):
            return None
        return self._restorer.backend.name, self._restorer.backend.dtype

    def memory_plan(self) -> dict[str, int | None]:
        """What the next batches are planned from.

        Returns:
            ``batch`` (faces in the next batch), ``planned`` (what it grows to), ``budget_bytes`` (None with
            ``mode="batch"``), ``fixed_bytes`` and ``bytes_per_face`` of a batch over the loaded state, and
            ``measured`` (faces of the largest batch that was measured, 0: the figures are the model's record).

        Raises:
            RestorerError: the enhancer is disabled or closed.
        """
        with self._lock:
            self._check_open()
            fixed, per_face = self._planner.costs.line()
            return {
                "batch": self._planner.size,
                "planned": self._planner.planned,
                "budget_bytes": self._planner.budget,
                "fixed_bytes": fixed,
                "bytes_per_face": per_face,
                "measured": self._planner.costs.largest,
            }

    def __call__(
        self, frames: Any, *, landmarks: Any = None, occlusion: Any = None, keys: Any = None, cuts: Any = None
    ) -> Any:
        """Restore a batch of frames; see the class for what may be given and what comes back.

        Args:
            frames: the next frames of the stream.
            landmarks: of each frame, (N, 5, 2) or a sequence with None where they are not known: x and y in pixels
                of the frame, left eye, right eye, nose, left and right corner of the mouth as seen in the picture.
            occlusion: of each frame, (N, H, W) or a sequence with None: not 0 where something covers the face. It
                is never painted over.
            keys: of each frame, something hashable that names it, such as the place in a looping avatar: landmarks
                that were found for a key are not looked for again.
            cuts: of each frame, whether another scene begins with it: nothing of the frame before is used for it.
                Cuts that can be seen are found without it; true for every frame makes each a still picture.

        Raises:
            FrameError: `frames` is no batch of frames at all; landmarks or keys are not what is said above, or
                there is not one of each for every frame; or, with ``on_error="raise"``, a frame or a mask of what
                covers it is bad, or the batch is empty.
            RestorerError: with ``on_error="raise"``, the network failed.
        """
        return self._run(frames, self.settings.output_size, hints=(landmarks, occlusion, keys, cuts))

    def observe(self, observer: Observer) -> None:
        """Have `observer` called with every frame from now on, in order.

        Args:
            observer: called with the frame as it came, the frame as it goes back, and a `FrameNote`, or the reason
                (a text) why it was handed back as it came. It must change nothing. One that raises is not called
                again, with a warning; with ``on_error="raise"`` its error reaches the host.
        """
        self._observers.append(observer)

    def enhance_face(self, face: Any) -> Any:
        """Restore one frame.

        Args:
            face: (H, W, 3) uint8 or float array, or (3, H, W) tensor.

        Returns:
            The face at ``upscale`` times its size, same dtype, colour order and range. `resize_to_original`
            brings it back.

        Raises:
            FrameError: `face` is neither an array nor a tensor; or what ``enhancer(frames)`` raises.
        """
        if not is_frame(face):
            raise FrameError("type", type(face).__name__, "one frame: an (H, W, 3) array or a (3, H, W) tensor")
        return self._run([face], "upscale")[0]

    def enhance_batch(self, faces: Any) -> Any:
        """Restore many frames; like `enhance_face`, in the container they came in."""
        return self._run(faces, "upscale")

    def enhance_batch_optimized(self, faces: Any, batch_size: int = 4) -> Any:
        """Restore many frames, `batch_size` at a time, halving that where memory runs out."""
        settings = self.settings.replace(batch_size=batch_size)
        return self._run(faces, "upscale", settings)

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
        return resize_picture(face, size_wh)

    def reset(self) -> None:
        """Forget what was learnt of the stream; call it between clips."""
        with self._lock:
            self._known_range = None
            self._stream = Stream()
            self._last = None
            self._finisher.reset()

    def unload(self) -> None:
        """Give the network's memory back; the next call loads it again, with the same settings.

        Its weight is looked up and checked again then, and what was learnt of its memory is measured again.
        A restorer that was handed to `from_settings` cannot be loaded again, so it is moved to the CPU and back;
        where it runs on the CPU already, it stays and a warning says so. ``stats`` goes on counting. Nothing
        happens when the network is not loaded.

        Raises:
            RestorerError: a restorer that was handed in cannot be moved; it stays where it is.
        """
        with self._lock:
            restorer, device = self._restorer, self.device
            if restorer is None or not self.loaded:
                return
            self._last_device = device
            self._stream = self._stream.to(torch_device("cpu"))
            self._finisher.unload()
            if self._owned:
                restorer.close()
                self._restorer = None
            elif device.type != "cpu":
                self._park(restorer, device)
            else:
                logger.warning(
                    "unload: the restorer was handed in and runs on the CPU; only who made it can free its memory"
                )
            del restorer
            memory.release(device)

    def _park(self, restorer: Restorer, device: torch.device) -> None:
        try:
            restorer.to(torch_device("cpu"))
        except Exception as error:
            with suppress(Exception):
                restorer.to(device)
            raise RestorerError(f"unload: {self.model_name} cannot be moved to the CPU: {error}") from error
        self._parked_from = device

    def _wake(self) -> None:
        """Have the network in memory again after `unload`."""
        if self.loaded:
            return
        if self._parked_from is not None:
            assert self._restorer is not None
            self._restorer.to(self._parked_from)
            self._parked_from = None
        else:
            # "auto" might mean another model by now: a stream keeps the one it began with
            named = self.settings if self.settings.model != "auto" or self.settings.model_path else None
            self._restorer = self._load(named or self.settings.replace(model=self._record.name))
        assert self._restorer is not None
        self._no_cpu = False
        self._planned = None
        self.stats.reloads += 1

    def close(self) -> None:
        """Give the network and its memory back for good; later calls raise RestorerError."""
        with self._lock:
            device, restorer = self.device, self._restorer
            self._closed = True
            self._stream, self._last = Stream(), None
            self._finisher.close()
            if restorer is not None:
                restorer.close()
                self._restorer = restorer = None
                memory.release(device)

    def _check_open(self) -> None:
        if self._closed:
            raise RestorerError("this enhancer is disabled, or was closed; make a new one")

    def __enter__(self) -> GFPGANEnhancer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        frames: Any,
        output_size: str | int,
        settings: EnhancerSettings | None = None,
        hints: tuple[Any, Any, Any, Any] = (None, None, None, None),
    ) -> Any:
        """Restore `frames` to `output_size`; `settings` are those of this call where it has some of its own."""
        if not self.enabled:
            return frames
        with self._lock:
            self._check_open()
            batch = FrameBatch.open(frames, self.settings.value_range, self._known_range)
            if batch.value_range and batch.value_range != (0.0, 1.0):
                self._known_range = batch.value_range
            self._told = self._hints = Hints.of(len(batch), *(() if batch.refused else hints))
            self._notes = {}
            self.stats.frames += len(batch)
            if len(batch) == 0:
                return self._empty(batch)
            for index in sorted(batch.problems):
                self._refuse(batch.problems[index], index)
            results = self._restore(batch, output_size, settings) if self._is_awake(batch) else {}
            out = self._finish(batch, results, output_size)
            if self.settings.mode == "memory":
                memory.trim()  # the C library's heap would swell and shrink with the sizes of the batches
            return out

    def _empty(self, batch: FrameBatch) -> Any:
        if self.settings.on_error == "raise":
            raise FrameError("empty", "an empty batch", "one frame at least")
        return batch.copy()

    def _is_awake(self, batch: FrameBatch) -> bool:
        """Whether the network is there; loads it after `unload`. A failure counts for every good frame."""
        try:
            self._wake()
        except Exception as error:
            if self.settings.on_error == "raise":
                raise
            for index in (index for group in batch.groups() for index in group):
                self.stats.failed += 1
                self._count(f"reload: {type(error).__name__}", f"frame {index}: {error}", index)
            return False
        return True

    def _restore(
        self, batch: FrameBatch, output_size: str | int, settings: EnhancerSettings | None
    ) -> dict[int, Any]:
        """Index to restored frame, for every frame that could be restored."""
        planner = self._planner
        if settings is not None:
            planner = BatchPlanner(settings, self._record, self.device, planner)
        results: dict[int, Any] = {}
        if self._finisher.needs_places:
            self._find_places(batch)
        for group in batch.runs():
            results.update(self._restore_group(batch, group, output_size, planner))
        return results

    def _find_places(self, batch: FrameBatch) -> None:
        """Fill in the landmarks of every good frame, once, in the order of the stream."""
        import torch

        landmarks = list(self._told.landmarks)
        with self.stats.timed("landmarks"), torch.no_grad(), without_autocast(self.device):
            for run in batch.runs():
                for start in range(0, len(run), PLACES_AT_ONCE):
                    some = run[start : start + PLACES_AT_ONCE]
                    for index, points in zip(some, self._places(batch, some), strict=True):
                        landmarks[index] = points
        self._hints = replace(self._told, landmarks=landmarks)

    def _places(self, batch: FrameBatch, some: list[int]) -> list[Any]:
        """Landmarks of some frames; where they cannot be looked for, the host's own: frames are restored anyway."""
        told = self._told.at(some)
        try:
            return self._finisher.places(batch.to_network(some, self.device, self.settings.color), told)
        except Exception as error:
            memory.forget_locals(error)
            if self.settings.on_error == "raise":
                if isinstance(error, EnhanceError):
                    raise
                raise RestorerError(f"frame {some[0]}: landmarks cannot be looked for: {error}") from error
            if "landmarks" not in self._said:
                self._said.add("landmarks")
                logger.warning("landmarks cannot be looked for (%s): going on without; said once", error)
            return told.landmarks

    def _restore_group(
        self, batch: FrameBatch, group: list[int], output_size: str | int, planner: BatchPlanner
    ) -> dict[int, Any]:
        """Restore frames of one size, batch by batch.

        The frames of a batch that failed are tried again: all of them, fewer at a time, where memory ran out;
        otherwise singly, so that only those at fault are lost.
        """
        results: dict[int, Any] = {}
        start = alone_until = 0
        while start < len(group):
            chunk = group[start : start + (1 if start < alone_until else planner.next(len(group) - start))]
            outcome = self._attempt(batch, chunk, output_size, planner)
            if isinstance(outcome, dict):
                results.update(outcome)
            else:
                if memory.is_out_of_memory(outcome):
                    memory.forget_locals(outcome)
                    if self._back_off(planner, len(chunk)):
                        continue
                if len(chunk) > 1:
                    alone_until = start + len(chunk)
                    del outcome  # and with it the tensors of the batch that failed
                    continue
                self._failed(chunk[0], outcome)
            start += len(chunk)
        return results

    def _attempt(
        self, batch: FrameBatch, chunk: list[int], output_size: str | int, planner: BatchPlanner
    ) -> dict[int, Any] | Exception:
        """Restore the frames of one batch, or say what went wrong.

        The error is returned, not handled here: while one is being handled, the interpreter keeps its traceback
        and with that every tensor of the batch that failed.
        """
        try:
            with planner.watched(len(chunk)):
                results = self._forward(batch, chunk, output_size)
        except Exception as error:
            return error
        for each in {planner, self._planner}:
            each.succeeded()
        if planner.over_budget(len(chunk)):
            self._over_budget(planner, len(chunk))
        return results

    def _over_budget(self, planner: BatchPlanner, faces: int) -> None:
        self.stats.over_budget += 1
        if "over budget" not in self._said:
            self._said.add("over budget")
            logger.warning(
                "%s took %d MiB, memory_budget is %d MiB: the plan is now %d at a time",
                counted(faces, "face"),
                planner.costs.bytes_for(faces) >> 20,
                (planner.budget or 0) >> 20,
                planner.planned,
            )

    def _back_off(self, planner: BatchPlanner, tried: int) -> bool:
        """Make room after memory ran out with `tried` faces; False when nothing is left to try."""
        device = self.device
        smaller = planner.ran_out(tried)
        if smaller:
            logger.warning("out of memory with %d faces: the batch is now %d", tried, planner.size)
            self._planner.ran_out(tried)  # where it is another one, it has learnt the same
        elif not self._moved_to_cpu(planner):
            return False
        self.stats.backoffs += 1
        memory.release(device)
        return True

    def _moved_to_cpu(self, planner: BatchPlanner) -> bool:
        """Go on on the CPU, where that is allowed and works."""
        restorer, device, cpu = self._restorer, self.device, torch_device("cpu")
        if device.type == "cpu" or not self._may_leave_gpu or self._no_cpu or restorer is None:
            return False
        logger.warning("out of memory with one face on %s: going on on the CPU", device)
        try:
            restorer.to(cpu)
            if restorer.device.type != "cpu":
                raise RestorerError(f"{self.model_name} stayed on {restorer.device}")
        except Exception as error:
            logger.warning("%s cannot go on on the CPU: %s", self.model_name, error)
            self._no_cpu = True
            with suppress(Exception):
                restorer.to(device)
            return False
        for each in {planner, self._planner}:
            each.start(cpu)
        return True

    def _failed(self, index: int, error: Exception) -> None:
        if isinstance(error, NoFaceError):
            reason = "no face"
        elif isinstance(error, FrameError):
            reason = error.reason
        elif memory.is_out_of_memory(error):
            reason = "out of memory"
        else:
            reason = f"restorer: {type(error).__name__}"
        if self.settings.on_error == "raise":
            if isinstance(error, EnhanceError):
                raise error
            kind = OutOfMemoryError if reason == "out of memory" else RestorerError
            raise kind(f"frame {index}: {self.model_name} failed: {error}") from error
        self.stats.failed += not isinstance(error, (NoFaceError, FrameError))
        self._count(reason, f"frame {index}: {str(error) or type(error).__name__}", index)

    def _refuse(self, error: FrameError, index: int) -> None:
        if self.settings.on_error == "raise":
            raise error
        self._count(error.reason, str(error), index)

    def _count(self, reason: str, text: str, index: int) -> None:
        self.stats.passed_through[reason] += 1
        self._notes[index] = reason
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("%s: handed back as it came; further such frames are only counted (stats)", text)

    def _forward(self, batch: FrameBatch, chunk: Sequence[int], output_size: str | int) -> dict[int, Any]:
        """Restore frames of one size: index to finished frame. The stream goes on only when all of it worked."""
        import torch

        assert self._restorer is not None
        device, finisher = self._restorer.device, self._finisher
        # not inference mode: a host may change what it gets in place
        with torch.no_grad(), without_autocast(device):
            with self.stats.timed("prepare"):
                faces = batch.to_network(chunk, device, self.settings.color)
                hints, stream = self._hints.at(chunk), self._stream.to(device)
                inputs, laid = finisher.inputs(faces, self._record.input_size, hints)
                pictures = finisher.pictures(faces)
            with self.stats.timed("network"):
                restored = _checked_form(self._restorer.restore(inputs), len(chunk))
            with self.stats.timed("motion"):  # on a GPU the network is still running
                motions = finisher.motions(pictures, stream)
            with self.stats.timed("network"):
                whole = bool(torch.isfinite(restored.sum()))  # one pass; NaN and infinity survive a sum
            if not whole:
                raise RestorerError("the network returned NaN or infinite values")
            with self.stats.timed("finish"):
                size = self._size_out(batch.size_hw(chunk[0]), restored, output_size)
                work = Work(faces, inputs, restored, size, hints, laid, motions, pictures)
                done = finisher.finish(work, stream)
                out = batch.from_network(done.faces, chunk, self.settings.color, done.touched)
                last = self._repeat(batch, chunk, out)
        self._stream, self._last = done.stream, last
        self._note(chunk, done.notes)
        return dict(zip(chunk, out, strict=True))

    def _repeat(self, batch: FrameBatch, chunk: Sequence[int], out: Any) -> tuple[Any, Any, Hints]:
        """Hand a frame that is the same bits as the one before, with the same hints, the same bits back.

        Returns the last frame, what became of it and its hints, as copies: the host may change its own.
        """
        before, at = self._last, 0
        for place, index in enumerate(chunk):
            if before is not None and before[1].shape == out[place].shape and batch.same(index, before[0]):
                if not self._told.cuts[index] and _alike(self._told, index, before[2], at):
                    out[place] = before[1]
                    self.stats.repeated += 1
            before, at = (batch.frames[index], out[place], self._told), index
        last = out[len(chunk) - 1]
        return batch.own(chunk[-1]), last.clone() if is_tensor(last) else last.copy(), self._told.own(chunk[-1])

    def _note(self, chunk: Sequence[int], notes: Sequence[FrameNote]) -> None:
        assert self._restorer is not None
        self._notes.update(zip(chunk, notes, strict=True))
        self.stats.batches += 1
        self.stats.restored += len(chunk)
        self.stats.fallbacks = self._restorer.fallbacks
        for note in notes:
            self.stats.guarded.update([note.guard] if note.guard else [])
            self.stats.sharp += note.sharp
            self.stats.cuts += note.cut
            self.stats.unaligned += not note.aligned

    def _size_out(
        self, size_hw: tuple[int, int], restored: torch.Tensor | None, output_size: str | int
    ) -> tuple[int, int]:
        height, width = size_hw
        if isinstance(output_size, int):
            return output_size, output_size
        if output_size == "upscale":
            scale = self.settings.upscale
            return max(1, round(height * scale)), max(1, round(width * scale))
        if output_size == "native":
            if restored is not None:
                return int(restored.shape[2]), int(restored.shape[3])
            if self._record.output_size is not None:
                return self._record.output_size, self._record.output_size
            return self._size_out(size_hw, None, "upscale")  # an engine that takes any size
        return height, width

    def _finish(self, batch: FrameBatch, results: dict[int, Any], output_size: str | int) -> Any:
        if batch.refused:
            return batch.copy()
        out = []
        for index in range(len(batch)):
            if index in results:
                out.append(results[index])
            else:
                size = self._size_out(batch.size_hw(index), None, output_size) if batch.has_size(index) else None
                out.append(batch.passthrough(index, size))
            for observer in list(self._observers):
                self._tell(observer, batch.frames[index], out[index], self._notes.get(index, "unknown"))
        return batch.close(out)

    def _tell(self, observer: Observer, *told: Any) -> None:
        """Call an observer; one that fails is let go, because it is no reason to lose a host's frame."""
        try:
            observer(*told)
        except Exception:
            if self.settings.on_error == "raise":
                raise
            self._observers.remove(observer)
            logger.warning("an observer failed and is not called any more", exc_info=True)


def _alike(hints: Hints, index: int, others: Hints, at: int) -> bool:
    """Whether a host says the same of one frame as of another, but for its key."""
    return same_bits(hints.landmarks[index], others.landmarks[at]) and same_bits(
        hints.occlusion[index], others.occlusion[at]
    )


def _checked_form(restored: Any, count: int) -> torch.Tensor:
    """What a restorer returned, if that is one face of three channels for each of `count` frames."""
    import torch

    if not isinstance(restored, torch.Tensor):
        raise RestorerError(f"the restorer returned {type(restored).__name__}, not a tensor")
    if restored.ndim != 4 or tuple(restored.shape[:2]) != (count, 3):
        raise RestorerError(f"the restorer returned shape {tuple(restored.shape)}, not ({count}, 3, height, width)")
    return restored


@cache
def _say_once_that_the_budget_is_unused() -> None:
    logger.warning("memory_budget means nothing with mode: batch; say mode: memory to keep within it")


def torch_device(name: str) -> torch.device:
    """A `torch.device`, importing torch only now."""
    import torch

    return torch.device(name)


def pick_device(device: str) -> torch.device:
    """The device meant by the option `device`.

    Raises:
        ConfigError: it is not on this machine.
    """
    import torch

    from .errors import ConfigError

    mps = getattr(torch.backends, "mps", None)
    has_mps = bool(mps and mps.is_available())
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ConfigError(
            "device", device, f"auto, cpu{''.join(f', cuda:{i}' for i in range(count))} on this machine"
        )
    if chosen.type == "mps" and not has_mps:
        raise ConfigError("device", device, "auto or cpu on this machine (no Metal)")
    return chosen
