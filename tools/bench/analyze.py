"""Speed of measuring beside MLX operations in the same run, and memory of `mint quantize`.

    python -m tools.bench.analyze                  measuring one matrix
    python -m tools.bench.analyze --memory 12      peak memory on a made-up model of 12 shards (random weights)

Machines are noisy: read the ratios. `tools.bench.convert` measures whole processes.
"""

# R rows, C columns

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mint.formats.format import AFFINE
from mint.formats.layout import lay_out
from mint.formats.units import Unit
from mint.kernels import cpu, oracle
from mint.model.source import open_source
from mint.plan.plan import digits_for
from tools.bench.convert import quantizing, run

_PIECE = 1 << 20


def main() -> None:
    """Run the selected benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, metavar="SHARDS", help="measure peak memory on a made-up model")
    parser.add_argument("--layers-per-shard", type=int, default=3, help="with --memory: size of a shard (default 3)")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the measured matrix")
    parser.add_argument("--runs", type=int, default=5, help="runs per figure (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    record: dict[str, Any] = {"cores": os.cpu_count()}
    if options.memory:
        record["memory"] = memory(options.memory, options.layers_per_shard)
    else:
        record["measuring"] = measuring(options.size, options.runs)
    print(json.dumps(record, indent=2) if options.json else _table(record))


def measuring(size: int, runs: int) -> dict[str, float]:
    """Seconds to measure the 18 affine formats of one_core random bf16 matrix, for each implementation."""
    mx.random.seed(0)
    weight = mx.random.normal((1, size, size)).astype(mx.bfloat16)
    raw = np.asarray(weight.view(mx.uint16))
    cpu.errors(raw[:, :8], "BF16", AFFINE)  # compile
    operations = _median(1, lambda: oracle.errors(weight, AFFINE))
    one_core = _median(runs, lambda: cpu.errors(raw, "BF16", AFFINE, threads=1))
    all_cores = _median(runs, lambda: cpu.errors(raw, "BF16", AFFINE))
    return {
        "mlx_operations_seconds": operations,
        "fused_one_core_seconds": one_core,
        "fused_all_cores_seconds": all_cores,
        "operations_over_fused_one_core": operations / one_core,
        "operations_over_fused_all_cores": operations / all_cores,
        "fused_weights_per_second": size * size / all_cores,
    }


def memory(shards: int, layers_per_shard: int) -> dict[str, Any]:
    """Peak memory of `mint quantize` on a llama of random weights in `shards` shards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _made_model(folder / "model", shards, layers_per_shard)
        source = open_source(model)
        largest = max(unit.nbytes for unit in source.units)
        environment = {**os.environ, "MINT_CACHE": str(folder / "cache")}
        first = run(quantizing(model, folder / "first", "nearest"), environment)  # compiles the kernels
        shutil.rmtree(folder / "cache" / "analyses")
        later = run(quantizing(model, folder / "out", "nearest"), environment)
        allowed = 400 + 3 * largest / 1e6
        return {
            "source_mb": source.nbytes / 1e6,
            "shards": len(source.shards),
            "largest_unit_mb": largest / 1e6,
            "mint_peak_mb": later.peak_mb,
            "mint_first_use_peak_mb": first.peak_mb,
            "allowed_peak_mb": allowed,
            "within": max(later.peak_mb, first.peak_mb) <= allowed,
            "seconds": later.seconds,
        }


def _made_model(folder: Path, shards: int, layers_per_shard: int) -> Path:
    """A llama of hidden size 2048 with `layers_per_shard` layers a shard: a few hundred MB each."""
    hidden, inner, vocabulary = 2048, 8192, 32_000
    layers = shards * layers_per_shard
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5, "vocab_size": vocabulary, "tie_word_embeddings": True, "rope_theta": 10000.0,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    units = [Unit("model.embed_tokens", (vocabulary, hidden), "BF16", "embedding", -1, ())]
    norms = ["model.norm"]
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        units += [Unit(f"{prefix}.{part}", shape, "BF16", "", layer, ()) for part, shape in shapes.items()]
        norms += [f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm"]
    from mint.formats.format import KEEP, TensorSpec

    groups = [KEEP.tensors(unit.path, unit.shape, unit.dtype) for unit in units]
    groups += [(TensorSpec(f"{norm}.weight", "BF16", (hidden,)),) for norm in norms]
    total = sum(tensor.nbytes for group in groups for tensor in group)
    digits = digits_for(sum(unit.size for unit in units))
    random = np.random.default_rng(0)
    for shard in lay_out(groups, digits=digits, max_shard_bytes=-(-total // shards) + (24 << 20)):
        with (folder / shard.name).open("wb") as file:
            file.write(shard.head)
            for placed in shard.tensors:
                for start in range(0, placed.tensor.nbytes // 2, _PIECE):  # small: the peak of a child includes ours
                    count = min(_PIECE, placed.tensor.nbytes // 2 - start)
                    values = random.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                    file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    return folder


def _median(runs: int, work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _table(record: dict[str, Any]) -> str:
    lines = [f"{record['cores']} cores"]
    for title, figures in record.items():
        if isinstance(figures, dict):
            lines.append(title)
            lines += [f"  {name:<34} {_figure(value)}" for name, value in figures.items()]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(_figure, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
