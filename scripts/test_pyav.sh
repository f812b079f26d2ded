#!/usr/bin/env bash
# Films with every generation of PyAV that setup.cfg allows, beside the one in .venv: bash scripts/test_pyav.sh [VERSION...]
# (14.0 and 14.1 are refused for writing films, so they are not among them)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh all
[ $# -gt 0 ] || set -- 12.3.0 13.1.0 14.2.0 15.1.0 16.1.0 17.0.0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in "$@"; do
    "$PY" -m pip install --quiet --no-deps --only-binary :all: --target "$folder/$version" "av==$version"
    echo "PyAV $version"
    PYTHONPATH=$folder/$version "$PY" -m pytest --quiet tests/media tests/jobs/test_video.py
done
