"""Caches the text that a model writes: the same model and versions write the same text, so it is written once."""

from io import BytesIO
from pathlib import Path

import numpy as np

from mint.analysis.probes.packed_base import BASES, memory_for_models, model_bytes, open_base
from mint.analysis.probes.probe_file import FULL
from mint.core.cache import cached_path
from mint.core.errors import MintError
from mint.core.files import write_whole
from mint.core.log import log
from mint.core.progress import OnProgress
from mint.core.sizes import format_size
from mint.model.source import Source
from mint.quality.divergence import Tokens
from mint.quality.forward import fusing_nothing, vocabulary_size
from mint.quality.sequences import TextSize, own_sequences, prefix_of
from mint.run.device_kind import device_kind, versions

_CACHED = ("k", "v", "kv", "kv_latent")  # roles whose outputs are cached
_LOGITS = 3  # copies of those of one position
_WIDE = 4  # bytes of a float32


def own_text(source: Source, size: TextSize, seed: int, base: str, on_progress: OnProgress) -> Tokens:
    """(S, L) tokens that the model of `source` writes in a `base`, decided by `seed`."""
    path = text_path(source, size, seed, base)
    if path.exists():
        tokens: Tokens = np.load(path)
        return tokens
    with fusing_nothing():
        model = open_base(source, base)
        prefix, vocabulary = prefix_of(source.folder), vocabulary_size(source.folder, source.loader)
        text = own_sequences(model, prefix, vocabulary, size, seed, on_progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    np.save(buffer, text)
    write_whole(path, buffer.getvalue())
    return text


def text_path(source: Source, size: TextSize, seed: int, base: str) -> Path:
    """The file in the cache for this very text."""
    key = source.identity, source.loader, size.count, size.window, seed, base, device_kind(), versions(source.loader)
    return cached_path("texts", ".npy", *key)


def text_base(source: Source, size: TextSize, memory: int | None = None) -> str:
    """Full precision if the model writes its text within `memory`, by default this machine's; else 8 bits or fewer.

    Raises `MintError` if no base fits.
    """
    memory = memory_for_models() if memory is None else memory
    needs = {base: text_bytes(source, base, size) for base in (FULL, *BASES)}
    base = next((base for base, needed in needs.items() if needed <= memory), "")
    if not base:
        least = min(needs.values())
        raise MintError(
            f"writing a text takes {format_size(least)} with {source.folder.name} in 4 bits; {format_size(memory)} of "
            "memory are there for it. Needed: a machine with more, or --quality fast"
        )
    if base != FULL:
        log.warning("base.chosen", base=f"{base} bits", needed_bytes=needs[FULL], memory_bytes=memory)
    return base


def text_bytes(source: Source, base: str, size: TextSize) -> int:
    """Memory of the model of a base that writes a text: weights, caches, and the logits of one position."""
    cached = sum(unit.shape[-2] for unit in source.units if unit.role in _CACHED) * size.window
    vocabulary = max((unit.shape[-2] for unit in source.units if unit.role in ("head", "embedding")), default=0)
    largest = max((unit.size for unit in source.units), default=0)
    unpacked = 0 if base == FULL else largest * 2 * _WIDE
    return model_bytes(source, base) + unpacked + size.count * (2 * cached + _LOGITS * vocabulary) * _WIDE
