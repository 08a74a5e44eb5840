#!/usr/bin/env bash
# Fuzzes the readers of every format and the scan of bundles, each for MINUTES (10 by default); arguments go to pytest.
# usage: scripts/fuzz.sh [MINUTES] [-k nii ...]
set -euo pipefail
cd "$(dirname "$0")/.."
export MEDUNET_FUZZ_MINUTES="${1:-10}" MEDUNET_FUZZ_EXAMPLES="${MEDUNET_FUZZ_EXAMPLES:-1000}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
shift || true
# a reader that asks for the whole machine fails instead of having it
ulimit -v "${MEDUNET_FUZZ_KB:-16000000}" 2>/dev/null || true
exec .venv/bin/python -m pytest tests/test_fuzz.py tests/trust/test_generated.py -s "$@"
