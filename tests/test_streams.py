"""Streams over one engine: each as if it were alone, whoever else uses the network at the same
time."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from torch.nn.functional import avg_pool2d

from musetalk_enhance.errors import ConfigError, RestorerError
from musetalk_enhance.pipeline.engine import Request
from tests.pictures import to_frames

ALL = {"stability": 1, "guard": True, "color_match": True}


def sharpen(batch):
    return batch + 0.4 * (batch - avg_pool2d(batch, 9, 1, 4, count_include_pad=False))


@pytest.fixture(scope="module")
def clips(soft) -> list[np.ndarray]:
    """Five clips of 8 frames, each of another face: mirrored, darker, upside down, in other
    colors."""
    frames = to_frames(soft[:8])
    return [frames, frames[:, :, ::-1], frames // 2, frames[:, ::-1], frames[..., ::-1]]


@pytest.fixture(scope="module")
def alone(clips) -> list[np.ndarray]:
    from tests.conftest import enhancer_around

    return [enhancer_around(sharpen, **ALL)(clip) for clip in clips]


def test_streams_in_turns_give_the_bytes_of_each_alone(make_enhancer, clips, alone):
    enhancer = make_enhancer(sharpen, **ALL)
    streams = [enhancer.stream() for _ in clips]
    parts = [
        [stream(clip[at : at + 2]) for stream, clip in zip(streams, clips, strict=True)]
        for at in (0, 2, 4, 6)
    ]
    for index, expected in enumerate(alone):
        assert np.array_equal(np.concatenate([part[index] for part in parts]), expected)
        assert streams[index].stats.frames == streams[index].stats.restored == 8
    assert enhancer.stats.frames == 0, "its own stream had none of them"


def test_five_threads_with_different_faces_never_mix(make_enhancer, clips, alone):
    enhancer = make_enhancer(sharpen, **ALL)
    results: list = [None] * len(clips)

    def session(index):
        stream = enhancer.stream()
        results[index] = np.concatenate([stream(clips[index][at : at + 1]) for at in range(8)])

    threads = [threading.Thread(target=session, args=(index,)) for index in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, expected in zip(results, alone, strict=True):
        assert np.array_equal(result, expected)


def test_faces_of_many_streams_go_through_the_network_together(make_enhancer, clips, alone):
    enhancer = make_enhancer(sharpen, batch_size=8, **ALL)
    streams = [enhancer.stream() for _ in clips]
    out = []
    for at in (0, 4):
        requests = [
            Request(stream, clip[at : at + 4]) for stream, clip in zip(streams, clips, strict=True)
        ]
        out.append([restored.frames for restored in enhancer.engine.restore(requests)])
    shapes = [shape[0] for shape in enhancer.engine.model.restorer.backend.shapes]
    assert shapes == [8, 8, 4, 8, 8, 4], "full batches over the borders of streams"
    for index, expected in enumerate(alone):
        both = np.concatenate([out[0][index], out[1][index]])
        assert np.abs(both.astype(int) - expected).max() <= 1


def test_a_bad_frame_of_one_stream_costs_the_others_nothing(make_enhancer, clips, alone):
    def fussy(batch):
        if (batch.flatten(1).mean(1) > 0.95).any():
            raise RuntimeError("too bright")
        return sharpen(batch)

    enhancer = make_enhancer(fussy, **ALL)
    good, bad = enhancer.stream(), enhancer.stream()
    white = np.full_like(clips[0][:2], 255)
    first, second = enhancer.engine.restore([Request(good, clips[0]), Request(bad, white)])
    assert np.array_equal(first.frames, alone[0]) and np.array_equal(second.frames, white)
    assert bad.stats.failed == 2 and good.stats.failed == 0


def test_options_of_a_stream_are_its_own(make_enhancer, clips):
    enhancer = make_enhancer(sharpen, color="bgr")
    rgb = enhancer.stream(color="rgb", output_size=128)
    assert rgb(clips[0][:1]).shape == (1, 128, 128, 3)
    with pytest.raises(ConfigError, match="stability"):
        enhancer.stream(stability=0)


def test_a_closed_stream_is_closed_and_the_network_is_not(make_enhancer, clips):
    enhancer = make_enhancer(sharpen)
    with enhancer.stream() as stream:
        stream(clips[0][:1])
    with pytest.raises(RestorerError, match="closed"):
        stream(clips[0][:1])
    assert enhancer(clips[0][:1]).shape == (1, 256, 256, 3)
    other = enhancer.stream()
    enhancer.close()
    with pytest.raises(RestorerError, match="closed"):
        other(clips[0][:1])


def test_frames_that_need_no_network_do_not_reach_it(make_enhancer, clips):
    """Same bits as before, covered altogether, and strength 0; the others still fill the batch."""
    enhancer = make_enhancer(sharpen, batch_size=4)
    still = np.repeat(clips[0][:1], 5, 0)
    frames = np.concatenate([still, clips[0][1:4]])
    masks = [None] * 7 + [np.ones((256, 256), bool)]
    enhancer(frames, occlusion=masks)
    assert sum(shape[0] for shape in enhancer.engine.model.restorer.backend.shapes) == 3
    assert enhancer.stats.repeated == 4 and enhancer.stats.left_alone == {"covered": 1}
    off = make_enhancer(sharpen, strength=0)
    assert np.array_equal(off(frames), frames) and off.engine.model.restorer.backend.shapes == []
