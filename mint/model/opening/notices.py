"""Facts about an opened model that its user must read before hours of work, each one sentence."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mint.core.sizes import format_size
from mint.formats.format import QUANTIZABLE
from mint.formats.units import Unit
from mint.model.checkpoint.reader import StoredModel
from mint.model.checkpoint.shards import SourceTensor, sampled_ranges
from mint.model.opening.names import is_apart
from mint.model.storages.decoding import Stored
from mint.model.storages.storage import GGUF, Encoded

Notices = tuple[str, ...]
_LAYER = re.compile(r".*?\.\d+\.")  # the path of a layer at the begin of a name
_SMALL_BYTES = 1 << 20


def cast_notice(units: Sequence[Unit], tensors: Mapping[str, SourceTensor]) -> Notices:
    """The casts of stored floats: units whose source tensors have another dtype of float than the unit.

    `tensors` are those that hold plain weights.
    """
    casts = Counter(
        (before, unit.dtype)
        for unit in units
        for before in {tensors[name].dtype for name in unit.sources if name in tensors} & set(QUANTIZABLE)
        if before != unit.dtype
    )
    return tuple(
        f"the weights of {count} units are cast from {before} to {after}, as config.json or --dtype says"
        for (before, after), count in sorted(casts.items())
    )


def scales_notice(units: Sequence[Unit], encoded: Mapping[str, Encoded]) -> Notices:
    """Integers with scales in float16 whose weights bfloat16 rounds; `encoded` are weights by names of their tensors.

    A product of such a scale and an integer of few bits has up to 15 bits; bfloat16 has 8.
    """
    rounded = [
        unit
        for unit in units
        if unit.dtype == "BF16" and any(_integers_by_half(encoded[name]) for name in unit.sources if name in encoded)
    ]
    if not rounded:
        return ()
    return (
        f"bfloat16 rounds the weights of {len(rounded)} units, whose scales are float16: no format holds them exactly; "
        "--dtype float16 keeps them, where the activations of the model fit it",
    )


def _integers_by_half(weight: Encoded) -> bool:
    is_integer = weight.storage in ("awq", "gptq", "packed", "int8") or weight.numbers.get("mode") == "affine"
    return is_integer and weight.parts["scales"].dtype == "F16"


def requantize_notice(stored: Stored) -> Notices:
    """The errors of a model that was quantized as a whole are not those against its original."""
    is_gguf = stored.settings.method == GGUF
    program = "llama.cpp" if is_gguf and stored.encoded else "MLX" if stored.settings.modules else ""
    if not program:
        return ()
    return (f"{program} has quantized this model already: errors are measured against it, not against its original",)


def tower_notice(towers: Sequence[str], dropped: Sequence[SourceTensor], loader: str, advice: str) -> Notices:
    """The result of a multimodal model lacks its towers, which the classes of `loader` drop; `advice` may help."""
    size = format_size(sum(tensor.nbytes for tensor in dropped))
    return (f"text only: {loader} drops the {' and '.join(towers)} tower ({len(dropped)} tensors, {size}){advice}",)


def dropped_notice(
    stored: StoredModel,
    dropped: Iterable[SourceTensor],
    used: Iterable[str],
    config: Mapping[str, Any],
    loader: str,
) -> Notices:
    """The tensors that the classes of `loader` drop from layers that they compute, but for zeros and unread ones."""
    layers = {match[0] for name in used if (match := _LAYER.match(name))}
    lost = [tensor for tensor in dropped if _layer_of(tensor.name) in layers and not is_apart(tensor.name, config)]
    lost = [tensor for tensor in lost if tensor.nbytes > _SMALL_BYTES or stored.raw(tensor.name).any()]
    if not lost:
        return ()
    first = f"{lost[0].name} {lost[0].dtype} {list(lost[0].shape)}"
    return (f"{loader} drops {len(lost)} tensors of layers that it computes, first {first}; it computes without",)


def _layer_of(name: str) -> str:
    match = _LAYER.match(name)
    return match[0] if match else ""


def head_notice(
    folder: Path, units: Sequence[Unit], dropped: Sequence[SourceTensor], tensors: Mapping[str, SourceTensor]
) -> Notices:
    """A tied model whose checkpoint holds a head of its own, other than its embedding.

    Both are compared at the positions that identify a shard; heads that were trained differ everywhere.
    """
    head = next((tensor for tensor in dropped if tensor.name.endswith("lm_head.weight")), None)
    feeding = next((unit.sources for unit in units if unit.role == "embedding"), ())
    if head is None or len(feeding) != 1 or any(unit.role == "head" for unit in units):
        return ()
    embedding = tensors[feeding[0]]
    if (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and _sample(folder, head) == _sample(
        folder, embedding
    ):
        return ()
    return (
        f"config.json ties the head to the embedding, but {head.name} differs from {embedding.name}: mlx_lm drops it. "
        "If the head was trained on its own, set tie_word_embeddings to false in config.json",
    )


def _sample(folder: Path, tensor: SourceTensor) -> list[bytes]:
    """Bytes of a tensor at fixed positions."""
    with (folder / tensor.shard).open("rb") as file:
        pieces = []
        for start, length in sampled_ranges(0, tensor.nbytes):
            file.seek(tensor.offset + start)
            pieces.append(file.read(length))
    return pieces
