"""An exported predicate makes mlx_lm.convert write the tensors of our own nearest assembly, byte by byte."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import convert

from mint.analysis.analyze import analyze
from mint.assembly.assemble import assemble
from mint.cli.main import run_command
from mint.exports.predicate import predicate_text
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan
from mint.plan.recipe import Recipe

Make = Callable[..., Path]
FAMILIES = ("llama", "qwen3_moe", "mixtral", "gemma3_text", "gpt_oss")


def _tensors(folder: Path) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for file in folder.glob("*.safetensors"):
        weights = mx.load(str(file))
        assert isinstance(weights, dict)
        tensors |= weights
    return tensors


def _same(left: Path, right: Path) -> None:
    """Both folders hold the same tensors, byte by byte."""
    ours, theirs = _tensors(left), _tensors(right)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype, name
        assert bool(mx.array_equal(array.view(mx.uint8), theirs[name].view(mx.uint8))), name


def _written(model: Path, output: Path, budget: str, *lock: str) -> Plan:
    """Write a model rounded to nearest; returns its plan."""
    source = open_source(model)
    recipe = Recipe.from_dict({"lock": list(lock), "veto_db": -100.0})
    plan = allocate(analyze(source, output.with_suffix(".mint")), budget, recipe)
    assemble(plan, source, output)
    return plan


def _convert(plan: Plan, model: Path, output: Path) -> None:
    """Write the model with mlx_lm.convert and the exported file."""
    file = output.with_suffix(".py")
    file.write_text(predicate_text(plan, file.name))
    convert(str(model), str(output), **runpy.run_path(str(file))["CONVERT"])


@pytest.mark.parametrize("budget", ["0.3x", "max"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_real_converter_writes_our_tensors(family: str, budget: str, make_model: Make, tmp_path: Path) -> None:
    model = make_model(family, tokenizer=True)
    _convert(_written(model, tmp_path / "ours", budget), model, tmp_path / "theirs")
    _same(tmp_path / "ours", tmp_path / "theirs")


def test_every_group_size_and_mode_reaches_the_converter(make_model: Make, tmp_path: Path) -> None:
    model = make_model("llama", tokenizer=True)
    lock = ("*.q_proj=2/32", "*.k_proj=mxfp4", "*.v_proj=nvfp4", "*.up_proj=6/64")
    plan = _written(model, tmp_path / "ours", "max", *lock)
    _convert(plan, model, tmp_path / "theirs")
    _same(tmp_path / "ours", tmp_path / "theirs")
    entries = json.loads((tmp_path / "theirs" / "config.json").read_text())["quantization"]
    planned = {choice.path: choice.format.config() for choice in plan.choices}
    assert {path: entries.get(path, False) for path in planned} == planned


def test_a_predicate_refuses_another_model(make_model: Make, tmp_path: Path) -> None:
    file = tmp_path / "predicate.py"
    file.write_text(predicate_text(_written(make_model("llama"), tmp_path / "out", "0.5x"), file.name))
    predicate = runpy.run_path(str(file))["quant_predicate"]
    with pytest.raises(ValueError, match="needed: the model that the plan was made for"):
        predicate("model.layers.99.mlp.up_proj", None)


def test_the_command_writes_both_files(make_model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _written(make_model("llama"), tmp_path / "out", "0.5x")
    python, types = tmp_path / "predicate.py", tmp_path / "types.txt"
    command = ["export-predicate", str(tmp_path / "out"), "-o", str(python), "--tensor-types", str(types), "--json"]
    assert run_command(command) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["predicate"] == str(python)
    assert record["without_name"] == []
    assert len(types.read_text().splitlines()) == record["units"]
    assert run_command(command) == 0  # the same files: as after a kill
    python.write_text("another")
    assert run_command(command) == 1  # nothing is overwritten
    assert python.read_text() == "another"


@pytest.mark.parametrize("name", ["a-b.py", "predicate.txt"])
def test_a_name_that_python_cannot_import_is_refused(name: str, tmp_path: Path) -> None:
    assert run_command(["export-predicate", "plan.json", "-o", str(tmp_path / name)]) == 1
