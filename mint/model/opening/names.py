"""Names of tensors that a class of mlx_lm does not expect, although the checkpoint is complete.

Newer multimodal exports put `model.` before all their parts. mlx_lm renames them for some families (qwen3_5, mistral3);
the same renaming serves their kin (gemma3). Files beyond mlx_lm's pattern, such as `mtp.safetensors`, may hold tensors
that no class knows: mlx_lm never sees them.
"""

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from mint.model.checkpoint.shards import PATTERN, Shard

T = TypeVar("T")
_TEXT = "model.language_model."
_RENAMED = (
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.(?=\w*(vision|visual|audio|projector|embed_vision|embed_audio))"), ""),
)


def spellings(tensors: Mapping[str, T]) -> list[Mapping[str, T]]:
    """The tensors by their own names, and for newer multimodal exports by the older ones too."""
    if not any(name.startswith(_TEXT) for name in tensors):
        return [tensors]
    return [tensors, {_older(name): tensor for name, tensor in tensors.items()}]


def _older(name: str) -> str:
    for pattern, prefix in _RENAMED:
        name = pattern.sub(prefix, name)
    return name


def without_extras(weights: Mapping[str, T], parameters: Collection[str], shards: Iterable[Shard]) -> dict[str, T]:
    """The weights, but for tensors of files beyond mlx_lm's pattern that are no parameters of the model."""
    extra = {t.name for shard in shards if not fnmatch.fnmatchcase(shard.name, PATTERN) for t in shard.tensors}
    return {name: weight for name, weight in weights.items() if name in parameters or name not in extra}
