#!/usr/bin/env bash
# Tests that need CUDA, and benchmarks, on a machine with an NVIDIA GPU: under 10 minutes, no network, one table.
#   bash scripts/gpu_check.sh [--data DATA] [--run RUN] [--output runs/gpu_check]     PYTHON=... chooses the interpreter
# Exit status: 0 success, 1 a step failed or exceeded its time, 3 no CUDA device.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
    python=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=agg MLFLOW_DISABLE_TELEMETRY=true
exec "$python" -m scripts.gpu_check "$@"
