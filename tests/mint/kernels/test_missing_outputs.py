"""A matrix learns what its outputs miss where that follows from its inputs, and nothing from noise."""

import numpy as np
import numpy.typing as npt
import pytest

from mint.kernels.missing_outputs import (
    MOST_CHANGE,
    Algebra,
    DeviceAlgebra,
    Missing,
    NumpyAlgebra,
    with_outputs,
)

ROWS, OUTPUTS, COLUMNS = 2048, 24, 64


@pytest.fixture(params=[NumpyAlgebra(), DeviceAlgebra()], ids=["numpy", "device"])
def algebra(request: pytest.FixtureRequest) -> Algebra:
    chosen: Algebra = request.param
    return chosen


def random(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs_of(seed: int = 1) -> npt.NDArray[np.float32]:
    """(T, C) rows of very different columns, which go together."""
    mixed: npt.NDArray[np.float32] = random(COLUMNS, COLUMNS, seed=9) * np.exp(random(COLUMNS, seed=8))
    return random(ROWS, COLUMNS, seed=seed) @ mixed


def added(outputs: npt.NDArray[np.float32]) -> Missing:
    """The missing outputs of a matrix whose outputs are added as they are."""
    return Missing(outputs, np.ones(OUTPUTS, np.float32))


def test_what_follows_from_the_inputs_is_learned(algebra: Algebra) -> None:
    weight, change, inputs = random(OUTPUTS, COLUMNS), random(OUTPUTS, COLUMNS, seed=2) / np.float32(10), inputs_of()
    missing = inputs @ change.T
    learned = with_outputs(weight, inputs, added(missing), algebra)
    unseen = inputs_of(seed=3)
    wanted = unseen @ (weight + change).T
    before, after = (np.square(unseen @ matrix.T - wanted).sum() for matrix in (weight, learned))
    assert after < 0.05 * before


def test_a_norm_and_its_gain_may_stand_before_the_sum(algebra: Algebra) -> None:
    weight, change, inputs = random(OUTPUTS, COLUMNS), random(OUTPUTS, COLUMNS, seed=2) / np.float32(20), inputs_of()
    gain = np.exp(random(OUTPUTS, seed=5) / 2)
    gain[3] = 1e-6

    def normed(matrix: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
        outputs = rows @ matrix.T
        sizes = np.sqrt(np.square(outputs).mean(axis=1, keepdims=True))
        return gain * outputs / sizes, sizes

    rows = inputs * np.exp(2 * random(ROWS, 1, seed=6))  # a norm makes all rows count alike
    (now, sizes), (wanted, _) = normed(weight, rows), normed(weight + change, rows)
    learned = with_outputs(weight, rows, Missing(wanted - now, gain, sizes), algebra)
    unseen = inputs_of(seed=3)
    wanted = normed(weight + change, unseen)[0]
    before, after = (np.square(normed(matrix, unseen)[0] - wanted).sum() for matrix in (weight, learned))
    assert after < 0.1 * before
    np.testing.assert_array_equal(learned[3], weight[3])  # it changes nothing that counts


def test_nothing_is_learned_from_noise(algebra: Algebra) -> None:
    weight, inputs = random(OUTPUTS, COLUMNS), inputs_of()
    noise = random(ROWS, OUTPUTS, seed=4) * np.float32(3)
    learned = with_outputs(weight, inputs, added(noise), algebra)
    least = inputs @ np.linalg.lstsq(inputs, noise, rcond=None)[0]
    assert np.square(inputs @ (learned - weight).T).sum() < 0.1 * np.square(least).sum()


def test_a_change_is_bounded_by_the_weights(algebra: Algebra) -> None:
    weight, inputs = random(OUTPUTS, COLUMNS), inputs_of()
    learned = with_outputs(weight, inputs, added(inputs @ random(OUTPUTS, COLUMNS, seed=2).T), algebra)
    share = np.square(learned - weight).sum() / np.square(weight).sum()
    assert share == pytest.approx(MOST_CHANGE, rel=1e-3)


@pytest.mark.parametrize("power", [-30, 0, 20])
def test_powers_of_two_change_nothing(algebra: Algebra, power: int) -> None:
    weight, inputs = random(OUTPUTS, COLUMNS), inputs_of()
    missing = inputs @ (random(OUTPUTS, COLUMNS, seed=2) / np.float32(10)).T
    expected = with_outputs(weight, inputs, added(missing), algebra)
    learned = with_outputs(weight, np.ldexp(inputs, power), added(np.ldexp(missing, power)), algebra)
    np.testing.assert_array_equal(learned, expected)


def test_rows_that_are_not_finite_teach_nothing(algebra: Algebra) -> None:
    weight, inputs = random(OUTPUTS, COLUMNS), inputs_of()
    missing = inputs @ (random(OUTPUTS, COLUMNS, seed=2) / np.float32(10)).T
    spoiled, spoiled_missing = inputs.copy(), missing.copy()
    spoiled[5, 3], spoiled_missing[1999, 0] = np.inf, np.nan
    rest = np.delete(np.arange(ROWS), [5, 1999])
    np.testing.assert_array_equal(
        with_outputs(weight, spoiled, added(spoiled_missing), algebra),
        with_outputs(weight, inputs[rest], added(missing[rest]), algebra),
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_without_rows_weights_stay(algebra: Algebra, rows: int) -> None:
    weight = random(OUTPUTS, COLUMNS)
    learned = with_outputs(weight, random(rows, COLUMNS), added(random(rows, OUTPUTS)), algebra)
    np.testing.assert_array_equal(learned, weight)


@pytest.mark.parametrize("inputs", [np.zeros((64, 32)), np.full((64, 32), 1e30), np.full((64, 32), np.nan)])
def test_inputs_that_say_nothing_leave_the_weights(algebra: Algebra, inputs: np.ndarray) -> None:
    weight = random(OUTPUTS, 32)
    learned = with_outputs(weight, inputs.astype(np.float32), added(random(64, OUTPUTS)), algebra)
    assert np.isfinite(learned).all()
    np.testing.assert_allclose(learned, weight, atol=1e-6)
