"""Original crops for `match: source`, as MuseTalk's attachment keeps them."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest

from musetalk_enhance import GFPGANEnhancer, attach
from musetalk_enhance.faces import detect
from musetalk_enhance.hosts.crops import LoopedCrops, mirror_index
from tests.hosts.host_folder import host_folder, run_host


def crop(value: int) -> np.ndarray:
    return np.full((32, 24, 3), value, np.uint8)


def values(crops) -> list[int]:
    return [int(each[0, 0, 0]) for each in crops]


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


def test_a_loop_begins_with_any_of_its_latents():
    crops, latents = LoopedCrops(), [Latents(), Latents(), Latents()]
    for number, each in enumerate(latents):
        crops.add(crop(number), each)
    crops.begin(latents, 7)
    assert values(crops.take(3)) == [1, 2, 0]


def test_an_avatar_of_an_earlier_run_has_no_crops_of_another():
    crops, latents = LoopedCrops(), Latents()
    crops.add(crop(1), latents)
    crops.begin([Latents(), latents])
    first, second = crops.take(2)
    assert first is None and values([second]) == [1]
    crops.begin([Latents()])
    assert crops.take(1) is None


def test_what_is_decoded_may_be_of_another_clip_than_the_one_encoded_last():
    crops, latents = LoopedCrops(), Latents()
    crops.add(crop(1), latents)
    assert crops.take(1) is None, "the host has not said what it plays"
    crops.begin([latents])
    assert values(crops.take(1)) == [1]
    crops.end()
    assert crops.take(1) is None


def test_the_list_with_latents_is_recognized_among_other_arguments():
    crops, latents = LoopedCrops(), [Latents(), Latents()]
    for number, each in enumerate(latents, 1):
        crops.add(crop(number), each)
    frames = iter(latents)
    crops.begin_any([[0] * 3, 8, tuple(latents), frames])
    assert values(crops.take(3)) == [1, 2, 1]
    assert next(frames) is latents[0], "nothing of the host's is consumed"
    crops.begin_any([[0] * 3, 8, np.zeros((2, 8, 4, 4))])
    assert crops.take(1) is None


def test_crops_live_as_long_as_the_hosts_latents():
    crops, latents = LoopedCrops(), Latents()
    crops.add(crop(1), latents)
    del latents
    assert not crops._of_latents


def test_a_crop_comes_back_bit_for_bit(rng):
    crops, picture = LoopedCrops(), rng.integers(0, 256, (256, 256, 3), np.uint8)
    latents = Latents()
    crops.add(picture, latents)
    crops.begin([latents])
    assert np.array_equal(crops.take(1)[0], picture)


def test_threads_play_loops_of_their_own_of_what_any_of_them_encoded():
    crops, latents = LoopedCrops(), Latents()
    crops.add(crop(1), latents)
    crops.begin([latents])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(crops.take, 1).result() is None
        pool.submit(crops.begin, [latents]).result()
        crops.end()
        assert values(pool.submit(crops.take, 1).result()) == [1]


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
    """The same as passing them by hand; another audio begins with the first crop again."""
    sharp, blurred = frames
    vae = Vae(blurred)
    options = {"model": "lite", "backend": "torch", "match": "source"}
    enhancer, by_hand = GFPGANEnhancer(**options), GFPGANEnhancer(**options)
    expected = by_hand(blurred[:4], sources=sharp[:4])
    with attach(vae, enhancer) as attachment:
        first_clip = [vae.get_latents_for_unet(each) for each in sharp]
        attachment.begin_loop(first_clip)
        first = vae.decode_latents(range(4))
        other_clip = [vae.get_latents_for_unet(each) for each in sharp[::-1]]
        attachment.begin_loop(first_clip)
        again = vae.decode_latents(range(4))
    assert np.array_equal(first, expected)
    assert np.array_equal(again, expected), f"not one of the {len(other_clip)} encoded last"
    assert not np.array_equal(first, GFPGANEnhancer(model="lite", backend="torch")(blurred[:4]))


@pytest.mark.parametrize(
    "arguments", [(["audio"], [], 8, 2), (["audio"], [], 8), (["audio"], []), ()]
)
def test_the_first_latents_are_those_that_datagen_is_told(frames, arguments):
    """`delay_frame` by position or by name."""
    sharp, blurred = frames
    options = {"model": "lite", "backend": "torch", "match": "source"}
    enhancer, by_hand = GFPGANEnhancer(**options), GFPGANEnhancer(**options)
    expected = by_hand(blurred[2:4], sources=sharp[2:4])
    vae = Vae(blurred)
    with attach(vae, enhancer) as attachment:
        clip = [vae.get_latents_for_unet(each) for each in sharp]
        positional = [clip if each == [] else each for each in arguments]
        names = {} if len(arguments) == 4 else {"delay_frame": 2}
        names |= {} if arguments else {"vae_encode_latents": clip}
        attachment.begin_loop_of(*positional, **names)
        assert np.array_equal(vae.decode_latents(range(2, 4)), expected)


def test_attach_takes_no_crops_by_position(frames, caplog):
    """Another clip was encoded last than the one that is decoded."""
    sharp, blurred = frames
    vae = Vae(blurred)
    enhancer = GFPGANEnhancer(model="lite", backend="torch", match="source")
    with attach(vae, enhancer), caplog.at_level(logging.WARNING):
        clips = [[vae.get_latents_for_unet(each) for each in sharp[::step]] for step in (1, -1)]
        first = vae.decode_latents(range(2))
        vae.decode_latents(range(2))
    assert len(clips) == 2 and caplog.text.count("call begin_loop(latents)") == 1
    assert np.array_equal(first, GFPGANEnhancer(model="lite", backend="torch")(blurred[:2]))


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


@pytest.fixture
def sources(monkeypatch):
    """Values of the crops of each batch."""
    batches = []
    call = GFPGANEnhancer.__call__

    def noting(enhancer, frames, **hints):
        batches.append([None if crop is None else values([crop])[0] for crop in hints["sources"]])
        return call(enhancer, frames, **hints)

    monkeypatch.setattr(GFPGANEnhancer, "__call__", noting)
    return batches


FLAGS = ("--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_match", "source")
FILES = {
    "musetalk/models/vae.py": VAE_MODULE,
    "musetalk/utils/utils.py": UTILS,
    "realtime_inference.py": SCRIPT,
}


def test_an_avatar_loaded_from_disk_after_another_one(tmp_path, monkeypatch, capsys, sources):
    with host_folder(tmp_path, FILES, monkeypatch):
        code, _ = run_host("realtime_inference.py", *FLAGS, "--gfpgan_backend", "torch")
    assert code == 0
    assert sources == [[1, 2, 2], [None] * 3, [1, 2, 1]]
    assert capsys.readouterr().err.count("match: source has no effect") == 1


@pytest.mark.parametrize(
    ("parameters", "call"),
    [
        ("chunks, latents, batch_size=8", "datagen(chunks=[0] * 3, latents=latents, batch_size=3)"),
        ("batch_size, chunks, latents", "datagen(3, [0] * 3, latents)"),
        ("chunks, batch_size=8, **latents", "datagen([0] * 3, 3, of_avatar=tuple(latents))"),
    ],
)
def test_a_fork_that_names_its_parameters_otherwise(
    tmp_path, monkeypatch, sources, parameters, call
):
    loop = UTILS.replace("whisper_chunks, vae_encode_latents, batch_size=8", parameters)
    script = SCRIPT.replace("datagen([0] * 3, vae_encode_latents=latents, batch_size=3)", call)
    assert script != SCRIPT
    files = {
        **FILES,
        "musetalk/utils/utils.py": loop.replace("whisper_chunks", "chunks"),
        "realtime_inference.py": script,
    }
    with host_folder(tmp_path, files, monkeypatch):
        code, _ = run_host("realtime_inference.py", *FLAGS, "--gfpgan_backend", "torch")
    assert code == 0
    assert sources == [[1, 2, 2], [None] * 3, [1, 2, 1]]


def test_a_fork_that_plays_something_else_than_it_encoded(tmp_path, monkeypatch, capsys, sources):
    script = SCRIPT.replace("vae_encode_latents=latents", "vae_encode_latents=str(latents)")
    with host_folder(tmp_path, {**FILES, "realtime_inference.py": script}, monkeypatch):
        code, _ = run_host("realtime_inference.py", *FLAGS, "--gfpgan_backend", "torch")
    assert code == 0 and sources == [[None] * 3] * 3
    assert capsys.readouterr().err.count("match: source has no effect") == 1


LINLY_TALKER = """
import sys
sys.path.append("./Musetalk")
from musetalk.utils.utils import datagen, load_all_model
"""
APP = """
import json, pathlib, threading
import numpy as np
from TFG.MuseTalk import datagen, load_all_model
vae = load_all_model()
def in_thread(function, *args):  # as a page serves its requests
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join()
    return results[0]
def prepare(*crops):
    return [vae.get_latents_for_unet(np.full((64, 64, 3), value, np.uint8)) for value in crops]
def play(latents):
    return [vae.decode_latents(batch) for batch in datagen([0] * 3, latents, 3)]
first, second = in_thread(prepare, 1, 2), in_thread(prepare, 5, 6)
for latents in (first, second[::-1], first):
    in_thread(play, latents)
pathlib.Path("result.json").write_text(json.dumps([]))
"""


def test_linly_talkers_avatars_are_played_by_other_threads(tmp_path, monkeypatch, capsys, sources):
    loop = "from musetalk.models.vae import VAE\ndef load_all_model():\n    return VAE()\n" + UTILS
    files = {
        "TFG/MuseTalk.py": LINLY_TALKER,
        "Musetalk/musetalk/models/vae.py": VAE_MODULE,
        "Musetalk/musetalk/utils/utils.py": loop,
        "app_musetalk.py": APP,
        "src/utils/face_enhancer.py": "",
        "musetalk/notes.txt": "",  # so that its modules are forgotten
    }
    monkeypatch.setattr(detect, "make_detector", lambda *args, **kwargs: Mock())
    with host_folder(tmp_path, files, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))
        code, _ = run_host("app_musetalk.py", *FLAGS, "--gfpgan_backend", "torch")
    assert code == 0 and sources == [[1, 2, 1], [6, 5, 6], [1, 2, 1]]
    assert "match: source has no effect" not in capsys.readouterr().err
