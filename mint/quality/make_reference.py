"""A model to its reference file: its sequences, what it says about them in float32, and its noise in bf16."""

# S sequences, N of them measured for noise, L tokens of each

from pathlib import Path

import numpy as np
from mlx.nn.layers.base import Module

from mint.core.progress import OnProgress, Progress
from mint.model.checkpoint.shards import identity, read_shards
from mint.quality.compare import check_vocabulary
from mint.quality.divergence import Array, Tokens, differences, predictions
from mint.quality.evaluation import Question
from mint.quality.forward import all_logits, open_narrow, open_wide, vocabulary_size
from mint.quality.reference_file import Origin, Writing
from mint.quality.sequences import (
    FEWEST,
    OWN_TEXT,
    own_sequences,
    prefix_of,
    text_sequences,
    text_size,
    vocabulary_digest,
)
from mint.run.device_kind import device_kind, versions

NOISE_SHARE = 4  # one sequence in four tells the noise: bf16 is slow on CPUs, and sequences differ little in it


def refer(question: Question, path: Path, on_progress: OnProgress) -> None:
    """Write the reference file of the model that `question` names to `path`.

    Raises `MintError` when the model does not load, the text is too short, or the candidate has another vocabulary.
    """
    folder = question.reference
    vocabulary, tokenizer = vocabulary_size(folder), vocabulary_digest(folder)
    check_vocabulary(question.output, tokenizer, vocabulary, str(folder))  # before the long work
    origin = Origin(
        model=str(folder),
        identity=identity(read_shards(folder), (folder / "config.json").read_bytes()),
        tokenizer=tokenizer,
        sequences=", ".join(map(str, question.text)) or OWN_TEXT,
        seed=question.seed or 0,
        device=device_kind(),
        versions=versions(),
    )
    size = text_size(question.tokens, question.window, own=not question.text)
    tokens = text_sequences(folder, question.text, size) if question.text else None
    model = open_wide(folder)
    if tokens is None:
        tokens = own_sequences(model, prefix_of(folder), vocabulary, size, origin.seed, on_progress)
    noisy = max(FEWEST, len(tokens) // NOISE_SHARE)
    with Writing(path, origin, tokens, vocabulary, noisy=noisy) as writing:
        top, nll = _predict(model, writing, tokens, vocabulary, on_progress)
        del model  # before the next one is loaded
        noise = _noise(folder, writing, tokens[:noisy], top[:noisy], vocabulary, on_progress)
        writing.finish(top, nll, noise)


def _predict(
    model: Module, writing: Writing, tokens: Tokens, vocabulary: int, on_progress: OnProgress
) -> tuple[Tokens, Array]:
    """(S, L-1) likeliest tokens and negative log-likelihoods; the log-probabilities go to the file."""
    shape = (len(tokens), tokens.shape[1] - 1)
    top, nll = np.empty(shape, np.int32), np.empty(shape)
    on_progress(Progress("reference", 0, len(tokens), ""))
    for rows, logits in all_logits(model, tokens, vocabulary):
        block = predictions(logits, tokens[rows, 1:])
        top[rows], nll[rows] = block.top, block.nll
        writing.append(block.log_probabilities)
        on_progress(Progress("reference", rows.stop, len(tokens), "in float32"))
    return top, nll


def _noise(
    folder: Path, writing: Writing, tokens: Tokens, top: Tokens, vocabulary: int, on_progress: OnProgress
) -> Array:
    """(N, L-1) KL between the model's float32 and bf16 runs."""
    noise = np.empty(top.shape)
    on_progress(Progress("noise floor", 0, len(tokens), ""))
    for rows, logits in all_logits(open_narrow(folder), tokens, vocabulary):
        noise[rows] = differences(writing.log_probabilities(rows), top[rows], logits, tokens[rows, 1:]).kl
        on_progress(Progress("noise floor", rows.stop, len(tokens), "in bfloat16"))
    return noise
