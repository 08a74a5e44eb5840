#!/usr/bin/env bash
# The core with pydicom 2.4 and numpy 1.26, which MONAI Label's environment has, and without highdicom, which needs pydicom 3.
# Makes an environment of its own, .venv-oldest (about 3 minutes); arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=".venv-oldest"
pins="$folder/constraints.txt"
if [ ! -f "$folder/ready" ]; then
    "${PYTHON:-python3}" -m venv "$folder"
    printf '%s\n' "torch==2.13.0" "monai==1.6.1" "numpy==1.26.4" "pydicom==2.4.4" >"$pins"
    "$folder/bin/python" -m pip install --quiet --constraint "$pins" torch
    "$folder/bin/python" -m pip install --quiet --constraint "$pins" pytest pytest-xdist hypothesis "$(pwd)"
    touch "$folder/ready"
fi
"$folder/bin/python" -c "import numpy, pydicom, importlib.util as u; assert u.find_spec('highdicom') is None; print('numpy', numpy.__version__, 'pydicom', pydicom.__version__)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=agg PYTHONPATH="$PWD"
exec "$folder/bin/python" -m pytest -q -n "${MEDUNET_TEST_PROCESSES:-2}" --dist worksteal -m "not slow" \
    --override-ini "filterwarnings=default" tests/io tests/datasets tests/networks tests/losses tests/transforms tests/metrics \
    tests/inferers tests/prediction "$@"
