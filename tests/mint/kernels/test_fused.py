"""The fused GPU kernels, compiled as C++, keep the laws of the CPU's kernels to the last bit."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mint.formats.format import AFFINE, MXFP4, NVFP4, admissible
from mint.formats.rounding import ROUNDINGS
from mint.kernels import cpu, gpu, oracle
from mint.kernels.fused import FusedKernels, Program
from mint.kernels.fused_source import CUDA, METAL, Dialect, Kernel, measure_kernel, pack_kernel
from mint.kernels.gpu import GpuBackend
from mint.kernels.warmup import MEASURE, begin, kernel_sets
from tests.mint.kernels import fused_cpp
from tests.mint.kernels.test_kernels import DTYPES, KINDS, raw, stored_as, weights

pytestmark = pytest.mark.skipif(fused_cpp.compiler() is None, reason="needs a C++ compiler: g++ or clang++")


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> FusedKernels:
    return fused_cpp.kernels(tmp_path_factory.mktemp("kernels"))


def assert_equal_to_the_cpu_s(fused: FusedKernels, weight: mx.array, dtype: str) -> None:
    formats = admissible(weight.shape, dtype, AFFINE)
    assert fused.squared(weight, formats).tobytes() == cpu.errors(raw(weight), dtype, formats).squared.tobytes()
    for format in formats:
        for ours, theirs in zip(fused.pack(weight, format), cpu.pack(raw(weight), dtype, format), strict=True):
            assert ours.shape == theirs.shape
            assert raw(ours).tobytes() == theirs.tobytes(), format


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_bytes_are_the_cpu_s(fused: FusedKernels, kind: str, dtype: str) -> None:
    assert_equal_to_the_cpu_s(fused, stored_as(dtype, weights(kind)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_from_subnormals_to_overflow_give_the_cpu_s_bytes(fused: FusedKernels, dtype: str) -> None:
    normal = weights("normal") * np.float32(50)
    powers = np.exp2(np.random.default_rng(20).integers(-140, 127, normal.shape))
    with np.errstate(over="ignore"):
        weight = stored_as(dtype, normal * powers)
    assert_equal_to_the_cpu_s(fused, weight, dtype)


@pytest.mark.parametrize("shape", [(1, 1, 32), (3, 5, 96), (2, 7, 576), (1, 3, 4224), (1, 70, 2048)], ids=str)
def test_any_shape_is_cut_as_on_the_cpu(fused: FusedKernels, shape: tuple[int, int, int]) -> None:
    assert_equal_to_the_cpu_s(fused, stored_as("BF16", weights("normal", shape)), "BF16")


def test_pieces_of_one_call_change_no_bit(fused: FusedKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mint.kernels.fused._PIECE", 64 * 2048)
    assert_equal_to_the_cpu_s(fused, stored_as("F16", weights("normal", (2, 300, 640))), "F16")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what a machine remembers of its kernels, empty."""
    monkeypatch.setattr("mint.kernels.fused_check.kernel_folder", lambda: tmp_path)
    return tmp_path


def test_a_gpu_measures_and_packs_with_kernels_that_agree(fused: FusedKernels, answers: Path) -> None:
    backend, nearest = GpuBackend(fused), ROUNDINGS["nearest"]
    assert backend.kind.endswith(", fused kernels")
    assert backend.measures_with == "fused kernels"
    weight = stored_as("BF16", weights("heavy tails"))
    formats = (MXFP4, *AFFINE, NVFP4)
    measured = backend.errors(weight, formats, nearest)
    affine = cpu.errors(raw(weight), "BF16", AFFINE)
    assert measured.squared[:, 1:-1].tobytes() == affine.squared.tobytes()
    assert measured.squared[:, [0, -1]] == pytest.approx(gpu.errors(weight, (MXFP4, NVFP4)).squared)
    for format in formats:
        for ours, theirs in zip(backend.pack(weight, format, nearest), oracle.pack(weight, format), strict=True):
            assert ours.tobytes() == raw(theirs).tobytes()


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("rint", "floor", "other errors of BF16 weights"),
        ("? scale : 1e-7f", "? scale : 1e-6f", "other bytes of BF16 weights in 2/32"),
        ("code >> (bits - filled)", "0u", "other bytes of BF16 weights in 3/32"),
    ],
)
def test_kernels_that_disagree_are_not_used(
    fused: FusedKernels, answers: Path, tmp_path: Path, before: str, after: str, fault: str
) -> None:
    build = fused_cpp.kernels(tmp_path).build

    def wrong(kernel: Kernel) -> Program:
        texts = {name: getattr(kernel, name).replace(before, after) for name in ("header", "body")}
        return build(replace(kernel, **texts))

    backend = GpuBackend(FusedKernels(fused_cpp.CPP, wrong))
    assert not backend.kind.endswith("fused kernels")
    assert backend.measures_with == f"MLX operations, since the fused kernels failed: {fault}"
    weight = stored_as("BF16", weights("normal"))
    assert backend.errors(weight, AFFINE, ROUNDINGS["nearest"]).squared == pytest.approx(
        gpu.errors(weight, AFFINE).squared
    )


def test_kernels_that_do_not_compile_are_not_used_and_are_not_tried_again(answers: Path) -> None:
    attempts = []

    def fails(kernel: Kernel) -> Program:
        attempts.append(kernel.name)
        raise RuntimeError("no such word")

    for _ in range(2):
        backend = GpuBackend(FusedKernels(fused_cpp.CPP, fails))
        assert backend.measures_with.endswith("no such word")
    assert attempts == ["mint_measure"]


def test_the_cpu_measures_where_it_is_faster_once_its_kernels_are_compiled(
    fused: FusedKernels, monkeypatch: pytest.MonkeyPatch, answers: Path
) -> None:
    monkeypatch.setattr("mint.kernels.fused_check._CONTEST", 2 * 2048)  # plain C++ on one core loses
    weight = stored_as("BF16", weights("normal", (1, 64, 2048)))
    nearest = ROUNDINGS["nearest"]
    for kernels in kernel_sets(MEASURE, nearest):
        begin(kernels).wait()
    backend = GpuBackend(fused)
    assert backend.errors(weight[:, :1], AFFINE, nearest).squared.any()
    assert backend.measures_with == "fused kernels"
    measured = backend.errors(weight, AFFINE, nearest)
    assert backend.measures_with == "compiled kernels of the CPU, faster here than fused ones"
    assert measured.squared.tobytes() == fused.squared(weight, AFFINE).tobytes()
    assert len(list(answers.glob("fused-*.json"))) == 2


@pytest.mark.parametrize("dialect", [METAL, CUDA], ids=["metal", "cuda"])
def test_every_word_of_the_text_has_a_meaning_in_every_language(dialect: Dialect) -> None:
    for kernel in (measure_kernel(dialect), pack_kernel(dialect)):
        assert "$" not in kernel.header + kernel.body
        assert dialect.thread in kernel.body
        assert dialect.group in kernel.body
        assert kernel.threads <= 1024
        assert kernel.threads % 32 == 0
