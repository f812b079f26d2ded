"""Which restorers there are, and which one a set of options means."""

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
from ..errors import ConfigError, EnhanceError, RestorerError, suggest
from ..runtime.precision import as_if_alone
from ..runtime.registry import Registry
from .base import LoadRequest, NetworkRestorer, Restorer, RestorerRecord
from .codeformer import RECORD as CODEFORMER_RECORD
from .gfpgan import RECORDS as GFPGAN_RECORDS
from .lite import FIRST_KEY as LITE_KEY
from .lite import RECORD as LITE_RECORD
from .official import RECORD as OFFICIAL_RECORD
from .restoreformer import RECORD as RESTOREFORMER_RECORD

logger = logging.getLogger("musetalk_enhance")

ENTRY_POINT_GROUP = "musetalk_enhance.restorers"
AUTO_ORDER = ("gfpgan-1.4", "gfpgan-1.3", "gfpgan-1.2")
"""What ``model: auto`` looks for in the cache, best first, before it takes lite."""
_LITE_MOST = 32 * 2**20  # bytes; larger files are not read just to see whether they are of lite's form
_CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Model:
    """A restorer that can be loaded.

    Attributes:
        record: facts about it.
        kind: gives the restorer's class; imports what it needs only then.
        arch: what ``settings.arch`` has to be for it, None where that says nothing.
    """

    record: RestorerRecord
    kind: Callable[[], type[Restorer]]
    arch: str | None = None


@dataclass(frozen=True)
class Choice:
    """What a set of options came to: a model and, where it needs one, its checked weight file.

    `forms` are those of an earlier run that is to be repeated; see `LoadRequest`.
    """

    model: Model
    settings: EnhancerSettings
    weight: weights.Weight | None = None
    forms: tuple[str, ...] | None = None

    def load(self, device: object) -> Restorer:
        """Make the restorer on a `torch.device`.

        Raises:
            EnhanceError: whatever kept it from loading, as a typed error.
        """
        with self._said_plainly(), as_if_alone():
            return self.model.kind()(self._request(device))

    def network(self) -> NetworkSpec:
        """The network alone, on the CPU and with no backend opened; what an export writes.

        Raises:
            ConfigError: the model is not one network (``engine: official``, some plug-ins).
            EnhanceError: whatever kept it from loading, as a typed error.
        """
        with self._said_plainly(), as_if_alone():
            kind = self.model.kind()
            if not issubclass(kind, NetworkRestorer):
                allowed = "a model that is one network"
                raise ConfigError("model", self.model.record.name, allowed)
            return kind.network(self._request("cpu"))

    def _request(self, device: object) -> LoadRequest:
        import torch

        name = str(device)
        if name == "cuda":  # the current one, which may be another in the host's next thread
            name = f"cuda:{torch.cuda.current_device()}"
        place = torch.device(name)
        return LoadRequest(self.model.record, self.settings, place, self.weight, self.forms)

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except EnhanceError:
            raise
        except Exception as error:
            raise RestorerError(f"{self.model.record.name} cannot be loaded: {error!r}") from error


def _late(module: str, name: str) -> Callable[[], type[Restorer]]:
    def kind() -> type[Restorer]:
        found: type[Restorer] = getattr(import_module(module, __package__), name)
        return found

    return kind


MODELS: Registry[Model] = Registry("model")
MODELS.add("lite", Model(LITE_RECORD, _late(".lite", "LiteRestorer")))
for _name, _record in GFPGAN_RECORDS.items():
    MODELS.add(
        _name,
        Model(_record, _late(".gfpgan", "GFPGANRestorer"), "clean"),
        (_name.replace("gfpgan-", "GFPGANv"),),
    )
MODELS.add(
    "restoreformer",
    Model(RESTOREFORMER_RECORD, _late(".restoreformer", "RestoreFormerRestorer"), "RestoreFormer"),
)
MODELS.add(
    "codeformer",
    Model(CODEFORMER_RECORD, _late(".codeformer", "CodeFormerRestorer"), "CodeFormer"),
)
_BY_ARCH = {"RestoreFormer": "restoreformer", "CodeFormer": "codeformer"}


@cache
def plugins() -> dict[str, EntryPoint]:
    """Entry points of restorers of somebody else's, by name; none of them is imported."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


def model_names(pattern: str = "*") -> list[str]:
    """Names that ``model:`` takes, those of plug-ins included, filtered by a shell pattern.

    >>> model_names("gfpgan*")
    ['gfpgan-1.4', 'gfpgan-1.3', 'gfpgan-1.2']
    """
    from fnmatch import fnmatchcase

    own = MODELS.names(pattern)
    return own + [name for name in plugins() if name not in own and fnmatchcase(name.lower(), pattern.lower())]


def get_model(name: str) -> Model:
    """The model called `name`.

    Raises:
        ConfigError: there is none.
        RestorerError: it is a plug-in that cannot be imported or is no restorer.
    """
    if name in MODELS:
        return MODELS.get(name)
    if name not in plugins():
        known = model_names()
        raise ConfigError(
            "model", name, f"auto, {', '.join(known)}, or the path of a checkpoint", suggest(name, known)
        )
    try:
        loaded = plugins()[name].load()
    except Exception as error:
        raise RestorerError(f"the plug-in restorer {name!r} cannot be imported: {error!r}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Restorer) and hasattr(loaded, "record")):
        raise RestorerError(f"the plug-in restorer {name!r} is {loaded!r}, not a Restorer class with a record")
    return Model(loaded.record, lambda: loaded)


def choose(settings: EnhancerSettings) -> Choice:
    """The model and weight that `settings` mean.

    A name is never guessed to be a path: a path has a separator or the suffix of a checkpoint.

    Raises:
        ConfigError: there is no such model, or it cannot honour an option.
        WeightError: its weight is missing, damaged or not to be trusted.
    """
    choice = _choose(settings)
    record, usual = choice.model.record, EnhancerSettings().fidelity
    if not record.has_fidelity and settings.fidelity != usual:
        allowed = f"{usual} with model: {record.name} (only codeformer has it; strength works for every model)"
        raise ConfigError("fidelity", settings.fidelity, allowed)
    return choice


def _choose(settings: EnhancerSettings) -> Choice:
    path = settings.model_path or (settings.model if is_path(settings.model) else None)
    if path is not None:
        return _from_path(Path(path), settings)
    name = settings.model
    if name == "auto":
        name = next((known for known in AUTO_ORDER if weights.find(known) is not None), "lite")
        if name == "lite" and (settings.engine == "official" or settings.download):
            name = AUTO_ORDER[0]  # which is fetched then, or says that its weight is missing
        if name == "lite":
            _check_unused("lite, which auto comes to (arch and channel_multiplier go with model_path)", settings)
            _say_once_that_lite_runs()
    model = get_model(name)
    if model.arch is not None:
        _check_name_and_arch(name, model.arch, settings)
        settings = settings.replace(arch=model.arch)
    else:
        _check_unused(name, settings)
    weight = weights.require(model.record.weight, download=settings.download) if model.record.weight else None
    return _with_engine(Choice(model, settings, weight))


def is_path(text: str) -> bool:
    """Whether ``model`` means a file: it has a separator or the suffix of a checkpoint."""
    return "/" in text or "\\" in text or text.lower().endswith(_CHECKPOINT_SUFFIXES)


def _check_name_and_arch(name: str, arch: str, settings: EnhancerSettings) -> None:
    if settings.arch not in ("clean", arch):
        raise ConfigError("arch", settings.arch, f"{arch} with model: {name}")
    if settings.channel_multiplier != 2:
        raise ConfigError("channel_multiplier", settings.channel_multiplier, f"2 with model: {name}")


def _check_unused(name: str, settings: EnhancerSettings) -> None:
    """Refuse options that say what a GFPGAN checkpoint is, where the model is none."""
    for option, default in (("arch", "clean"), ("channel_multiplier", 2)):
        if getattr(settings, option) != default:
            raise ConfigError(option, getattr(settings, option), f"{default} with model: {name}")


def _from_path(path: Path, settings: EnhancerSettings) -> Choice:
    weight = weights.open_file(path, trust_unpinned=settings.trust_unpinned)
    if settings.engine == "native" and weight.path.stat().st_size < _LITE_MOST and LITE_KEY in weight.state_dict():
        _check_unused(f"{path}, a network of lite's form", settings)
        return Choice(_renamed(MODELS.get("lite"), weight), settings, weight)
    if settings.arch in _BY_ARCH and settings.channel_multiplier != 2:
        allowed = f"2 with arch: {settings.arch} (it has none)"
        raise ConfigError("channel_multiplier", settings.channel_multiplier, allowed)
    name = _BY_ARCH.get(settings.arch, AUTO_ORDER[0])
    return _with_engine(Choice(_renamed(MODELS.get(name), weight), settings, weight))


def _renamed(model: Model, weight: weights.Weight) -> Model:
    licence = weight.entry.license if weight.entry else "the file's own"
    return replace(model, record=replace(model.record, name=weight.path.stem, weight=None, licence=licence))


def _with_engine(choice: Choice) -> Choice:
    if choice.settings.engine != "official":
        return choice
    if choice.model.arch in (None, "CodeFormer"):  # GFPGANer has no such network
        raise ConfigError("engine", "official", f"native with model: {choice.model.record.name}")
    record = replace(OFFICIAL_RECORD, name=choice.model.record.name, licence=choice.model.record.licence)
    return replace(choice, model=Model(record, _late(".official", "OfficialRestorer"), choice.model.arch))


@cache
def _say_once_that_lite_runs() -> None:
    logger.warning(
        "no GFPGAN weight in %s: the embedded model 'lite' runs. "
        "`musetalk-enhance weights fetch GFPGANv1.4` brings GFPGAN; `model: lite` says that lite is meant.",
        weights.cache_dir(),
    )


__all__ = ["MODELS", "Choice", "Model", "choose", "get_model", "model_names", "plugins"]
