#!/bin/sh
# The cases that tools/test.sh leaves out, in the active environment: tools/long.sh [PYTEST OPTIONS]
set -eu
cd "$(dirname "$0")/.."

exec python -m pytest -m long "$@"
