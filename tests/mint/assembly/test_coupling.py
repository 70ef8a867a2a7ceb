"""Rounding that knows what its outputs matter for: a smaller loss in the same bytes, and no change where none helps."""

# T tokens, R rows, C columns

import numpy as np
import pytest

from mint.formats.format import Format, parse_format
from mint.kernels.compensate import Curvature, pack_compensated
from mint.kernels.coupling import Coupling, pack_coupled
from mint.kernels.unpack import unpack
from tests.mint.assembly.test_compensate import CASES, correlated
from tests.mint.kernels.test_kernels import DTYPES, raw, stored_as

ROWS, COLUMNS = 320, 256


@pytest.mark.parametrize("format", CASES, ids=str)
def test_the_loss_that_gradients_foresee_is_smaller(format: Format) -> None:
    """On inputs and gradients that took no part."""
    packed = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    curvature, coupling = Curvature.of(correlated(4096, COLUMNS)), Coupling.of(correlated(4096, ROWS))
    inputs, gradients = correlated(4096, COLUMNS, draw=1), correlated(4096, ROWS, draw=1)

    def loss(parts: tuple[np.ndarray, ...]) -> float:
        change = (np.asarray(unpack(parts, "F32", format)) - packed).astype(np.float64)
        return float(((gradients.T @ gradients) @ change @ (inputs.T @ inputs) * change).sum())

    coupled = loss(pack_coupled(packed, "F32", format, curvature, coupling))
    assert coupled < 0.8 * loss(pack_compensated(packed, "F32", format, curvature))


@pytest.mark.parametrize("format", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_that_know_nothing_of_each_other_stay_as_they_are(dtype: str, format: Format) -> None:
    packed = raw(stored_as(dtype, np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)))
    curvature = Curvature.of(correlated(1024, COLUMNS))
    coupling = Coupling.of(np.diag(np.arange(1.0, ROWS + 1)).astype(np.float32))
    for ours, theirs in zip(
        pack_coupled(packed, dtype, format, curvature, coupling),
        pack_compensated(packed, dtype, format, curvature),
        strict=True,
    ):
        assert np.isclose(ours, theirs, rtol=1e-5, atol=0).mean() > 0.99  # the BLAS's last bit depends on blocks


def test_every_row_is_in_one_block_and_neighbours_are_in_different_ones() -> None:
    for rows in (1, 63, 64, 65, 200, 1536, 4999):
        coupling = Coupling.of(np.eye(rows, dtype=np.float32))
        assert sorted(coupling.order) == list(range(rows))
        blocks = np.empty(rows, int)
        blocks[coupling.order] = np.arange(rows) // coupling.block
        if rows > coupling.block:
            assert (np.diff(blocks) != 0).mean() > 0.9


def test_threads_change_no_byte() -> None:
    packed = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    format = parse_format("4/64")
    curvature, coupling = Curvature.of(correlated(1024, COLUMNS)), Coupling.of(correlated(1024, ROWS))
    alone = pack_coupled(packed, "F32", format, curvature, coupling, threads=1)
    for part, other in zip(alone, pack_coupled(packed, "F32", format, curvature, coupling, threads=5), strict=True):
        np.testing.assert_array_equal(part, other)
