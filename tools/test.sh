#!/bin/sh
# Every check of the project, in a virtual environment of its own: tools/test.sh [PYTEST OPTIONS]
set -eu
cd "$(dirname "$0")/.."

venv=${MINT_TEST_VENV:-.venv-test}

. tools/python.sh

stage() {
    name=$1
    shift
    start=$(date +%s)
    "$@"
    echo "== $name: $(($(date +%s) - start)) s"
}

install() {
    python=$(find_python)
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -e ".[dev,cluster,service,postgres]"
    touch "$venv/ready"
}

[ -e "$venv/ready" ] || stage install install
. "$venv/bin/activate"
stage format ruff format --check .
stage lint ruff check .
stage types mypy
stage tests pytest "$@"
