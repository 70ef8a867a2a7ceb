"""Rounding that knows its inputs: never stray codes, less error where inputs are, the same bytes after a kill."""

# S slices, R rows, C columns, T rows of inputs

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import msgpack
import numpy as np
import pytest

from mint.analysis.analyze import analyze
from mint.analysis.compensation_job import Compensation
from mint.analysis.unit_inputs import FEWEST, Inputs
from mint.analysis.unit_jobs import Quantize, checksum_of
from mint.assembly.assemble import assemble
from mint.assembly.reuse import Reuse
from mint.assembly.verify import verify
from mint.core.errors import MintError
from mint.core.progress import Progress
from mint.formats.format import AFFINE, FORMATS, KEEP, MXFP4, NVFP4, Format, parse_format
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.kernels import cpu
from mint.kernels.compensate import Curvature, factor, pack_compensated, second_moments
from mint.kernels.compiled import scale_values, widened
from mint.kernels.fused_rounding import DAMPING
from mint.kernels.missing_outputs import Missing
from mint.kernels.unpack import unpack
from mint.model.checkpoint.reader import open_stored
from mint.model.passes.gradients import Gradients
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan
from mint.plan.recipe import Recipe
from mint.quality.sequences import TextSize
from mint.run.executor import Executor, in_process
from mint.run.job import Job, T
from tests.mint.kernels.test_kernels import DTYPES, raw, stored_as
from tests.worlds.executors import FunctionExecutor

ANY_SQNR = -100.0
TEXT = TextSize(6, 24)
SEQUENTIAL = [name for name, rounding in ROUNDINGS.items() if rounding.sequential]
CASES = [parse_format(name) for name in ("2/64", "3/32", "4/128", "5/64", "6/64", "8/64", "mxfp4", "nvfp4")]


def correlated(rows: int, columns: int, draw: int = 0) -> np.ndarray:
    """(T, C) inputs of very different size, most of them of few directions, as those of real layers are."""
    layer, random = np.random.default_rng(0), np.random.default_rng((1, draw))
    directions, sizes = layer.normal(size=(columns // 4, columns)), np.exp(layer.normal(size=columns))
    mixed = random.normal(size=(rows, columns // 4)) @ directions
    return ((mixed + random.normal(size=(rows, columns))) * sizes).astype(np.float32)


def output_error(stored: np.ndarray, weight: np.ndarray, inputs: np.ndarray) -> float:
    return float(np.square(inputs @ (stored - weight).T, dtype=np.float64).sum())


def one_matrix(dtype: str, columns: int = 640) -> tuple[Any, np.ndarray]:
    """(24, C) weights as raw storage and in float32."""
    weight = stored_as(dtype, np.random.default_rng(1).standard_normal((24, columns)).astype(np.float32))
    return raw(weight), np.asarray(weight.astype(mx.float32))


@pytest.mark.parametrize("format", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compensated_matrix_is_nearer_where_its_inputs_are(dtype: str, format: Format) -> None:
    """On inputs that took no part."""
    packed, wide = one_matrix(dtype)
    curvature = Curvature.of(correlated(4096, 640))
    stored = np.asarray(unpack(pack_compensated(packed, dtype, format, curvature), dtype, format))
    searched = np.asarray(unpack(cpu.pack(packed[None], dtype, format, search=True), dtype, format))[0]
    unseen = correlated(4096, 640, draw=1)
    assert output_error(stored, wide, unseen) < 0.9 * output_error(searched, wide, unseen)


@pytest.mark.parametrize("format", [*AFFINE, MXFP4, NVFP4], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_that_know_nothing_of_each_other_leave_the_search_as_it_is(dtype: str, format: Format) -> None:
    packed, _ = one_matrix(dtype)
    result = pack_compensated(packed, dtype, format, Curvature.of(np.zeros((3, 640), np.float32)))
    searched = cpu.pack(packed[None], dtype, format, search=True)
    for ours, theirs in zip(result, searched, strict=True):
        np.testing.assert_array_equal(ours, theirs[0])


@pytest.mark.parametrize("format", CASES, ids=str)
def test_every_code_is_the_nearest_to_what_the_columns_before_left(format: Format) -> None:
    """The recursion of GPTQ column by column in float64, with the scales that the kernel stored."""
    packed, wide = one_matrix("BF16", 256)
    upper = factor(second_moments(correlated(2048, 256)))
    parts = pack_compensated(packed, "BF16", format, Curvature(np.zeros_like(upper), upper))  # nothing is refined
    stored = np.asarray(unpack(parts, "BF16", format)).astype(np.float64)
    scales = scale_values(parts[1].reshape(-1), "BF16", format.scheme).reshape(parts[1].shape)
    rest = wide.astype(np.float64)
    for column in range(256):
        scale = scales[:, column // format.group_size]
        result, target = stored[:, column], rest[:, column]
        if format.mode == "affine":
            biases = widened(parts[2].reshape(-1), "BF16").reshape(parts[2].shape)[:, column // format.group_size]
            codes = np.clip(np.rint((target - biases) / scale), 0, 2**format.bits - 1)
            nearest = scale * codes + biases
        else:
            grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6])[:, None] * scale
            nearest = np.take_along_axis(grid, np.abs(grid - target).argmin(0)[None], 0)[0]
        closer = np.abs(target - nearest) < np.abs(target - result) - 1e-3 * np.abs(scale)  # ties in float32
        assert not closer.any(), column
        loss = (target - result) / upper[column, column]
        rest[:, column + 1 :] -= loss[:, None] * upper[column, column + 1 :]


@pytest.mark.parametrize("format", AFFINE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_refined_weights_are_nearer_in_every_row(dtype: str, format: Format) -> None:
    """Under the very moments: no step makes a row worse, and together they pay."""
    packed, wide = one_matrix(dtype)
    curvature = Curvature.of(correlated(4096, 640))
    moments = curvature.moments.astype(np.float64)

    def errors(moments_used: np.ndarray) -> np.ndarray:
        parts = pack_compensated(packed, dtype, format, Curvature(moments_used, curvature.upper))
        change = np.asarray(unpack(parts, dtype, format)).astype(np.float64) - wide
        return np.asarray(np.einsum("rc,cd,rd->r", change, moments, change))

    before, after = errors(np.zeros_like(curvature.moments)), errors(curvature.moments)
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < 0.97 * before.sum()


def test_the_factor_is_that_of_the_inverse() -> None:
    moments = second_moments(correlated(500, 96))
    upper = factor(moments).astype(np.float64)
    assert (np.tril(upper, -1) == 0).all()
    np.testing.assert_allclose(upper.T @ upper @ moments, np.eye(96), atol=1e-3)


def test_few_rows_are_believed_less_and_none_not_at_all() -> None:
    inputs = correlated(4096, 64)
    full = inputs.T @ inputs / len(inputs)

    def off_diagonal(moments: np.ndarray) -> float:
        return float(np.abs(moments - np.diag(np.diagonal(moments))).sum())

    shares = [off_diagonal(second_moments(inputs[:rows])) / off_diagonal(full) for rows in (4, 64, 4096)]
    assert shares[2] > 0.9
    damped = np.diagonal(full) + DAMPING * np.diagonal(full).mean()
    np.testing.assert_allclose(np.diagonal(second_moments(inputs)), damped, rtol=1e-4)
    pair = second_moments(inputs[:64])
    plain = inputs[:64].T @ inputs[:64] / 64
    assert off_diagonal(pair) == pytest.approx(off_diagonal(plain) / 2, rel=1e-3)  # as many rows as columns
    np.testing.assert_array_equal(factor(second_moments(np.zeros((3, 64), np.float32))), np.eye(64))


def test_neither_threads_nor_rows_around_it_change_a_row() -> None:
    packed, _ = one_matrix("BF16")
    curvature = Curvature.of(correlated(1000, 640))
    format = parse_format("4/64")
    alone = pack_compensated(packed, "BF16", format, curvature, threads=1)
    for part, other in zip(alone, pack_compensated(packed, "BF16", format, curvature, threads=5), strict=True):
        np.testing.assert_array_equal(part, other)


def test_an_expert_that_saw_little_keeps_the_search() -> None:
    unit = Unit("experts", (3, 8, 64), "BF16", "expert_up", 0, ())
    weight = mx.random.normal(unit.shape, key=mx.random.key(0)).astype(mx.bfloat16)
    rows = correlated(2 * FEWEST, 64)
    experts = np.array([[0]] * (FEWEST - 1) + [[1]] * (FEWEST + 1))
    format = parse_format("4/64")
    formats, checksums = {"experts": format}, {"experts": checksum_of(weight)}
    result = Compensation(formats, checksums, {"experts": Inputs(rows, experts)})(unit, weight)
    searched = Quantize(formats, checksums, "search")(unit, weight)
    assert result.tensors == searched.tensors
    codes = [np.frombuffer(packed.data[0], np.uint32).reshape(3, 8, -1) for packed in (result, searched)]
    same = [bool((codes[0][index] == codes[1][index]).all()) for index in range(3)]
    assert same == [True, False, True]


@pytest.mark.parametrize("name", ["4/64", "nvfp4", "keep"])
def test_another_process_packs_the_same_bytes_from_second_moments(name: str) -> None:
    units = [
        Unit("one", (8, 64), "BF16", "mlp_up", 0, ()),
        Unit("other", (16, 64), "BF16", "mlp_gate", 0, ()),
        Unit("stack", (3, 8, 64), "BF16", "expert_up", 0, ()),
        Unit("each", (2, 8, 64), "BF16", "expert_up", 0, ()),
        Unit("embedding", (32, 64), "BF16", "embedding", -1, ()),
    ]
    rows, experts = correlated(3 * FEWEST, 64), np.array([[0]] * (FEWEST - 1) + [[1]] * (FEWEST + 1) + [[2]] * FEWEST)
    inputs = {"one": Inputs(rows), "other": Inputs(rows), "stack": Inputs(rows, experts), "each": Inputs(rows)}
    weights = {
        unit.path: mx.random.normal(unit.shape, key=mx.random.key(number)).astype(mx.bfloat16)
        for number, unit in enumerate(units)
    }
    formats = dict.fromkeys(weights, parse_format(name))
    checksums = {path: checksum_of(weight) for path, weight in weights.items()}
    source: Any = SimpleNamespace(units=tuple(units), carried={})
    job = Compensation(formats, checksums, inputs, source=source)
    told = msgpack.unpackb(msgpack.packb(job.of(units).to_dict()))
    assert len(told["moments"]) == 1 + 2  # of what units share, and of the experts that saw enough
    assert sum(map(len, told["moments"])) <= job.told_nbytes() * 65 / 64
    elsewhere = Compensation.from_dict(told, source)
    for unit in units:
        expected, sent = job(unit, weights[unit.path]), elsewhere(unit, weights[unit.path])
        data = memoryview(b"".join(bytes(piece) for piece in elsewhere.encode(sent)))
        came = job.decode(unit, data)
        assert came.tensors == expected.tensors
        assert [bytes(part) for part in came.data] == [bytes(part) for part in expected.data]


def test_what_learns_and_what_is_coupled_stays_where_the_inputs_are() -> None:
    unit = Unit("down", (8, 64), "BF16", "mlp_down", 0, ())
    rows = correlated(FEWEST, 64)
    formats, checksums = {"down": parse_format("3/64")}, {"down": ""}
    missing = Missing(rows[:, :8], np.ones(8, np.float32))
    assert Compensation(formats, checksums, {"down": Inputs(rows)}).is_portable(unit)
    assert not Compensation(formats, checksums, {"down": Inputs(rows, missing=missing)}).is_portable(unit)
    gradients = Gradients(BytesIO())
    assert Compensation(formats, checksums, {"down": Inputs(rows)}, gradients).is_portable(unit)
    gradients.add("down", rows[:, :8])
    assert not Compensation(formats, checksums, {"down": Inputs(rows)}, gradients).is_portable(unit)
    assert Compensation(formats, checksums, {}, gradients).is_portable(unit)


def compensated_plan(source: Source, folder: Path, rounding: str = "compensate") -> Plan:
    analysis = analyze(source, folder / f"{source.folder.name}-{rounding}.mint", rounding=rounding)
    recipe = Recipe(veto_db=ANY_SQNR, formats=tuple(str(format) for format in FORMATS if format != KEEP))
    least, most = (allocate(analysis, budget, recipe).planned_bytes for budget in ("min", "max"))
    return allocate(analysis, int(least + 0.25 * (most - least)), recipe)  # few bits: matrices learn


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("rounding", SEQUENTIAL)
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_moe", "qwen3_next", "deepseek_v3", "gpt2"])
def test_a_compensated_model_is_what_its_plan_says(
    name: str, rounding: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = open_source(make_model(name))
    plan = compensated_plan(source, tmp_path, rounding)
    assemble(plan, source, tmp_path / "out", text=TEXT)
    verification = verify(tmp_path / "out", source)
    assert verification.passed, [check for check in verification.checks if not check.passed]


def _dying_after(count: int) -> Executor:
    left = [count]

    @FunctionExecutor
    def dying(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        for done in in_process(source, job, units):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            yield done

    return dying


@pytest.mark.parametrize("rounding", SEQUENTIAL)
def test_killed_anywhere_and_in_any_order_it_ends_with_the_same_bytes(
    rounding: str, llama: Path, tmp_path: Path
) -> None:
    source = open_source(llama)
    plan = compensated_plan(source, tmp_path, rounding)
    assemble(plan, source, tmp_path / "whole", text=TEXT)
    expected = bytes_of(tmp_path / "whole")
    for count in (1, 5, 4, 2):
        with pytest.raises(KeyboardInterrupt):
            assemble(plan, source, tmp_path / "killed", executor=_dying_after(count), text=TEXT)
    assemble(plan, source, tmp_path / "killed", text=TEXT)
    assert bytes_of(tmp_path / "killed") == expected

    @FunctionExecutor
    def backwards(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        return in_process(source, job, units[::-1])

    assemble(plan, source, tmp_path / "backwards", executor=backwards, text=TEXT)
    assert bytes_of(tmp_path / "backwards") == expected


def test_compensated_units_are_never_reused(llama: Path, tmp_path: Path) -> None:
    """A unit compensates errors that depend on the formats of all before it."""
    source = open_source(llama)
    plan = compensated_plan(source, tmp_path)
    first = assemble(plan, source, tmp_path / "first", text=TEXT)
    reuse = Reuse([tmp_path / "first"])
    again = assemble(plan, source, tmp_path / "again", reuse=reuse, text=TEXT)
    assert reuse.nbytes == 0
    assert again.units == first.units


def test_a_unit_of_other_weights_is_found_although_errors_are_not_as_measured(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = compensated_plan(source, tmp_path)

    @FunctionExecutor
    def confused(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        def mirrored(unit: Unit, weight: mx.array) -> T:
            packed: Any = job(unit, weight)
            if not unit.path.endswith("0.mlp.up_proj"):
                return cast(T, packed)
            rows = unit.shape[0]
            data = [np.frombuffer(part, np.uint8).reshape(rows, -1)[::-1].tobytes() for part in packed.data]
            return cast(T, replace(packed, data=tuple(data)))

        return in_process(source, mirrored, units)

    assemble(plan, source, tmp_path / "out", executor=confused, text=TEXT)
    failed = {check.name: check.detail for check in verify(tmp_path / "out", source).checks if not check.passed}
    assert list(failed) == ["decoding", "errors"]
    assert "up_proj" in failed["errors"]


def test_a_name_that_is_no_rounding_is_told(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(MintError, match="needed one of: nearest, search, compensate"):
        analyze(open_source(llama), tmp_path / "a.mint", rounding="gptq")


def test_coupled_rows_are_other_bytes_of_the_same_size(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    for rounding in ("compensate", "couple"):
        assemble(compensated_plan(source, tmp_path, rounding), source, tmp_path / f"out-{rounding}", text=TEXT)
    files = [bytes_of(tmp_path / f"out-{rounding}") for rounding in ("compensate", "couple")]
    weights = [name for name in files[0] if name.endswith(".safetensors")]
    assert weights
    for name in weights:
        assert len(files[0][name]) == len(files[1][name])
        assert files[0][name] != files[1][name]


def test_tuning_changes_scales_and_biases_alone_and_brings_the_model_closer(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    recipe = Recipe(veto_db=ANY_SQNR, lock=("*=2/64",))  # at more bits, so little text teaches a random model nothing
    manifests, tensors = [], []
    for rounding in ("couple", "tune"):
        folder = tmp_path / rounding
        plan = allocate(analyze(source, tmp_path / f"{rounding}.mint", rounding=rounding), "max", recipe)
        manifests.append(assemble(plan, source, folder, text=TextSize(32, 32)))
        stored = open_stored(folder)
        tensors.append({name: stored.raw(name).tobytes() for name in stored.tensors})
    differing = {name for name in tensors[0] if tensors[0][name] != tensors[1][name]}
    assert differing and all(name.endswith((".scales", ".biases")) for name in differing)
    coupled, tuned = (manifest.closeness["kl"]["value"] for manifest in manifests if manifest.closeness)
    assert tuned < coupled
    assert not [file for file in (tmp_path / "tune").iterdir() if file.name.startswith("assembly.")]


def test_killed_after_its_training_a_run_does_not_train_again(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = compensated_plan(source, tmp_path, "tune")
    assemble(plan, source, tmp_path / "whole", text=TEXT)

    @FunctionExecutor
    def dying(source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        if (tmp_path / "killed.partial" / "assembly.tuned").exists():
            raise KeyboardInterrupt
        return in_process(source, job, units)

    steps: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        assemble(plan, source, tmp_path / "killed", executor=dying, text=TEXT, on_progress=steps.append)
    assert "tune" in {step.stage for step in steps}
    steps.clear()
    assemble(plan, source, tmp_path / "killed", text=TEXT, on_progress=steps.append)
    assert "tune" not in {step.stage for step in steps}
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_after_a_loss_of_what_was_trained_a_run_trains_again(llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    plan = compensated_plan(source, tmp_path, "tune")
    assemble(plan, source, tmp_path / "whole", text=TEXT)
    shutil.copytree(tmp_path / "whole", tmp_path / "again.partial")
    (tmp_path / "again.partial" / "assembly.tuned").write_bytes(bytes(64))
    assemble(plan, source, tmp_path / "again", text=TEXT)
    assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "whole")


def test_a_model_without_gradients_is_compensated_and_the_log_says_so(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(llama)
    plan = compensated_plan(source, tmp_path, "couple")
    assemble(replace(plan, rounding="compensate"), source, tmp_path / "compensated", text=TEXT)
    monkeypatch.setattr("mint.model.passes.gradients.mx.grad", _no_gradient)
    capsys.readouterr()
    assemble(plan, source, tmp_path / "coupled", text=TEXT)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [event["used"] for event in events if event["event"] == "gradients.none"] == ["compensate"]
    names = [file.name for file in (tmp_path / "coupled").glob("*.safetensors")]
    assert all((tmp_path / "coupled" / n).read_bytes() == (tmp_path / "compensated" / n).read_bytes() for n in names)


def _no_gradient(_: object) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise ValueError("[Scan::vjp] Not implemented.")

    return fail
