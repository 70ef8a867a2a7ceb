#!/bin/sh
# Smoke run with the lowest versions that pyproject.toml allows, for each Python: tools/lowest.sh [3.11 3.12 ...]
# Versions that have wheels only; needs uv, which fetches a Python that is not there.
set -eu
cd "$(dirname "$0")/.."
. tools/python.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$(find_python)" -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet --disable-pip-version-check uv
uv=$work/uv/bin/uv
export MINT_CACHE="$work/cache" HF_HUB_OFFLINE=1

for version in ${*:-3.11 3.12 3.13}; do
    python=$work/$version/bin/python
    "$uv" venv --quiet --python "$version" "$work/$version"
    "$uv" pip install --quiet --resolution lowest-direct --only-binary :all: --no-binary mint-mlx \
        --python "$python" -e ".[gguf,service,cluster]"
    [ -e "$work/model" ] ||
        "$python" -c "from pathlib import Path; from tools.models.families import write_family
write_family('llama', Path('$work/model'), num_hidden_layers=2, hidden_size=64, vocab_size=256,
             intermediate_size=128, head_dim=16)"
    for command in "" serve "service check" cluster; do
        "$python" -m mint $command --help >/dev/null
    done
    "$python" -m mint quantize "$work/model" --budget 6bpw --quality good --output "$work/out-$version"
    "$python" -m mint evaluate "$work/out-$version" --reference "$work/model" --tokens 64 --window 16
    echo "== Python $version works with the lowest versions"
done
