"""Original crops for `match: source`, as MuseTalk's attachment keeps them."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_enhance import GFPGANEnhancer, attach
from musetalk_enhance.hosts.crops import LoopedCrops, mirror_index
from tests.hosts.host_folder import host_folder, run_host


def crop(value: int) -> np.ndarray:
    return np.full((32, 24, 3), value, np.uint8)


def values(crops) -> list[int]:
    return [int(each[0, 0, 0]) for each in crops]


def test_crops_come_as_the_host_plays_them():
    crops = LoopedCrops()
    for value in range(3):
        crops.add(crop(value))
    assert values(crops.take(4)) == [0, 1, 2, 2]
    assert values(crops.take(4)) == [1, 0, 0, 1]
    crops.rewind()
    assert values(crops.take(2)) == [0, 1]
    crops.rewind()
    crops.add(crop(9))
    assert values(crops.take(2)) == [9, 9]


class Latents:
    """What the host encodes a crop to."""


def test_the_crops_of_the_latents_that_the_host_plays():
    crops, first, second = LoopedCrops(), [Latents(), Latents()], [Latents(), Latents()]
    for number, latents in enumerate(first):
        crops.add(crop(number), latents)
    crops.begin([*first, *first[::-1]])
    assert values(crops.take(5)) == [0, 1, 1, 0, 0]
    for number, latents in enumerate(second, 5):
        crops.add(crop(number), latents)
    crops.begin(second)
    assert values(crops.take(3)) == [5, 6, 5]
    crops.begin(first[1:])
    assert values(crops.take(2)) == [1, 1]


def test_an_avatar_of_an_earlier_run_has_no_crops_of_another():
    crops, latents = LoopedCrops(), Latents()
    crops.add(crop(1), latents)
    crops.begin([Latents(), latents])
    first, second = crops.take(2)
    assert first is None and values([second]) == [1]
    crops.begin([Latents()])
    assert crops.take(1) is None
    crops.rewind()
    assert crops.take(1) is None, "another audio for the same avatar"


def test_crops_live_as_long_as_the_hosts_latents():
    crops, latents = LoopedCrops(), Latents()
    crops.add(crop(1), latents)
    del latents
    assert not crops._of_latents


def test_a_crop_comes_back_bit_for_bit(rng):
    crops, picture = LoopedCrops(), rng.integers(0, 256, (256, 256, 3), np.uint8)
    crops.add(picture)
    assert np.array_equal(crops.take(1)[0], picture)


def test_threads_have_crops_of_their_own():
    crops = LoopedCrops()
    crops.add(crop(1))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(crops.take, 1).result() is None


def test_the_loop_turns_at_both_ends():
    assert [mirror_index(3, step) for step in range(8)] == [0, 1, 2, 2, 1, 0, 0, 1]


class Vae:
    """MuseTalk's, which gives back a blurred crop."""

    def __init__(self, soft: np.ndarray) -> None:
        self.soft = soft

    def get_latents_for_unet(self, image):
        return image

    def decode_latents(self, latents):
        return self.soft[[int(each) for each in latents]].copy()


@pytest.fixture
def frames(take, soft):
    from tests.pictures import to_frames

    return to_frames(take[:6]), to_frames(soft[:6])


def test_attach_passes_the_crops_on(frames):
    """The same as passing them by hand; another task begins with the first crop again."""
    sharp, blurred = frames
    vae = Vae(blurred)
    options = {"model": "lite", "backend": "torch", "match": "source"}
    enhancer, by_hand = GFPGANEnhancer(**options), GFPGANEnhancer(**options)
    expected = by_hand(blurred[:4], sources=sharp[:4])
    with attach(vae, enhancer):
        for each in sharp:
            vae.get_latents_for_unet(each)
        first = vae.decode_latents(range(4))
        for each in sharp:
            vae.get_latents_for_unet(each)
        again = vae.decode_latents(range(4))
    assert np.array_equal(first, expected)
    assert np.array_equal(again, expected)
    assert not np.array_equal(first, GFPGANEnhancer(model="lite", backend="torch")(blurred[:4]))


def test_without_crops_it_says_so_once(frames, caplog):
    vae = Vae(frames[1])
    enhancer = GFPGANEnhancer(model="lite", backend="torch", match="source")
    with attach(vae, enhancer), caplog.at_level(logging.WARNING):
        first = vae.decode_latents(range(2))
        vae.decode_latents(range(2))
    assert caplog.text.count("match: source has no effect") == 1
    assert np.array_equal(first, GFPGANEnhancer(model="lite", backend="torch")(frames[1][:2]))


VAE_MODULE = """
import numpy as np
class Latents: pass
class VAE:
    def get_latents_for_unet(self, image):
        return Latents()
    def decode_latents(self, latents):
        return np.full((len(latents), 64, 64, 3), 90, np.uint8)
"""
UTILS = """
def datagen(whisper_chunks, vae_encode_latents, batch_size=8):
    for first in range(0, len(whisper_chunks), batch_size):
        yield whisper_chunks[first : first + batch_size]
"""
SCRIPT = """
import json, pathlib
import numpy as np
from musetalk.models.vae import VAE, Latents
from musetalk.utils.utils import datagen
vae = VAE()
def play(latents):
    for batch in datagen([0] * 3, vae_encode_latents=latents, batch_size=3):
        vae.decode_latents(batch)
prepared = [vae.get_latents_for_unet(np.full((64, 64, 3), value, np.uint8)) for value in (1, 2)]
play(prepared + prepared[::-1])
play([Latents(), Latents()])  # an avatar that was prepared in another run
play(prepared)
pathlib.Path("result.json").write_text(json.dumps([]))
"""


def test_an_avatar_loaded_from_disk_after_another_one(tmp_path, monkeypatch, capsys):
    files = {
        "musetalk/models/vae.py": VAE_MODULE,
        "musetalk/utils/utils.py": UTILS,
        "realtime_inference.py": SCRIPT,
    }
    sources = []
    call = GFPGANEnhancer.__call__

    def noting(enhancer, frames, **hints):
        sources.append([None if crop is None else values([crop])[0] for crop in hints["sources"]])
        return call(enhancer, frames, **hints)

    monkeypatch.setattr(GFPGANEnhancer, "__call__", noting)
    flags = ["--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_match", "source"]
    with host_folder(tmp_path, files, monkeypatch):
        code, _ = run_host("realtime_inference.py", *flags, "--gfpgan_backend", "torch")
    assert code == 0
    assert sources == [[1, 2, 2], [None] * 3, [1, 2, 1]]
    assert capsys.readouterr().err.count("match: source has no effect") == 1
