#!/usr/bin/env bash
# Tests marked `label`, with real programs: sets up .venv, MONAI Label's environment (.venv-label) and Slicer's core
# (.venv-slicer), on Debian also Orthanc and Chromium. Arguments are passed to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev
source scripts/other_programs.sh # Chromium
source scripts/debian_packages.sh
export MEDUNET_LABEL_ENV="${MEDUNET_LABEL_ENV:-$PWD/.venv-label}" MEDUNET_SLICER_ENV="${MEDUNET_SLICER_ENV:-$PWD/.venv-slicer}"
.venv/bin/medunet label setup
if [ ! -f "$MEDUNET_SLICER_ENV/ready" ] && [ "$MEDUNET_SLICER_ENV" = "$PWD/.venv-slicer" ]; then
    # the newest release with wheels for Python 3.11; without it the tests of the scene are skipped
    "${PYTHON:-python3}" -m venv .venv-slicer
    .venv-slicer/bin/python -m pip install --quiet slicer-core==5.13.31053.0 && touch .venv-slicer/ready ||
        echo "slicer-core is not installed; the tests of Slicer's scene are skipped" >&2
fi
if [ -z "${MEDUNET_ORTHANC:-}" ]; then
    install_packages Orthanc "the tests of a DICOMweb store" orthanc orthanc-dicomweb
fi
export MPLBACKEND=agg
exec .venv/bin/python -m pytest -m label -s tests/deploy "$@"
