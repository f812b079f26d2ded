"""`--engine ray` on a cluster of this machine: two replicas, of which one is killed."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError
from musetalk_enhance.serve import ServeSettings, create_app, ray_images
from tests.conftest import ROOT
from tests.serve.conftest import decoded, portrait, running, upload
from tests.serve.test_restore import ALIGNED


def test_a_bad_file_is_a_configuration_error(tmp_path):
    for text in ("[1, 2]", "unknown: 1", "{"):
        (tmp_path / "ray.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"ray\.yaml"):
            ray_images._config(str(tmp_path / "ray.yaml"))
    assert ray_images._config(None) == {}
    assert ray_images._config(str(ROOT / "configs" / "ray_serve.yaml"))["deployment"][
        "num_replicas"
    ]
    with pytest.raises(ConfigError, match="ray_config"):
        ServeSettings(ray_config="x.yaml")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # Ray's own, of its processes and sockets
def test_a_replica_is_killed_and_no_request_is_lost_or_mixed():
    pytest.importorskip("ray.serve")
    import httpx

    settings = ServeSettings(
        model="lite", backend="torch", face_detector="none", engine="ray", time_limit=120
    )
    app, images = create_app(settings), [portrait(seed, 128) for seed in range(8)]
    with running(app=app, start_s=360) as url, httpx.Client(base_url=url, timeout=120) as client:
        handle = app.state.service.images.handle
        alone = [client.post("/restore", **upload(image, **ALIGNED)).content for image in images]
        pids: set[int] = set()
        while len(pids) < 2:
            pids.add(handle.process_id.remote().result())
        with ThreadPoolExecutor(16) as pool:
            futures = [
                pool.submit(client.post, "/restore", **upload(image, **ALIGNED))
                for image in images * 8
            ]
            os.kill(pids.pop(), signal.SIGKILL)
            answers = [future.result() for future in futures]
        assert [answer.status_code for answer in answers] == [200] * 64
        for index, answer in enumerate(answers):
            expected = decoded(alone[index % 8]).astype(int)
            assert np.abs(decoded(answer.content) - expected).max() <= 1
        bad = client.post("/restore", files={"image": b"x"})
        assert bad.status_code == 422
