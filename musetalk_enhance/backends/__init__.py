"""How a network is executed. `FakeBackend` is public, for users' own tests."""

from .base import Backend, BackendOptions, NetworkSpec
from .fake import FakeBackend
from .selection import open_backend
from .torch_backend import TorchBackend

__all__ = [
    "Backend",
    "BackendOptions",
    "FakeBackend",
    "NetworkSpec",
    "TorchBackend",
    "open_backend",
]
