"""The distance between two models' predictions of the next token, per token, from their logits.

    KL(p || q) = sum_v p_v (log p_v - log q_v) in nats, p the reference's distribution, q the candidate's

Everything is summed in float64, a few rows at a time: a vocabulary of 150,000 leaves float32 sums an error that is no
longer small against the difference between two good models.
"""

# B sequences, T predicted tokens of each, N of both, V vocabulary

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Logits = npt.NDArray[np.floating]
Tokens = npt.NDArray[np.int32]
_BLOCK = 1 << 20  # numbers at once: they stay in a core's cache


@dataclass(frozen=True, slots=True)
class Predictions:
    """A reference's prediction of tokens: all log-probabilities, the likeliest token, and the cost of the real one."""

    log_probabilities: npt.NDArray[np.float32]  # (B, T, V)
    top: Tokens  # (B, T)
    nll: Array  # (B, T) of the token that follows, in nats


@dataclass(frozen=True, slots=True)
class Differences:
    """A candidate's prediction of the same tokens, compared with the reference's."""

    kl: Array  # (B, T) KL(reference || candidate) in nats
    agrees: npt.NDArray[np.bool_]  # (B, T) the likeliest token is the same
    nll: Array  # (B, T)


def predictions(logits: Logits, following: Tokens) -> Predictions:
    """The reference's predictions from its logits (B, T, V) and the tokens (B, T) that follow."""
    log_probabilities = np.empty(logits.shape, np.float32)
    nll = np.empty(following.shape)
    for block, next_tokens, normal_out, nll_out in _blocks(logits, following, log_probabilities, nll):
        normal_out[:] = normal = _normalized(block)
        nll_out[:] = -_picked(normal, next_tokens)
    return Predictions(log_probabilities, logits.argmax(-1).astype(np.int32), nll)


def differences(log_probabilities: Logits, top: Tokens, logits: Logits, following: Tokens) -> Differences:
    """A candidate's differences from its logits (B, T, V) and a reference's `log_probabilities` and `top`.

    The log-probabilities are normalized again, so that storing them in fewer bits leaves an error of second order.
    """
    kl, nll = np.empty(following.shape), np.empty(following.shape)
    blocks = _blocks(log_probabilities, logits, following, kl, nll)
    for reference, candidate, next_tokens, kl_out, nll_out in blocks:
        expected, candidate_normal = _normalized(reference), _normalized(candidate)
        probabilities = np.exp(expected)
        with np.errstate(invalid="ignore"):
            expected -= candidate_normal
        # 0 log 0 = 0, for every candidate
        kl_out[:] = np.multiply(probabilities, expected, where=probabilities > 0, out=probabilities).sum(-1)
        nll_out[:] = -_picked(candidate_normal, next_tokens)
    return Differences(kl, logits.argmax(-1) == top, nll)


def _normalized(logits: Logits) -> Array:
    """log softmax in float64, (N, V)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def _picked(values: Array, tokens: Tokens) -> Array:
    picked: Array = np.take_along_axis(values, tokens[:, None], -1)[:, 0]
    return picked


def _blocks(*arrays: npt.NDArray[Any]) -> Iterator[list[npt.NDArray[Any]]]:
    """Blocks of rows of the arrays (B, T, V) and (B, T), seen as (N, V) and (N,)."""
    rows = arrays[0].shape[0] * arrays[0].shape[1]
    step = max(1, _BLOCK // arrays[0].shape[2])
    flat = [array.reshape(rows, *array.shape[2:]) for array in arrays]  # views: all are contiguous
    return ([array[start : start + step] for array in flat] for start in range(0, rows, step))
