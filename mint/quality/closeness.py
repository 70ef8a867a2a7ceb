"""The distance of a new model from its original, measured while it is made."""

# J sequences, B of a block, L tokens, V vocabulary

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Self

import mlx.core as mx
import numpy as np

from mint.quality.divergence import Logits, Tokens, differences, predictions
from mint.quality.estimates import Estimate, estimates, mean
from mint.quality.forward import as_numpy

Blocks = Iterable[mx.array]  # (B, L, V) each


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


class Expected:
    """The original's predictions of the tokens (J, L), in a file: no two models are ever in memory together.

    Half precision is enough for log-probabilities: see `reference_file.py`.
    """

    def __init__(self, logits: Blocks, tokens: Tokens, file: BinaryIO) -> None:
        self.tokens = tokens
        self._file = file
        self._tops: list[Tokens] = []
        self._vocabulary = 0
        for rows, block in _counted(logits):
            expected = predictions(as_numpy(block[:, :-1]), tokens[rows, 1:])
            file.write(expected.log_probabilities.astype(np.float16).data)
            self._tops.append(expected.top)
            self._vocabulary = block.shape[-1]

    def blocks(self) -> Iterator[tuple[Logits, Tokens]]:
        """The log-probabilities (B, L - 1, V) and the likeliest tokens (B, L - 1) of one block after the other."""
        self._file.seek(0)
        for top in self._tops:
            block = np.fromfile(self._file, np.float16, top.size * self._vocabulary)
            yield block.reshape(*top.shape, self._vocabulary), top

    def token_blocks(self) -> Iterator[Tokens]:
        """The tokens (B, L) of one block after the other."""
        start = 0
        for top in self._tops:
            yield self.tokens[start : start + len(top)]
            start += len(top)

    def with_tokens(self) -> Iterator[tuple[Tokens, Logits]]:
        """The tokens (B, L) and the log-probabilities (B, L - 1, V) of one block after the other."""
        for tokens, (log_probabilities, _) in zip(self.token_blocks(), self.blocks(), strict=True):
            yield tokens, log_probabilities


def closeness(expected: Expected, candidate: Blocks, text: str) -> Closeness:
    """Compare a model with its original by its logits in the same blocks (B, L, V); `text` describes the tokens."""
    tokens = expected.tokens
    kl, agrees = np.empty(tokens[:, 1:].shape), np.empty(tokens[:, 1:].shape)
    for (rows, block), (log_probabilities, top) in zip(_counted(candidate), expected.blocks(), strict=True):
        divergence = differences(log_probabilities, top, as_numpy(block[:, :-1]), tokens[rows, 1:])
        kl[rows], agrees[rows] = divergence.kl, divergence.agrees
    figures = estimates({"kl": (mean, kl), "top1": (mean, agrees)})
    return Closeness(figures["kl"], figures["top1"], len(tokens), tokens.size, text)


def _counted(logits: Blocks) -> Iterator[tuple[slice, mx.array]]:
    """Blocks of logits, each with its sequences."""
    start = 0
    for block in logits:
        yield slice(start, start := start + len(block)), block
