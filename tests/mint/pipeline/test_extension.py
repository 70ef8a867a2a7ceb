"""A scheme, a rounding, a backend or an objective from outside is one entry, and the whole pipeline works with it."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.analyze import analyze
from mint.assembly.assemble import assemble
from mint.assembly.verify import verify
from mint.core.errors import MintError
from mint.core.memory import memory_bytes
from mint.formats.format import AFFINE, FORMATS, KEEP, Format, formats_of, known_formats, parse_format
from mint.formats.rounding import ROUNDINGS, Rounding
from mint.formats.scheme import E4M3, E8M0, SCHEMES, ReadFactor, Scheme
from mint.kernels import oracle
from mint.kernels.backend import Backend, using
from mint.kernels.gpu import GpuBackend
from mint.kernels.oracle import Errors
from mint.kernels.storage import raw
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.plan.objectives import OBJECTIVES
from mint.plan.plan import Plan, quantization_entries
from mint.plan.recipe import Recipe
from mint.plan.rules import parse_formats
from mint.quality.sequences import TextSize
from mint.run.device_kind import device_kind
from mint.targets.loaders import CURRENT, compatible_formats
from mint.targets.speed import decode_cost

MXFP8_SCHEME = Scheme(
    "mxfp8",
    bits=(8,),
    group_sizes=(32,),
    read_factors=(ReadFactor(8, 1.0, "an estimate of this test"),),
    code_values=E4M3,
    scale_values=E8M0,
    loaders=frozenset({CURRENT}),
)
(MXFP8,) = formats_of(MXFP8_SCHEME)


@pytest.fixture
def mxfp8(monkeypatch: pytest.MonkeyPatch) -> Format:
    """MLX's mode mxfp8, which mint does not bring."""
    monkeypatch.setitem(SCHEMES, MXFP8_SCHEME.mode, MXFP8_SCHEME)
    return MXFP8


def _plan(source: Source, folder: Path, formats: tuple[Format, ...], **options: Any) -> Plan:
    analysis = analyze(source, folder / "a.mint", **options)
    return allocate(analysis, "0.45x", Recipe(veto_db=-100.0, formats=tuple(map(str, formats))))


def test_a_scheme_from_outside_has_a_name_bytes_a_loader_and_a_speed(mxfp8: Format) -> None:
    assert known_formats() == (*FORMATS[:-1], mxfp8, KEEP)
    assert parse_format("mxfp8") == mxfp8
    assert parse_formats(["mxfp8,8/64"]) == (parse_format("8/64"), mxfp8)
    assert compatible_formats(CURRENT) == known_formats()
    assert mxfp8 not in compatible_formats("mlx-0.29.0")
    assert decode_cost(mxfp8, (64, 128), "BF16") == mxfp8.nbytes((64, 128), "BF16") == 64 * 128 * 33 // 32


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_scheme_from_outside_is_analyzed_planned_assembled_verified_and_loaded(
    rounding: str, mxfp8: Format, llama: Path, tmp_path: Path
) -> None:
    source = open_source(llama)
    plan = _plan(source, tmp_path, (mxfp8, parse_format("4/64")), rounding=rounding)
    chosen = [choice for choice in plan.choices if choice.format == mxfp8]
    assert chosen
    assert any(choice.format != mxfp8 for choice in plan.choices)
    entry = quantization_entries(plan)["quantization"][chosen[0].path]
    assert entry == {"group_size": 32, "bits": 8, "mode": "mxfp8"}
    assemble(plan, source, tmp_path / "out", text=TextSize(4, 32))
    verification = verify(tmp_path / "out", source)
    assert verification.passed, [check for check in verification.checks if not check.passed]
    stored = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert isinstance(stored, dict)
    arrays = source.arrays()
    for choice in chosen:
        expected = oracle.pack(arrays[f"{choice.path}.weight"], mxfp8)
        for tensor, array in zip(choice.tensors, expected, strict=True):
            assert mx.array_equal(stored[tensor.name], array), tensor.name


@pytest.mark.parametrize(
    "format",
    [*AFFINE, *map(parse_format, ("mxfp4", "nvfp4")), MXFP8],
    ids=lambda format: f"{format.mode}-{format.bits}-{format.group_size}",
)
def test_a_scheme_describes_codes_and_scales_as_mlx_reads_them(format: Format, mxfp8: Format) -> None:
    weight = mx.array(np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32))
    packed, *scales = oracle.pack(weight, format)
    words = np.asarray(packed).view(np.uint8).reshape(8, -1)
    bits = np.unpackbits(words, axis=1, bitorder="little").reshape(8, 256, format.bits)
    codes = (bits << np.arange(format.bits)).sum(-1)
    scheme = format.scheme
    values = np.array(scheme.code_values, np.float32)[codes] if scheme.code_values else codes.astype(np.float32)
    stored = np.asarray(scales[0])
    wide = np.array(scheme.scale_values, np.float32)[stored] if scheme.scale_values else stored
    weights = values * np.repeat(wide, format.group_size, axis=1)
    if scheme.has_bias:
        weights += np.repeat(np.asarray(scales[1]), format.group_size, axis=1)
    assert len(scales) == 1 + scheme.has_bias
    np.testing.assert_array_equal(weights, np.asarray(oracle.dequantize((packed, *scales), format)))


class OracleBackend:
    """MLX's own operations and nothing else, under a name of their own."""

    kind = "oracle"
    roundings = ("nearest",)
    runs_stored_weights = False
    unpacks_lazily = True
    fuses_functions = False
    has_compiled_kernels = False
    measures_with = "mx.quantize"
    uses_blas = False
    fused_rounding = None
    compensates_with = "compiled kernels"

    def memory_bytes(self) -> int:
        return memory_bytes()

    def working_bytes(self, weights: int) -> int:
        return 3 * 8 * weights

    def errors(self, weight: mx.array, formats: Sequence[Format], rounding: Rounding) -> Errors:
        return oracle.errors(weight, formats)

    def pack(self, weight: mx.array, format: Format, rounding: Rounding) -> tuple[Any, ...]:
        return tuple(map(raw, oracle.pack(weight, format)))

    def unpack(self, parts: Sequence[mx.array], format: Format) -> mx.array:
        return oracle.dequantize(tuple(parts), format)

    def multiply(self, vectors: mx.array, parts: Sequence[mx.array], format: Format) -> mx.array:
        return vectors @ self.unpack(parts, format).T


@pytest.mark.parametrize("outside", [OracleBackend(), GpuBackend()], ids=["oracle", "gpu operations on the cpu"])
def test_a_backend_from_outside_measures_packs_and_verifies(outside: Backend, llama: Path, tmp_path: Path) -> None:
    source = open_source(llama)
    here = analyze(source, tmp_path / "here.mint")
    with using(outside):
        analysis = analyze(source, tmp_path / "outside.mint")
        plan = allocate(analysis, "0.3x", Recipe(veto_db=-100.0))
        manifest = assemble(plan, source, tmp_path / "out")
        verification = verify(tmp_path / "out", source)
    assert verification.passed, [check for check in verification.checks if not check.passed]
    assert analysis.device == manifest.device == outside.kind
    assert here.device == device_kind() == "cpu"
    for path, measured in here.measurements.items():
        assert analysis.measurements[path].errors == pytest.approx(measured.errors, rel=1e-4)


def test_a_rounding_from_outside_is_a_row(monkeypatch: pytest.MonkeyPatch, llama: Path, tmp_path: Path) -> None:
    row = replace(ROUNDINGS["search"], name="finder")
    monkeypatch.setitem(ROUNDINGS, row.name, row)
    source = open_source(llama)
    plan = _plan(source, tmp_path, (parse_format("4/64"), parse_format("8/64")), rounding="finder")
    assert plan.rounding == "finder"
    searched = _plan(source, tmp_path / "searched", (parse_format("4/64"), parse_format("8/64")), rounding="search")
    assert [choice.error for choice in plan.choices] == [choice.error for choice in searched.choices]
    manifest = assemble(plan, source, tmp_path / "out")
    assert manifest.units == assemble(searched, source, tmp_path / "other").units


def test_a_rounding_that_no_backend_computes_is_refused(
    monkeypatch: pytest.MonkeyPatch, llama: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(ROUNDINGS, "clip", Rounding("clip", "outliers are clipped", searches=False, measured_as="clip"))
    with pytest.raises(MintError, match="'cpu' does not compute the rounding 'clip'; needed one of: nearest, search"):
        analyze(open_source(llama), tmp_path / "a.mint", rounding="clip")
    assert not (tmp_path / "a.mint").exists()


def test_an_objective_from_outside_is_a_row(monkeypatch: pytest.MonkeyPatch, llama: Path, tmp_path: Path) -> None:
    only_attention = replace(
        OBJECTIVES["output"],
        name="attention",
        alphas=lambda units: {unit.path: float("self_attn" in unit.path) for unit in units if not unit.keep_reason},
        probes=False,
    )
    monkeypatch.setitem(OBJECTIVES, only_attention.name, only_attention)
    source = open_source(llama)
    analysis = analyze(source, tmp_path / "a.mint")
    recipes = [Recipe(veto_db=-100.0, objective=name) for name in ("attention", "output")]
    ours, usual = (allocate(analysis, "0.3x", recipe) for recipe in recipes)

    def attention_error(plan: Plan) -> float:
        return sum(choice.error for choice in plan.choices if "self_attn" in choice.path)

    assert ours.objective.name == "attention"
    assert attention_error(ours) < attention_error(usual)
    assert sum(prod(choice.shape) for choice in ours.choices) == sum(prod(choice.shape) for choice in usual.choices)
