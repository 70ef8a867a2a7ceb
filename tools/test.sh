#!/bin/sh
# The checks of the project, in a virtual environment of its own: tools/test.sh [PYTEST OPTIONS]
# The long cases of the tests are left out: tools/long.sh.
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
    # not compiled: about half of the modules are imported, and each is compiled then
    "$venv/bin/pip" install --quiet --no-compile --disable-pip-version-check --config-settings editable_mode=compat -e ".[dev,docs,cluster,service,postgres]"
    touch "$venv/ready"
}

# the service's tests need a PostgreSQL, a browser, nginx and Prometheus; without them they are skipped, with the reason;
# without OpenBLAS those that run a model take three times as long
packages() {
    if ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 && command -v chromium >/dev/null && command -v chromedriver >/dev/null &&
        command -v promtool >/dev/null && [ -x /usr/sbin/nginx ] &&
        ls /usr/lib/*/openblas-pthread/libopenblas.so.0 >/dev/null 2>&1; then
        return
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "== packages: some tests are skipped; needed: sudo apt-get install postgresql chromium chromium-driver nginx-light prometheus libopenblas0-pthread"
        return
    fi
    # tests start servers of their own: the package's would only take the port
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    export DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
    apt-get update -qq || echo "== packages: apt-get update failed"
    apt-get install -qq -y --no-install-recommends -o Dpkg::Options::=--force-confold postgresql chromium chromium-driver \
        nginx-light prometheus libopenblas0-pthread >/dev/null ||
        echo "== packages: apt-get install failed; some tests are skipped"
}

stage packages packages
[ -e "$venv/ready" ] || stage install install
. "$venv/bin/activate"
stage format ruff format --check .
stage lint ruff check .
stage house python -m tools.house rooms length english
stage imports lint-imports
stage types mypy
stage docs env NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
fast_blas="from mint.run.blas import fast_environment; print(fast_environment().get('LD_PRELOAD', ''))"
blas=$(python -c "$fast_blas")
# a file stays in one process: its tests share what they make
stage tests env ${blas:+LD_PRELOAD="$blas" OPENBLAS_NUM_THREADS=1 OPENBLAS_THREAD_TIMEOUT=8} pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
