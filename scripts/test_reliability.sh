#!/usr/bin/env bash
# Hostile bundles and files, crashes, faults, privacy, soak: the tests of each, the slow ones too, with 50 kills of a training
# and of a prediction and 1,000 predictions in one process; then fuzzing (MEDUNET_FUZZ_MINUTES a format, 0 by default:
# a short run), the label server with four clients for MEDUNET_SOAK_MINUTES (10) where its environment is there, and the
# audit of the installed packages. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MEDUNET_TEST_KILLS="${MEDUNET_TEST_KILLS:-50}" MPLBACKEND=agg
export MEDUNET_SOAK_CASES="${MEDUNET_SOAK_CASES:-1000}" MEDUNET_SOAK_MINUTES="${MEDUNET_SOAK_MINUTES:-10}"
.venv/bin/python -m pytest tests/trust tests/test_crash_safety.py tests/test_files.py tests/test_faults.py tests/test_bad_cases.py \
    tests/cli/test_privacy.py tests/io/test_isolation.py tests/io/test_limits.py tests/io/dicom/test_deidentify.py \
    tests/prediction/test_predictor.py tests/deploy/monailabel/test_gate.py \
    tests/test_soak.py -s "$@"
scripts/fuzz.sh "${MEDUNET_FUZZ_MINUTES:-0}" "$@"
if [ -f "${MEDUNET_LABEL_ENV:-.venv-label}/medunet-label.json" ]; then
    MEDUNET_LABEL_ENV="${MEDUNET_LABEL_ENV:-$PWD/.venv-label}" .venv/bin/python -m pytest -m label -s \
        tests/deploy/monailabel/test_real_server.py -k memory
else
    echo "the label server's soak is skipped: bash scripts/test_label.sh sets its environment up"
fi
scripts/audit.sh
