#!/usr/bin/env bash
# Sets up .venv and runs all checks and tests; `--slow` adds the slow ones, other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev
source scripts/other_programs.sh
markers="not slow"
if [ "${1:-}" = "--slow" ]; then
    markers="not services" # those have a script of their own
    shift
fi
.venv/bin/ruff check .
.venv/bin/codespell
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/medunet bundle render --check
scripts/audit.sh
# one thread a process: two test processes with two threads each would wait for each other
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=agg
exec .venv/bin/python -m pytest -n "${MEDUNET_TEST_PROCESSES:-2}" --dist worksteal -m "$markers" "$@"
