# Sourced by the other scripts: creates .venv with medunet's dependencies once; later calls return immediately.
# usage: source scripts/setup.sh [EXTRA]     PYTHON=python3.12 chooses the interpreter
setup_environment() {
    local extra="${1:-}" python="${PYTHON:-python3}" stamp wanted
    stamp=".venv/.medunet${extra:+-$extra}"
    wanted="$(cat pyproject.toml scripts/constraints.txt | cksum) $(pwd)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    echo "installing medunet and its dependencies into .venv; this takes some minutes" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # torch first and alone: otherwise another package may choose its build
    .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt torch
    .venv/bin/python -m pip install --quiet --constraint scripts/constraints.txt --editable ".${extra:+[$extra]}"
    printf '%s' "$wanted" >"$stamp"
}
setup_environment "${1:-}"
