"""A zoo of tiny random Hugging Face checkpoints, one per architecture, with the tensor names of the real ones.

Shapes come from mlx_lm's own model, taken back to the checkpoint's layout by the steps of `tests.worlds.zoo_recipes`.
A tensor's values depend on the seed and its name alone, so sharding and the choice of dtype leave them as they are.
"""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.worlds.zoo_recipes import ARCHITECTURES, FP8_BLOCK, Recipe, Shape, Shapes

__all__ = ["ARCHITECTURES", "Recipe", "write_model"]

Array = NDArray[Any]
Draw = Callable[[np.random.Generator, Shape], Array]

DTYPES = {
    "BF16": ("bfloat16", ml_dtypes.bfloat16),
    "F16": ("float16", np.float16),
    "F32": ("float32", np.float32),
}

FP8_MAX = 448.0

# The first pattern found in a name says how its values are drawn.
DRAWS: tuple[tuple[str, Draw], ...] = (
    (r"A_log$", lambda rng, shape: np.log(rng.uniform(1, 16, shape))),
    (r"(dt_bias|dt_proj\.bias)$", lambda rng, shape: rng.uniform(-5, -2, shape)),
    (r"\.D$", lambda rng, shape: rng.normal(1, 0.1, shape)),
    (r"inv_freq$", lambda rng, shape: 10000.0 ** (-np.arange(shape[0]) / shape[0])),
    (r"^h\.\d+\.attn\.bias$", lambda rng, shape: np.tril(np.ones(shape))),
    (r"_blocks$", lambda rng, shape: rng.integers(0, 256, shape, dtype=np.uint8)),
    (r"_scales$", lambda rng, shape: rng.integers(120, 124, shape, dtype=np.uint8)),  # 2^-7 to 2^-4
    (r"bias$|sinks$|embedding$", lambda rng, shape: rng.normal(0, 0.02, shape)),
)


def write_model(
    name: str,
    folder: Path,
    *,
    dtype: str = "BF16",
    shards: int = 1,
    index: bool | None = None,
    tied: bool | None = None,
    seed: int = 0,
    tokenizer: bool = False,
) -> Path:
    """Write the architecture `name` to `folder`: config, weights in `shards` files, and a tokenizer if asked for.

    The index is written for two or more shards unless `index` says otherwise; `tied` defaults to the architecture's
    usual choice. Raises ValueError for a `tied` that the architecture does not allow.
    """
    recipe = ARCHITECTURES[name]
    tied = recipe.tied[0] if tied is None else tied
    if tied not in recipe.tied:
        raise ValueError(f"{name} is never {'tied' if tied else 'untied'}")
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(recipe, DTYPES[dtype][0], tied)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shapes = _checkpoint_shapes(recipe, config, tied)
    tensors: dict[str, Array] = {}
    for tensor, shape in shapes.items():
        tensors |= _stored(recipe, tensor, _draw(recipe, tensor, shape, seed, tied), dtype)
    _write_shards(folder, tensors, shards, index=shards > 1 if index is None else index)
    if tokenizer:
        _write_tokenizer(folder, config.get("text_config", config)["vocab_size"])
    return folder


def _config(recipe: Recipe, torch_dtype: str, tied: bool) -> dict[str, Any]:
    """The recipe's config with its dtype; an architecture that is always tied does not say so."""
    more: dict[str, Any] = {"torch_dtype": torch_dtype}
    if recipe.tied != (True,):
        more["tie_word_embeddings"] = tied
    config = recipe.config | more
    if "text_config" in config:
        config["text_config"] = config["text_config"] | more
    return config


def _checkpoint_shapes(recipe: Recipe, config: dict[str, Any], tied: bool) -> Shapes:
    """Shapes of the checkpoint's tensors. The model is built but its weights are never evaluated."""
    model_class, args_class = _get_classes(config)
    parameters = dict(tree_flatten(model_class(args_class.from_dict(deepcopy(config))).parameters()))
    shapes: Shapes = {name: tuple(array.shape) for name, array in parameters.items()}
    for step in recipe.steps:
        shapes = step(shapes)
    if tied:
        shapes.pop("lm_head.weight", None)
    if tied and recipe.repeats_lm_head:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return shapes


def _draw(recipe: Recipe, name: str, shape: Shape, seed: int, tied: bool) -> Array:
    """Random values at the scale of a trained model: norms near one, matrices near 1/sqrt(inputs)."""
    if tied and name == "lm_head.weight":
        name = "model.embed_tokens.weight"
    rng = np.random.default_rng([seed, crc32(name.encode())])
    for pattern, draw in DRAWS:
        if re.search(pattern, name):
            return draw(rng, shape)
    if len(shape) == 1:
        return rng.normal(0.0 if name.endswith(recipe.zero_centered) else 1.0, 0.1, shape)
    return rng.normal(0, shape[-1] ** -0.5, shape)


def _stored(recipe: Recipe, name: str, values: Array, dtype: str) -> dict[str, Array]:
    """The tensors that hold `values` on disk: one, or an FP8 weight and the scale of each of its blocks."""
    if values.dtype == np.uint8:
        return {name: values}
    if recipe.fp8 and re.search(recipe.fp8, name):
        scales = _block_scales(values)
        rows, columns = values.shape
        spread = np.kron(scales, np.ones((FP8_BLOCK, FP8_BLOCK)))[:rows, :columns]
        return {
            name: (values / spread).astype(ml_dtypes.float8_e4m3fn),
            f"{name}_scale_inv": scales.astype(np.float32),
        }
    return {name: values.astype(np.float32 if name.endswith(recipe.float32) else DTYPES[dtype][1])}


def _block_scales(values: Array) -> Array:
    """(R, C) -> (R/128, C/128), rounded up: what takes the largest magnitude of each block to FP8's largest."""
    rows, columns = values.shape
    padded = np.pad(np.abs(values), ((0, -rows % FP8_BLOCK), (0, -columns % FP8_BLOCK)))
    blocks = padded.reshape(padded.shape[0] // FP8_BLOCK, FP8_BLOCK, padded.shape[1] // FP8_BLOCK, FP8_BLOCK)
    largest: Array = blocks.max(axis=(1, 3))
    return largest / FP8_MAX


def _write_shards(folder: Path, tensors: dict[str, Array], shards: int, *, index: bool) -> None:
    """Deal the tensors out to the files in turn, so that the experts of one stack lie in different files."""
    names = ["model.safetensors"]
    if shards > 1:
        names = [f"model-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    files = {tensor: names[position % shards] for position, tensor in enumerate(tensors)}
    for file in names:
        held = {tensor: np.ascontiguousarray(tensors[tensor]) for tensor in tensors if files[tensor] == file}
        save_file(held, folder / file, metadata={"format": "pt"})
    if index:
        total = sum(array.nbytes for array in tensors.values())
        listing = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(listing, indent=2) + "\n")


CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)

TEXT = (
    "A model is quantized under a budget of bytes.",
    "The budget is spent where the loss of a model is largest.",
    "What a byte buys is measured, not guessed.",
)


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE trained on three sentences: it encodes any text, and no token reaches `vocab_size`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 512,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
