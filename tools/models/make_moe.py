"""Expresses a dense llama folder exactly as a mixture of experts: a checkpoint in Mixtral's format.

    python -m tools.models.make_moe SOURCE OUT --mode part --experts 8 --top-k 8

The source is what `tools.models.make_smollm2 --variant rot --dtype f32` writes: an untied llama in full precision, so
that the result can be compared with it. An MLP computes y = down (silu(gate x) * up x), a sum over its neurons.

- `part` deals the neurons out to E experts. The router is zero and all experts are chosen with weight 1/E,
  so that each expert's w2 is E times its columns of `down`. The size stays the same.
- `copy` gives every expert all neurons, in its own order, with w3 scaled and w2 divided by the same factors.
  Every expert is the same function, hence so is every choice of `top-k` by the random router. Routing is sparse.
"""

# C hidden size, N neurons of the MLP, E experts

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from mint.core.errors import MintError
from tools.models.make_smollm2 import DTYPES, new_folder, say, write_model

Array = NDArray[Any]
Weights = dict[str, Array]

SPREAD = 0.2  # standard deviation of the logarithm of a copied neuron's scale
ROUTER = 0.5  # standard deviation of the random router's weights


@dataclass(frozen=True, slots=True)
class Mlp:
    """The three matrices of a gated MLP: `gate` and `up` (N, C), `down` (C, N)."""

    gate: Array
    up: Array
    down: Array

    def neurons(self, chosen: Array, scale: Array | float = 1.0, gain: float = 1.0) -> "Mlp":
        """The MLP of the `chosen` neurons, `up` times and `down` divided by `scale`, its output times `gain`."""
        up = self.up[chosen] * np.reshape(scale, (-1, 1))
        return Mlp(self.gate[chosen], up, self.down[:, chosen] / scale * gain)


def part(mlp: Mlp, experts: int, generator: np.random.Generator) -> tuple[Array, list[Mlp]]:
    """A zero router (E, C) and the neurons dealt out to E experts."""
    size, hidden = mlp.gate.shape
    hands = generator.permutation(size).reshape(experts, -1)
    return np.zeros((experts, hidden)), [mlp.neurons(hand, gain=experts) for hand in hands]


def copy(mlp: Mlp, experts: int, generator: np.random.Generator) -> tuple[Array, list[Mlp]]:
    """A random router (E, C) and E experts that are the same function of reordered, rescaled neurons."""
    size, hidden = mlp.gate.shape
    copies = [
        mlp.neurons(generator.permutation(size), np.exp(SPREAD * generator.standard_normal(size)))
        for _ in range(experts)
    ]
    return ROUTER * generator.standard_normal((experts, hidden)), copies


MODES: dict[str, Callable[[Mlp, int, np.random.Generator], tuple[Array, list[Mlp]]]] = {
    "part": part,
    "copy": copy,
}


def make_moe(weights: Weights, *, mode: str, experts: int, seed: int = 0) -> Iterator[tuple[str, Array]]:
    """Every tensor of the Mixtral checkpoint that computes what the llama `weights` compute."""
    generator = np.random.default_rng(seed)
    gate_suffix = ".mlp.gate_proj.weight"
    for name, weight in weights.items():
        if ".mlp." not in name:
            yield name, weight
        if name.endswith(gate_suffix):
            layer = name.removesuffix(gate_suffix)
            mlp = Mlp(*(weights[f"{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")))
            router, parts = MODES[mode](mlp, experts, generator)
            yield f"{layer}.block_sparse_moe.gate.weight", router
            for index, expert in enumerate(parts):
                path = f"{layer}.block_sparse_moe.experts.{index}"
                yield f"{path}.w1.weight", expert.gate
                yield f"{path}.w2.weight", expert.down
                yield f"{path}.w3.weight", expert.up


def moe_config(config: dict[str, Any], *, mode: str, experts: int, top_k: int) -> dict[str, Any]:
    """config.json of the mixture; `MintError` when the source cannot be expressed so."""
    hidden, heads, neurons = (config[name] for name in ("hidden_size", "num_attention_heads", "intermediate_size"))
    conditions = {
        "a model_type of llama": config["model_type"] == "llama",
        "an output head of its own (tie_word_embeddings false)": not config["tie_word_embeddings"],
        "a torch_dtype of float32": config["torch_dtype"] == "float32",
        "no biases": not (config.get("attention_bias") or config.get("mlp_bias")),
        "heads of hidden_size / num_attention_heads": (config.get("head_dim") or hidden // heads) * heads == hidden,
        f"1 <= top-k <= experts, not {top_k} of {experts}": 1 <= top_k <= experts,
    }
    if mode == "part":
        conditions |= {
            f"all experts chosen, not {top_k} of {experts}": top_k == experts,
            f"experts that divide the {neurons} neurons, not {experts}": experts > 0 and neurons % experts == 0,
        }
    if missing := [condition for condition, holds in conditions.items() if not holds]:
        raise MintError(f"the model cannot become a mixture in mode {mode}; needed: {'; '.join(missing)}.")
    dense_only = ("attention_bias", "mlp_bias", "head_dim")
    return {name: value for name, value in config.items() if name not in dense_only} | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": neurons // experts if mode == "part" else neurons,
        "num_experts_per_tok": top_k,
        "num_local_experts": experts,
        "sliding_window": None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Express a dense llama folder as a mixture of experts.")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="an untied llama folder in float32")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--experts", type=int, required=True)
    parser.add_argument("--top-k", type=int, required=True, help="experts per token; all of them with part")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args()
    try:
        with new_folder(options.out) as folder:
            write_moe(options.source, folder, options)
    except MintError as error:
        say(str(error))
        return 1
    return 0


def write_moe(source: Path, folder: Path, options: argparse.Namespace) -> None:
    """Fill the empty `folder` with the mixture made of `source`, and its tokenizer."""
    say(f"reading {source}")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = moe_config(config, mode=options.mode, experts=options.experts, top_k=options.top_k)
    weights = {
        name: weight for file in sorted(source.glob("*.safetensors")) for name, weight in load_file(file).items()
    }
    say(f"writing {options.experts} experts, mode {options.mode}, in {options.dtype}")
    numpy_type = DTYPES[options.dtype][1]
    moe = make_moe(weights, mode=options.mode, experts=options.experts, seed=options.seed)
    cast = {name: weight.astype(numpy_type) for name, weight in moe}
    write_model(folder, config, cast, dtype=options.dtype)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, folder)


if __name__ == "__main__":
    sys.exit(main())
