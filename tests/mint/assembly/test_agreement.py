"""The stock model agrees with its dequantized weights within the rounding of its own sums, and with no others."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mint.analysis.analyze import analyze
from mint.assembly.agreement import (
    FACTOR,
    INCONCLUSIVE,
    NEGLIGIBLE,
    coarse_rounding,
    distance,
    plain_logits,
    stock_logits,
)
from mint.assembly.assemble import assemble
from mint.assembly.verify import verify
from mint.formats.format import KEEP, Format
from mint.model.checkpoint.reader import ALL, StoredModel
from mint.model.module_tree import load_stock
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan
from mint.plan.recipe import Recipe
from tests.worlds.zoo import ARCHITECTURES

Make = Callable[..., Path]
Units = dict[str, tuple[tuple[int, ...], Format]]
ORDERS = 100.0  # times the allowance is the least distance of a wrong model


def _written(model: Path, folder: Path, budget: str = "min", formats: tuple[str, ...] = ()) -> Plan:
    source = open_source(model)
    plan = allocate(analyze(source, folder / "a.mint"), budget, Recipe(veto_db=-100.0, formats=formats))
    assemble(plan, source, folder / "out")
    return plan


def _checks(folder: Path) -> dict[str, str]:
    """The faults of a folder by check."""
    return {check.name: "passed" if check.passed else check.detail for check in verify(folder).checks}


def _units(plan: Plan) -> Units:
    return {choice.path: (choice.shape, choice.format) for choice in plan.choices}


def _with_tensors(folder: Path, copy: Path, tensors: Mapping[str, mx.array]) -> Path:
    """A copy of a written folder with other tensors in it."""
    copytree(folder, copy)
    path = copy / "model.safetensors"
    weights = mx.load(str(folder / path.name))
    assert isinstance(weights, dict)
    mx.save_safetensors(str(path), weights | dict(tensors))
    (copy / "model.safetensors.index.json").unlink()
    return copy


def _parts(folder: Path, path: str) -> dict[str, mx.array]:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    return {part: weights[f"{path}.{part}"] for part in ("weight", "scales", "biases") if f"{path}.{part}" in weights}


def _wrong(folder: Path, path: str, twin: str) -> dict[str, dict[str, mx.array]]:
    """The tensors of a module as they are read with other bits, with other groups, and as those of another module."""
    parts = _parts(folder, path)
    rolled = {part: mx.roll(array, 1) for part, array in parts.items() if part != "weight"}
    wrong = {"bits": parts | {"weight": parts["weight"] << 1}, "groups": parts | rolled, "module": _parts(folder, twin)}
    return {name: {f"{path}.{part}": array for part, array in tensors.items()} for name, tensors in wrong.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_the_right_weights_are_within_the_rounding_of_every_architecture(
    name: str, make_model: Make, tmp_path: Path
) -> None:
    plan, folder = _written(make_model(name), tmp_path), tmp_path / "out"
    units = _units(plan)
    tokens, logits = stock_logits(load_stock(folder), folder, units)
    expected = plain_logits(folder, units, tokens)
    allowed = FACTOR * distance(plain_logits(folder, units, tokens, rounding=coarse_rounding()), expected)
    assert distance(logits, expected) < allowed < INCONCLUSIVE / ORDERS
    assert distance(logits, expected) < NEGLIGIBLE

    quantized = [choice for choice in plan.choices if choice.format != KEEP and choice.layer is not None]
    chosen = quantized[len(quantized) // 2]
    twins = [choice for choice in quantized if (choice.shape, choice.format) == (chosen.shape, chosen.format)]
    twin = next((choice for choice in twins if choice != chosen), chosen)
    for fault, tensors in _wrong(folder, chosen.path, twin.path).items():
        wrong = plain_logits(_with_tensors(folder, tmp_path / fault, tensors), units, tokens)
        assert distance(logits, wrong) > ORDERS * max(allowed, NEGLIGIBLE), fault


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "granitemoe"])
def test_tables_without_scales_in_float_are_computed_with_in_float32(
    name: str, format: str, make_model: Make, tmp_path: Path
) -> None:
    """MLX looks up their rows in bfloat16: a model that multiplies them would round there, and only there."""
    plan, folder = _written(make_model(name), tmp_path, formats=(format,)), tmp_path / "out"
    assert any(choice.role == "embedding" and str(choice.format) == format for choice in plan.choices)
    tokens, logits = stock_logits(load_stock(folder), folder, _units(plan))
    assert distance(logits, plain_logits(folder, _units(plan), tokens)) < NEGLIGIBLE / 4
    assert _checks(folder)["logits"] == "passed"


def test_a_distance_that_is_not_negligible_is_compared_with_the_rounding_of_the_model(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _written(llama, tmp_path)
    monkeypatch.setattr("mint.assembly.verify.NEGLIGIBLE", 0.0)
    assert _checks(tmp_path / "out")["logits"] == "passed"
    monkeypatch.setattr("mint.assembly.verify.FACTOR", 1e-4)
    assert "logits differ from the dequantized model's by" in _checks(tmp_path / "out")["logits"]
    monkeypatch.setattr("mint.assembly.verify.FACTOR", 1e6)
    assert _checks(tmp_path / "out")["logits"] == "passed"


def test_one_token_of_many_that_a_tie_decides_changes_no_distance() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 3, 16), np.float32)
    changed = logits.copy()
    changed[0, 1] *= -1
    assert distance(changed, logits) == 0
    assert distance(-logits, logits) == 2
    changed[0, 1, 2] = np.nan
    assert distance(changed, logits) == np.inf


def test_a_vocabulary_of_one_token_is_verified(make_model: Make, tmp_path: Path) -> None:
    model = make_model()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 1}))
    weights = mx.load(str(model / "model.safetensors"))
    assert isinstance(weights, dict)
    vocabulary = config["vocab_size"]
    one = {name: array[:1] if array.shape[0] == vocabulary else array for name, array in weights.items()}
    mx.eval(one)
    mx.save_safetensors(str(model / "model.safetensors"), one)
    _written(model, tmp_path)
    assert set(_checks(tmp_path / "out").values()) == {"passed"}


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("budget", ["min", "max"])
def test_tables_and_stacks_are_read_in_blocks(
    name: str, budget: str, make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No read of a weight takes more than a block, or than one row or expert."""
    plan, folder, block = _written(make_model(name), tmp_path, budget), tmp_path / "out", 2048
    for module in ("mint.assembly.agreement", "mint.model.checkpoint.reader"):
        monkeypatch.setattr(f"{module}._BLOCK", block)
    reads: dict[str, int] = {}
    read = StoredModel.raw

    def counting(stored: StoredModel, name: str, rows: slice = ALL) -> Any:
        array = read(stored, name, rows)
        reads[name] = max(reads.get(name, 0), array.size)
        return array

    monkeypatch.setattr(StoredModel, "raw", counting)
    units = _units(plan)
    tokens, _ = stock_logits(load_stock(folder), folder, units)
    plain_logits(folder, units, tokens)
    largest = {
        choice.path: max(block, choice.shape[-1] * choice.shape[-2] * (len(choice.shape) - 2))
        for choice in plan.choices
    }
    assert {path for path in units if reads[f"{path}.weight"] > largest[path]} == set()
