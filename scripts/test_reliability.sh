#!/usr/bin/env bash
# Hostile bundles, crashes and privacy: the tests of each, the slow ones too, with 50 kills of a training and of a prediction.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MEDUNET_TEST_KILLS="${MEDUNET_TEST_KILLS:-50}"
exec .venv/bin/python -m pytest tests/trust tests/test_crash_safety.py tests/test_files.py tests/cli/test_privacy.py "$@"
