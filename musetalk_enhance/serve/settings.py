"""The options of the service: names, defaults, checks and help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import schema
from ..errors import ConfigError
from ..jobs.options import FaceSettings, ImageSettings, VideoSettings, borrowed

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_ENV = "MUSETALK_ENHANCE_TOKEN"
MIN_TOKEN = 16
"""Fewest characters of a token."""


def _size(default: int, what: str) -> Any:
    check = schema.memory()[0]

    def whole_bytes(raw: Any) -> int:
        size = check(raw)
        if not isinstance(size, int):
            raise ValueError
        return size

    return schema.option(default, what, (whole_bytes, 'bytes (at least 1048576), or "32MiB"'))


@dataclass(frozen=True)
class ServeSettings(FaceSettings):
    """The options of the service; those of `FaceSettings` are the defaults of a request.

    Raises:
        ConfigError: a value is invalid, or two options contradict each other.
    """

    strength: float = borrowed("strength", 0.6, "Weight of a request that gives none, 0..1.")
    overwrite: bool = schema.option(False, "Unused.", schema.switch(), flag=False)
    host: str = schema.option(
        "127.0.0.1",
        "Address to listen on. Any other than this machine's own (127.0.0.1, ::1, localhost) "
        "needs a token.",
        schema.text("an address or a host name"),
    )
    port: int = schema.option(7860, "Port to listen on.", schema.whole(0, 65535))
    token: str | None = schema.option(
        None,
        f"Secret that every client sends as `Authorization: Bearer TOKEN`. Set it in the "
        f"environment variable {TOKEN_ENV}: a command line is visible to other users.",
        schema.text(f"at least {MIN_TOKEN} characters"),
    )
    cors: str | None = schema.option(
        None,
        "Web pages of other origins that may use the service, separated by commas.",
        schema.text("origins such as https://example.org"),
    )
    engine: str = schema.option(
        "local",
        "local: this process. ray: replicas on Ray Serve, with the settings of ray_config.",
        schema.choice("local", "ray"),
    )
    ray_config: str | None = schema.option(
        None, "YAML file of engine: ray; see configs/ray_serve.yaml.", schema.text("a path")
    )
    batch_wait: float = schema.option(
        5, "Milliseconds that the first face of a batch waits for more.", schema.number(0, 1000)
    )
    max_queue: int = schema.option(
        128, "Requests in progress; the next one gets 429.", schema.whole(1, 100000)
    )
    max_streams: int = schema.option(
        16, "Live streams in progress; the next one is refused.", schema.whole(0, 10000)
    )
    max_models: int = schema.option(
        2, "Models in memory; another one takes the place of an idle one.", schema.whole(1, 64)
    )
    time_limit: float = schema.option(
        60, "Seconds that a request may take; it then gets 503.", schema.number(0.1, 86400)
    )
    max_body: int = _size(32 * 2**20, "Largest request without a video, in bytes.")
    max_pixels: int = schema.option(
        40_000_000,
        "Most pixels of an image, before and after it is enlarged, and of a video's frame.",
        schema.whole(4096, 2**31),
    )
    max_video: int = _size(2 * 2**30, "Largest upload of a video, in bytes.")
    max_frames: int = schema.option(
        108_000, "Most frames of a video: an hour at 30 per second.", schema.whole(1, 2**31)
    )
    max_jobs: int = schema.option(
        16, "Videos that wait or are in progress; the next one gets 429.", schema.whole(1, 10000)
    )
    keep_hours: float = schema.option(
        24, "Hours after which a finished video job is deleted.", schema.number(0.01, 87600)
    )
    data_dir: str | None = schema.option(
        None,
        "Folder of the video jobs, which survive a restart. auto: a folder beside the weights.",
        schema.text("a path"),
    )
    diffusers_model: str | None = schema.option(
        None,
        "Folder of a local diffusers text-to-image model, for POST /generate.",
        schema.text("a path"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token is not None and len(self.token) < MIN_TOKEN:
            raise ConfigError("token", "***", f"at least {MIN_TOKEN} characters")
        if self.host not in LOOPBACK and self.token is None:
            allowed = f"{' | '.join(LOOPBACK)}; any other needs a token (set {TOKEN_ENV})"
            raise ConfigError("host", self.host, allowed)
        if self.ray_config is not None and self.engine != "ray":
            raise ConfigError("ray_config", self.ray_config, "unset without engine: ray")

    def __repr__(self) -> str:
        """Without the token: a repr ends up in logs."""
        values = dataclasses.asdict(self) | {"token": "***" if self.token else None}
        return f"ServeSettings({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @property
    def origins(self) -> list[str]:
        """`cors` as a list."""
        return [origin.strip() for origin in (self.cors or "").split(",") if origin.strip()]

    @property
    def folder(self) -> Path:
        """`data_dir`, with its default."""
        from ..weights.cache import cache_dir

        if self.data_dir is None:
            return cache_dir().parent / "service"
        return Path(self.data_dir).expanduser().absolute()

    def images(self, **changes: Any) -> ImageSettings:
        """The options of the networks for still images, at full strength."""
        return ImageSettings(**self._shared(ImageSettings, strength=1.0, **changes))

    def videos(self, **changes: Any) -> VideoSettings:
        """The options of a video job."""
        return VideoSettings(**self._shared(VideoSettings, **changes))

    def _shared(self, kind: type[FaceSettings], **changes: Any) -> dict[str, Any]:
        """Options of this service that `kind` has too, but for those at their defaults."""
        values = {
            option.name: getattr(self, option.name)
            for option in dataclasses.fields(FaceSettings)
            if getattr(self, option.name) != getattr(ServeSettings, option.name)
        }
        return values | changes
