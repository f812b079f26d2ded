"""The endpoints of Stable Diffusion web UI, with the bodies that its clients send."""

from __future__ import annotations

import base64

import numpy as np

from musetalk_enhance.serve import networks
from tests.serve.conftest import decoded, png, portrait

SENT = {
    "resize_mode": 0,
    "show_extras_results": True,
    "gfpgan_visibility": 1,
    "codeformer_visibility": 0,
    "codeformer_weight": 0,
    "upscaling_resize": 2,
    "upscaling_crop": True,
    "upscaler_1": "None",
    "upscaler_2": "None",
    "extras_upscaler_2_visibility": 0,
    "upscale_first": False,
}
SINGLE, BATCH = "/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images"


def text(image: np.ndarray) -> str:
    return base64.b64encode(png(image)).decode()


def pixels(text: str) -> np.ndarray:
    return decoded(base64.b64decode(text))


def test_the_body_of_an_existing_client(serve):
    image = portrait(1, 200)
    with serve() as client:
        answer = client.post(SINGLE, json={**SENT, "image": text(image)})
        half = client.post(SINGLE, json={**SENT, "image": text(image), "gfpgan_visibility": 0.5})
        plain = client.post(SINGLE, json={**SENT, "image": text(image), "gfpgan_visibility": 0})
        names = [one["name"] for one in client.get("/sdapi/v1/face-restorers").json()]
    assert names == ["CodeFormer", "GFPGAN"]
    assert answer.json()["html_info"] == "1 of 1 faces restored by lite"
    after, mixed, before = (pixels(one.json()["image"]) for one in (answer, half, plain))
    assert after.shape == mixed.shape == before.shape == (400, 400, 3)
    center = slice(190, 210)
    inverse = 255 - before[center, center].astype(int)
    assert np.abs(after[center, center] - inverse).mean() < 12
    assert np.abs(mixed[center, center].astype(int) - 127).mean() < 12
    assert np.array_equal(after[:20], before[:20])


def test_a_batch_keeps_its_order(serve):
    images = [portrait(seed, 100) for seed in range(3)]
    body = {**SENT, "upscaling_resize": 1}
    with serve() as client:
        each = [
            client.post(SINGLE, json={**body, "image": text(image)}).json()["image"]
            for image in images
        ]
        listed = [{"data": text(image), "name": f"{at}.png"} for at, image in enumerate(images)]
        answer = client.post(BATCH, json={**body, "imageList": listed}).json()
    assert answer["images"] == each and len(set(each)) == 3


def test_codeformer_has_its_own_weight_and_is_409_where_it_is_absent(serve, network, monkeypatch):
    body = {**SENT, "gfpgan_visibility": 0, "codeformer_visibility": 1, "codeformer_weight": 0.3}
    with serve() as client:
        absent = client.post(SINGLE, json={**body, "image": text(portrait())})
        assert absent.status_code == 409
        monkeypatch.setattr(
            networks.weights, "find", lambda name: name if name == "CodeFormer" else None
        )
        answer = client.post(SINGLE, json={**body, "image": text(portrait(1, 100))})
    assert answer.json()["html_info"] == "1 of 1 faces restored by codeformer"
    assert network.loads == ["auto", "codeformer"] and network.fidelities == [None, 0.3]


def test_invalid_bodies(serve):
    with serve() as client:
        for change in (
            {"image": "%"},
            {"image": None},
            {"image": text(portrait()), "gfpgan_visibility": 2},
            {"image": text(portrait()), "resize_mode": 1},
            {"image": text(portrait()), "upscaling_resize": 100},
        ):
            assert client.post(SINGLE, json={**SENT, **change}).status_code == 422, change
        assert client.post(BATCH, json={**SENT, "imageList": []}).status_code == 422
        assert client.post(SINGLE, data={"image": "x"}).status_code == 415
