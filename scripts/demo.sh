#!/usr/bin/env bash
# The demo on a fresh machine: a soft talking head in, a sharper one out, files under out/demo/. No GPU, no
# download but the packages. Arguments go to examples/demo.py: bash scripts/demo.sh --seconds 8 --out out/long
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh demo
"$PY" examples/demo.py "$@"
