"""Per-token figures against scipy in float64."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import log_softmax

from mint.quality.divergence import differences, predictions

B, T, V = 2, 5, 300_000 // 7  # more than one block of rows
GENERATOR = np.random.default_rng(0)
REFERENCE = GENERATOR.normal(0, 3, (B, T, V)).astype(np.float32)
CANDIDATE = (REFERENCE + GENERATOR.normal(0, 0.5, (B, T, V))).astype(np.float32)
FOLLOWING = GENERATOR.integers(0, V, (B, T), dtype=np.int32)


def _oracle(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    normal: npt.NDArray[np.float64] = log_softmax(logits.astype(np.float64), axis=-1)
    return normal


def test_kl_nll_and_agreement_are_those_of_the_formulas() -> None:
    prediction = predictions(REFERENCE, FOLLOWING)
    divergence = differences(prediction.log_probabilities, prediction.top, CANDIDATE, FOLLOWING)
    p, q = _oracle(REFERENCE), _oracle(CANDIDATE)
    np.testing.assert_allclose(divergence.kl, (np.exp(p) * (p - q)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(prediction.nll, -np.take_along_axis(p, FOLLOWING[..., None], -1)[..., 0], rtol=1e-9)
    np.testing.assert_allclose(divergence.nll, -np.take_along_axis(q, FOLLOWING[..., None], -1)[..., 0], rtol=1e-9)
    assert (divergence.agrees == (REFERENCE.argmax(-1) == CANDIDATE.argmax(-1))).all()


def test_a_model_is_no_distance_from_itself() -> None:
    prediction = predictions(REFERENCE, FOLLOWING)
    divergence = differences(prediction.log_probabilities, prediction.top, REFERENCE, FOLLOWING)
    assert np.abs(divergence.kl).max() < 1e-9
    assert divergence.agrees.all()


@pytest.mark.parametrize("spread", [0.3, 3.0, 10.0])
def test_storing_half_precision_costs_millionths_of_a_nat(spread: float) -> None:
    reference = GENERATOR.normal(0, spread, (1, 8, 50_000)).astype(np.float32)
    candidate = (reference + GENERATOR.normal(0, 0.05, reference.shape)).astype(np.float32)
    following = np.zeros((1, 8), np.int32)
    prediction = predictions(reference, following)
    halved = prediction.log_probabilities.astype(np.float16)
    exact = differences(prediction.log_probabilities, prediction.top, candidate, following).kl
    stored = differences(halved, prediction.top, candidate, following).kl
    itself = differences(halved, prediction.top, reference, following).kl
    assert itself.max() < 5e-6
    assert np.abs(stored - exact).mean() < 0.01 * exact.mean()
    assert np.abs(stored - exact).mean() < 2e-5


def test_tokens_that_cannot_come_count_nothing() -> None:
    logits = np.array([[[0.0, 1.0, -np.inf]]], np.float32)
    other = np.array([[[0.0, 1.0, 2.0]]], np.float32)
    prediction = predictions(logits, np.array([[1]], np.int32))
    for candidate in (logits, other):
        divergence = differences(prediction.log_probabilities, prediction.top, candidate, np.array([[1]], np.int32))
        assert np.isfinite(divergence.kl).all()
    assert differences(prediction.log_probabilities, prediction.top, logits, np.array([[1]], np.int32)).kl[0, 0] < 1e-12
