"""Compensated rounding by the fused kernels, compiled as C++, is as near as that of the CPU's kernels."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mint.formats.format import FORMATS, parse_format
from mint.kernels import oracle
from mint.kernels.backend import using
from mint.kernels.compensate import Curvature, pack_compensated
from mint.kernels.compensation import OnCpu, OnDevice, compensator
from mint.kernels.fused import FusedKernels, Program
from mint.kernels.fused_rounding import DeviceCurvature, FusedRounding
from mint.kernels.fused_source import CUDA, METAL, Dialect, Kernel
from mint.kernels.gpu import GpuBackend
from mint.kernels.rounding_check import LOSSES, TOLERANCE, loss, problem, rounding_fault_of
from mint.kernels.rounding_source import refine_kernel, round_affine_kernel, round_fp4_kernel
from mint.kernels.storage import MLX_DTYPES, from_raw, raw
from tests.mint.kernels import fused_cpp

pytestmark = pytest.mark.skipif(fused_cpp.compiler() is None, reason="needs a C++ compiler: g++ or clang++")
NAMES = [str(format) for format in FORMATS if format.scheme.is_compiled]


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> FusedKernels:
    return fused_cpp.kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def rounding(fused: FusedKernels) -> FusedRounding:
    return FusedRounding(fused.dialect, fused.build)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what a machine remembers of its kernels, empty."""
    monkeypatch.setattr("mint.kernels.fused_check.kernel_folder", lambda: tmp_path)
    return tmp_path


def losses(
    rounding: FusedRounding, weight: mx.array, dtype: str, name: str, rows: np.ndarray
) -> tuple[float, float, float]:
    """Those of the device, of the CPU, and of rounding to nearest."""
    format, curvature = parse_format(name), Curvature.of(rows)
    stored = pack_compensated(raw(weight), dtype, format, curvature)
    scales = [mx.array(part) if part.dtype == np.uint8 else from_raw(part, dtype) for part in stored[1:]]
    ours = OnDevice(rounding).pack(raw(weight), dtype, format, DeviceCurvature.of(rows))
    assert [(part.shape, part.dtype) for part in ours] == [(part.shape, part.dtype) for part in stored]
    ours_scales = [mx.array(part) if part.dtype == np.uint8 else from_raw(part, dtype) for part in ours[1:]]
    packed = (
        (mx.array(ours[0]), *ours_scales),
        (mx.array(stored[0]), *scales),
        oracle.pack(weight, format),
    )
    found = [loss(weight, oracle.dequantize(parts, format), curvature.moments) for parts in packed]
    return found[0], found[1], found[2]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_as_near_as_on_the_cpu(rounding: FusedRounding, name: str, dtype: str) -> None:
    values, rows = problem()
    ours, theirs, nearest = losses(rounding, mx.array(values).astype(MLX_DTYPES[dtype]), dtype, name, rows)
    assert 0.9 * theirs < ours < (1 + TOLERANCE) * theirs
    assert ours < 0.9 * nearest


@pytest.mark.parametrize(("dtype", "name"), LOSSES)
def test_the_expected_losses_are_the_cpu_s(rounding: FusedRounding, dtype: str, name: str) -> None:
    values, rows = problem()
    _, theirs, nearest = losses(rounding, mx.array(values).astype(MLX_DTYPES[dtype]), dtype, name, rows)
    assert theirs / nearest == pytest.approx(LOSSES[dtype, name], rel=1e-3)


@pytest.mark.parametrize("power", [-60, 0, 60])
def test_weights_of_any_magnitude_lose_the_same_share(rounding: FusedRounding, power: int) -> None:
    values, rows = problem()
    for name in ("4/64", "nvfp4" if power == 0 else "mxfp4"):
        ours, theirs, _ = losses(rounding, mx.array(np.ldexp(values, power)), "F32", name, rows)
        assert ours == pytest.approx(theirs, rel=TOLERANCE), name


@pytest.mark.parametrize("columns", [64, 320, 576])
def test_any_number_of_columns_and_one_row(rounding: FusedRounding, columns: int) -> None:
    random = np.random.default_rng(1)
    weight = mx.array(random.standard_normal((1, columns)).astype(np.float32)).astype(mx.bfloat16)
    rows = random.standard_normal((90, columns)).astype(np.float32)
    for name in ("3/64", "mxfp4"):
        ours, theirs, nearest = losses(rounding, weight, "BF16", name, rows)
        assert ours == pytest.approx(theirs, rel=0.1)  # a single row: one code more or less counts
        assert ours < nearest


def test_moments_are_factored_by_halves_as_by_lapack() -> None:
    _, rows = problem()
    whole, exact = DeviceCurvature.of(rows, 32), Curvature.of(rows)
    np.testing.assert_allclose(np.asarray(whole.moments), exact.moments, rtol=0, atol=1e-5 * exact.moments.max())
    np.testing.assert_allclose(np.asarray(whole.upper), exact.upper, rtol=0, atol=1e-5 * exact.upper.max())


def test_inputs_of_zeros_and_of_one_direction_have_a_curvature(rounding: FusedRounding) -> None:
    values, rows = problem()
    assert (np.asarray(DeviceCurvature.of(np.zeros_like(rows)).upper) == np.eye(rows.shape[1])).all()
    one = np.outer(rows[:, 0], rows[0]).astype(np.float32)
    ours, theirs, _ = losses(rounding, mx.array(values).astype(mx.bfloat16), "BF16", "4/64", one)
    assert ours == pytest.approx(theirs, rel=0.05)


def test_inputs_that_float32_cannot_factor_are_factored_on_the_cpu(rounding: FusedRounding) -> None:
    random = np.random.default_rng(2)
    rows = random.standard_normal((5000, 1100)).astype(np.float32)
    rows[:, 0] *= np.float32(1e18)
    curvature = OnDevice(rounding).curvature_of(rows)
    exact = OnCpu().curvature_of(rows)
    assert np.isfinite(np.asarray(curvature.upper)).all()
    ratio = np.diagonal(np.asarray(curvature.upper))[1:] / np.diagonal(exact.upper)[1:]
    np.testing.assert_allclose(ratio, 1, atol=0.02)


def test_a_gpu_compensates_with_kernels_that_agree(fused: FusedKernels) -> None:
    backend = GpuBackend(fused)
    with using(backend):
        assert isinstance(compensator(), OnDevice)
    assert backend.compensates_with == "fused kernels"


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("losses[j * rows + row] * upper[j * size + c]", "0.0f", "a loss of"),
        ("value - (code * best_scale + best_bias)", "value - code * best_scale", "a loss of"),
        ("index + 8", "index", "a loss of"),
        ("(code - before) * scale", "(before - code) * scale", "a loss of"),
        ("gain > 0.0f", "gain < 0.0f", "a loss of"),
    ],
)
def test_kernels_that_round_worse_are_not_used(
    fused: FusedKernels, tmp_path: Path, before: str, after: str, fault: str
) -> None:
    build = fused_cpp.kernels(tmp_path).build

    def wrong(kernel: Kernel) -> Program:
        return build(replace(kernel, body=kernel.body.replace(before, after)))

    backend = GpuBackend(FusedKernels(fused_cpp.CPP, wrong))
    with using(backend):
        assert isinstance(compensator(), OnCpu)
    assert backend.compensates_with.startswith(f"compiled kernels of the CPU, since the fused kernels failed: {fault}")


def test_kernels_that_do_not_compile_are_not_used_and_are_not_tried_again() -> None:
    attempts = []

    def fails(kernel: Kernel) -> Program:
        attempts.append(kernel.name)
        raise RuntimeError("no such word")

    for _ in range(2):
        assert rounding_fault_of(FusedRounding(fused_cpp.CPP, fails), "chip") == "no such word"
    assert attempts == ["mint_round_affine"]


@pytest.mark.parametrize("dialect", [METAL, CUDA], ids=["metal", "cuda"])
def test_every_word_of_the_text_has_a_meaning_in_every_language(dialect: Dialect) -> None:
    for kernel in (round_affine_kernel(dialect), round_fp4_kernel(dialect), refine_kernel(dialect)):
        assert "$" not in kernel.header + kernel.body
        assert dialect.thread in kernel.body
        assert dialect.group in kernel.body
        assert kernel.threads % 32 == 0
