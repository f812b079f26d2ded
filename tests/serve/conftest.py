"""A server on the loopback interface, around a network and a detector that the test makes."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import cv2
import httpx
import numpy as np
import pytest
import torch

from musetalk_enhance.faces.detect import FFHQ_512
from musetalk_enhance.jobs.models import LoadedModel
from musetalk_enhance.restorers.base import LoadRequest, ModelInfo
from musetalk_enhance.restorers.catalog import Choice, Model
from musetalk_enhance.serve import ServeSettings, create_app, networks
from musetalk_enhance.serve.server import make_server
from tests.conftest import FakeRestorer
from tests.jobs.conftest import SMALL, Middle

TOKEN = "a token of the tests"
assert len(FFHQ_512) == 5


@dataclass
class Network:
    """What the service runs in place of a model: inverts; counts, and can be told to wait or fail.

    Attributes:
        batches: faces of every batch.
        begun: set when the network begins.
        free: the network waits for it.
        function: from faces to faces, RGB 0..1.
        info: its facts, but for the name.
    """

    batches: list = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    free: threading.Event = field(default_factory=threading.Event)
    function: object = staticmethod(lambda faces: 1 - faces)
    info: ModelInfo = SMALL
    loads: list = field(default_factory=list)
    fidelities: list = field(default_factory=list)
    closed: list = field(default_factory=list)
    batch_size: int = 8

    def __post_init__(self):
        self.free.set()

    def load(self, settings) -> LoadedModel:
        self.loads.append(settings.model)
        self.fidelities.append(settings.fidelity)
        wanted = settings.enhancer(model="lite", color_match=False, batch_size=self.batch_size)
        name = "lite" if settings.model == "auto" else settings.model
        info = replace(self.info, name=name, has_fidelity=name == "codeformer")
        restorer = FakeRestorer(LoadRequest(info, wanted, torch.device("cpu")), self.run)
        restorer.close = lambda: self.closed.append(name)
        return LoadedModel(
            restorer, Choice(Model(info, lambda: FakeRestorer), wanted), settings.fidelity, []
        )

    def run(self, faces):
        self.begun.set()
        assert self.free.wait(30)
        self.batches.append(len(faces))
        return self.function(faces)


@pytest.fixture
def network(monkeypatch) -> Network:
    network = Network()
    # at every close, and slow beside all that the tests import
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    monkeypatch.setattr(networks, "load", network.load)
    monkeypatch.setattr(networks, "load_detector", lambda *_: Middle())
    return network


@contextmanager
def running(settings: ServeSettings | None = None, app=None, start_s: float = 60) -> Iterator[str]:
    """The URL of a server in a thread; it is stopped gracefully at the end."""
    server = make_server(app or create_app(settings or ServeSettings(time_limit=20)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until = time.monotonic() + start_s
            while not server.started and thread.is_alive() and time.monotonic() < until:
                time.sleep(0.01)
            assert server.started
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(120)
            assert not thread.is_alive()


@pytest.fixture
def serve(network):
    """``serve(**options)``: a context manager that gives an `httpx.Client`."""

    @contextmanager
    def serve(**options) -> Iterator[httpx.Client]:
        settings = ServeSettings(**{"time_limit": 20, "batch_wait": 20} | options)
        headers = {"authorization": f"Bearer {settings.token}"} if settings.token else {}
        with (
            running(settings) as url,
            httpx.Client(base_url=url, headers=headers, timeout=30) as client,
        ):
            yield client

    return serve


def portrait(seed: int = 1, side: int = 64) -> np.ndarray:
    """Smooth, different for each seed, with little blue: BGR uint8 (side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (5, 5, 3), np.uint8)
    coarse[..., 0] //= 4
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def upload(image: np.ndarray, **options) -> dict:
    """Arguments of ``client.post``."""
    return {"files": {"image": ("face.png", png(image))}, "data": options}
