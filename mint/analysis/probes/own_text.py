"""The text that a model writes, in the memory that there is.

The same model, base and versions write the same text, so it is written once and cached. A model that does not fit in
full precision writes in 8, 6 or 4 bits; one that does not fit in 4 bits is streamed, layer by layer for every position.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import repeat
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map

from mint.analysis.probes.packed_base import BASES, model_bytes, open_base
from mint.analysis.probes.packed_weight import unpacked_size
from mint.analysis.probes.probe_file import FULL
from mint.analysis.probes.replay import Replay
from mint.core.cache import cached_path
from mint.core.errors import MintError
from mint.core.log import log
from mint.core.progress import OnProgress
from mint.core.sizes import enough_size, format_size
from mint.model.hooks import hook
from mint.model.passes.layer_calls import read_state, states_in
from mint.model.roles import layer_path
from mint.model.source import Source
from mint.quality.divergence import Tokens
from mint.quality.forward import fusing_nothing, open_wide, vocabulary_size
from mint.quality.sequences import TextSize, kept_sequences, own_sequences, prefix_of
from mint.run.device_kind import device_kind, versions
from mint.run.executor import memory_for_models

_CACHED = ("k", "v", "kv", "kv_latent")  # roles whose outputs are cached
_LOGITS = 3  # copies of those of one position
SEED = 1  # of the text of a compensation; that of the probe has another
WIDE = 4  # bytes of a float32
STREAMED = "streamed"  # full precision, every layer read anew for every position
BASES_OF_TEXT = (FULL, *BASES, STREAMED)  # by falling memory


def own_text(source: Source, size: TextSize, seed: int, base: str, on_progress: OnProgress) -> Tokens:
    """(S, L) tokens that the model of `source` writes in a `base`, decided by `seed`."""

    def write() -> Tokens:
        with fusing_nothing():
            models = streamed(source) if base == STREAMED else repeat(open_base(source, base))
            prefix, vocabulary = prefix_of(source.folder), vocabulary_size(source.folder, source.loader)
            return own_sequences(models, prefix, vocabulary, size, seed, on_progress)

    return kept_sequences(text_path(source, size, seed, base), size, write)


def text_path(source: Source, size: TextSize, seed: int, base: str) -> Path:
    """The file in the cache for this very text."""
    key = source.identity, source.loader, size.count, size.window, seed, base, device_kind(), versions(source.packages)
    return cached_path("texts", ".npy", *key)


def text_base(source: Source, size: TextSize, memory: int | None = None) -> str:
    """The first base in which the model writes its text within `memory`, by default this machine's.

    Raises `MintError` if no base fits.
    """
    memory = memory_for_models() if memory is None else memory
    needs = {base: text_bytes(source, base, size) for base in BASES_OF_TEXT}
    base = next((base for base, needed in needs.items() if needed <= memory), "")
    if not base:
        least = min(needs.values())
        raise MintError(
            f"writing a text takes {enough_size(least)} with {source.folder.name}; {format_size(memory)} of memory are "
            "there for it. Needed: a machine with more, or --rounding nearest"
        )
    if base != FULL:
        log.warning("base.chosen", base=base, needed_bytes=needs[FULL], memory_bytes=memory)
    return base


def text_bytes(source: Source, base: str, size: TextSize) -> int:
    """Memory of the model of a base that writes a text: weights, caches, and the logits of one position."""
    rows = [unit.shape[-2] for unit in source.units if unit.role in _CACHED]
    cached = (sum(rows) + 2 * max(rows, default=0)) * size.window  # all, and copies of one layer while it attends
    largest = max((unpacked_size(source, unit) for unit in source.units), default=0)
    beside = size.count * (cached + _LOGITS * source.vocabulary) * WIDE
    if base == STREAMED:
        return beside + _streamed_bytes(source)
    return model_bytes(source, base) + (0 if base == FULL else largest * 2 * WIDE) + beside


def _streamed_bytes(source: Source) -> int:
    """Memory of what is outside of the layers and, twice, of the largest layer."""
    layers: dict[str, int] = defaultdict(int)
    for unit in source.units:
        layers[layer_path(unit.path)] += unit.size
    outside = layers.pop("", 0) + sum(prod(parameter.shape) for parameter in source.parameters)
    return (outside + 2 * max(layers.values(), default=0)) * WIDE


def streamed(source: Source) -> Iterator[Module]:
    """The model again and again, for one pass each: its layers are read when they are called, and dropped after it.

    Raises `MintError` for a model that does not call each of its layers once.
    """
    paths = {path for unit in source.units if (path := layer_path(unit.path))}
    once = Replay(source.opened.model, paths, mx.zeros((1, 2), mx.int32)).order
    if sorted(once) != sorted(paths):
        raise MintError(
            f"{source.folder.name} does not call its layers once each, so it cannot be streamed; needed: more memory"
        )
    while True:
        model = open_wide(source.folder, source.loader)
        layers = {path: module for path, module in model.named_modules() if path in paths}
        for layer in layers.values():
            hook(layer, _call_and_drop, ("__call__",))
        yield model


def _call_and_drop(method: Callable[..., Any], layer: Module, *arguments: Any, **options: Any) -> Any:
    mx.eval(layer.parameters())
    answer = method(layer, *arguments, **options)
    states = [read_state(state) for state in states_in(*arguments, *options.values())]
    flat: Any = tree_flatten([answer, states])
    mx.eval([value for _, value in flat if isinstance(value, mx.array)])
    layer.update(tree_map(lambda _: mx.zeros(()), layer.parameters()))
    return answer
