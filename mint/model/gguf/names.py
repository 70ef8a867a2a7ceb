"""The names of llama.cpp for the modules of MLX, from the tables of the `gguf` package."""

import re
from collections.abc import Iterable, Sequence

from mint.core.errors import MintError
from mint.model.gguf.architectures import ARCHITECTURES
from mint.model.roles import layer_numbers

# of mlx_lm -> of transformers, where the experts of a layer are one stack
_STACKS = (
    ("block_sparse_moe.switch_mlp.gate_proj", "block_sparse_moe.experts.w1"),
    ("block_sparse_moe.switch_mlp.down_proj", "block_sparse_moe.experts.w2"),
    ("block_sparse_moe.switch_mlp.up_proj", "block_sparse_moe.experts.w3"),
    ("switch_mlp", "experts"),
)
_OTHERS = {"mixtral": "llama", "gpt_oss": "gpt-oss"}  # irregular names


def tensor_names(model_type: str, paths: Sequence[str]) -> dict[str, str]:
    """The name in llama.cpp of the weight of every module that it knows, by the path of the module.

    Raises `MintError` for a model of an unknown architecture, and without the `gguf` package.
    """
    try:
        import gguf
    except ImportError as error:
        raise MintError("the names of llama.cpp come from the gguf package; needed: pip install gguf") from error
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    architecture = next((name for name in _architectures(model_type) if name in numbers), "")
    if not architecture:
        raise MintError(f"llama.cpp has no architecture for a model of type {model_type}, as far as gguf knows")
    layers = max(layer_numbers(paths).values(), default=-1) + 1
    names = gguf.get_tensor_name_map(numbers[architecture], layers)
    candidates = {path: (names.get_name(source) for source in _sources(path)) for path in paths}
    return {path: f"{name}.weight" for path, found in candidates.items() if (name := next(filter(None, found), None))}


def _architectures(model_type: str) -> Iterable[str]:
    """Names that the architecture of a model type may have, the likeliest first."""
    plain = model_type.removesuffix("_text")
    known = (name for name, row in ARCHITECTURES.items() if row.model_type == model_type)
    return (_OTHERS.get(model_type, ""), *known, plain, plain.replace("_", ""), plain.replace("_", "-"))


def _sources(path: str) -> Iterable[str]:
    """Names that the module at `path` may have in transformers."""
    plain = re.sub(r"^(model\.)?language_model\.", "", path)
    yield plain
    for stacked, name in _STACKS:
        if stacked in plain:
            yield plain.replace(stacked, name)
