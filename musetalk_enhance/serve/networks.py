"""The models and detectors of the service: loaded when first asked for, shared by all requests."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import weights
from ..enhancer import FaceEnhancer
from ..errors import ConfigError, MissingDependencyError, ServiceError, WeightError
from ..faces.detect import FaceDetector, WholeImage
from ..jobs.model_loader import load_detector, make_enhancer, warm_up
from ..jobs.models import load
from ..restorers.base import ModelInfo
from ..restorers.catalog import MODELS, get_model, is_path, model_names
from .batcher import Batcher
from .settings import ServeSettings

logger = logging.getLogger("musetalk_enhance")

DETECTOR_NAMES = {
    "retinaface_resnet50": "retinaface",
    "retinaface_mobile0.25": "retinaface-mobile",
    "yolov5l": "yolov5",
    "yolov5n": "yolov5",
}
"""facexlib's names of detectors, which clients of other services send."""
FIDELITY_STEP = 0.05
"""Fidelities are rounded to this: a model is loaded for each."""


@dataclass
class Network:
    """A loaded model.

    Attributes:
        info: facts about it.
        stills: restores faces that are independent of one another.
        live: restores consecutive faces.
        batcher: the only caller of both.
        users: number of requests and streams that use it.
    """

    info: ModelInfo
    stills: FaceEnhancer
    live: FaceEnhancer
    batcher: Batcher
    fidelity: float | None
    users: int = 0
    resources: ExitStack = field(default_factory=ExitStack, repr=False)


class NetworkPool:
    """The models in memory.

    Args:
        settings: of the service.
        on_batch: called with the number of faces of each batch.

    Attributes:
        default: facts about the service's own model.
        batch_size: faces of its full batch.

    Raises:
        EnhanceError: the default model or detector cannot be loaded.
    """

    def __init__(
        self, settings: ServeSettings, on_batch: Callable[[int], None] | None = None
    ) -> None:
        self._settings, self._on_batch = settings, on_batch
        self._networks: dict[tuple[str, float | None], Network] = {}  # by last use
        self._detectors: dict[str, FaceDetector] = {}
        self._lock, self._load_lock = threading.Lock(), threading.Lock()
        self.detector(None)
        name = MODELS.canonical(settings.model)
        has_fidelity = settings.arch == "CodeFormer" or (
            name is not None and get_model(name).info.has_fidelity
        )
        with self.use(None, settings.strength if has_fidelity else None) as network:
            self.default, self.batch_size = network.info, network.batcher.size

    @contextmanager
    def use(self, model: str | None, fidelity: float | None) -> Iterator[Network]:
        """A model, loaded if it is not, which stays loaded until the block ends.

        Args:
            model: a name; None is the service's own. A path is refused.
            fidelity: CodeFormer's w; ignored by other models.

        Raises:
            ConfigError: there is no such model, or its license forbids it.
            ServiceError: its weight or package is not on this server, or there is no room for it.
        """
        network = self._acquire(model, fidelity)
        try:
            yield network
        finally:
            with self._lock:
                network.users -= 1

    def loaded(self) -> list[str]:
        """Names of the models in memory, the most recently used last."""
        with self._lock:
            return list(dict.fromkeys(network.info.name for network in self._networks.values()))

    def detector(self, name: str | None) -> FaceDetector:
        """A detector by its name or facexlib's; None is the service's own.

        Raises:
            ConfigError: there is no such detector.
            ServiceError: its weight or package is not on this server.
        """
        settings = self._settings
        name = self.detector_name(name)
        if name in self._detectors:
            return self._detectors[name]
        if name == "none":
            return WholeImage()
        with self._load_lock:
            if name not in self._detectors:
                own = name == settings.face_detector
                chosen = settings.images(
                    face_detector=name, detector_path=settings.detector_path if own else None
                )
                with self._without_paths(name, own):
                    self._detectors[name] = load_detector(chosen, chosen.min_face)
            return self._detectors[name]

    def resolve(self, model: str | None) -> str:
        """The name to load; the default keeps its own spelling, which may be a path.

        Raises:
            ConfigError: there is no such model.
        """
        default = self._settings.model
        if model is None or model == default or model.lower() == "auto":
            return default
        if hasattr(self, "default") and model == self.default.name:
            return default
        name = MODELS.canonical(model) or model
        if is_path(model) or name not in model_names():
            raise ConfigError("model", model, ", ".join(model_names()))
        return name

    def detector_name(self, name: str | None) -> str:
        """A detector's name here, by that or facexlib's; None is the service's own."""
        name = self._settings.face_detector if name is None else name.lower()
        return DETECTOR_NAMES.get(name, name)

    def info(self, model: str | None) -> ModelInfo:
        """Facts about a model, which need not be loaded; None is the service's own.

        Raises:
            ConfigError: there is no such model.
        """
        name = self.resolve(model)
        return self.default if name == self._settings.model else get_model(name).info

    def close(self) -> None:
        """Run what is queued and close every model."""
        for network in list(self._networks.values()):
            network.resources.close()
        self._networks.clear()
        for detector in self._detectors.values():
            detector.close()

    def _acquire(self, model: str | None, fidelity: float | None) -> Network:
        name = self.resolve(model)
        if hasattr(self, "default") and not self.info(name).has_fidelity:
            fidelity = None
        if fidelity is not None:
            fidelity = round(round(fidelity / FIDELITY_STEP) * FIDELITY_STEP, 2)
        key = (name, fidelity)
        network = self._reserve(key)
        if network is not None:
            return network
        with self._load_lock:  # requests for loaded models go on meanwhile
            network = self._reserve(key)
            if network is None:
                self._make_room()
                with self._without_paths(name, name == self._settings.model):
                    loaded = self._load(name, fidelity)
                with self._lock:
                    self._networks[key] = loaded
                network = self._reserve(key)
            assert network is not None
            return network

    def _reserve(self, key: tuple[str, float | None]) -> Network | None:
        """The network if it is in memory, with one more user."""
        with self._lock:
            network = self._networks.pop(key, None)
            if network is not None:
                network.users += 1
                self._networks[key] = network
            return network

    def _make_room(self) -> None:
        """Close the least recently used idle models, until there is room for one more.

        Raises:
            ServiceError: too few are idle; none is closed then.
        """
        with self._lock:
            idle = [key for key, network in self._networks.items() if not network.users]
            surplus = len(self._networks) - self._settings.max_models + 1
            if surplus > len(idle):
                raise ServiceError(429, "busy", "every model in memory is in use", 5)
            closable = [self._networks.pop(key) for key in idle[: max(0, surplus)]]
        for network in closable:
            logger.info("closing %s to make room for another model", network.info.name)
            network.resources.close()

    def _load(self, name: str, fidelity: float | None) -> Network:
        own = name == self._settings.model
        if not own:
            weight = get_model(name).info.weight
            if weight is not None and weights.find(weight) is None:
                raise _unavailable(name, "its weight is not installed")
        path = self._settings.model_path if own else None
        settings = self._settings.images(model=name, model_path=path, fidelity=fidelity)
        with ExitStack() as stack:
            loaded = load(settings)
            stack.enter_context(closing(loaded.restorer))
            common: dict[str, Any] = {"output_size": "same"}
            still = make_enhancer(loaded, settings, stability=0, **common)
            stack.enter_context(closing(still))
            live = make_enhancer(loaded, self._settings.replace(strength=1.0), guard="auto")
            stack.enter_context(closing(live))
            warm_up(still)
            size = still.settings.batch_size
            batcher = Batcher(
                size if isinstance(size, int) else 8,
                self._settings.batch_wait / 1e3,
                self._on_batch,
            )
            stack.enter_context(closing(batcher))
            info = loaded.restorer.request.info
            return Network(info, still, live, batcher, loaded.fidelity, 0, stack.pop_all())

    @contextmanager
    def _without_paths(self, name: str, own: bool) -> Iterator[None]:
        """Errors of loading something that a client asked for, without paths of this server."""
        try:
            yield
        except (WeightError, MissingDependencyError) as error:
            if own:
                raise
            logger.warning("%s was requested, but cannot be loaded: %s", name, error)
            why = "its weight or a package that it needs is not installed"
            raise _unavailable(name, why) from error


def _unavailable(name: str, why: str) -> ServiceError:
    return ServiceError(409, "unavailable", f"{name} is not available on this server: {why}")
