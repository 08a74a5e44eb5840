#!/usr/bin/env bash
# `pip install .` in an empty environment, then `medunet demo` in an empty folder, as a user does it (about 8 minutes).
# Arguments go to the demo, for instance --epochs 1.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$(pwd)"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --constraint scripts/constraints.txt torch
"$folder/venv/bin/python" -m pip install --quiet --constraint scripts/constraints.txt "$root"
mkdir "$folder/empty"
cd "$folder/empty"
"$folder/venv/bin/medunet" demo "$@"
test -s medunet_demo/report.html
test -s medunet_demo/run/models/model.pt
echo "installed and run outside of the checkout"
