#!/usr/bin/env bash
# Several processes, hosts and machines: sets up .venv with Ray (about 250 MB) and runs all tests of medunet.deploy.cluster, the
# slow ones too: 2 and 4 training processes, kills, 2 hosts as network namespaces (root), a Ray cluster of 2 machines of which one dies.
# Arguments go to pytest. About 10 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev,ray
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=agg
exec .venv/bin/python -m pytest tests/deploy/cluster tests/networks/test_batch_norm.py "$@"
