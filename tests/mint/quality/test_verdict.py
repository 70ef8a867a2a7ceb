"""Words say what the printed figure means, and no more than a prediction supports."""

import re

import pytest

from mint.quality.estimates import Estimate
from mint.quality.verdict import (
    KL_WORDS,
    VAGUE,
    beside_text,
    interval_in_words,
    is_ruined,
    is_vague,
    kl_in_words,
    kl_text,
    predicted_in_words,
    predicted_text,
    result_in_words,
)


@pytest.mark.parametrize("limit", [limit for limit, _ in KL_WORDS])
def test_figures_that_are_printed_alike_have_the_same_words(limit: float) -> None:
    for kl in (0.996 * limit, limit, 1.004 * limit):
        assert float(kl_text(kl)) == limit
        assert kl_in_words(kl) == kl_in_words(limit)
        assert is_ruined(kl) == is_ruined(limit)
    assert kl_in_words(1.1 * limit) != kl_in_words(limit)


def test_a_prediction_shows_its_uncertainty_and_words_only_where_both_ends_agree() -> None:
    assert predicted_text(Estimate(0.22, 0.073, 0.66)) == "KL 0.22 predicted, within a factor of 3"
    sure = Estimate(0.22, 0.2, 0.242)
    assert predicted_text(sure) == "a noticeable loss: KL 0.22 predicted, within a factor of 1.1"
    for factor in (1.0, 1.5, 3.0, 32.0):
        for kl in (0.001, 0.02, 0.049, 0.3, 0.9, 3.0):
            estimate = Estimate(kl, kl / factor, kl * factor)
            words = predicted_in_words(estimate)
            assert words in (None, kl_in_words(estimate.low))
            assert (words is None) == (kl_in_words(estimate.low) != kl_in_words(estimate.high))
            assert re.search(rf"within a factor of {factor:g}$", predicted_text(estimate))


def test_two_measurements_that_agree_never_have_words_that_contradict() -> None:
    """Of one model two texts gave 0.051 and 0.042: a border of the words lay inside of both intervals."""
    first, second = Estimate(0.051, 0.042, 0.062), Estimate(0.042, 0.035, 0.053)
    assert interval_in_words(first) == interval_in_words(second) == "between very close and close to the original"
    assert interval_in_words(Estimate(0.02, 0.015, 0.05)) == "very close to the original"
    assert interval_in_words(Estimate(0.14, 0.12, 0.2)) == "between close to the original and a noticeable loss"
    for low, (limit, words) in zip((0.0, *(limit for limit, _ in KL_WORDS)), KL_WORDS, strict=False):
        assert interval_in_words(Estimate(limit, 1.1 * low, limit)) == words


def test_a_prediction_that_can_be_wrong_by_a_large_factor_is_vague() -> None:
    assert is_vague(Estimate(0.52, 0.016, 16.6))
    assert is_vague(Estimate(1.0, 1 / VAGUE, VAGUE))
    assert not is_vague(Estimate(1.0, 1 / 3.9, 3.9))
    assert not is_vague(Estimate(0.0, 0.0, 0.0))  # nothing is rounded


def test_a_ratio_to_uniform_is_told_only_where_the_intervals_are_apart() -> None:
    kl = Estimate(0.09, 0.08, 0.1)
    assert beside_text(kl, Estimate(0.306, 0.28, 0.33)) == "3.4 times closer than 4-bit"
    assert beside_text(Estimate(0.306, 0.28, 0.33), kl) == "3.4 times farther than 4-bit"
    assert beside_text(kl, Estimate(0.11, 0.095, 0.13)) == "as close as 4-bit"
    assert beside_text(Estimate(0.0, 0.0, 0.0), kl) == "closer than 4-bit"


def test_a_result_is_told_by_its_measurement_and_else_by_a_prediction_that_is_not_vague() -> None:
    measured = {"kl": {"value": 0.09, "low": 0.08, "high": 0.1}, "top1": {"value": 0.87, "low": 0.8, "high": 0.9}}
    predicted = {"predicted_kl": 0.2, "predicted_low": 0.1, "predicted_high": 0.4}
    vague = predicted | {"predicted_high": 0.2 * VAGUE}
    uniform = measured | {"kl": {"value": 0.306, "low": 0.28, "high": 0.33}}
    words = result_in_words({**vague, "closeness": measured, "uniform": uniform})
    assert words["short"] == "KL 0.09, 3.4 times closer than 4-bit"
    assert words["closeness"] == "close to the original: KL 0.09 (0.08 to 0.1) measured, same first word 87%"
    assert words["4-bit"] == "KL 0.31 (0.28 to 0.33) measured on the same text, same first word 87%"
    assert result_in_words({**predicted, "closeness": measured})["short"] == "KL 0.09 measured"
    assert result_in_words({**predicted, "closeness": None})["short"] == "KL 0.2 predicted"
    assert result_in_words(vague) == {"closeness": "not measured"}
    assert result_in_words({}) == result_in_words({"predicted_kl": None}) == {}
    ruined = {"predicted_kl": 2.0, "predicted_low": 1.5, "predicted_high": 3.0}
    assert "may ruin the model" in result_in_words(ruined)["WARNING"]
