#!/usr/bin/env bash
# The whole check: style, types, tests. Makes .venv with every extra when it is missing.
# More arguments go to pytest: bash scripts/test.sh -m "not slow" -k frames
# What takes more than a minute for one test is left out here: bash scripts/test_long.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh all
"$PY" -m ruff check .
"$PY" -m mypy
"$PY" -m pytest -m "not long" "$@"
