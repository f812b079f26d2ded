"""The catalog of restorers, and the choice of one by the options."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from .. import weights
from ..backends import NetworkSpec
from ..config.settings import EnhancerSettings
from ..errors import ConfigError, EnhanceError, RestorerError, suggest, warn_renamed
from ..runtime.precision import as_if_alone
from ..runtime.registry import Registry
from ..weights import onnx_models
from .base import LoadRequest, ModelInfo, NetworkRestorer, Restorer
from .codeformer import INFO as CODEFORMER
from .gfpgan import VERSIONS as GFPGAN_VERSIONS
from .lite import FIRST_KEY as LITE_KEY
from .lite import INFO as LITE
from .official import INFO as OFFICIAL
from .onnx_file import OPTIONS as ONNX_OPTIONS
from .onnx_file import PUBLISHED as ONNX_MODELS
from .onnx_file import info_of, recognized
from .restoreformer import INFO as RESTOREFORMER

logger = logging.getLogger("musetalk_enhance")

ENTRY_POINT_GROUP = "musetalk_enhance.restorers"
AUTO_ORDER = ("gfpgan-1.4", "gfpgan-1.3", "gfpgan-1.2")
"""The models that ``model: auto`` looks for in the cache, best first; without one it is lite."""
_LITE_MAX_BYTES = 32 * 2**20  # larger files are not read to find out whether they are lite's
_CHECKPOINT_EXTENSIONS = (".safetensors", ".pth", ".pt", ".ckpt", ".onnx")


@dataclass(frozen=True)
class Model:
    """A restorer that can be loaded.

    Attributes:
        info: facts about it.
        load_class: returns the restorer's class and imports its dependencies only then.
        arch: the ``settings.arch`` that it requires, None if it ignores that.
    """

    info: ModelInfo
    load_class: Callable[[], type[Restorer]]
    arch: str | None = None

    @property
    def record(self) -> ModelInfo:
        """Deprecated name of `info`."""
        warn_renamed("Model.record", "Model.info")
        return self.info


@dataclass(frozen=True)
class Choice:
    """The model for a set of options and, if it needs one, its checked weight file."""

    model: Model
    settings: EnhancerSettings
    weight: weights.Weight | None = None

    def load(self, device: object) -> Restorer:
        """Load the restorer.

        Args:
            device: a `torch.device`.

        Raises:
            EnhanceError: it cannot be loaded.
        """
        with self._typed_errors(), as_if_alone():
            return self.model.load_class()(self._request(device))

    def network(self) -> NetworkSpec:
        """Only the network, on the CPU and without a backend, for an export.

        Raises:
            ConfigError: the model is not one network (``engine: official``, some plug-ins).
            EnhanceError: it cannot be loaded.
        """
        with self._typed_errors(), as_if_alone():
            restorer_class = self.model.load_class()
            if not issubclass(restorer_class, NetworkRestorer):
                allowed = "a model that is one network"
                raise ConfigError("model", self.model.info.name, allowed)
            return restorer_class.network(self._request("cpu"))

    def _request(self, device: object) -> LoadRequest:
        import torch

        name = str(device)
        if name == "cuda":  # the current device may be another in the host's next thread
            name = f"cuda:{torch.cuda.current_device()}"
        place = torch.device(name)
        return LoadRequest(self.model.info, self.settings, place, self.weight)

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except EnhanceError:
            raise
        except Exception as error:
            name = self.model.info.name
            raise RestorerError(f"{name} cannot be loaded: {error!r}") from error


def _lazy(module: str, name: str) -> Callable[[], type[Restorer]]:
    def load_class() -> type[Restorer]:
        restorer_class: type[Restorer] = getattr(import_module(module, __package__), name)
        return restorer_class

    return load_class


MODELS: Registry[Model] = Registry("model")
MODELS.add("lite", Model(LITE, _lazy(".lite", "LiteRestorer")))
for _name, _info in GFPGAN_VERSIONS.items():
    MODELS.add(
        _name,
        Model(_info, _lazy(".gfpgan", "GFPGANRestorer"), "clean"),
        (_name.replace("gfpgan-", "GFPGANv"), *(("gfpgan",) if _name == AUTO_ORDER[0] else ())),
    )
MODELS.add(
    "restoreformer",
    Model(RESTOREFORMER, _lazy(".restoreformer", "RestoreFormerRestorer"), "RestoreFormer"),
)
MODELS.add(
    "codeformer",
    Model(CODEFORMER, _lazy(".codeformer", "CodeFormerRestorer"), "CodeFormer"),
)
for _name, _info in ONNX_MODELS.items():
    if _name not in MODELS:  # codeformer is the checkpoint; codeformer.onnx names the file
        MODELS.add(_name, Model(_info, _lazy(".onnx_file", "OnnxRestorer")))
_BY_ARCH = {"RestoreFormer": "restoreformer", "CodeFormer": "codeformer"}


@cache
def plugins() -> dict[str, EntryPoint]:
    """Entry points of third-party restorers by name; none of them is imported."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def model_names(pattern: str = "*") -> list[str]:
    """Names for ``model:``, those of plug-ins included, filtered by a shell pattern.

    >>> model_names("gfpgan-*")
    ['gfpgan-1.4', 'gfpgan-1.3', 'gfpgan-1.2']
    """
    from fnmatch import fnmatchcase

    names = MODELS.names(pattern)
    for name in plugins():
        if name not in names and fnmatchcase(name.lower(), pattern.lower()):
            names.append(name)
    return names


def is_installed(name: str) -> bool:
    """Whether the model's weight is in the cache, or in the package; its hash is not checked.

    Raises:
        ConfigError, RestorerError: see `get_model`.
    """
    info = get_model(name).info
    if info in ONNX_MODELS.values():
        files = onnx_models.MODELS.get(info.name).files
        return any((weights.cache_dir() / file).is_file() for file in files)
    return info.weight is None or weights.find(info.weight) is not None


def get_model(name: str) -> Model:
    """The model called `name`.

    Raises:
        ConfigError: there is none.
        RestorerError: it is a plug-in that cannot be imported or is not a restorer.
    """
    if name in MODELS:
        return MODELS.get(name)
    if name not in plugins():
        names = model_names()
        allowed = f"auto, {', '.join(names)}, or the path of a checkpoint"
        raise ConfigError("model", name, allowed, suggest(name, names))
    try:
        loaded = plugins()[name].load()
    except Exception as error:
        what = f"the plug-in restorer {name!r} cannot be imported: {error!r}"
        raise RestorerError(what) from error
    is_restorer = isinstance(loaded, type) and issubclass(loaded, Restorer)
    if not (is_restorer and hasattr(loaded, "info")):
        expected = "a Restorer class with the attribute info"
        raise RestorerError(f"the plug-in restorer {name!r} is {loaded!r}; expected {expected}")
    return Model(loaded.info, lambda: loaded)


def choose(settings: EnhancerSettings) -> Choice:
    """The model and weight for `settings`.

    A name is never guessed to be a path: a path has a separator or the extension of a checkpoint.

    Raises:
        ConfigError: there is no such model, or it does not support an option.
        WeightError: its weight is missing, damaged or not trusted.
    """
    choice = _choose(settings)
    info, default = choice.model.info, EnhancerSettings().fidelity
    if not info.has_fidelity and settings.fidelity != default:
        note = "only codeformer has it, and vqfr; strength works for every model"
        allowed = f"{default} with model: {info.name} ({note})"
        raise ConfigError("fidelity", settings.fidelity, allowed)
    return choice


def _choose(settings: EnhancerSettings) -> Choice:
    path = settings.model_path or (settings.model if is_path(settings.model) else None)
    name = settings.model
    onnx = path if path is not None and path.lower().endswith(".onnx") else None
    if path is None and name in MODELS and MODELS.get(name).info in ONNX_MODELS.values():
        onnx = MODELS.get(name).info.name
    if onnx is not None:
        return _from_onnx(onnx, settings)
    for option in ONNX_OPTIONS:
        if getattr(settings, option) != "auto":
            raise ConfigError(option, getattr(settings, option), "auto without an ONNX file")
    if path is not None:
        return _from_path(Path(path), settings)
    if name == "auto":
        cached = (name for name in AUTO_ORDER if weights.find(name) is not None)
        name = next(cached, "lite")
        if name == "lite" and (settings.engine == "official" or settings.download):
            name = AUTO_ORDER[0]  # is fetched then, or the error says that its weight is missing
        if name == "lite":
            note = "the choice of auto (arch and channel_multiplier belong to model_path)"
            _check_unused(f"lite, {note}", settings)
            _warn_about_lite()
    model = get_model(name)
    if model.arch is not None:
        _check_name_and_arch(name, model.arch, settings)
        settings = settings.replace(arch=model.arch)
    else:
        _check_unused(name, settings)
    weight_name = model.info.weight
    weight = weights.require(weight_name, download=settings.download) if weight_name else None
    return _with_engine(Choice(model, settings, weight))


def _from_onnx(model: str, settings: EnhancerSettings) -> Choice:
    """The choice of an ONNX file, by its path, its published file name, or the model's name."""
    _check_unused(f"{model}, an ONNX file", settings)
    if settings.engine == "official":  # GFPGANer runs no graphs
        raise ConfigError("engine", "official", f"native with model: {model}")
    weight = weights.find_onnx(model, download=settings.download)
    info = replace(info_of(recognized(weight, settings).model), weight=None)
    return Choice(Model(info, _lazy(".onnx_file", "OnnxRestorer")), settings, weight)


def is_path(text: str) -> bool:
    """Whether ``model`` is a file: it has a separator or the extension of a checkpoint."""
    return "/" in text or "\\" in text or text.lower().endswith(_CHECKPOINT_EXTENSIONS)


def _check_name_and_arch(name: str, arch: str, settings: EnhancerSettings) -> None:
    multiplier = settings.channel_multiplier
    if settings.arch not in ("clean", arch):
        raise ConfigError("arch", settings.arch, f"{arch} with model: {name}")
    if multiplier != 2:
        raise ConfigError("channel_multiplier", multiplier, f"2 with model: {name}")


def _check_unused(name: str, settings: EnhancerSettings) -> None:
    """Refuse options that describe a GFPGAN checkpoint, for a model without one."""
    for option, default in (("arch", "clean"), ("channel_multiplier", 2)):
        value = getattr(settings, option)
        if value != default:
            raise ConfigError(option, value, f"{default} with model: {name}")


def _from_path(path: Path, settings: EnhancerSettings) -> Choice:
    weight = weights.open_file(path, trust_unpinned=settings.trust_unpinned)
    is_small = weight.path.stat().st_size < _LITE_MAX_BYTES
    if settings.engine == "native" and is_small and LITE_KEY in weight.state_dict():
        _check_unused(f"{path}, a network of lite's form", settings)
        return Choice(_rename(MODELS.get("lite"), weight), settings, weight)
    if settings.arch in _BY_ARCH and settings.channel_multiplier != 2:
        allowed = f"2 with arch: {settings.arch} (it has none)"
        raise ConfigError("channel_multiplier", settings.channel_multiplier, allowed)
    name = _BY_ARCH.get(settings.arch, AUTO_ORDER[0])
    return _with_engine(Choice(_rename(MODELS.get(name), weight), settings, weight))


def _rename(model: Model, weight: weights.Weight) -> Model:
    """The model under the name of a user's own file."""
    license = weight.entry.license if weight.entry else "the file's own"
    if not weight.entry and not model.info.commercial:  # an export of it says so, too
        license = f"{license}; the network's: {model.info.license}"
    info = replace(model.info, name=weight.path.stem, weight=None, license=license)
    return replace(model, info=info)


def _with_engine(choice: Choice) -> Choice:
    model = choice.model
    if choice.settings.engine != "official":
        return choice
    if model.arch in (None, "CodeFormer"):  # GFPGANer has no such network
        raise ConfigError("engine", "official", f"native with model: {model.info.name}")
    info = replace(OFFICIAL, name=model.info.name, license=model.info.license)
    official = Model(info, _lazy(".official", "OfficialRestorer"), model.arch)
    return replace(choice, model=official)


@cache
def _warn_about_lite() -> None:
    """Logged once: the embedded model takes the place of GFPGAN."""
    logger.warning(
        "no GFPGAN weight in %s: using the embedded model 'lite'. `musetalk-enhance weights fetch "
        "GFPGANv1.4` downloads GFPGAN; set `model: lite` to use lite without this warning.",
        weights.cache_dir(),
    )


__all__ = ["MODELS", "Choice", "Model", "choose", "get_model", "model_names", "plugins"]
