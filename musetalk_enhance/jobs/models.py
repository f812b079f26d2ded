"""Selects and loads the restorer of a job, CodeFormer before GFPGAN, and records what runs."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..config.settings import EnhancerSettings
from ..enhancer import GFPGANEnhancer
from ..errors import (
    ConfigError,
    LicenseError,
    MissingDependencyError,
    MissingWeightError,
    WeightError,
)
from ..restorers.catalog import AUTO_ORDER, Choice, choose, get_model, model_names
from ..runtime.devices import pick_device
from .options import FaceSettings

if TYPE_CHECKING:
    from ..restorers.base import ModelInfo, Restorer

logger = logging.getLogger("musetalk_enhance")

FIDELITY = EnhancerSettings.fidelity
"""Default of CodeFormer's w."""
_MAX_COUNT = 4096  # faces in one run, or threads, that a file may ask for


@dataclass(frozen=True)
class RunInfo:
    """What runs, so that a resumed run and every worker produce the same bits.

    The field names are the JSON keys, hence the spelling of `licence`.

    Attributes:
        model: name of the restorer.
        licence: license of its weights.
        weight_sha256: of its weight file; None for an embedded one.
        fidelity: CodeFormer's w, None if the model has none.
        backend: what executes the network, None if it is not a single network.
        dtype: its arithmetic.
        device: kind of device, such as ``"cpu"``.
        batch_size: faces in one run.
        threads: CPU threads of one worker.
        helpers: sha256 of the files of detector, parser, upsampler and photos, by name.
        passed_over: restorers of higher priority that could not be loaded: name and reason.
        version: of this library.
    """

    model: str
    licence: str
    weight_sha256: str | None
    fidelity: float | None
    backend: str | None
    dtype: str | None
    device: str
    batch_size: int
    threads: int
    helpers: dict[str, str | None]
    passed_over: list[list[str]]
    version: str = __version__

    def as_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, raw: Any) -> RunInfo | None:
        """Inverse of `as_dict`; None if `raw` is something else."""
        try:
            # "forms": of torch's convolutions, in manifests of earlier versions
            info = cls(**{key: value for key, value in raw.items() if key != "forms"})
        except (AttributeError, TypeError):
            return None
        return info if info._is_plausible() else None

    def _is_plausible(self) -> bool:
        """Whether the values, which come from a file, have their types."""
        texts = (self.model, self.licence, self.device, self.version)
        helpers: Any = self.helpers.values() if isinstance(self.helpers, dict) else (0,)
        optional = (self.weight_sha256, self.backend, self.dtype, *helpers)
        pairs = [tuple(_items(pair)) for pair in _items(self.passed_over)]
        return (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(text, (str, type(None))) for text in optional)
            and all(
                len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
            )
            and all(type(count) is int for count in (self.batch_size, self.threads))
            and 0 < self.batch_size <= _MAX_COUNT
            and 0 <= self.threads <= _MAX_COUNT
            and (self.fidelity is None or type(self.fidelity) in (int, float))
        )

    def same_bits(self, other: Any) -> bool:
        """Whether `other`, as plain values, produces the same bits; measured choices are compared
        too."""
        names = ("backend", "dtype", "batch_size", "threads")
        if not isinstance(other, dict):
            return False
        return all(other.get(name) == getattr(self, name) for name in names)

    def decisive(self) -> dict[str, Any]:
        """Values that change the pixels; measured ones (backend, dtype, ...) are pinned instead."""
        names = ("model", "weight_sha256", "fidelity", "device", "helpers", "version")
        return {name: getattr(self, name) for name in names}


def _items(value: Any) -> list[Any]:
    """The items of a list; one of no valid type where it is something else."""
    return value if isinstance(value, list) else [None]


@dataclass(frozen=True)
class LoadedModel:
    """A restorer and the settings it was loaded with."""

    restorer: Restorer
    choice: Choice
    fidelity: float | None
    passed_over: list[list[str]]

    def enhancer(self, **changes: Any) -> GFPGANEnhancer:
        """Make an enhancer with the loaded network."""
        return GFPGANEnhancer.from_settings(self.choice.settings.replace(**changes), self.restorer)


def candidates(model: str) -> list[str]:
    """Models to try for ``model``, best first."""
    fallbacks = list(AUTO_ORDER)
    if model == "auto":
        return ["codeformer", *fallbacks, "lite"]
    return ["codeformer", *fallbacks] if model.lower() == "codeformer" else [model]


def load(settings: FaceSettings, *, pinned: RunInfo | None = None) -> LoadedModel:
    """Load the first candidate that can be loaded.

    Args:
        settings: of the job.
        pinned: of an earlier run: its backend, arithmetic and batch size are used where the
            settings are ``auto``.

    Raises:
        ConfigError: the model is unknown, may not be used commercially, or does not support an
            option.
        WeightError, MissingDependencyError: of the first candidate, if none can be loaded.
    """
    if settings.model_path is not None:
        return _load_one(settings, "auto", pinned, [])
    passed_over: list[list[str]] = []
    errors: list[Exception] = []
    for name in candidates(settings.model):
        try:
            _check_license(settings, name)
            loaded = _load_one(settings, name, pinned, passed_over)
        except (WeightError, MissingDependencyError, LicenseError) as error:
            passed_over.append([name, _reason(error)])
            errors.append(error)
        else:
            is_asked = settings.model != "auto" or settings.fidelity is not None
            _warn_of_fallback(
                [pair for pair in passed_over if is_asked or pair[0] != "codeformer"],
                name,
                settings.fidelity is not None and loaded.fidelity is None,
            )
            return loaded
    raise _with_fallback_errors(errors[0], passed_over[1:]) from errors[0]


def run_info_of(
    loaded: LoadedModel,
    enhancer: GFPGANEnhancer,
    settings: FaceSettings,
    helpers: dict[str, str | None],
    threads: int,
) -> RunInfo:
    """Collect what runs."""
    record, weight = loaded.restorer.request.info, loaded.restorer.request.weight
    backend, dtype = enhancer.backend or (None, None)
    size = (
        settings.batch_size
        if isinstance(settings.batch_size, int)
        else enhancer.memory_plan()["planned"]
    )
    return RunInfo(
        model=record.name,
        licence=record.license,
        weight_sha256=weight.sha256 if weight else None,
        fidelity=loaded.fidelity,
        backend=backend,
        dtype=dtype,
        device=enhancer.device.type,
        batch_size=int(size or 1),
        threads=threads,
        helpers=helpers,
        passed_over=loaded.passed_over,
    )


def _load_one(
    settings: FaceSettings, name: str, pinned: RunInfo | None, passed_over: list[list[str]]
) -> LoadedModel:
    is_named = settings.model_path is None and name in model_names()
    if is_named:  # an option that it lacks is reported before a missing weight
        _fidelity(settings, get_model(name).info, name, bool(passed_over))
    choice = choose(settings.enhancer(model=name))
    info = choice.model.info
    if settings.commercial and not info.commercial:  # a path, which no name told
        key = "model" if settings.model_path is None else "model_path"
        raise LicenseError(key, settings.model_path or name, info.license)
    changes = _choices(settings, pinned if pinned and pinned.model == info.name else None)
    fidelity = _fidelity(settings, info, name, bool(passed_over))
    if fidelity is not None:
        changes["fidelity"] = fidelity
    choice = dataclasses.replace(choice, settings=choice.settings.replace(**changes))
    return LoadedModel(
        choice.load(pick_device(settings.device, settings.allow_cpu)),
        choice,
        fidelity,
        list(passed_over),
    )


def _choices(settings: FaceSettings, previous: RunInfo | None) -> dict[str, Any]:
    """Values for options that are ``auto``: those of the earlier run, or fp32 whatever is faster.

    The measurement that selects a reduced precision for a host could make other files on another
    day.
    """
    choices: dict[str, Any] = {"dtype": "fp32"}
    if previous is not None:
        choices = {
            "backend": previous.backend,
            "dtype": previous.dtype,
            "batch_size": previous.batch_size,
        }
    return {
        key: value
        for key, value in choices.items()
        if value is not None and getattr(settings, key) == "auto"
    }


def _fidelity(
    settings: FaceSettings, info: ModelInfo, name: str, is_fallback: bool
) -> float | None:
    """CodeFormer's w for this model; an error if it has none, except for a fallback."""
    if info.has_fidelity:
        return FIDELITY if settings.fidelity is None else settings.fidelity
    if settings.fidelity is not None and not is_fallback:
        allowed = (
            f"auto with model: {name} (only codeformer has it; strength works for every model)"
        )
        raise ConfigError("fidelity", settings.fidelity, allowed)
    return None


def _check_license(settings: FaceSettings, name: str) -> None:
    if settings.commercial and name in model_names():
        record = get_model(name).info
        if not record.commercial:
            raise LicenseError("model", name, record.license)


def _reason(error: Exception) -> str:
    if isinstance(error, MissingWeightError) and error.name:
        return f"its weight is not on this machine; run `{error.command}`"
    return (
        "its license does not allow commercial: true"
        if isinstance(error, LicenseError)
        else str(error)
    )


def _with_fallback_errors(error: Exception, others: list[list[str]]) -> Exception:
    """The first candidate's error, with the reasons why the fallbacks failed too."""
    if others:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in others)
        error.args = (f"{error} The fallbacks failed too: {reasons}.", *error.args[1:])
    return error


def _warn_of_fallback(passed_over: list[list[str]], name: str, without_fidelity: bool) -> None:
    if passed_over:
        first, reason = passed_over[0]
        note = " The option fidelity is ignored." if without_fidelity else ""
        logger.warning("%s cannot be loaded: %s. Falling back to %s.%s", first, reason, name, note)
