#!/usr/bin/env bash
# From a fresh clone to a trained, measured U-Net: sets up .venv and runs `medunet demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
exec .venv/bin/medunet demo "$@"
