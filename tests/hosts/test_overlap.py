"""Enhancing beside a host's loop: order, errors, streams, and the old import path."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from musetalk_enhance import GFPGANEnhancer, attach
from musetalk_enhance.errors import FrameError
from musetalk_enhance.hosts.overlap import Ahead, overlapped


def test_results_come_in_order_from_one_other_thread():
    threads = set()

    def enhance(batch):
        threads.add(threading.get_ident())
        return batch * 2

    assert list(overlapped(enhance, iter(range(7)))) == [0, 2, 4, 6, 8, 10, 12]
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert list(overlapped(enhance, [])) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_the_host_is_never_more_than_depth_ahead(depth):
    made = []

    def batches():
        for number in range(6):
            made.append(number)
            yield number

    ahead = [len(made) - 1 - done for done in overlapped(lambda batch: batch, batches(), depth)]
    assert ahead[0] == depth and max(ahead) == depth and ahead[-1] == 0


def test_the_next_batch_is_generated_while_one_is_enhanced():
    """The enhancer waits for the host's second batch: in turn this would never end."""
    second = threading.Event()

    def batches():
        yield 1
        second.set()
        yield 2

    assert list(overlapped(lambda batch: second.wait(10), batches())) == [True, True]


def test_an_error_comes_out():
    def fail(batch):
        raise ValueError(batch)

    with pytest.raises(ValueError, match="1"):
        list(overlapped(fail, [1, 2]))


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a second GPU and notes which streams it is kept for."""

    is_cuda = True
    device = torch.device("cuda:1")

    def record_stream(self, stream):
        kept.append((float(self.flatten()[0]), stream))


kept: list = []


@pytest.fixture
def second_gpu(monkeypatch):
    """torch.cuda whose current device is 1 in this thread and, as ever, 0 in any other."""
    notes = SimpleNamespace(waits=[], streams=[], synchronised=0)
    main = threading.get_ident()

    class Side:
        def __init__(self, index):
            notes.streams.append(index)

        def wait_event(self, event):
            notes.waits.append(event)

        def synchronize(self):
            notes.synchronised += 1

    fakes = {
        "is_available": lambda: True,
        "current_device": lambda: int(threading.get_ident() == main),
        "Stream": Side,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda device: SimpleNamespace(
            record_event=lambda: f"ready {device}", host=threading.get_ident() == main
        ),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr("musetalk_enhance.hosts.overlap._STREAMS", {})
    kept.clear()
    return notes


def on_gpu(value):
    return torch.full((1, 3, 2, 2), float(value)).as_subclass(OnGpu)


@pytest.mark.parametrize(
    "wrap", [lambda tensor: tensor, lambda tensor: [tensor, tensor], lambda tensor: (tensor,)]
)
def test_tensors_wait_for_the_host_s_stream_and_the_host_s_for_ours(second_gpu, wrap):
    (done,) = overlapped(lambda batch: wrap(on_gpu(5)), [wrap(on_gpu(2))])
    assert type(done) is type(wrap(on_gpu(0)))
    assert (
        second_gpu.streams == [1]
        and second_gpu.waits == ["ready cuda:1"]
        and second_gpu.synchronised == 1
    )
    count = len(wrap(0)) if isinstance(wrap(0), (list, tuple)) else 1
    assert [value for value, _ in kept] == [2.0] * count + [5.0] * count
    assert all(stream.host for _, stream in kept[count:])


def test_arrays_are_enhanced_on_the_gpu_that_is_current_for_the_host(second_gpu):
    assert list(overlapped(lambda batch: batch, [np.zeros(1)])) == [0]
    assert second_gpu.streams == [1] and not second_gpu.waits and not kept


def test_frames_ahead_are_arrays_for_whoever_looks():
    ahead, gate = Ahead(), threading.Event()

    def enhance(batch):
        gate.wait(10)
        return batch + 1

    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    pending = ahead.submit(enhance, frames)
    assert len(pending) == 2, "known at once"
    first, second = pending
    gate.set()
    assert np.array_equal(first.astype(np.uint8), frames[0] + 1)
    assert np.array_equal(np.asarray(second), frames[1] + 1)
    assert first.shape == (4, 4, 3) and first.dtype == np.uint8 and len(first) == 4
    assert np.array_equal(pending[-1][0], frames[1, 0] + 1)
    assert np.array_equal(np.asarray(pending), frames + 1)
    assert pending.shape == (2, 4, 4, 3) and pending[0, 1, 2, 0] == frames[0, 1, 2, 0] + 1
    ahead.close()


def test_the_host_waits_for_the_oldest_of_too_many():
    ahead, gate, submitted = Ahead(depth=2), threading.Event(), []

    def host():
        for number in range(4):
            submitted.append(ahead.submit(lambda batch: gate.wait(10) and batch, np.zeros(number)))

    thread = threading.Thread(target=host)
    thread.start()
    while len(submitted) < 2:
        pass
    thread.join(0.2)
    assert thread.is_alive() and len(submitted) == 2
    gate.set()
    thread.join(10)
    assert [len(each) for each in submitted] == [0, 1, 2, 3]
    ahead.close()


def test_a_failed_batch_ahead_is_the_hosts_own(caplog):
    ahead = Ahead()

    def fail(batch):
        raise ValueError("no")

    frames = np.full((2, 4, 4, 3), 7, np.uint8)
    assert np.array_equal(np.asarray(ahead.submit(fail, frames)), frames)
    tensor = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    assert np.array_equal(np.asarray(ahead.submit(fail, tensor)), frames)
    assert caplog.text.count("a batch is returned as it was") == 2
    ahead.close()


def test_an_error_ahead_is_raised_by_the_next_call_where_errors_are_to_be():
    """The frames are there all the same: the host's second thread waits for them."""
    ahead, frames = Ahead(), np.full((2, 4, 4, 3), 7, np.uint8)

    def fail(batch):
        raise ValueError("no")

    failed = ahead.submit(fail, frames, "raise")
    assert np.array_equal(np.asarray(failed), frames)
    with pytest.raises(ValueError, match="no"):
        ahead.submit(fail, frames, "raise")
    assert np.array_equal(np.asarray(ahead.submit(lambda batch: batch + 1, frames)), frames + 1)
    ahead.submit(fail, frames, "raise")
    with pytest.raises(ValueError, match="no"):
        ahead.close()
    ahead.close()


def test_attach_ahead_raises_where_errors_are_to_be():
    class Vae:
        def decode_latents(self, number):
            return np.full((2, 256, 256, 3), number, np.float32)

    vae = Vae()
    enhancer = GFPGANEnhancer(model="lite", backend="torch", on_error="raise")
    attachment = attach(vae, enhancer, overlap=True)
    np.asarray(vae.decode_latents(np.nan))
    with pytest.raises(FrameError):
        vae.decode_latents(0.5)
    vae.decode_latents(np.nan)
    with pytest.raises(FrameError):
        attachment.detach()
    assert not attachment.attached and "decode_latents" not in vars(vae)


def test_an_error_of_the_task_before_does_not_join_the_next_one_to_it(monkeypatch):
    """The first batch of a task raises it; the next one begins the task's stream."""

    class Vae:
        def get_latents_for_unet(self, image):
            return image

        def decode_latents(self, number):
            return np.full((2, 256, 256, 3), number, np.float32)

    vae, resets = Vae(), []
    enhancer = GFPGANEnhancer(model="lite", backend="torch", on_error="raise")
    monkeypatch.setattr(enhancer, "reset", lambda: resets.append(1))
    with attach(vae, enhancer, overlap=True):
        np.asarray(vae.decode_latents(np.nan))
        vae.get_latents_for_unet(0)
        with pytest.raises(FrameError):
            vae.decode_latents(0.5)
        assert not resets
        for _ in range(2):
            np.asarray(vae.decode_latents(0.5))
    assert resets == [1]


@pytest.mark.parametrize("result", [None, np.zeros((1, 4, 4, 3), np.uint8)])
def test_a_batch_ahead_with_frames_missing_is_the_hosts_own(result):
    """MuseTalk would wait for the missing ones for ever."""
    ahead, frames = Ahead(), np.full((2, 4, 4, 3), 7, np.uint8)
    pending = ahead.submit(lambda batch: result, frames)
    assert np.array_equal(np.stack([np.asarray(each) for each in pending]), frames)
    ahead.close()


def test_attach_ahead_gives_the_same_frames(take):
    """As MuseTalk's realtime loop uses them: queued one by one, looked at by another thread."""
    from tests.pictures import soften, to_frames

    soft = to_frames(soften(take[:12]))

    class Vae:
        def decode_latents(self, numbers):
            return soft[list(numbers)]

    batches = [range(0, 4), range(4, 8), range(8, 12)]
    expected = GFPGANEnhancer(model="lite", backend="torch")
    expected = np.concatenate([expected(soft[list(each)]) for each in batches])
    vae, frames = Vae(), []
    with attach(vae, GFPGANEnhancer(model="lite", backend="torch"), overlap=True) as attachment:
        for numbers in batches:
            frames.extend(vae.decode_latents(numbers))
        result = [frame.astype(np.uint8) for frame in frames]
    assert np.array_equal(np.stack(result), expected)
    assert attachment.enhancer.stats.frames == 12
    assert np.array_equal(np.asarray(frames[0]), expected[0]), "also after the end"
