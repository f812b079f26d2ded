"""How a network is executed. `FakeBackend` is public, for users' own tests."""

from .base import Backend, NetworkSpec
from .choosing import open_backend
from .fake import FakeBackend
from .torch_backend import TorchBackend

__all__ = ["Backend", "FakeBackend", "NetworkSpec", "TorchBackend", "open_backend"]
