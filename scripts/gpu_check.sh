#!/usr/bin/env bash
# The tests that need CUDA and the benchmarks, on a machine with an NVIDIA GPU: under 25 minutes, no network, one table.
#   bash scripts/gpu_check.sh [--data DATA] [--run RUN] [--output runs/gpu_check]     PYTHON=... chooses the interpreter
# Exit status: 0 all well, 1 a step failed or ran out of time, 3 no CUDA here.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
    python=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=agg MLFLOW_DISABLE_TELEMETRY=true
exec "$python" scripts/gpu_check.py "$@"
