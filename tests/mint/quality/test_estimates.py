"""Figures and their intervals, against scipy's bootstrap and a known distribution."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import bootstrap

from mint.quality.estimates import Statistic, estimates, mean, median_perplexity, percentile, perplexity

SAMPLE = np.random.default_rng(1).gamma(1.0, 0.5, (40, 30)) * np.random.default_rng(2).uniform(0.5, 2, (40, 1))


@pytest.mark.parametrize("percent", [50, 99, 99.9])
def test_percentiles_are_numpys_over_all_tokens(percent: float) -> None:
    estimate = estimates({"figure": (percentile(percent), SAMPLE)})["figure"]
    assert estimate.value == np.percentile(SAMPLE.ravel(), percent)
    assert estimate.low <= estimate.value <= estimate.high


def test_perplexities_are_exponentials_of_mean_and_median() -> None:
    figures = estimates({"mean": (perplexity, SAMPLE), "median": (median_perplexity, SAMPLE)})
    assert figures["mean"].value == pytest.approx(np.exp(SAMPLE.mean()))
    assert figures["median"].value == pytest.approx(np.exp(np.median(SAMPLE.mean(1))))


@pytest.mark.parametrize("statistic", [mean, perplexity, percentile(50)])
def test_intervals_are_those_of_scipys_bootstrap_over_sequences(statistic: Statistic) -> None:
    estimate = estimates({"figure": (statistic, SAMPLE)})["figure"]

    def over_rows(rows: npt.NDArray[np.float64]) -> float:
        return statistic(SAMPLE[rows.astype(int)])

    oracle = bootstrap(
        (np.arange(len(SAMPLE)),), over_rows, n_resamples=1_000, method="percentile", vectorized=False, rng=7
    ).confidence_interval
    width = oracle.high - oracle.low
    assert estimate.low == pytest.approx(oracle.low, abs=0.1 * width)
    assert estimate.high == pytest.approx(oracle.high, abs=0.1 * width)


def test_the_same_sample_has_the_same_interval() -> None:
    first, second = (estimates({"figure": (mean, SAMPLE.copy())}) for _ in range(2))
    assert first == second


def test_all_figures_see_the_same_draws() -> None:
    figures = estimates({"one": (mean, SAMPLE), "twice": (mean, 2 * SAMPLE)})
    assert figures["twice"].low == pytest.approx(2 * figures["one"].low)
    assert figures["twice"].high == pytest.approx(2 * figures["one"].high)


def test_sequences_that_are_alike_leave_no_doubt() -> None:
    estimate = estimates({"figure": (mean, np.tile(SAMPLE[:1], (8, 1)))})["figure"]
    assert estimate.low == pytest.approx(estimate.high)
