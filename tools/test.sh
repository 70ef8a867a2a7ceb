#!/bin/sh
# Every check of the project, in a virtual environment of its own: tools/test.sh [PYTEST OPTIONS]
set -eu
cd "$(dirname "$0")/.."

venv=${MINT_TEST_VENV:-.venv-test}

find_python() {
    for python in python3.11 python3.12 python3.13 python3; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "No Python 3.11 or later with venv was found; needed: one on the PATH. Install it and run this again." >&2
    return 1
}

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
    "$venv/bin/pip" install --quiet --disable-pip-version-check -e ".[dev]"
    touch "$venv/ready"
}

[ -e "$venv/ready" ] || stage install install
. "$venv/bin/activate"
stage format ruff format --check .
stage lint ruff check .
stage types mypy
stage tests pytest "$@"
