#!/usr/bin/env bash
# Looks for known vulnerabilities of the packages in .venv with pip-audit. Fails if there are any. Reports and passes if the
# database cannot be reached or pip-audit is missing. ACCEPTED has identifiers that do not apply, each with its reason.
set -euo pipefail
cd "$(dirname "$0")/.."
ACCEPTED=()
python="${MEDUNET_AUDIT_PYTHON:-.venv/bin/python}"
if ! "$python" -m pip_audit --version >/dev/null 2>&1; then
    echo "audit: skipped, pip-audit is not installed"
    exit 0
fi
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
# no database knows the local version of a build, such as 2.13.0+cpu
.venv/bin/python -m pip list --format freeze --exclude-editable --exclude medunet | sed 's/+[A-Za-z0-9.]*$//' >"$folder/all.txt"
ignored=()
for name in ${ACCEPTED[@]+"${ACCEPTED[@]}"}; do ignored+=(--ignore-vuln "$name"); done
"$python" -m pip_audit -r "$folder/all.txt" --no-deps --disable-pip --timeout 15 --progress-spinner off --format json \
    --output "$folder/found.json" ${ignored[@]+"${ignored[@]}"} >"$folder/log" 2>&1 || true
if [ ! -s "$folder/found.json" ]; then
    echo "audit: skipped, the database of vulnerabilities cannot be reached ($(tail -n 1 "$folder/log" | cut -c 1-120))"
    exit 0
fi
exec "$python" - "$folder/found.json" <<'EOF'
import json
import sys
from pathlib import Path

packages = json.loads(Path(sys.argv[1]).read_text())["dependencies"]
audited = [package for package in packages if "vulns" in package]
if not audited:
    print("audit: skipped, the database of vulnerabilities cannot be reached: it knows none of the packages")
    sys.exit(0)
found = [(package, flaw) for package in audited for flaw in package["vulns"]]
for package, flaw in found:
    print(f"audit: {package['name']} {package['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'none'}")
print(f"audit: {len(audited)} of {len(packages)} packages known to the database, {len(found)} vulnerabilities")
sys.exit(bool(found))
EOF
