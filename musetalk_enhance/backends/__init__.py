"""How a network is executed. `FakeBackend` is public, for users' own tests."""

from .base import Backend
from .fake import FakeBackend
from .torch_backend import TorchBackend

__all__ = ["Backend", "FakeBackend", "TorchBackend"]
