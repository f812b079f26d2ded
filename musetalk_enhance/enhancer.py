"""`GFPGANEnhancer`: N frames in, the same N frames out, their faces sharp."""

from __future__ import annotations

import argparse
import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import memory
from .batching import BatchPlanner
from .errors import EnhanceError, FrameError, NoFaceError, OutOfMemoryError, RestorerError
from .frames import FrameBatch, is_frame
from .imaging import compose, resize
from .settings import EnhancerSettings, given_flags, merge, plain, section_of
from .stats import EnhancerStats

if TYPE_CHECKING:
    import torch

    from .restorers.base import Restorer

logger = logging.getLogger("musetalk_enhance")


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
        region: which part may change; ``"full"`` or ``"lower"`` (all that MuseTalk keeps, and quicker).
        mode: ``"batch"`` for throughput, ``"memory"`` to stay within `memory_budget`.
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
        return cls.from_settings(merge({"enabled": True, **plain(cfg)} if section is None else section))

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
        self._restorer = restorer
        if not settings.enabled:
            return
        if restorer is None:
            from .restorers.catalog import choose

            self._restorer = choose(settings).load(pick_device(settings.device))
        assert self._restorer is not None
        self._record = self._restorer.request.record
        self._planner = BatchPlanner(settings, self._record, self._restorer.device)

    @property
    def enabled(self) -> bool:
        """Whether frames are restored at all."""
        return self.settings.enabled

    @property
    def model_name(self) -> str:
        """Name of the model that runs; ``"none"`` when disabled or closed."""
        return self._record.name if self._restorer is not None else "none"

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        import torch

        return self._restorer.device if self._restorer is not None else torch.device("cpu")

    def __call__(self, frames: Any) -> Any:
        """Restore a batch of frames; see the class for what may be given and what comes back.

        Raises:
            FrameError: `frames` is no batch of frames at all; or, with ``on_error="raise"``, a frame is bad or
                the batch is empty.
            RestorerError: with ``on_error="raise"``, the network failed.
        """
        return self._run(frames, self.settings.output_size)

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
        if self._restorer is None:
            return self._run(faces, "upscale")
        planner = BatchPlanner(settings, self._record, self._restorer.device)
        return self._run(faces, "upscale", planner)

    @staticmethod
    def resize_to_original(face: Any, size_wh: tuple[int, int]) -> Any:
        """Bring a face to (width, height) in pixels: area when shrinking, Lanczos when enlarging.

        Args:
            face: (H, W, 3) uint8 or float array.
            size_wh: (width, height).
        """
        import cv2
        import numpy as np

        if not isinstance(face, np.ndarray) or face.ndim != 3:
            raise FrameError("shape", str(getattr(face, "shape", type(face).__name__)), "an (H, W, 3) array")
        width, height = (int(side) for side in size_wh)
        if width < 1 or height < 1:
            raise FrameError("size", f"a size of {width}x{height}", "(width, height) in pixels, 1 at least")
        if face.shape[:2] == (height, width):
            return np.ascontiguousarray(face)
        shrinks = height <= face.shape[0] and width <= face.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
        return cv2.resize(np.ascontiguousarray(face), (width, height), interpolation=how)

    def reset(self) -> None:
        """Forget what was learnt of the stream; call it between clips."""
        with self._lock:
            self._known_range = None

    def close(self) -> None:
        """Give the network and its memory back; later calls raise RestorerError."""
        with self._lock:
            if self._restorer is not None:
                device = self._restorer.device
                self._restorer.close()
                self._restorer = None
                memory.release(device)

    def __enter__(self) -> GFPGANEnhancer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, frames: Any, output_size: str | int, planner: BatchPlanner | None = None) -> Any:
        if not self.enabled:
            return frames
        with self._lock:
            if self._restorer is None:
                raise RestorerError("this enhancer was closed; make a new one")
            batch = FrameBatch.open(frames, self.settings.value_range, self._known_range)
            if batch.value_range and batch.value_range != (0.0, 1.0):
                self._known_range = batch.value_range
            self.stats.frames += len(batch)
            if len(batch) == 0:
                return self._empty(batch)
            return self._finish(batch, self._restore(batch, output_size, planner or self._planner), output_size)

    def _empty(self, batch: FrameBatch) -> Any:
        if self.settings.on_error == "raise":
            raise FrameError("empty", "an empty batch", "one frame at least")
        return batch.copy()

    def _restore(self, batch: FrameBatch, output_size: str | int, planner: BatchPlanner) -> dict[int, Any]:
        """Index to restored frame, for every frame that could be restored."""
        for index in sorted(batch.problems):
            self._refuse(batch.problems[index])
        results: dict[int, Any] = {}
        for group in batch.groups():
            start = 0
            while start < len(group):
                chunk = group[start : start + planner.size]
                try:
                    results.update(self._forward(batch, chunk, output_size))
                    planner.succeeded()
                except Exception as error:
                    if memory.is_out_of_memory(error) and self._back_off(planner, len(chunk), error):
                        continue
                    results.update(self._one_by_one(batch, chunk, output_size, error))
                start += len(chunk)
        return results

    def _back_off(self, planner: BatchPlanner, tried: int, error: Exception) -> bool:
        """Make room after memory ran out; False when nothing is left to try."""
        assert self._restorer is not None
        if self.settings.mode != "memory":
            return False
        device = self._restorer.device
        smaller = planner.ran_out(tried)
        if not smaller and (device.type == "cpu" or not self.settings.cpu_fallback):
            return False
        self.stats.backoffs += 1
        if smaller:
            logger.warning("out of memory with %d faces: the batch is now %d", tried, planner.size)
        else:
            import torch

            logger.warning("out of memory with one face on %s: going on on the CPU", device)
            self._restorer.to(torch.device("cpu"))
        memory.release(device)
        return True

    def _one_by_one(
        self, batch: FrameBatch, chunk: list[int], output_size: str | int, error: Exception
    ) -> dict[int, Any]:
        """A batch failed: restore its frames singly, so that only those at fault are lost to it."""
        results: dict[int, Any] = {}
        for index in chunk:
            try:
                if len(chunk) == 1:
                    raise error
                results.update(self._forward(batch, [index], output_size))
            except Exception as single:
                self._failed(index, single)
        return results

    def _failed(self, index: int, error: Exception) -> None:
        if isinstance(error, NoFaceError):
            reason = "no face"
        elif memory.is_out_of_memory(error):
            reason = "out of memory"
        else:
            reason = f"restorer: {type(error).__name__}"
        if self.settings.on_error == "raise":
            if isinstance(error, EnhanceError):
                raise error
            kind = OutOfMemoryError if reason == "out of memory" else RestorerError
            raise kind(f"frame {index}: {self.model_name} failed: {error}") from error
        self.stats.failed += reason != "no face"
        self._count(reason, f"frame {index}: {error}")

    def _refuse(self, error: FrameError) -> None:
        if self.settings.on_error == "raise":
            raise error
        self._count(error.reason, str(error))

    def _count(self, reason: str, text: str) -> None:
        self.stats.passed_through[reason] += 1
        if reason not in self._said:
            self._said.add(reason)
            logger.warning("%s: handed back as it came; further such frames are only counted (stats)", text)

    def _forward(self, batch: FrameBatch, chunk: Sequence[int], output_size: str | int) -> dict[int, Any]:
        """Restore frames of one size: index to finished frame."""
        import torch

        assert self._restorer is not None
        with torch.no_grad():  # not inference mode: a host may change what it gets in place
            with self.stats.timed("prepare"):
                faces = batch.to_network(chunk, self._restorer.device, self.settings.color)
                side = self._record.input_size
                inputs = faces if side is None else resize(faces, (side, side), enlarge="bilinear")
            with self.stats.timed("network"):
                restored = self._restorer.restore(inputs)
                whole = bool(torch.isfinite(restored.sum()))  # one pass; NaN and infinity survive a sum
            if not whole:
                raise RestorerError("the network returned NaN or infinite values")
            with self.stats.timed("finish"):
                size = self._size_out(batch.size_hw(chunk[0]), restored, output_size)
                done = compose(faces, inputs, restored, size, self.settings.strength, self.settings.region)
                out = batch.from_network(done, chunk[0], self.settings.color)
        self.stats.batches += 1
        self.stats.restored += len(chunk)
        self.stats.fallbacks = self._restorer.fallbacks
        return dict(zip(chunk, out, strict=True))

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
                continue
            size = self._size_out(batch.size_hw(index), None, output_size) if batch.has_size(index) else None
            out.append(batch.passthrough(index, size))
        return batch.close(out)


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
