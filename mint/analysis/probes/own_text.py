"""Caches the text that a model writes: the same model and versions write the same text, so it is written once."""

from io import BytesIO

import numpy as np

from mint.analysis.probes.packed_base import AUTO, chosen_base, open_base
from mint.core.cache import cached_path
from mint.core.files import write_whole
from mint.core.progress import OnProgress
from mint.model.source import Source
from mint.quality.divergence import Tokens
from mint.quality.forward import fusing_nothing, vocabulary_size
from mint.quality.sequences import TextSize, own_sequences, prefix_of
from mint.run.device_kind import device_kind, versions


def own_text(source: Source, size: TextSize, seed: int, on_progress: OnProgress) -> Tokens:
    """(S, L) tokens that the model of `source` writes, decided by `seed`.

    The model has 8 bits or fewer where the memory is too small for full precision.
    """
    base = chosen_base(source, AUTO, size.count)
    key = source.identity, source.loader, size.count, size.window, seed, base, device_kind(), versions()
    path = cached_path("texts", ".npy", *key)
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
