"""The interface of a restorer: facts about a model, and one method, faces in, faces out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import warn_renamed

if TYPE_CHECKING:
    import torch

    from ..backends import Backend, NetworkSpec
    from ..config.settings import EnhancerSettings
    from ..weights import Weight


@dataclass(frozen=True)
class ModelInfo:
    """Facts about one model, available without loading it.

    Attributes:
        name: its name for users, e.g. ``"gfpgan-1.4"``.
        summary: one line for lists.
        input_size: side of the square that the network takes, in pixels; None takes any size.
        output_size: side of the square that it returns; None where `input_size` is None.
        value_range: lowest and highest value that the network itself works with.
        license: SPDX identifier or the license's name, of the weights.
        landmark_template: the alignment it was trained for (``"ffhq_512"``), None for a host's own
            box.
        has_fidelity: whether it has CodeFormer's ``w``.
        bytes_per_face: peak memory of one face's activations in fp32, for planning a batch; without
            the weights. Of the networks here: what torch held at once, 8 % or more added (GFPGAN
            370 MiB, RestoreFormer 689, CodeFormer 561, lite 13).
        batch_limit: the most faces in one run, None without a limit.
        weight: its name in the table of weights (with URLs, size and sha256); None if the weight is
            embedded or the user's own.
        commercial: False where the license of the weights allows only non-commercial use.
    """

    name: str
    summary: str
    input_size: int | None
    output_size: int | None
    value_range: tuple[float, float]
    license: str
    landmark_template: str | None = None
    has_fidelity: bool = False
    bytes_per_face: int = 64 * 2**20
    batch_limit: int | None = None
    weight: str | None = None
    commercial: bool = True

    @property
    def licence(self) -> str:
        """Deprecated spelling of `license`."""
        warn_renamed("ModelInfo.licence", "ModelInfo.license")
        return self.license


@dataclass(frozen=True)
class LoadRequest:
    """Everything that a restorer is loaded from.

    Attributes:
        info: facts about the requested model.
        settings: all options, checked.
        device: where the network runs.
        weight: the checked, trusted weight file; None for a restorer with a weight of its own.
    """

    info: ModelInfo
    settings: EnhancerSettings
    device: torch.device
    weight: Weight | None = None

    @property
    def record(self) -> ModelInfo:
        """Deprecated name of `info`."""
        warn_renamed("LoadRequest.record", "LoadRequest.info")
        return self.info


class Restorer(ABC):
    """A network that maps face crops to face crops.

    A third-party restorer is added with an entry point in the group ``musetalk_enhance.restorers``:
    the entry point's name is the model's, its object a subclass of this one with `info` as a class
    attribute.
    """

    info: ClassVar[ModelInfo]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        record = cls.__dict__.get("record")
        if isinstance(record, ModelInfo) and "info" not in cls.__dict__:
            warn_renamed(f"{cls.__name__}.record", f"{cls.__name__}.info")
            cls.info = record

    def __init__(self, request: LoadRequest) -> None:
        """Load the network onto ``request.device``.

        Raises:
            WeightError: the weight is unavailable, not trusted or not understood.
            MissingDependencyError: a package is not installed.
        """
        self.request = request
        self.device = request.device

    @property
    def fallbacks(self) -> int:
        """How often a reduced precision was given up; 0 for a restorer with only one precision."""
        return 0

    @abstractmethod
    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Restore a batch.

        Args:
            faces_rgb: float32 (N, 3, S, S), RGB, 0..1, on `device`; S is ``info.input_size``, or
                any height and width where that is None. It may be changed in place.

        Returns:
            float32 (N, 3, T, T), RGB, 0..1 (the caller clamps values slightly outside), same
            device; T is ``info.output_size``.

        Raises:
            NoFaceError: there is no face to restore (only from a restorer that detects faces).
        """

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the network to `device`."""

    def close(self) -> None:  # noqa: B027 - most restorers have nothing to release but memory
        """Release the restorer's resources; it is not used afterwards."""


class NetworkRestorer(Restorer):
    """A restorer that is one network behind a `Backend`; subclasses only define the network.

    Attributes:
        backend: runs the network.
    """

    backend: Backend

    def __init__(self, request: LoadRequest) -> None:
        """Load the network and open the backend of ``request.settings``; see `Restorer`."""
        super().__init__(request)
        from ..backends import BackendOptions, open_backend

        options = BackendOptions.of(request.settings)
        self.backend = open_backend(self.network(request), options, request.device)

    @classmethod
    @abstractmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network with its weights, on the CPU, as `export` writes it.

        Raises:
            WeightError: the weight is not understood.
            MissingDependencyError: a package is not installed.
        """

    @property
    def fallbacks(self) -> int:
        """How often a reduced precision was given up (see `CheckedBackend`)."""
        return int(getattr(self.backend, "fallbacks", 0))

    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Convert 0..1 to the model's ``value_range``, run the network, and convert back."""
        low, high = self.request.info.value_range
        if (low, high) == (0.0, 1.0):
            return self.backend.run(faces_rgb)
        import torch

        with (
            torch.inference_mode()
        ):  # an inference tensor may only be changed in place in this mode
            return self.backend.run(faces_rgb * (high - low) + low).sub_(low).div_(high - low)

    def to(self, device: torch.device) -> None:
        """Move the network to `device`."""
        self.backend.to(device)
        self.device = device

    def close(self) -> None:
        """Release the network."""
        self.backend.close()


class _RestorerRecord(ModelInfo):
    """`ModelInfo` under its former name, with `licence` for `license`."""

    def __init__(self, *args: Any, licence: str | None = None, **kwargs: Any) -> None:
        if licence is not None:
            kwargs["license"] = licence
        super().__init__(*args, **kwargs)


def __getattr__(name: str) -> Any:
    if name == "RestorerRecord":
        warn_renamed("RestorerRecord", "ModelInfo")
        return _RestorerRecord
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
