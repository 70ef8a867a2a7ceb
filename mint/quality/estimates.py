"""Figures with their uncertainty: each with a 95 % confidence interval by resampling whole sequences.

Tokens of one sequence are alike, so it is sequences that are drawn again, with replacement (the block bootstrap);
the interval runs from the 2.5th to the 97.5th percentile of the figure over the draws (Efron and Tibshirani 1993,
chapter 13). A seed decides the draws, so figures of the same sequences see the same ones.
"""

# S sequences, T predicted tokens of each

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mint.quality.divergence import Array

DRAWS = 1_000
SEED = 0
_OUTER = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float


Statistic = Callable[[Array], float]


def mean(values: Array) -> float:
    """The mean over all tokens of (S, T)."""
    return float(values.mean())


def percentile(percent: float) -> Statistic:
    """The statistic that is the `percent`-th percentile over all tokens of (S, T)."""
    return lambda values: float(np.percentile(values, percent))


def perplexity(nll: Array) -> float:
    """exp of the mean negative log-likelihood of all tokens of (S, T)."""
    return float(np.exp(nll.mean()))


def median_perplexity(nll: Array) -> float:
    """exp of the median over sequences of each one's mean negative log-likelihood, from (S, T)."""
    return float(np.exp(np.median(nll.mean(-1))))


def estimates(figures: Mapping[str, tuple[Statistic, npt.NDArray[np.generic]]]) -> dict[str, Estimate]:
    """Every figure, a statistic of a sample (S, T), with its interval."""
    results = {}
    for name, (statistic, values) in figures.items():
        sample, sequences = values.astype(np.float64), len(values)
        draws = np.random.default_rng(SEED).integers(sequences, size=(DRAWS, sequences))
        low, high = np.percentile([statistic(sample[draw]) for draw in draws], _OUTER)
        results[name] = Estimate(statistic(sample), float(low), float(high))
    return results
