"""One candidate against a reference: its pass over the reference's sequences, and the figures."""

import time
from pathlib import Path

import numpy as np

from mint.core.errors import MintError
from mint.core.memory import peak_rss_bytes
from mint.core.progress import OnProgress, Progress
from mint.quality.divergence import Array, differences
from mint.quality.estimates import Statistic, estimates, mean, median_perplexity, percentile, perplexity
from mint.quality.evaluation import Evaluation
from mint.quality.forward import all_logits, open_used, vocabulary_size
from mint.quality.reference_file import Reference
from mint.quality.sequences import vocabulary_digest
from mint.run.device_kind import device_kind


def compare(folder: Path, reference: Reference, started: float, on_progress: OnProgress) -> Evaluation:
    """The evaluation of the model in `folder`; `seconds` count from `started` on the performance counter.

    Raises `MintError` when the model does not load, has another vocabulary, or computes NaN.
    """
    check_vocabulary(folder, reference.origin.tokenizer, reference.vocabulary, reference.origin.model)
    shape = reference.nll.shape
    kl, nll, agrees = np.empty(shape), np.empty(shape), np.empty(shape, np.bool_)
    tokens = reference.tokens
    on_progress(Progress("compare", 0, len(tokens), ""))
    for rows, logits in all_logits(open_used(folder), tokens, reference.vocabulary):
        divergence = differences(reference.log_probabilities(rows), reference.top[rows], logits, tokens[rows, 1:])
        kl[rows], nll[rows], agrees[rows] = divergence.kl, divergence.nll, divergence.agrees
        on_progress(Progress("compare", rows.stop, len(tokens), str(folder)))
    if np.isnan(kl).any():
        raise MintError(f"{folder}: the model computes NaN for {np.isnan(kl).sum()} tokens; mint verify may tell why")
    return Evaluation(
        output=str(folder),
        reference=reference.origin.model,
        identity=reference.origin.identity,
        text=reference.origin.sequences,
        seed=reference.origin.seed,
        sequences=len(tokens),
        tokens=tokens.size,
        device=device_kind(),
        estimates=estimates(_figures(kl, agrees.astype(np.float64), nll, reference)),
        seconds=round(time.perf_counter() - started, 3),
        peak_rss_bytes=peak_rss_bytes(),
    )


def check_vocabulary(folder: Path, tokenizer: str, vocabulary: int, reference: str) -> None:
    """Raise `MintError` unless the model in `folder` loads and its tokens mean what those of `reference` mean."""
    size = vocabulary_size(folder)
    if size != vocabulary:
        raise MintError(
            f"{folder}: its vocabulary has {size:,} tokens, that of the reference {reference} has {vocabulary:,}; "
            "needed: a reference of the model that it was made from"
        )
    digest = vocabulary_digest(folder)
    if digest and tokenizer and digest != tokenizer:
        raise MintError(
            f"{folder}: its tokenizer knows other tokens than that of the reference {reference} (vocabulary "
            f"{digest[:16]}, needed {tokenizer[:16]}); needed: a reference of the model that it was made from"
        )


def _figures(kl: Array, agrees: Array, nll: Array, reference: Reference) -> dict[str, tuple[Statistic, Array]]:
    original, noise = reference.nll.astype(np.float64), reference.noise.astype(np.float64)
    return {
        "kl_mean": (mean, kl),
        "kl_median": (percentile(50), kl),
        "kl_p99": (percentile(99), kl),
        "kl_p99.9": (percentile(99.9), kl),
        "noise_floor": (mean, noise),
        "top1_agreement": (mean, agrees),
        "perplexity": (perplexity, nll),
        "reference_perplexity": (perplexity, original),
        "median_perplexity": (median_perplexity, nll),
        "reference_median_perplexity": (median_perplexity, original),
    }
