"""Names of tensors that a class does not expect, although the checkpoint is complete.

Newer multimodal exports put `model.` before all their parts. mlx_lm renames them for some families (qwen3_5, mistral3);
the same renaming serves their kin (gemma3). Programs save a model under the name of the object that holds it, or
without that of its class (sentence-transformers). They add tensors that follow from the config, and layers that predict
further tokens. Files beyond mlx_lm's pattern, such as `mtp.safetensors`, may hold tensors that mlx_lm never sees.
"""

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx

from mint.model.checkpoint.shards import PATTERN, Shard

T = TypeVar("T")
_TEXT = "model.language_model."
_RENAMED = (
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.(?=\w*(vision|visual|audio|projector|embed_vision|embed_audio))"), ""),
)
# the objects that hold a model: of GPT-2's classes, torch.compile, data parallelism, PEFT, a multimodal model
_HOLDERS = ("transformer.", "_orig_mod.", "module.", "base_model.model.", "language_model.")
# the object that holds the text model beside towers, and the name that such a model has alone
_LANGUAGE = ((_TEXT, "model."), ("language_model.", ""))
# tensors that follow from the config, or that no program reads
_DERIVED = re.compile(r"(rotary_emb|rope)\.\w*inv_freq$|position_ids$|\.masked_bias$|_extra_state$|\.attn\.bias$")
# the pooling of a SigLIP tower, which no model with a projector reads
_POOLING = re.compile(r"(^|\.)vision_tower\.(vision_model\.)?head\.")
# names of a whole family: all its patterns fit, or none
_FAMILIES = (
    (
        (re.compile(r"^model\.embed_tokens\."), "transformer.wte."),
        (re.compile(r"^model\.layers\.(\d+)\.self_attn\.([qkv])_proj\."), r"transformer.h.\1.attn.c_\2."),
        (re.compile(r"^model\.layers\.(\d+)\.self_attn\.o_proj\."), r"transformer.h.\1.attn.c_proj."),
        (re.compile(r"^model\.layers\.(\d+)\.mlp\.fc1\."), r"transformer.h.\1.mlp.c_fc."),
        (re.compile(r"^model\.layers\.(\d+)\.mlp\.fc2\."), r"transformer.h.\1.mlp.c_proj."),
    ),  # nanochat of transformers
    (
        (re.compile(r"\.attention_layer_norm\."), ".input_layernorm."),
        (re.compile(r"\.feedforward_layer_norm\."), ".post_attention_layernorm."),
    ),  # OLMo Hybrid
    ((re.compile(r"\.block_sparse_moe\.(?=(gate|up|down)_proj\.)"), ".mlp."),),  # Kimi Linear of transformers
    (
        (re.compile(r"^language_model\.model\.blocks\."), "language_model.model.layers."),
        (re.compile(r"^model\.mm_projector\."), "mm_projector."),
    ),  # Kimi K2.5 as transformers saves it
)
_BIAS = ".bias"
_STACKS = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")
_EXPERT = re.compile(r"(.*\.)experts\.(\d+)\.(\w+\.weight)")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def advice_on(names: Iterable[str]) -> str:
    """A sentence about tensors of these names that fit no class; empty without advice."""
    has_adapters = any(".lora_A." in name for name in names)
    return "it has LoRA weights beside the model's; merge them first (merge_and_unload of peft)" if has_adapters else ""


def check_head(weights: Collection[str], parameters: Iterable[str]) -> None:
    """Raise `ValueError` where the head is the only parameter without a weight."""
    missing = [name for name in parameters if name not in weights]
    if len(missing) == 1 and missing[0].endswith("lm_head.weight"):
        remedy = "if the head is the embedding, set tie_word_embeddings to true in config.json"
        raise ValueError(f"there is no {missing[0]}; {remedy}")


def spellings(
    tensors: Mapping[str, mx.array], config: Mapping[str, Any], is_zero: Callable[[str], bool] = lambda name: False
) -> Iterator[Mapping[str, mx.array]]:
    """The tensors by their own names, then without those that no class needs, then by the names of other exports.

    Experts that lie apart are put into lazy stacks, for a class that knows its stacks alone. At last come all of these
    without the biases that `is_zero` finds: programs write such for layers that have none (GPTQ).
    """
    yield tensors  # before any work on the others: nearly all checkpoints fit
    needed = {name: tensor for name, tensor in tensors.items() if not is_apart(name, config)}
    tried = {frozenset(tensors)}
    for has_biases in (True, False):
        for variant in _variants(needed if has_biases else _without_biases(needed, is_zero)):
            if (names := frozenset(variant)) not in tried:
                tried.add(names)
                yield variant
    if any(map(_STACKS.search, needed)):
        yield _turned(needed)


def _without_biases(tensors: Mapping[str, mx.array], is_zero: Callable[[str], bool]) -> dict[str, mx.array]:
    return {name: tensor for name, tensor in tensors.items() if not (name.endswith(_BIAS) and is_zero(name))}


def _variants(tensors: Mapping[str, mx.array]) -> Iterator[Mapping[str, mx.array]]:
    yield tensors
    for rows in _FAMILIES:
        if all(any(pattern.search(name) for name in tensors) for pattern, _ in rows):
            yield from _variants({_substituted(rows, name): tensor for name, tensor in tensors.items()})
    for spell in _other_names(tensors):
        yield {spell(name): tensor for name, tensor in tensors.items()}
    for holder, own in _LANGUAGE:
        if any(name.startswith(holder) for name in tensors):
            held = {own + name.removeprefix(holder): tensor for name, tensor in tensors.items() if
                    name.startswith(holder)}  # fmt: skip
            yield held | {name: tensor for name, tensor in tensors.items() if name.startswith("lm_head.")}
    yield _stacked(tensors)


def _other_names(names: Collection[str]) -> Iterator[Callable[[str], str]]:
    if any(name.startswith(_TEXT) for name in names):
        yield _older
        yield lambda name: _with_tower(_older(name))
        yield lambda name: re.sub(r"^model\.language_model\.", "model.", name)
    for holder in _HOLDERS:
        yield lambda name, holder=holder: name.removeprefix(holder)  # type: ignore[misc]
    yield _with_tower
    yield lambda name: f"language_model.{name}"
    yield lambda name: re.sub(r"^model\.", _TEXT, name)
    if not any(name.startswith("model.") for name in names):
        yield lambda name: name if name.startswith("lm_head.") else f"model.{name}"


def _stacked(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors with the experts of a layer, which have numbers, as MLX stacks them."""
    stacked: dict[str, mx.array] = {}
    experts: dict[str, dict[int, mx.array]] = {}
    for name, tensor in tensors.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(f"{match[1]}switch_mlp.{match[3]}", {})[int(match[2])] = tensor
        else:
            stacked[name] = tensor
    return stacked | {name: mx.stack([parts[index] for index in sorted(parts)]) for name, parts in experts.items()}


def _turned(tensors: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The tensors with stacks of experts as transformers 4 had them: transformers 5 swaps their last two axes."""
    return {
        name: tensor.swapaxes(-2, -1) if tensor.ndim == 3 and _STACKS.search(name) else tensor
        for name, tensor in tensors.items()
    }


def is_apart(name: str, config: Mapping[str, Any]) -> bool:
    """True for a tensor that follows from the config, for a pooling, and for a layer that predicts further tokens."""
    text = config.get("text_config") or config
    layer, layers = _LAYER.search(name), text.get("num_hidden_layers")
    predicts = bool(layer and isinstance(layers, int) and int(layer[1]) >= layers)
    if text.get("zero_expert_num") and (expert := _EXPERT.fullmatch(name)) and int(expert[2]) >= _experts(text):
        return True  # an expert that answers its input
    return is_derived(name) or bool(_POOLING.search(name)) or (predicts and bool(text.get("num_nextn_predict_layers")))


def _experts(config: Mapping[str, Any]) -> int:
    return int(config.get("n_routed_experts") or 0)


def is_derived(name: str) -> bool:
    """True for a tensor that follows from the config, such as frequencies and masks, and for state of a program."""
    return bool(_DERIVED.search(name))


def _substituted(rows: Iterable[tuple[re.Pattern[str], str]], name: str) -> str:
    for pattern, text in rows:
        name = pattern.sub(text, name)
    return name


_older = partial(_substituted, _RENAMED)


def _with_tower(name: str) -> str:
    """The name with the object within a tower of CLIP or SigLIP that newer exports leave out."""
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def without_extras(weights: Mapping[str, T], parameters: Collection[str], shards: Iterable[Shard]) -> dict[str, T]:
    """The weights, but for tensors of files beyond mlx_lm's pattern that are no parameters of the model."""
    extra = {t.name for shard in shards if not fnmatch.fnmatchcase(shard.name, PATTERN) for t in shard.tensors}
    return {name: weight for name, weight in weights.items() if name in parameters or name not in extra}
