"""POST /restore: what it does to an image, and that no two requests mix."""

from __future__ import annotations

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest

from musetalk_enhance.faces.paste import crop_face
from tests.jobs.conftest import SMALL, Middle
from tests.serve.conftest import decoded, png, portrait, upload

ALIGNED = {"has_aligned": "true", "face_restoration_weight": "1", "response": "image"}


def test_a_face_is_restored_and_described(serve):
    image = portrait(side=200)
    with serve() as client:
        answer = client.post("/restore", **upload(image, face_restoration_weight="1")).json()
    after = decoded(base64.b64decode(answer.pop("image")))
    assert answer["face_restoration_applied"] and answer["error"] is None
    assert (answer["model"], answer["weight_is"]) == ("lite", "strength")
    assert answer["det_model"] == "yunet" and answer["size_wh"] == [200, 200]
    (face,) = answer["faces"]
    assert face["box_xyxy"] == [60, 60, 140, 140] and face["score"] == 0.9
    assert face["state"] == "restored" and face["strength"] == 1 and face["change"] > 1
    assert set(answer["timings_ms"]) == {
        *("decode", "detect", "network", "paste", "encode", "total"),
    }
    assert np.abs(after[100, 100].astype(int) - (255 - image[100, 100])).max() < 40
    assert np.array_equal(after[:10], image[:10])


def test_the_face_size_is_the_models_own(serve):
    with serve() as client:
        listed = {model["name"]: model["face_size"] for model in client.get("/models").json()}
        own = client.post("/restore", **upload(portrait(), face_size="64"))
        other = client.post("/restore", **upload(portrait(), face_size="512"))
        named = client.post("/restore", **upload(portrait(), face_size="512", model="gpen_bfr_256"))
    assert (listed["lite"], listed["gfpgan-1.4"], listed["gpen_bfr_2048"]) == (64, 512, 2048)
    assert own.status_code == 200
    assert other.status_code == named.status_code == 422
    assert other.json()["error"]["message"] == "face_size: 512; lite has 64"
    assert named.json()["error"]["message"] == "face_size: 512; gpen_bfr_256 has 256"


@pytest.mark.parametrize("route", ["/restore", "/stream"])
@pytest.mark.parametrize("side", [256, 1024])
def test_a_face_is_cropped_as_its_network_expects(serve, network, side, route):
    """On its own template, and in its own size without a detour over a smaller one."""
    image, received = portrait(3, 300), []
    network.info = replace(SMALL, landmark_template="arcface_128", input_size=side)
    network.info = replace(network.info, output_size=side)

    def function(faces):
        received.append(faces)
        return 1 - faces

    with serve() as client:
        network.function = function
        if route == "/restore":
            assert client.post("/restore", **upload(image)).status_code == 200
        else:
            from tests.serve.test_live import exchange, session

            options = {"format": "raw", "width": 300, "height": 300, "input": "frames"}
            with session(client, **options) as socket:
                assert exchange(socket, image.tobytes())[1] != "late"
    (faces,) = received
    (face,) = Middle().detect(image)
    crop = crop_face(image, face.landmarks, max(side, 512), "arcface_128").aligned
    expected = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    actual = faces[0].permute(1, 2, 0).numpy()[..., ::-1] * 255
    assert actual.shape == (side, side, 3)
    assert np.abs(actual - expected).max() <= (0.01 if side == 1024 else 2)
    ffhq = crop_face(image, face.landmarks, side).aligned
    assert np.abs(actual - ffhq).mean() > 2


def test_json_and_multipart_give_the_same_bytes(serve):
    image = portrait()
    with serve() as client:
        direct = client.post("/restore", **upload(image, **ALIGNED))
        for prefix in ("", "data:image/png;base64,"):
            text = prefix + base64.b64encode(png(image)).decode()
            body = {"image": text, "has_aligned": True, "face_restoration_weight": 1}
            answer = client.post("/restore", json=body).json()
            assert base64.b64decode(answer.pop("image")) == direct.content
    assert direct.headers["content-type"] == "image/png"
    header = json.loads(direct.headers["x-face-restoration"])
    assert header["faces"] == answer["faces"] and header["face_restoration_applied"]
    assert np.abs(decoded(direct.content).astype(int) - (255 - image.astype(int))).max() <= 1


def test_an_image_without_a_face_comes_back_byte_for_byte(serve):
    image = portrait()
    image[..., 0], image[..., 2] = 250, 0  # the detector of these tests sees no face in blue
    with serve() as client:
        answer = client.post("/restore", **upload(image)).json()
        larger = client.post("/restore", **upload(image, upscale_factor="2")).json()
    assert not answer["face_restoration_applied"] and answer["faces"] == []
    assert base64.b64decode(answer["image"]) == png(image)
    assert not larger["face_restoration_applied"] and larger["size_wh"] == [128, 128]


@pytest.mark.parametrize(("weight", "share"), [("0", 0), ("0.5", 0.5), (None, 0.6)])
def test_weight_blends_over_the_input(serve, weight, share):
    image = portrait()
    options = ALIGNED | {"face_restoration_weight": weight}
    with serve() as client:
        answer = client.post("/restore", **upload(image, **options))
    expected = image + share * (255 - 2 * image.astype(float))
    assert np.abs(decoded(answer.content) - expected).max() <= 1.01
    assert json.loads(answer.headers["x-face-restoration"])["face_restoration_weight"] == share


@pytest.mark.parametrize("aligned", ["true", "false"])
def test_restoration_can_be_left_out_and_the_image_enlarged(serve, network, aligned):
    options = {"use_face_restoration": "false", "upscale_factor": "2", "has_aligned": aligned}
    with serve() as client:
        network.batches.clear()
        answer = client.post("/restore", **upload(portrait(), **options)).json()
    assert not answer["face_restoration_applied"] and answer["size_wh"] == [128, 128]
    assert network.batches == []


def test_a_format_may_be_chosen(serve):
    with serve() as client:
        for name, kind in (("jpg", "jpeg"), ("webp", "webp"), ("png", "png")):
            answer = client.post("/restore", **upload(portrait(), **ALIGNED, format=name))
            assert answer.headers["content-type"] == f"image/{kind}"
            assert decoded(answer.content).shape == (64, 64, 3)


def test_64_clients_with_64_faces_each_get_their_own(serve, network):
    """By content: the inverse of the face that was sent, bit for bit as of the face alone."""
    images = [portrait(seed) for seed in range(64)]
    with serve(max_queue=64) as client:
        alone = [client.post("/restore", **upload(image, **ALIGNED)).content for image in images]
        network.batches.clear()
        with ThreadPoolExecutor(64) as pool:
            answers = list(
                pool.map(lambda image: client.post("/restore", **upload(image, **ALIGNED)), images)
            )
    assert [answer.status_code for answer in answers] == [200] * 64
    assert [answer.content for answer in answers] == alone
    assert len(set(alone)) == 64
    assert max(network.batches) > 1 and sum(network.batches) == 64, "gathered into batches"


def test_a_full_queue_is_429_and_nothing_is_lost(serve, network):
    with serve(max_queue=3) as client, ThreadPoolExecutor(12) as pool:
        network.free.clear()
        first = [
            pool.submit(client.post, "/restore", **upload(portrait(seed), **ALIGNED))
            for seed in range(3)
        ]
        assert network.begun.wait(10)
        wait_for(lambda: in_progress(client) == 3)
        refused = client.post("/restore", **upload(portrait(9), **ALIGNED))
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "busy"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        network.free.set()
        assert [answer.result().status_code for answer in first] == [200] * 3
        assert client.post("/restore", **upload(portrait(9), **ALIGNED)).status_code == 200


def test_a_request_that_takes_too_long_is_503_and_the_next_one_works(serve, network):
    with serve(time_limit=0.5) as client:
        network.free.clear()
        late = client.post("/restore", **upload(portrait(), **ALIGNED))
        assert late.status_code == 503 and late.json()["error"]["code"] == "time_limit"
        assert "retry-after" in late.headers
        network.free.set()
        wait_for(lambda: in_progress(client) == 0)
        assert client.post("/restore", **upload(portrait(), **ALIGNED)).status_code == 200


def test_a_client_that_is_gone_is_dropped(serve, network):
    """Its face never reaches the network, and its place is free."""
    import httpx

    with serve() as client:
        network.free.clear()
        network.begun.clear()
        first = upload(portrait(1), **ALIGNED)
        blocker = threading.Thread(target=client.post, args=("/restore",), kwargs=first)
        blocker.start()
        assert network.begun.wait(10)
        network.batches.clear()
        with pytest.raises(httpx.ReadTimeout):
            client.post("/restore", **upload(portrait(2), **ALIGNED), timeout=0.3)
        wait_for(lambda: in_progress(client) == 1)
        network.free.set()
        blocker.join(20)
        assert client.post("/restore", **upload(portrait(3), **ALIGNED)).status_code == 200
    assert network.batches == [1, 1]


def test_one_bad_request_of_a_batch_does_not_harm_the_others(serve, network):
    """The network fails on white faces; the rest of their batch is restored."""

    def function(faces):
        if (faces > 0.99).all(dim=(1, 2, 3)).any():
            raise RuntimeError("white")
        return 1 - faces

    white, images = np.full((64, 64, 3), 255, np.uint8), [portrait(seed) for seed in range(7)]
    with serve(batch_wait=200) as client, ThreadPoolExecutor(8) as pool:
        network.function = function
        answers = list(
            pool.map(
                lambda image: client.post("/restore", **upload(image, **ALIGNED)),
                [white, *images],
            )
        )
    bad, *good = answers
    assert bad.status_code == 200 and decoded(bad.content).min() == 255
    assert json.loads(bad.headers["x-face-restoration"])["error"]
    for image, answer in zip(images, good, strict=True):
        assert np.abs(decoded(answer.content).astype(int) - (255 - image.astype(int))).max() <= 1


def test_a_stop_ends_what_was_begun(network):
    import httpx

    from musetalk_enhance.serve import ServeSettings
    from tests.serve.conftest import running

    answers = []
    with running(ServeSettings(time_limit=20)) as url, ThreadPoolExecutor(1) as pool:
        assert httpx.get(f"{url}/ready").status_code == 200
        network.free.clear()
        network.begun.clear()
        answers.append(pool.submit(httpx.post, f"{url}/restore", **upload(portrait(), **ALIGNED)))
        assert network.begun.wait(10)
        threading.Timer(0.3, network.free.set).start()
    assert answers[0].result().status_code == 200


def test_models_change_without_a_restart(serve, network, monkeypatch):
    from musetalk_enhance.serve import networks

    monkeypatch.setattr(
        networks.weights, "find", lambda name: None if name == "CodeFormer" else name
    )
    with serve(max_models=2) as client:
        names = [model["name"] for model in client.get("/models").json()]
        assert {"lite", "gfpgan-1.4", "codeformer"} <= set(names)
        for model in ("gfpgan-1.4", "restoreformer", "lite"):
            answer = client.post("/restore", **upload(portrait(), has_aligned="true", model=model))
            assert answer.json()["model"] == model
        assert network.loads == ["auto", "gfpgan-1.4", "restoreformer", "auto"]
        assert list(dict.fromkeys(network.closed))[:2] == ["lite", "gfpgan-1.4"]
        loaded = {m["name"] for m in client.get("/models").json() if m["status"] == "loaded"}
        assert loaded == {"restoreformer", "lite"}
        absent = client.post("/restore", **upload(portrait(), model="codeformer"))
        assert absent.status_code == 409 and "/" not in absent.json()["error"]["message"]
        for name in ("nonsense", "../../etc/passwd", "/tmp/x.pth"):
            assert client.post("/restore", **upload(portrait(), model=name)).status_code == 422


def test_the_embedded_model_gives_what_it_gives_alone(monkeypatch):
    """End to end with lite: the same pixels as the class, up to the batch's arithmetic."""
    import httpx

    from musetalk_enhance import FaceEnhancer
    from musetalk_enhance.serve import ServeSettings
    from tests.serve.conftest import running

    images = [portrait(seed, 128) for seed in range(6)]
    with FaceEnhancer("lite", backend="torch", dtype="fp32", stability=0, guard=False) as enhancer:
        expected = [enhancer([image])[0] for image in images]
    settings = ServeSettings(model="lite", backend="torch", face_detector="none")
    with running(settings) as url, ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda image: httpx.post(f"{url}/restore", **upload(image, **ALIGNED)), images)
        )
    for answer, pixels in zip(answers, expected, strict=True):
        assert np.abs(decoded(answer.content).astype(int) - pixels).max() <= 1


def in_progress(client) -> int:
    lines = client.get("/metrics").text.splitlines()
    name = "musetalk_enhance_requests_in_progress "
    return int(float(next(line for line in lines if line.startswith(name)).split()[1]))


def wait_for(condition, seconds: float = 10) -> None:
    import time

    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
