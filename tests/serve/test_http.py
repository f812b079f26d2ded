"""What the service refuses, and what it tells about itself."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import zlib
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError
from musetalk_enhance.serve import ServeSettings, create_app
from tests.serve.conftest import TOKEN, png, portrait, upload


def test_state_and_openapi(serve):
    with serve() as client:
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/ready").json() == {"status": "ready", "model": "lite"}
        text = client.get("/metrics").text
        assert 'requests_total{route="/ready",status="200"} 1.0' in text
        schema = client.get("/openapi.json").json()
    body = schema["paths"]["/restore"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    options = body["multipart/form-data"]["schema"]["properties"]
    assert {"image", "use_face_restoration", "face_restoration_weight", "upscale_factor"} <= set(
        options
    )
    answers = schema["paths"]["/restore"]["post"]["responses"]
    assert {"200", "401", "413", "422", "429", "503"} <= set(answers)


def test_readiness_and_errors_before_the_start():
    """An application that has not started is alive, and not ready."""
    import asyncio

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(create_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [(await client.get(path)).status_code for path in ("/health", "/ready")]

    assert asyncio.run(ask()) == [200, 503]


def test_a_token_is_required_where_there_is_one(serve):
    wrong = [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xff"]
    with serve(token=TOKEN) as client:
        del client.headers["authorization"]
        for header in [*wrong, f"Bearer {TOKEN}"]:
            headers = {} if header is None else {"authorization": header.encode("latin-1")}
            status = 401 if header in wrong else 200
            assert client.get("/models", headers=headers).status_code == status
            answer = client.post("/restore", headers=headers, **upload(portrait()))
            assert answer.status_code == status
            assert status == 200 or answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_other_hosts_need_a_token():
    with pytest.raises(ConfigError, match="token"):
        ServeSettings(host="0.0.0.0")
    with pytest.raises(ConfigError, match="16 characters") as error:
        ServeSettings(token="secret")
    assert "secret" not in str(error.value)
    settings = ServeSettings(host="0.0.0.0", token=TOKEN)
    assert TOKEN not in repr(settings)


def test_pages_of_other_origins_are_refused(serve):
    """Against DNS rebinding and forms of other pages; a listed origin may."""
    with serve(cors="https://good.example") as client:
        host = urlsplit(str(client.base_url)).netloc
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            (f"http://{host}", 200),
            ("https://good.example", 200),
        ):
            assert client.get("/models", headers={"origin": origin}).status_code == status
        assert client.get("/models", headers={"host": "evil.example"}).status_code == 403
        answer = client.get("/models", headers={"origin": "https://good.example"})
        assert answer.headers["access-control-allow-origin"] == "https://good.example"


def test_every_answer_has_security_headers(serve):
    with serve() as client:
        for answer in (client.get("/health"), client.get("/nothing"), client.post("/restore")):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert "access-control-allow-origin" not in answer.headers
            assert "server" not in answer.headers


def bomb(side: int = 30000) -> bytes:
    """A PNG of a few kilobytes with 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    header = side.to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    rows = zlib.compress(bytes(2**20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)


def malformed(count: int) -> list[tuple[dict, int]]:
    """Uploads that are no image, or too large a one, and the statuses that are right."""
    rng = np.random.default_rng(3)
    whole = png(portrait(side=32))
    cases: list[tuple[dict, int]] = []
    for index in range(count):
        kind = index % 10
        data, name = rng.bytes(int(rng.integers(1, 2000))), "face.png"
        if kind == 0:
            data = b""
        elif kind == 1:
            data = whole[: int(rng.integers(1, len(whole) - 40))]
        elif kind == 2:
            data = bomb()
        elif kind == 3:
            data = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
        elif kind == 4:
            data = b"#EXTM3U\nfile:///etc/passwd\n"
        elif kind == 5:
            data, name = b"GIF89a<script>alert(1)</script>" + data, "../../etc/passwd"
        elif kind == 6:
            data, name = b"%PDF-1.7\n" + data, "a\x00b.png"
        elif kind == 7:
            data, name = whole[:8] + data, "x" * 300 + ".png"
        elif kind == 8:
            data = b"\xff\xd8\xff\xe0" + data
        cases.append(({"files": {"image": (name, data)}}, 422))
    return cases


def check_malformed(client, count: int) -> None:
    good = upload(portrait(), has_aligned="true", response="image")
    expected = client.post("/restore", **good).content
    for index, (request, status) in enumerate(malformed(count)):
        answer = client.post("/restore", **request)
        assert answer.status_code == status, (index, answer.text)
        assert answer.json()["error"]["code"] in ("image", "invalid")
    assert client.post("/restore", **good).content == expected


def test_malformed_uploads_are_refused(serve):
    with serve() as client:
        check_malformed(client, 60)


@pytest.mark.long
def test_a_thousand_malformed_uploads_leave_memory_flat(serve):
    import psutil

    with serve() as client:
        check_malformed(client, 200)
        first = psutil.Process().memory_info().rss
        check_malformed(client, 1000)
        growth = psutil.Process().memory_info().rss - first
    print(f"grew by {growth / 2**20:.1f} MiB")
    assert growth < 40 * 2**20


INVALID = [
    ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "content_type"),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed"),
    ({"content": b"[" * 9999, "headers": {"content-type": "application/json"}}, 400, None),
    ({"json": []}, 422, "invalid"),
    ({"json": {}}, 422, "invalid"),
    ({"json": {"image": 5}}, 422, "invalid"),
    ({"json": {"image": "%%%"}}, 422, "invalid"),
    ({"json": {"image": ""}}, 422, "image"),
    ({"data": {"image": "text"}}, 415, "content_type"),
    ({"files": {"other": b"x"}}, 422, "invalid"),
    ({"files": [("image", b"x"), ("image", b"y")]}, 400, "malformed"),
    ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, "malformed"),
    (upload(portrait(), face_restoration_weight="2"), 422, "invalid"),
    (upload(portrait(), face_restoration_weight="nan"), 422, "invalid"),
    (upload(portrait(), upscale_factor="inf"), 422, "invalid"),
    (upload(portrait(), face_size="256"), 422, "invalid"),
    (upload(portrait(), det_model="../x"), 422, "invalid"),
    (upload(portrait(), unknown="1"), 422, "invalid"),
]


def test_invalid_requests_say_what_is_wrong(serve):
    with serve() as client:
        for request, status, code in INVALID:
            answer = client.post("/restore", **request)
            assert answer.status_code == status, (request, answer.text)
            error = answer.json()["error"]
            assert error["message"] and (code is None or error["code"] == code), request


def test_limits_of_bytes_and_pixels(serve):
    with serve(max_body="1MiB", max_pixels=5000) as client:
        assert client.post("/restore", **upload(portrait(side=64))).status_code == 200
        large = client.post("/restore", **upload(portrait(side=64), upscale_factor="2"))
        assert large.status_code == 422 and "pixels" in large.json()["error"]["message"]
        announced = client.post("/restore", files={"image": bytes(2**20)})
        assert announced.status_code == 413
        # a body of unknown length is counted as it comes
        parts = (bytes(2**16) for _ in range(40))
        headers = {"content-type": "application/json"}
        assert client.post("/restore", content=parts, headers=headers).status_code == 413
        assert client.get("/health").status_code == 200


def test_a_client_that_stops_in_the_middle_of_a_body_is_dropped(serve):
    with serve(time_limit=0.5) as client:
        url = urlsplit(str(client.base_url))
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
        connection.putrequest("POST", "/restore")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", "100")
        connection.endheaders(b"{")
        answer = connection.getresponse()
        assert answer.status == 503
        assert json.loads(answer.read())["error"]["code"] == "time_limit"
        connection.close()


def test_a_bug_is_500_without_its_words_and_the_connection_goes_on(serve, monkeypatch):
    from musetalk_enhance.serve.images import ImageService

    def fail(*_):
        raise ZeroDivisionError("/secret/path")

    with serve() as client:
        monkeypatch.setattr(ImageService, "restore", fail)
        answer = client.post("/restore", **upload(portrait()))
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal"
        assert "secret" not in answer.text
        assert client.get("/health").status_code == 200


def test_nothing_secret_is_logged(serve, caplog):
    caplog.set_level(logging.DEBUG)
    with serve(token=TOKEN) as client:
        client.post("/restore", **upload(portrait()))
        client.get("/models", headers={"authorization": "Bearer another secret"})
    text = caplog.text
    assert TOKEN not in text and "another secret" not in text
    assert "PNG" not in text


def test_the_command_refuses_what_cannot_be_served(capsys, monkeypatch):
    from musetalk_enhance.cli import main

    monkeypatch.delenv("MUSETALK_ENHANCE_TOKEN", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "MUSETALK_ENHANCE_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("MUSETALK_ENHANCE_TOKEN", "short")
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "short" not in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.delenv("MUSETALK_ENHANCE_TOKEN")
        port = str(listener.getsockname()[1])
        assert main(["serve", "--port", port, "--model", "lite", "--face-detector", "none"]) == 2
    assert "free" in capsys.readouterr().err


def test_loads_of_a_missing_detector_say_what_to_do(capsys):
    from musetalk_enhance.cli import main

    assert main(["serve", "--port", "0", "--model", "lite", "--face-detector", "retinaface"]) == 2
    assert "weights fetch" in capsys.readouterr().err
