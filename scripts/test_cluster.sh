#!/usr/bin/env bash
# Several processes, hosts and machines: sets up .venv with Ray (about 250 MB) and runs all tests of medunet.deploy.cluster, including
# slow ones: 2 and 4 training processes, kills, 2 hosts as network namespaces (root), a Ray cluster of 2 machines of which one dies.
# On Debian also Orthanc, as a DICOMweb store. Arguments are passed to pytest. About 10 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev,ray
source scripts/debian_packages.sh
install_packages Orthanc "the test of a DICOMweb store" orthanc orthanc-dicomweb
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=agg
exec .venv/bin/python -m pytest tests/deploy/cluster tests/deploy/monailabel/test_orthanc_{cohort,listen}.py tests/networks/test_batch_norm.py "$@"
