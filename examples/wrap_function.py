"""A host that nobody knows: wrap the function that returns its faces.

    python examples/wrap_function.py

`wrap` takes arrays and tensors in either layout, of uint8 or of floats in any of three ranges, and
gives back what the host's function gave: container, type, layout, range and device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_enhance import FaceEnhancer, Stream, wrap


class Pipeline:
    """A host with two users: RGB, float32 -1..1, (N, 3, H, W), and a call to warm up."""

    def decode(self, user: str | None, count: int) -> NDArray[np.float32]:
        """Frames of a user; None warms up."""
        ramp = np.linspace(-1, 1, 256, dtype=np.float32)
        return np.broadcast_to(ramp, (count, 3, 256, 256)).copy()


def main() -> None:
    """Give every user a stream over one network, and leave the warm-up alone."""
    enhancer = FaceEnhancer(model="lite")
    streams: dict[str, Stream] = {}

    def stream_of(user: str | None, count: int) -> Stream | None:
        if user is None:
            return None
        if user not in streams:
            streams[user] = enhancer.stream(color="rgb", value_range="-1..1")
        return streams[user]

    pipeline = Pipeline()
    decode = wrap(pipeline.decode, enhancer, layout="NCHW", stream=stream_of)
    for user in (None, "ann", "bob", "ann"):
        frames = decode(user, 2)
        print(user, frames.shape, frames.dtype)
    decode.detach()
    for user, stream in streams.items():
        print(user, stream.stats.summary())


if __name__ == "__main__":
    main()
