"""Weights and inputs that break arithmetic: what is packed from finite weights is finite, whatever their inputs are."""

# R rows, C columns, T rows of inputs

from collections.abc import Callable

import numpy as np
import pytest

from mint.formats.format import parse_format
from mint.kernels import cpu
from mint.kernels.compensate import Curvature, pack_compensated
from mint.kernels.compiled import STORAGES, write_raw
from mint.kernels.unpack import unpack

FORMATS = tuple(map(parse_format, ("2/32", "4/64", "8/128", "mxfp4", "nvfp4")))
LARGEST = {"BF16": 3e38, "F16": 6e4, "F32": 3e38}
DRAW = np.random.default_rng(0)
NORMAL = DRAW.standard_normal((3, 128)).astype(np.float32)
WEIGHTS: dict[str, Callable[[float], np.ndarray]] = {
    "zero": lambda top: np.zeros((3, 128)),
    "negative zero": lambda top: np.full((3, 128), -0.0),
    "constant": lambda top: np.full((3, 128), 0.37),
    "subnormal": lambda top: NORMAL * 1e-40,
    "one of many": lambda top: np.where(np.arange(384).reshape(3, 128) == 5, top, 0.0),
    "largest and least": lambda top: np.where(NORMAL > 0, top, -top),
    "all magnitudes": lambda top: np.sign(NORMAL) * np.geomspace(1e-30, top, 384).reshape(3, 128),
}
INPUTS: dict[str, np.ndarray] = {
    "none": np.zeros((0, 128)),
    "zero": np.zeros((4, 128)),
    "one row": NORMAL[:1],
    "rank one": np.outer(np.arange(1, 9), NORMAL[0]),
    "dead columns": np.where(np.arange(128) % 2, DRAW.standard_normal((40, 128)), 0.0),
    "small": DRAW.standard_normal((40, 128)) * 1e-18,
    "large": DRAW.standard_normal((40, 128)) * 1e15,
    "as large as float32": DRAW.standard_normal((40, 128)) * 5e37,
    "as small as float32": DRAW.standard_normal((40, 128)) * 1e-37,
    "infinite": np.where(np.arange(40)[:, None] == 3, np.inf, DRAW.standard_normal((40, 128))),
    "not a number": np.where(np.arange(40)[:, None] == 3, np.nan, DRAW.standard_normal((40, 128))),
}


def _raw(values: np.ndarray, dtype: str) -> np.ndarray:
    stored = np.empty(values.size, np.float32 if dtype == "F32" else np.uint16)
    write_raw(np.ascontiguousarray(values, np.float32).reshape(-1), STORAGES[dtype], stored)
    return stored.reshape(values.shape)


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_finite_weights_are_packed_finite_and_measured_so(kind: str, dtype: str) -> None:
    weight = _raw(WEIGHTS[kind](LARGEST[dtype] / 4), dtype)[None]
    for search in (False, True):
        measured = cpu.errors(weight, dtype, FORMATS, search=search)
        assert not measured.nonfinite
        assert np.isfinite(measured.energy).all()
        for format in FORMATS:
            restored = np.array(unpack(cpu.pack(weight, dtype, format, search=search), dtype, format))
            assert np.isfinite(restored.astype(np.float32)).all(), (str(format), search)


@pytest.mark.parametrize("power", [-120, -70, 70, 120])
def test_a_curvature_does_not_depend_on_the_unit_of_its_inputs(power: int) -> None:
    inputs = DRAW.standard_normal((40, 128)).astype(np.float32)
    weight = _raw(NORMAL, "BF16")
    packed = [
        pack_compensated(weight, "BF16", FORMATS[1], Curvature.of(rows)) for rows in (inputs, np.ldexp(inputs, power))
    ]
    assert all(np.array_equal(*parts) for parts in zip(*packed, strict=True))


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("inputs", INPUTS)
def test_compensation_stays_finite_for_any_inputs(inputs: str, dtype: str) -> None:
    curvature = Curvature.of(np.ascontiguousarray(INPUTS[inputs], np.float32))
    assert np.isfinite(curvature.upper).all()
    for kind in ("zero", "constant", "one of many"):
        weight = _raw(WEIGHTS[kind](1.0), dtype)
        for format in FORMATS:
            parts = [part[None] for part in pack_compensated(weight, dtype, format, curvature)]
            restored = np.array(unpack(parts, dtype, format)).astype(np.float32)
            assert np.isfinite(restored).all(), (kind, str(format))
