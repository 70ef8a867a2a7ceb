"""Features are what their definitions say: each beside a direct computation of the same."""

# R rows, C columns

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.analysis import read_analysis
from mint.analysis.analyze import analyze
from mint.analysis.features.features import (
    EXPERTS,
    GROUP_SIZES,
    MOST_SPREAD,
    NAMES,
    RANK,
    Features,
    Sample,
    features,
    group_size_of,
    sample_of,
    singular_values,
)
from mint.core.errors import MintError
from mint.kernels.group_features import BITS, kurtoses, rounding_errors
from mint.model.source import open_source
from tests.mint.analysis.test_analyze import KilledError, backwards, dying_after
from tests.mint.kernels.test_kernels import DTYPES, KINDS, raw, stored_as, weights

Make = Callable[..., Path]
Array = np.ndarray
SEEN = 4  # digits of a stored feature


def decaying(rows: int, columns: int, ratio: float) -> Array:
    """A matrix whose singular values are 1, ratio, ratio^2, ..."""
    random = np.random.default_rng(3)
    left = np.linalg.qr(random.standard_normal((rows, min(rows, columns))))[0]
    right = np.linalg.qr(random.standard_normal((columns, min(rows, columns))))[0]
    return np.asarray((left * ratio ** np.arange(left.shape[1])) @ right.T, np.float32)


def of(stack: Array, dtype: str, path: str, *gain: Array | None, block: int = 0, **options: Any) -> Features:
    """The features of raw weights (E, R, C) in blocks of so many matrices, by default in one."""
    size = block or len(stack)
    blocks = [stack[start : start + size] for start in range(0, len(stack), size)]
    return features(blocks, stack.shape, dtype, path, *gain, **options)


def whole(weight: Array, rank: int = RANK, gain: Array | None = None) -> Features:
    """The features of all of a float32 weight (R, C), nothing drawn."""
    sample = Sample(weight.shape[0], weight.shape[1], min(rank, *weight.shape))
    return of(np.ascontiguousarray(weight)[None], "F32", "a", gain, sample=sample)


def of_svd(weight: Array, rank: int) -> tuple[float, float, float]:
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)[:rank]
    squares, top = values**2, max(1, len(values) // 10)
    return (
        float(np.square(weight, dtype=np.float64).sum() / squares[0]),
        float(squares[top:].sum() / squares.sum()),
        float(np.log10(values[0] / values[-1])),
    )


@pytest.mark.parametrize("shape", [(64, 128), (200, 96), (256, 640), (266, 512), (640, 256)])
def test_the_spectrum_of_a_small_block_is_that_of_its_svd(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    result = whole(weight)
    assert astuple(result)[:3] == pytest.approx(of_svd(weight, min(RANK, *shape)), rel=1e-3)


@pytest.mark.parametrize("shape", [(512, 640), (640, 512), (1024, 384)])
def test_rank_256_of_a_decaying_spectrum_is_close_to_the_svd(shape: tuple[int, int]) -> None:
    """The first values are exact; the 256th, without power iterations, is up to a quarter too small."""
    weight = decaying(*shape, 0.98)
    result, true = astuple(whole(weight)), of_svd(weight, RANK)
    assert result[:2] == pytest.approx(true[:2], rel=2e-3)
    assert true[2] - 1e-3 <= result[2] <= true[2] + 0.13


@pytest.mark.parametrize("ratio", [1.0, 0.999, 0.99, 0.9])
def test_singular_values_are_never_above_the_true_ones(ratio: float) -> None:
    weight = decaying(320, 400, ratio)
    result = singular_values(weight, 100, np.random.default_rng(0))
    true = np.linalg.svd(weight, compute_uv=False)[:100]
    assert (result <= true * (1 + 1e-5)).all()
    assert (np.diff(result) <= 0).all()


def test_a_matrix_of_low_rank_has_the_greatest_spread() -> None:
    weight = decaying(600, 640, 0.9)[:, :20] @ np.ones((20, 640), np.float32)
    assert whole(weight).log_spread == MOST_SPREAD
    assert whole(weight).stable_rank == pytest.approx(1.0, rel=1e-3)
    assert whole(weight).tail_mass == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_kurtosis_and_reach_of_every_group_are_those_of_its_moments(kind: str, dtype: str, group_size: int) -> None:
    weight = stored_as(dtype, weights(kind, (2, 3, 1280)))
    kurtosis, reach = kurtoses(raw(weight), dtype, group_size, threads=2)
    groups = np.array(weight.astype(mx.float32)).astype(np.float64).reshape(-1, group_size)
    deviations = groups - groups.mean(axis=1, keepdims=True)
    varied = groups.max(axis=1) > groups.min(axis=1)
    variance = np.square(deviations).mean(axis=1)
    fourth = (deviations**4).mean(axis=1)
    assert kurtosis[varied] == pytest.approx((fourth / np.maximum(variance, 1e-300) ** 2)[varied], rel=2e-3)
    assert reach[varied] == pytest.approx((abs(deviations).max(axis=1) / np.sqrt(variance + 1e-300))[varied], rel=1e-3)
    assert not kurtosis[~varied].any()
    assert not reach[~varied].any()


def test_percentiles_and_shares_are_taken_over_all_groups() -> None:
    weight = weights("normal", (1, 40, 640))
    kurtosis, reach = kurtoses(weight, "F32", 128)
    result = of(weight, "F32", "a", sample=Sample(8, 64, 8))
    middle = np.median(kurtosis)
    assert result.kurtosis_p90 == pytest.approx(np.percentile(kurtosis, 90), rel=1e-3)
    assert result.kurtosis_range == pytest.approx(np.percentile(kurtosis, 99) - middle, rel=1e-3)
    assert result.kurtosis_peak == pytest.approx(kurtosis.max() - middle, rel=1e-3)
    assert result.outlier_groups == pytest.approx((reach > 3).mean(), rel=1e-3)
    assert 0 < result.outlier_groups < 1


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_errors_are_those_of_mlx(dtype: str, group_size: int) -> None:
    weight = stored_as(dtype, weights("heavy tails", (1, 5, 1280)))[0]
    values, errors = rounding_errors(raw(weight), dtype, group_size)
    packed, scales, biases = mx.quantize(weight, group_size=group_size, bits=BITS)
    wide = [part.astype(mx.float32) for part in (scales, biases)]
    stored = mx.dequantize(packed, wide[0], wide[1], group_size=group_size, bits=BITS)
    assert np.array_equal(values, np.array(weight.astype(mx.float32)))
    assert errors == pytest.approx(np.array(stored) - values, abs=float(1e-6 * abs(values).max()))


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_what_normal_inputs_of_these_gains_make_of_the_error(seed: int) -> None:
    """Its expectation is the ratio of the two norms with every column times its gain."""
    random = np.random.default_rng(seed)
    weight = random.standard_t(4, (300, 256)).astype(np.float32)
    gain = np.exp(random.standard_normal(256) * 2).astype(np.float32)
    values, errors = rounding_errors(weight, "F32", 128)
    for gains in (None, gain):
        scale = np.ones(256) if gains is None else gains
        expected = np.linalg.norm(errors * scale) / np.linalg.norm(values * scale)
        assert whole(weight, gain=gains).noise == pytest.approx(expected, rel=0.05)


def test_a_norm_that_shuts_a_column_takes_its_noise_away() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    weight[:, 5] *= 100
    gain = np.ones(128, np.float32)
    gain[5] = 0
    assert whole(weight, gain=gain).noise > 5 * whole(weight).noise


def test_a_weight_of_zeros_has_no_features_to_speak_of() -> None:
    assert of(np.zeros((2, 64, 128), np.uint16), "BF16", "a") == Features(*(0.0 for _ in NAMES))


def test_equal_weights_are_finite() -> None:
    assert np.isfinite(astuple(whole(np.full((64, 128), 0.3, np.float32)))).all()


def test_features_of_a_stack_are_means_over_its_matrices() -> None:
    stack = weights("heavy tails", (4, 64, 128))
    sample = Sample(64, 128, 64)
    singles = np.array([astuple(of(matrix[None], "F32", "a", sample=sample)) for matrix in stack])
    result = astuple(of(stack, "F32", "a", sample=sample))
    for index in (0, 1, 2, 7):
        assert result[index] == pytest.approx(singles[:, index].mean(), rel=1e-3)


def test_of_many_experts_a_few_are_looked_at() -> None:
    """Equal matrices but for one: it shows in the groups of all of them, and in the spectrum of those drawn only."""
    stack = np.repeat(weights("normal", (1, 64, 128)), 50 * EXPERTS, axis=0)
    base = of(stack, "F32", "a", sample=Sample(64, 128, 64))
    drawn = 0
    for path in "abcd":
        other = stack.copy()
        other[17] = decaying(64, 128, 0.5)
        result = of(other, "F32", path, sample=Sample(64, 128, 64))
        assert result.kurtosis_peak != base.kurtosis_peak
        drawn += result.stable_rank != base.stable_rank
    assert drawn < 4


@pytest.mark.parametrize("block", [1, 3, 7, 20])
def test_a_stack_in_blocks_has_the_same_features(block: int) -> None:
    stack = weights("heavy tails", (20, 72, 640))
    assert of(stack, "F32", "a", block=block) == of(stack, "F32", "a")


@pytest.mark.parametrize(("columns", "size"), [(4096, 128), (640, 128), (576, 64), (96, 32), (40, 0)])
def test_groups_are_the_largest_that_divide_the_rows(columns: int, size: int) -> None:
    assert group_size_of(columns) == size


@pytest.mark.parametrize(
    ("shape", "sample"),
    [
        ((4096, 4096), Sample(1024, 1024, 256)),
        ((2560, 2560), Sample(640, 640, 256)),
        ((12288, 4096), Sample(1773, 1773, 256)),
        ((576, 576), Sample(144, 144, 57)),
        ((49152, 576), Sample(1330, 576, 256)),
        ((8, 128), Sample(8, 32, 8)),
    ],
)
def test_the_sample_follows_the_size_of_the_matrix(shape: tuple[int, int], sample: Sample) -> None:
    assert sample_of(*shape) == sample


def test_the_path_decides_what_is_drawn() -> None:
    weight = weights("heavy tails", (1, 640, 640))
    first, again, other = (of(weight, "F32", path) for path in ("a", "a", "b"))
    assert first == again
    assert first.stable_rank != other.stable_rank
    assert first.kurtosis_p90 == other.kurtosis_p90


def test_threads_of_blas_and_of_kernels_do_not_change_a_digit() -> None:
    code = (
        "import numpy as np; from mint.analysis.features.features import features;"
        "w = np.random.default_rng(0).standard_t(4, (1, 1500, 1664)).astype(np.float32);"
        "print(features([w], w.shape, 'F32', 'a'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 2, 3)
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_an_analysis_with_features_does_not_depend_on_order_or_kills(
    name: str, make_model: Make, tmp_path: Path
) -> None:
    source = open_source(make_model(name))
    whole_file, shuffled, killed = (tmp_path / f"{run}.mint" for run in ("whole", "shuffled", "killed"))
    analysis = analyze(source, whole_file, features=True)
    analyze(source, shuffled, features=True, executor=backwards)
    with pytest.raises(KilledError):
        analyze(source, killed, features=True, executor=dying_after(5))
    analyze(source, killed, features=True)
    assert whole_file.read_bytes() == shuffled.read_bytes() == killed.read_bytes()
    assert read_analysis(whole_file) == analysis
    assert all(isinstance(result.features, Features) for result in analysis.measurements.values())


def test_features_change_no_measurement_and_serve_those_who_ask_for_none(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    featured = analyze(source, tmp_path / "a.mint", features=True)
    plain = analyze(source, tmp_path / "b.mint")
    assert {
        path: replace(result, features=None) for path, result in featured.measurements.items()
    } == plain.measurements
    assert analyze(source, tmp_path / "a.mint") == featured
    with pytest.raises(MintError, match="without features; choose another output"):
        analyze(source, tmp_path / "b.mint", features=True)


def test_the_noise_of_a_unit_follows_the_norm_before_it(make_model: Make, tmp_path: Path) -> None:
    source = open_source(make_model("qwen2"))
    result = analyze(source, tmp_path / "a.mint", features=True)
    norms = result.features["norms"]
    assert norms["model.layers.0.self_attn.q_proj"] == "model.layers.0.input_layernorm"
    assert "model.layers.0.self_attn.o_proj" not in norms


def test_what_a_feature_is_rounded_to() -> None:
    result = astuple(of(weights("heavy tails", (1, 64, 640)), "F32", "a"))
    assert all(value == float(f"{value:.{SEEN}g}") for value in result)
    assert any(value != float(f"{value:.{SEEN - 1}g}") for value in result)
