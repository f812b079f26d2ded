#!/usr/bin/env bash
# The whole check: style, types, tests. Makes .venv with every extra when it is missing.
# More arguments go to pytest: bash scripts/test.sh -m "not slow" -k frames
# What takes more than a minute for one test is left out here: bash scripts/test_long.sh
# Tests run in WORKERS processes (2) of one thread each; WORKERS=0 OMP_NUM_THREADS=2 is one process.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh all
"$PY" -m ruff check .
"$PY" -m mypy
# threads of several processes that spin while they wait would take the cores from each other
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
"$PY" -m pytest -m "not long" -n "${WORKERS:-2}" --dist worksteal "$@"
