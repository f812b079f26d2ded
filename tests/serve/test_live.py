"""WS /stream: sessions that never mix, deadlines, bad frames."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import cv2
import numpy as np
import pytest
from torch.nn.functional import avg_pool2d
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from musetalk_enhance.serve import ServeSettings, live, networks
from musetalk_enhance.serve.live import HEAD, RAW, STATUSES
from tests.serve.conftest import TOKEN, decoded, png, portrait
from tests.serve.test_restore import wait_for

FRAMES = 4


def sharpen(batch):
    return batch + 0.4 * (batch - avg_pool2d(batch, 9, 1, 4, count_include_pad=False))


@contextmanager
def session(client, headers=None, **options):
    """A connection whose options the server has accepted."""
    url = str(client.base_url).replace("http", "ws") + "/stream"
    token = {"authorization": client.headers.get("authorization", "")}
    with connect(url, additional_headers=headers or token, max_size=None) as socket:
        socket.send(json.dumps({"deadline_ms": 20000} | options))
        answer = json.loads(socket.recv(10))
        assert answer["ready"] and answer["model"] == "lite"
        yield socket


def code_of(client, **options) -> str:
    """The code of the error with which a session is refused."""
    url = str(client.base_url).replace("http", "ws") + "/stream"
    token = {"authorization": client.headers.get("authorization", "")}
    with connect(url, additional_headers=token) as socket:
        with suppress(ConnectionClosed):  # a full server does not wait for the options
            socket.send(json.dumps(options))
        code = json.loads(socket.recv(10))["error"]["code"]
        with pytest.raises(ConnectionClosed):
            socket.recv(10)
    return code


def exchange(socket, data: bytes) -> tuple[int, str, bytes]:
    """Send a frame; number, status and bytes of the answer."""
    socket.send(data)
    return unpacked(socket.recv(20))


def unpacked(answer: bytes) -> tuple[int, str, bytes]:
    index, status, _, _, elapsed_ms = HEAD.unpack_from(answer)
    assert elapsed_ms >= 0
    return index, STATUSES[status], answer[HEAD.size :]


def clip(seed: int) -> list[bytes]:
    """A face that moves a little, as raw frames."""
    image = cv2.GaussianBlur(portrait(seed, 96), (0, 0), 2)
    return [
        np.ascontiguousarray(image[at : at + 64, at : at + 64]).tobytes() for at in range(FRAMES)
    ]


def face() -> np.ndarray:
    return np.frombuffer(clip(1)[0], np.uint8).reshape(64, 64, 3)


RAW_64 = {"format": "raw", "width": 64, "height": 64, "face_restoration_weight": 1}


def restored(client, frames: list[bytes]) -> list[tuple[int, str, bytes]]:
    with session(client, **RAW_64) as socket:
        return [exchange(socket, data) for data in frames]


def test_eight_sessions_never_mix_and_give_the_bytes_of_each_alone(serve, network):
    network.function = sharpen
    clips = [clip(seed) for seed in range(8)]
    with serve(batch_wait=30) as client, ThreadPoolExecutor(8) as pool:
        alone = [restored(client, frames) for frames in clips]
        network.batches.clear()
        together = list(pool.map(lambda frames: restored(client, frames), clips))
        text = client.get("/metrics").text
    assert together == alone
    for frames, answers in zip(clips, alone, strict=True):
        assert [(index, status) for index, status, _ in answers] == [
            (index, "restored") for index in range(FRAMES)
        ]
        assert all(data != frame for (_, _, data), frame in zip(answers, frames, strict=True))
    assert len({data for answers in alone for _, _, data in answers}) == 8 * FRAMES
    assert max(network.batches) > 1, "faces of several sessions in one batch"
    assert f'stream_frames_total{{outcome="restored"}} {16 * FRAMES}.0' in text


def test_jpeg_frames_and_the_weight(serve, network):
    network.function = sharpen
    (frame, *_), shape = clip(3), (64, 64, 3)
    before = np.frombuffer(frame, np.uint8).reshape(shape).astype(float)
    with serve() as client:
        ((_, _, full),) = restored(client, [frame])
        change = np.frombuffer(full, np.uint8).reshape(shape) - before
        with session(client, **RAW_64 | {"face_restoration_weight": 0.25}) as socket:
            _, _, weak = exchange(socket, frame)
        with session(client, quality=100) as socket:
            index, status, data = exchange(socket, png(before.astype(np.uint8)))
    assert np.abs(change).max() >= 4
    weak_change = np.frombuffer(weak, np.uint8).reshape(shape) - before
    assert np.abs(weak_change - 0.25 * change).max() <= 0.51
    assert (index, status) == (0, "restored") and data[:2] == b"\xff\xd8"
    assert np.abs(decoded(data) - before).mean() < 3


def test_whole_frames_are_restored_around_the_face_and_no_face_is_sent_back(serve, network):
    network.function = sharpen
    image, blue = portrait(2, 200), portrait(2, 200)
    blue[..., 0], blue[..., 2] = 250, 0
    options = {"format": "raw", "width": 200, "height": 200, "input": "frames"}
    with serve() as client, session(client, **options, face_restoration_weight=1) as socket:
        _, status, data = exchange(socket, image.tobytes())
        assert status == "restored"
        after = np.frombuffer(data, np.uint8).reshape(image.shape)
        assert np.array_equal(after[:10], image[:10])
        assert (after[70:130, 70:130] != image[70:130, 70:130]).any(axis=2).mean() > 0.3
    with serve() as client, session(client, **options) as socket:
        assert exchange(socket, blue.tobytes()) == (0, "passed through", blue.tobytes())


def test_a_late_frame_is_sent_back_unchanged_and_counted(serve, network):
    network.function = sharpen
    frames = clip(1)
    with serve() as client, session(client, **RAW_64, deadline_ms=300) as socket:
        assert exchange(socket, frames[0])[1] == "restored"
        network.free.clear()
        assert exchange(socket, frames[1]) == (1, "late", frames[1])
        assert exchange(socket, frames[2]) == (2, "late", frames[2])
        network.free.set()
        wait_for(lambda: exchange(socket, frames[3])[1] == "restored")
        text = client.get("/metrics").text
    assert 'stream_frames_total{outcome="late"}' in text


def test_frames_that_were_sent_ahead_are_answered_in_order(serve):
    frames = clip(2)
    with serve() as client, session(client, **RAW_64) as socket:
        for data in frames:
            socket.send(data)
        answers = [unpacked(socket.recv(20)) for _ in frames]
    assert [index for index, _, _ in answers] == list(range(FRAMES))


def test_a_bad_frame_is_sent_back_and_the_session_goes_on(serve, network):
    network.function = sharpen
    frames = clip(4)
    with serve() as client:
        with session(client, **RAW_64) as socket:
            assert exchange(socket, b"short") == (0, "passed through", b"short")
            assert exchange(socket, frames[0])[1] == "restored"
        with session(client) as socket:
            assert exchange(socket, b"no jpeg") == (0, "passed through", b"no jpeg")
            assert exchange(socket, png(face()))[1] == "restored"


def test_invalid_options_are_refused(serve):
    with serve() as client:
        for options in (
            {"format": "raw"},
            {"model": "nonsense"},
            {"deadline_ms": 0},
            {"unknown": 1},
            {"format": "raw", "width": 16000, "height": 16000},
        ):
            assert code_of(client, **options) == "invalid", options


def test_a_session_that_is_canceled_while_its_model_loads_leaves_the_model_idle(
    network, monkeypatch
):
    """With room for one model, the next one takes its place.

    What was entered is kept here: without that, CPython's reference count leaves it.
    """
    monkeypatch.setattr(networks.weights, "find", lambda name: name)
    entered, use = [], networks.NetworkPool.use

    def kept(*args):
        entered.append(use(*args))
        return entered[-1]

    monkeypatch.setattr(networks.NetworkPool, "use", kept)

    async def cancel(pool) -> None:
        async def open_session() -> None:
            async with live._network(pool, "gfpgan-1.4", None):
                pytest.fail("it was canceled")

        network.free.clear()
        task = asyncio.create_task(open_session())
        while "gfpgan-1.4" not in network.loads:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.loaded() == [], "it is still loading"
        network.free.set()
        while pool.loaded() != ["gfpgan-1.4"]:
            await asyncio.sleep(0.01)

    pool = networks.NetworkPool(ServeSettings(max_models=1))
    try:
        asyncio.run(asyncio.wait_for(cancel(pool), 30))
        with pool.use("restoreformer", None) as loaded:
            assert loaded.users == 1
        assert pool.loaded() == ["restoreformer"]
    finally:
        network.free.set()
        pool.close()


def test_a_session_needs_the_token_and_a_place(serve, network):
    network.function = sharpen
    with serve(token=TOKEN, max_streams=1) as client:
        with pytest.raises(Exception, match="403|401"):
            with session(client, headers={"authorization": "Bearer wrong"}):
                pass
        with session(client) as socket:
            assert code_of(client) == "busy"
            assert exchange(socket, png(face()))[1] == "restored"
        wait_for(lambda: "streams 0.0" in client.get("/metrics").text)
        with session(client) as socket:
            socket.send("text in the place of a frame")
            assert "error" in json.loads(socket.recv(10))
            with pytest.raises(ConnectionClosed):
                socket.recv(10)
    assert RAW == 1
