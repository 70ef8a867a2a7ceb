"""The distance of a new model from its original, measured while it is made."""

# J sequences, b of a block, L tokens, V vocabulary

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import mlx.core as mx
import numpy as np

from mint.quality.divergence import Tokens, differences, predictions
from mint.quality.estimates import Estimate, estimates, mean
from mint.quality.forward import as_numpy

Blocks = Iterable[mx.array]  # (b, L, V) each


@dataclass(frozen=True, slots=True)
class Closeness:
    """KL in nats per token and agreement of the likeliest token, each with its 95 % interval, on `text`."""

    kl: Estimate
    top1: Estimate
    sequences: int
    tokens: int  # of all sequences
    text: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read plain values. Raises TypeError or KeyError for others."""
        intervals = {name: Estimate(**record[name]) for name in ("kl", "top1")}
        return cls(**{**record, **intervals})


def closeness(original: Blocks, candidate: Blocks, tokens: Tokens, text: str) -> Closeness:
    """Compare two models on the tokens (J, L), which `text` describes, by their logits in the same blocks (b, L, V)."""
    kl, agrees = np.empty(tokens[:, 1:].shape), np.empty(tokens[:, 1:].shape)
    done = 0
    for truth, block in zip(original, candidate, strict=True):
        rows = slice(done, done := done + len(truth))
        following = tokens[rows, 1:]
        expected = predictions(as_numpy(truth[:, :-1]), following)
        divergence = differences(expected.log_probabilities, expected.top, as_numpy(block[:, :-1]), following)
        kl[rows], agrees[rows] = divergence.kl, divergence.agrees
    figures = estimates({"kl": (mean, kl), "top1": (mean, agrees)})
    return Closeness(figures["kl"], figures["top1"], len(tokens), tokens.size, text)
