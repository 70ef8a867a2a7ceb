"""Roundings that use gradients, on numbers that break arithmetic: what is written is finite, in whatever unit."""

# T tokens, R rows, C columns

from pathlib import Path
from tempfile import TemporaryFile

import mlx.core as mx
import numpy as np
import pytest

from mint.formats.format import parse_format
from mint.kernels.compensate import Curvature
from mint.kernels.coupling import Coupling, pack_coupled
from mint.kernels.unpack import unpack
from mint.model.passes.gradients import Gradients
from mint.model.passes.tuning import Grid, tuned
from mint.quality.forward import fusing_nothing, open_wide
from tests.mint.kernels.test_kernels import raw, stored_as
from tests.mint.kernels.test_numbers import FORMATS, INPUTS
from tests.mint.model.test_tuning import TOKENS, coarse, log_probabilities

ROWS, COLUMNS = 96, 128
DRAW = np.random.default_rng(1)
WEIGHT = DRAW.standard_normal((ROWS, COLUMNS)).astype(np.float32)
ROWS_OF_INPUTS = DRAW.standard_normal((40, COLUMNS)).astype(np.float32)


def _kept(gradients: np.ndarray) -> np.ndarray:
    """The gradients as they are read back from their file."""
    with TemporaryFile() as file:
        kept = Gradients(file)
        kept.add("m", np.ascontiguousarray(gradients, np.float32))
        rows = kept.of("m")
    assert rows is not None
    return rows


@pytest.mark.parametrize("power", [-120, -70, 70, 120])
def test_gradients_are_kept_in_any_unit(power: int) -> None:
    gradients = DRAW.standard_normal((40, ROWS)).astype(np.float32)
    kept = _kept(gradients)
    assert np.square(kept).mean() == pytest.approx(1, rel=0.01)
    np.testing.assert_array_equal(_kept(np.ldexp(gradients, power)), kept)


@pytest.mark.parametrize("kind", INPUTS)
def test_coupling_stays_finite_for_any_gradients(kind: str) -> None:
    coupling = Coupling.of(_kept(INPUTS[kind][:, :ROWS]))
    assert np.isfinite(coupling.upper).all()
    curvature = Curvature.of(ROWS_OF_INPUTS)
    for dtype in ("BF16", "F16", "F32"):
        for format in FORMATS:
            packed = pack_coupled(raw(stored_as(dtype, WEIGHT)), dtype, format, curvature, coupling)
            assert np.isfinite(np.asarray(unpack(packed, dtype, format)).astype(np.float32)).all(), str(format)


@pytest.mark.parametrize("power", [-45, -20, 30, 60, 110])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_errors_of_coupled_weights_do_not_depend_on_their_unit(dtype: str, power: int) -> None:
    curvature = Curvature.of(ROWS_OF_INPUTS)
    coupling = Coupling.of(_kept(DRAW.standard_normal((40, ROWS))))
    for format in map(parse_format, ("2/32", "4/64", "8/128", "mxfp4")):
        errors = []
        for unit in (0, power):
            weight = stored_as(dtype, np.ldexp(WEIGHT, unit))
            packed = pack_coupled(raw(weight), dtype, format, curvature, coupling)
            restored = np.asarray(unpack(packed, dtype, format)).astype(np.float64)
            exact = np.array(weight.astype(mx.float32)).astype(np.float64)
            errors.append(np.square(restored - exact).sum() / np.square(exact).sum())
        assert errors[1] == pytest.approx(errors[0], rel=0.05), str(format)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_a_trained_grid_is_finite_as_its_file_holds_it(dtype: mx.Dtype) -> None:
    top = mx.finfo(dtype).max
    weight = mx.array(np.where(WEIGHT > 0, top, -top), dtype) / 4
    grid = Grid.of(*mx.quantize(weight, group_size=32, bits=2), 2)
    grid = Grid(grid.codes, grid.scales, mx.full(grid.biases.shape, -top), 2)
    changes = mx.array(DRAW.standard_normal(grid.scales.shape))
    stored = grid.changed(0.01 * changes, 0.01 * changes).stored(dtype)
    assert mx.isfinite(stored.scales).all().item()
    assert mx.isfinite(stored.biases).all().item()


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e15])
def test_training_stays_finite_with_a_unit_of_any_size(size: float, llama: Path) -> None:
    expected = log_probabilities(open_wide(llama), TOKENS).astype(np.float16)
    model, grids = coarse(llama, 4)
    path = next(path for path in grids if path.endswith("v_proj"))
    grid = grids[path]
    grids[path] = Grid(grid.codes, grid.scales * size, grid.biases * size, grid.bits)
    with fusing_nothing():
        trained = tuned(model, grids, lambda: [(TOKENS, expected)], lambda step: None, steps=2)
    for grid in trained.values():
        assert mx.isfinite(grid.weight()).all().item()
