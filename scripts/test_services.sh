#!/usr/bin/env bash
# Tests marked `services`: the label server and MLflow behind nginx, and the images of the Dockerfile, as docs/howto/deploy.md shows them.
# Sets up .venv and MONAI Label's environment (.venv-label), on Debian also nginx and, without Docker, Podman. Arguments are passed
# to pytest. Takes 28 minutes on one busy core, half of them for the images (3.4 and 6.4 GB, removed at the end).
#   MEDUNET_CONTAINER        program and options, such as "podman --runtime runc". Default: docker or podman
#   MEDUNET_CONTAINER_BUILD  further options of `build`, such as "--build-arg BASE=registry.example/python:3.11-slim"
#   MEDUNET_CONTAINER_RUN    further options of `run`
#   MEDUNET_CONTAINER_BASE   debian: create the base image from Debian's packages (debootstrap, root) if no registry can be reached
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh dev
source scripts/debian_packages.sh
export MEDUNET_LABEL_ENV="${MEDUNET_LABEL_ENV:-$PWD/.venv-label}"
.venv/bin/medunet label setup
PATH="$PATH:/usr/sbin"
install_packages nginx "the tests of a proxy" nginx openssl
command -v docker >/dev/null || install_packages podman "the tests of images" podman runc
if [ "${MEDUNET_CONTAINER_BASE:-}" = debian ]; then
    install_packages debootstrap "the tests of images" debootstrap
    read -ra engine <<<"${MEDUNET_CONTAINER:-$(command -v docker || command -v podman)}"
    if ! "${engine[@]}" image inspect localhost/python:debian >/dev/null 2>&1; then
        base="$(mktemp -d)"
        trap 'rm -rf "$base"' EXIT
        # this system's release: the local packages are built for its Python
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
            "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$base" >/dev/null
        ln -s python3 "$base/usr/bin/python"
        tar -C "$base" -c . | "${engine[@]}" import - localhost/python:debian
    fi
    MEDUNET_CONTAINER_BUILD="--build-arg BASE=localhost/python:debian ${MEDUNET_CONTAINER_BUILD:-}"
fi
export MEDUNET_CONTAINER_BUILD="${MEDUNET_CONTAINER_BUILD:-}" MPLBACKEND=agg OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
.venv/bin/python -m pytest -m services tests/deploy tests/tracking "$@"
