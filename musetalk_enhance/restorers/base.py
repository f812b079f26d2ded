"""What a restorer is: a record of facts and one method, faces in, faces out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from ..backends import Backend, NetworkSpec
    from ..config.settings import EnhancerSettings
    from ..weights import Weight


@dataclass(frozen=True)
class RestorerRecord:
    """Facts about one model, known without loading it.

    Attributes:
        name: what users call it, e.g. ``"gfpgan-1.4"``.
        summary: one line for lists.
        input_size: side of the square the network takes, in pixels; None takes any size as it comes.
        output_size: side of the square it makes; None where `input_size` is None.
        value_range: lowest and highest value the network itself works with.
        landmark_template: the alignment it was trained for (``"ffhq_512"``), None for a host's own box.
        has_fidelity: whether CodeFormer's ``w`` exists here.
        bytes_per_face: activations of one face in fp32, for planning a batch; weights not included.
        batch_limit: most faces in one run, None for no limit.
        weight: name in the table of weights (URLs, size, sha256 stand there); None if embedded or a user's own.
        licence: SPDX name, or the licence's own name, of the weights.
        commercial: False where the weights' licence allows non-commercial use only.
    """

    name: str
    summary: str
    input_size: int | None
    output_size: int | None
    value_range: tuple[float, float]
    licence: str
    landmark_template: str | None = None
    has_fidelity: bool = False
    bytes_per_face: int = 64 * 2**20
    batch_limit: int | None = None
    weight: str | None = None
    commercial: bool = True


@dataclass(frozen=True)
class LoadRequest:
    """What a restorer is made from.

    Attributes:
        record: facts about the model that was asked for.
        settings: all options, checked.
        device: where the network shall run.
        weight: the checked, trusted weight file; None for a restorer that brings its own.
        forms: `Backend.forms` of an earlier run that is to be repeated; None leaves the choice.
    """

    record: RestorerRecord
    settings: EnhancerSettings
    device: torch.device
    weight: Weight | None = None
    forms: tuple[str, ...] | None = None


class Restorer(ABC):
    """A network that maps face crops to face crops.

    A class of somebody else's is added with an entry point in the group ``musetalk_enhance.restorers``: the
    entry point's name is the model's, the object a subclass of this one with `record` set on the class.
    """

    record: ClassVar[RestorerRecord]

    def __init__(self, request: LoadRequest) -> None:
        """Load the network onto ``request.device``.

        Raises:
            WeightError: the weight cannot be had, trusted or understood.
            MissingDependencyError: a package is not installed.
        """
        self.request = request
        self.device = request.device

    @property
    def fallbacks(self) -> int:
        """Times a reduced precision was given up; 0 for a restorer that knows only one."""
        return 0

    @abstractmethod
    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Restore a batch.

        Args:
            faces_rgb: float32 (N, 3, S, S), RGB, 0..1, on `device`; S is ``record.input_size``, or any
                height and width where that is None.

        Returns:
            float32 (N, 3, T, T), RGB, 0..1 (values a little outside are clamped by the caller), same device;
            T is ``record.output_size``.

        Raises:
            NoFaceError: there is no face to restore (only where the restorer looks for one).
        """

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the network to `device`."""

    def close(self) -> None:  # noqa: B027 - most restorers have nothing to give back but memory
        """Give back what the restorer holds; it is not used afterwards."""


class NetworkRestorer(Restorer):
    """A restorer that is one network behind a `Backend`: everything but what the network is.

    Attributes:
        backend: runs the network.
    """

    backend: Backend

    def __init__(self, request: LoadRequest) -> None:
        """Load the network and open the backend that ``request.settings`` mean; see `Restorer.__init__`."""
        super().__init__(request)
        from ..backends import open_backend

        network = self.network(request)
        self.backend = open_backend(network, request.settings, request.device, request.forms)

    @classmethod
    @abstractmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        """The network with its weights, on the CPU; what `export` writes.

        Raises:
            WeightError: the weight cannot be understood.
            MissingDependencyError: a package is not installed.
        """

    @property
    def fallbacks(self) -> int:
        """Times a reduced precision was given up (see `CheckedBackend`)."""
        return int(getattr(self.backend, "fallbacks", 0))

    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Bring 0..1 to the record's ``value_range``, run the network, and bring its answer back to 0..1."""
        low, high = self.request.record.value_range
        if (low, high) == (0.0, 1.0):
            return self.backend.run(faces_rgb)
        import torch

        with torch.inference_mode():  # what torch's backend answers may be changed in place only there
            return self.backend.run(faces_rgb * (high - low) + low).sub_(low).div_(high - low)

    def to(self, device: torch.device) -> None:
        """Move the network to `device`."""
        self.backend.to(device)
        self.device = device

    def close(self) -> None:
        """Give the network back."""
        self.backend.close()
