"""One candidate against its original: their passes over the same sequences, and the figures.

Three passes, one model in memory at a time: the original in float32, the original in bf16 (the noise that 16-bit
arithmetic makes anyway: a candidate below it is as good as the original), the candidate. The first two fill a
reference file, which serves any number of candidates.
"""

# S sequences, L tokens of each, B sequences of a block, V vocabulary

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
from mlx.nn.layers.base import Module

from mint.core.cache import cached_path
from mint.core.errors import MintError
from mint.core.memory import peak_rss_bytes
from mint.core.progress import OnProgress, Progress
from mint.model.checkpoint.shards import identity, read_shards
from mint.quality import sequences
from mint.quality.divergence import Array, Logits, Tokens, differences, predictions
from mint.quality.estimates import Statistic, estimates, mean, median_perplexity, percentile, perplexity
from mint.quality.evaluation import OWN_TEXT, Evaluation, Question
from mint.quality.forward import all_logits, fusing_nothing, open_narrow, open_used, open_wide, vocabulary_size
from mint.quality.reference_file import Origin, Reference, new_reference, read_reference
from mint.quality.tasks import task_figures
from mint.run.device_kind import device_kind, versions

NOISE_SHARE = 4  # one sequence in four is measured for noise: bf16 is slow on CPUs, and sequences differ little in it


def compare(question: Question, on_progress: OnProgress) -> Evaluation:
    """Evaluate in this process: write the reference file, unless there is one of the same question, and compare."""
    started = time.perf_counter()
    folder = question.output
    with fusing_nothing(), tempfile.TemporaryDirectory(prefix="mint-") as scratch:
        path = question.reference
        if path.is_dir():
            path = question.save_reference or Path(scratch) / "reference.safetensors"
            _write_reference(question, path, on_progress)
        reference = read_reference(path)
        origin, tokens = reference.origin, reference.tokens
        _check_vocabulary(folder, origin.tokenizer, reference.vocabulary, origin.model)
        figures = _figures(folder, reference, on_progress)
        if question.tasks:
            on_progress(Progress("tasks", 0, 0, str(folder)))
            figures |= task_figures(folder, question.tasks)
        return Evaluation(
            output=str(folder),
            reference=origin.model,
            identity=origin.identity,
            text=origin.sequences,
            seed=origin.seed,
            sequences=len(tokens),
            tokens=tokens.size,
            device=device_kind(),
            estimates=estimates(figures),
            seconds=round(time.perf_counter() - started, 3),
            peak_rss_bytes=peak_rss_bytes(),
        )


def _write_reference(question: Question, path: Path, on_progress: OnProgress) -> None:
    """Write the reference file of a question; `MintError` for an existing file that is not the same."""
    folder = question.reference
    vocabulary, tokenizer = vocabulary_size(folder), sequences.vocabulary_digest(folder)
    _check_vocabulary(question.output, tokenizer, vocabulary, str(folder))  # before the long work
    origin = Origin(
        model=str(folder),
        identity=identity(read_shards(folder), (folder / "config.json").read_bytes()),
        tokenizer=tokenizer,
        sequences=", ".join(map(str, question.text)) or OWN_TEXT,
        seed=question.seed or 0,
        device=device_kind(),
        versions=versions(),
    )
    size = sequences.text_size(question.tokens, question.window, own=not question.text)
    tokens = sequences.text_sequences(folder, question.text, size) if question.text else None
    if path.exists():
        _check_same(path, origin, (size.count, size.window), tokens)
        return
    model = open_wide(folder)
    if tokens is None:
        prefix = sequences.prefix_of(folder)
        key = origin.identity, prefix, vocabulary, size.count, size.window, origin.seed, origin.device, origin.versions
        tokens = sequences.kept_sequences(
            cached_path("evaluations", ".npy", *key),
            size,
            partial(sequences.own_sequences, repeat(model), prefix, vocabulary, size, origin.seed, on_progress),
        )
    noisy = max(sequences.FEWEST, len(tokens) // NOISE_SHARE)
    with new_reference(path, origin, tokens, vocabulary, noisy=noisy) as (reference, append):
        for rows, logits, following in _passes("reference", "in float32", model, tokens, vocabulary, on_progress):
            block = predictions(logits, following)
            reference.top[rows], reference.nll[rows] = block.top, block.nll
            append(block.log_probabilities)
        del model  # before the next one is loaded
        narrow, stage = open_narrow(folder), "noise floor"
        for rows, logits, following in _passes(stage, "in bfloat16", narrow, tokens[:noisy], vocabulary, on_progress):
            expected = reference.log_probabilities(rows)
            reference.noise[rows] = differences(expected, reference.top[rows], logits, following).kl


def _check_same(path: Path, origin: Origin, size: tuple[int, ...], tokens: Tokens | None) -> None:
    """Raise `MintError` unless a killed run for this very `origin` wrote the file: nothing is overwritten."""
    needed = f"{path} exists; needed a new name for --save-reference, or remove the file"
    try:
        saved = read_reference(path)
    except MintError as error:
        raise MintError(needed) from error
    is_same = np.array_equal(saved.tokens, tokens) if tokens is not None else saved.tokens.shape == size
    if saved.origin != origin or not is_same:
        raise MintError(needed)


def _passes(
    stage: str, item: str, model: Module, tokens: Tokens, vocabulary: int, on_progress: OnProgress
) -> Iterator[tuple[slice, Logits, Tokens]]:
    """Blocks of sequences: their rows, the logits (B, L-1, V), the tokens (B, L-1) that follow; reports each one."""
    on_progress(Progress(stage, 0, len(tokens), ""))
    for rows, logits in all_logits(model, tokens, vocabulary):
        yield rows, logits, tokens[rows, 1:]
        on_progress(Progress(stage, rows.stop, len(tokens), item))


def _check_vocabulary(folder: Path, tokenizer: str, vocabulary: int, reference: str) -> None:
    """Raise `MintError` unless the model in `folder` loads and its tokens mean what those of `reference` mean."""
    remedy = "needed: a reference of the model that it was made from"
    size = vocabulary_size(folder)
    if size != vocabulary:
        sizes = f"its vocabulary has {size:,} tokens, that of the reference {reference} has {vocabulary:,}"
        raise MintError(f"{folder}: {sizes}; {remedy}")
    digest = sequences.vocabulary_digest(folder)
    if digest and tokenizer and digest != tokenizer:
        digests = f"(vocabulary {digest[:16]}, needed {tokenizer[:16]})"
        fault = f"its tokenizer knows other tokens than that of the reference {reference} {digests}"
        raise MintError(f"{folder}: {fault}; {remedy}")


def _figures(folder: Path, reference: Reference, on_progress: OnProgress) -> dict[str, tuple[Statistic, Array]]:
    """Every figure of the model in `folder` as a statistic and its sample (S, L-1)."""
    kl, nll, agrees = (np.empty(reference.nll.shape) for _ in range(3))
    model, tokens, vocabulary = open_used(folder), reference.tokens, reference.vocabulary
    for rows, logits, following in _passes("compare", str(folder), model, tokens, vocabulary, on_progress):
        divergence = differences(reference.log_probabilities(rows), reference.top[rows], logits, following)
        kl[rows], nll[rows], agrees[rows] = divergence.kl, divergence.nll, divergence.agrees
    if np.isnan(kl).any():
        raise MintError(f"{folder}: the model computes NaN for {np.isnan(kl).sum()} tokens; mint verify may tell why")
    original = reference.nll.astype(np.float64)
    return {
        "kl_mean": (mean, kl),
        "kl_median": (percentile(50), kl),
        "kl_p99": (percentile(99), kl),
        "kl_p99.9": (percentile(99.9), kl),
        "noise_floor": (mean, reference.noise.astype(np.float64)),
        "top1_agreement": (mean, agrees),
        "perplexity": (perplexity, nll),
        "reference_perplexity": (perplexity, original),
        "median_perplexity": (median_perplexity, nll),
        "reference_median_perplexity": (median_perplexity, original),
    }
