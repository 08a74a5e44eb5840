#!/usr/bin/env bash
# MONAI Label and 3D Slicer with real parts: sets up .venv, MONAI Label's environment (.venv-label) and Slicer's core
# (.venv-slicer), on Debian also Orthanc and Chromium, then runs the tests marked `label`. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev
source scripts/other_programs.sh # Chromium
export MEDUNET_LABEL_ENV="${MEDUNET_LABEL_ENV:-$PWD/.venv-label}" MEDUNET_SLICER_ENV="${MEDUNET_SLICER_ENV:-$PWD/.venv-slicer}"
.venv/bin/medunet label --setup
if [ ! -f "$MEDUNET_SLICER_ENV/ready" ] && [ "$MEDUNET_SLICER_ENV" = "$PWD/.venv-slicer" ]; then
    # the newest that has wheels for Python 3.11; elsewhere the tests of the scene skip
    "${PYTHON:-python3}" -m venv .venv-slicer
    .venv-slicer/bin/python -m pip install --quiet slicer-core==5.13.31053.0 && touch .venv-slicer/ready ||
        echo "slicer-core is not installed; the tests of Slicer's scene skip" >&2
fi
install_orthanc() {
    local policy=/usr/sbin/policy-rc.d made=""
    # Debian would start its service at once, for everybody who reaches this machine; the tests start their own
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && made=yes
    fi
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends orthanc orthanc-dicomweb; } >/dev/null 2>&1 ||
        echo "Orthanc is not installed; the tests of a DICOMweb store skip" >&2
    if [ -n "$made" ]; then
        rm -f "$policy"
    fi
}
if [ -z "${MEDUNET_ORTHANC:-}" ] && ! command -v Orthanc >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
    install_orthanc
fi
export MPLBACKEND=agg
exec .venv/bin/python -m pytest -m label -s tests/deploy "$@"
