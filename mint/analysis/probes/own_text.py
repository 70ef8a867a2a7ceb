"""Text that a model wrote, kept: the same model by the same versions writes the same, so it is written once."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from mint.analysis.probes.packed_base import AUTO, chosen_base, open_base
from mint.core.cache import cache_folder
from mint.core.progress import OnProgress
from mint.model.source import Source
from mint.quality.divergence import Tokens
from mint.quality.forward import fusing_nothing, vocabulary_size
from mint.quality.sequences import Wanted, own_sequences, prefix_of
from mint.run.device_kind import device_kind, versions


def own_text(source: Source, size: Wanted, seed: int, on_progress: OnProgress) -> Tokens:
    """(S, L) tokens that the model of `source` wrote by itself, decided by `seed`.

    Written around 8 bits or fewer where the memory is too small for full precision.
    """
    base = chosen_base(source, AUTO, size.count)
    path = _kept(source, size, seed, base)
    if path.exists():
        kept: Tokens = np.load(path)
        return kept
    with fusing_nothing():
        model = open_base(source, base)
        prefix, vocabulary = prefix_of(source.folder), vocabulary_size(source.folder)
        text = own_sequences(model, prefix, vocabulary, size, seed, on_progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return text


def _kept(source: Source, size: Wanted, seed: int, base: str) -> Path:
    folder = cache_folder() / "texts"
    key = json.dumps([source.identity, size.count, size.window, seed, base, device_kind(), versions()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
