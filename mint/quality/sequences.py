"""The sequences that two models are compared on: windows of a text, or text that the reference writes itself.

Own text needs no data: every sequence begins with a random token of the vocabulary and continues as the model samples
it, at temperature 1 (ancestral sampling). All sequences of an evaluation have one length, and begin as the model's
tokenizer begins every text (with the BOS token, or with nothing).
"""

# S sequences, L tokens of each

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from mint.core.cache import keep, recall
from mint.core.errors import MintError
from mint.core.files import read_text, sha256_of
from mint.core.log import log
from mint.core.progress import OnProgress, Progress
from mint.kernels.storage import numpy_view
from mint.model.module_tree import has_tokenizer, make_cache, read_tokenizer
from mint.model.passes.logits import logits_of
from mint.quality.divergence import Tokens

TEXT_TOKENS, TEXT_WINDOW = 4_096, 512
OWN_TOKENS, OWN_WINDOW = 2_048, 128
FEWEST = 2  # sequences: an interval needs some to draw from


@dataclass(frozen=True, slots=True)
class TextSize:
    """The size of a text: `count` sequences of `window` tokens."""

    count: int
    window: int


CALIBRATION = TextSize(128, 128)  # of compensation; as many tokens in longer sequences have less variety
TRAINING = 32  # of these sequences, from which gradients are taken and scales are trained
JUDGED = 12  # more sequences, which measure the result


def text_size(tokens: int | None, window: int | None, *, own: bool) -> TextSize:
    """The number and length of sequences that make `tokens` tokens; `MintError` when that is fewer than two."""
    tokens = tokens if tokens is not None else OWN_TOKENS if own else TEXT_TOKENS
    window = window if window is not None else OWN_WINDOW if own else TEXT_WINDOW
    if window < 2:
        raise MintError(f"--window {window}: a sequence of {window} tokens predicts nothing; needed 2 or more")
    if tokens < FEWEST * window:
        raise MintError(f"--tokens {tokens}: needed at least {FEWEST * window} (two windows), or a smaller --window")
    return TextSize(tokens // window, window)


def text_sequences(folder: Path, texts: Sequence[Path], size: TextSize) -> Tokens:
    """(S, L) windows of the text files, taken from each file in turn, by the tokenizer of the model in `folder`.

    Raises `MintError` when there is no tokenizer, when a file is no text, or when all files together are too short.
    """
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        raise MintError(f"{folder}: no tokenizer found, needed for --text; copy tokenizer.json there, or go without")
    prefix = _prefix(tokenizer)
    fresh = size.window - len(prefix)
    encoded = [tokenizer.encode(plain_text(path), add_special_tokens=False, verbose=False) for path in texts]
    chunks = [[tokens[start : start + fresh] for start in range(0, len(tokens), fresh)] for tokens in encoded]
    parts = (part for part in chain.from_iterable(zip_longest(*chunks, fillvalue=())) if len(part) == fresh)
    windows = [[*prefix, *part] for part in parts]
    if len(windows) < size.count:
        fault = f"{sum(map(len, encoded)):,} tokens make {len(windows)} whole windows of {size.window}"
        needed = f"needed {size.count} ({size.count * size.window:,} tokens)"
        remedy = "Give more text, or a smaller --tokens or --window"
        raise MintError(f"{', '.join(map(str, texts))}: {fault}; {needed}. {remedy}")
    return np.array(windows[: size.count], np.int32)


def kept_sequences(path: Path, size: TextSize, write: Callable[[], Tokens]) -> Tokens:
    """(S, L) tokens from a file of the cache; `write` makes them where there is none, and they are kept there."""
    tokens = recall(path, lambda text: np.load(BytesIO(text)))
    if isinstance(tokens, np.ndarray) and tokens.shape == (size.count, size.window) and tokens.dtype == np.int32:
        return tokens
    written = write()
    buffer = BytesIO()
    np.save(buffer, written)
    keep(path, buffer.getvalue())
    return written


def own_sequences(
    models: Iterator[Module],
    prefix: Sequence[int],
    vocabulary: int,
    size: TextSize,
    seed: int,
    on_progress: OnProgress,
) -> Tokens:
    """(S, L) tokens below `vocabulary` that a model writes, decided by `seed`; every sequence begins with `prefix`.

    Each position is written by the next of `models`, all of which are the same model.
    """
    key, first = mx.random.split(mx.random.key(seed))
    start = mx.random.randint(0, vocabulary, (size.count, 1), key=first)
    last = mx.concatenate([mx.broadcast_to(mx.array(list(prefix), mx.int32), (size.count, len(prefix))), start], axis=1)
    caches = _short_caches(next(models), size.window)
    written = [last]
    for position in range(last.shape[1], size.window):
        key, now = mx.random.split(key)
        last = mx.random.categorical(logits_of(next(models), last, caches)[:, -1], key=now)[:, None].astype(mx.int32)
        mx.eval(last)
        written.append(last)
        on_progress(Progress("write text", position + 1, size.window, f"{size.count} sequences"))
    return numpy_view(mx.concatenate(written, axis=1))


def _short_caches(model: Module, window: int) -> list[Any]:
    """The caches of a model; they grow in steps of 256 tokens, and here of `window` where that is less."""
    caches = make_cache(model)
    for cache in caches:
        if getattr(cache, "step", 0) > window:
            cache.step = window
    return caches


def prefix_of(folder: Path) -> list[int]:
    """The tokens that the tokenizer in `folder` puts before every text; none without a tokenizer that loads."""
    try:
        return _prefix(_tokenizer(folder))
    except MintError as error:
        log.warning("prefix.not_known", reason=str(error), consequence="own text begins without a BOS token")
        return []


def vocabulary_digest(folder: Path) -> str:
    """SHA-256 of the tokens and ids that the tokenizer in `folder` knows; empty when there is no tokenizer."""
    tokenizer = _tokenizer(folder)
    return sha256_of([json.dumps(sorted(tokenizer.get_vocab().items())).encode()]) if tokenizer is not None else ""


def _tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, None if there is none."""
    try:
        return read_tokenizer(folder) if has_tokenizer(folder) else None
    except Exception as error:  # mlx_lm raises many kinds
        raise MintError(f"{folder}: mlx_lm does not load its tokenizer ({error!r}); needed: one that loads") from error


def _prefix(tokenizer: Any) -> list[int]:
    """The BOS token, if the tokenizer puts it before every text by itself."""
    first: list[int] = [] if tokenizer is None else tokenizer.encode("")[:1]
    return first if first and first == [tokenizer.bos_token_id] else []


def plain_text(path: Path) -> str:
    """The text of a file; `MintError` for a file without one."""
    try:
        return read_text(path, "a file of plain text")
    except FileNotFoundError as error:
        raise MintError(f"{path}: no such text; needed: a file of plain text") from error
    except IsADirectoryError as error:
        raise MintError(f"{path}: a folder; needed: a file of plain text") from error
