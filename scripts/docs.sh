#!/usr/bin/env bash
# Build the documentation into site/. It is strict: a broken link or reference is an error. After the set-up it needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev
.venv/bin/python scripts/docs_reference.py --check
.venv/bin/zensical build --strict --clean --config-file mkdocs.yml
echo "open site/index.html"
