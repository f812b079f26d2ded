"""What the tests of stability share; the talking head itself stands in ``tests/conftest.py``."""

from tests.pictures import soften, to_faces, to_frames

__all__ = ["soften", "to_faces", "to_frames"]
