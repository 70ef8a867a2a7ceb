#!/bin/sh
# Lines and branches of mint and cluster that the tests run, in the active environment: tools/coverage.sh [FOLDER ...]
# The folders of tests run one after another, all by default. Kernels run as Python too, in their own tests.
set -eu
cd "$(dirname "$0")/.."

export COVERAGE_FILE=build/coverage/data COVERAGE_RCFILE="$PWD/pyproject.toml" OPENBLAS_NUM_THREADS=1
mkdir -p build/coverage
python -m coverage erase
[ $# -gt 0 ] || set -- tests/mint/*/ tests/cluster/*/ tests/service/*/ tests/tools/
for folder in "$@"; do
    python -m coverage run -m pytest -q -p no:cacheprovider "$folder" || echo "== $folder: tests failed"
    case $folder in
    tests/mint/kernels*) NUMBA_DISABLE_JIT=1 python -m coverage run -m pytest -q -p no:cacheprovider "$folder" ||
        echo "== $folder: tests failed without compiled kernels" ;;
    esac
done
python -m coverage combine --quiet
python -m coverage report --show-missing --skip-covered --sort=miss
