"""schemathesis on the OpenAPI of a running server: nothing it sends is answered with a 5xx."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.serve.conftest import running

COMMAND = os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis")
"""It is not in an extra: its plugin for pytest would slow every test run down."""


@pytest.mark.long
def test_nothing_that_the_schema_allows_is_a_5xx(network, tmp_path):
    if COMMAND is None:
        pytest.skip("schemathesis is not installed (pip install schemathesis, or set SCHEMATHESIS)")
    from musetalk_enhance.serve import ServeSettings

    settings = ServeSettings(data_dir=str(tmp_path), time_limit=20)
    with running(settings) as url:
        command = [
            *COMMAND.split(),
            *("run", f"{url}/openapi.json", "--checks", "not_a_server_error"),
            *("--max-examples", "20", "--seed", "1", "--phases", "examples,coverage,fuzzing"),
            *("--exclude-path", "/generate"),  # answers 501 without a model, as documented
        ]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert result.returncode == 0, result.stdout[-5000:]
