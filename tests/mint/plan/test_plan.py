"""Plans keep their budget, their rules and the model's floor; files of plans can be edited, within limits."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx.nn.layers.linear import Linear
from mlx_lm.models import llama

from mint.analysis.analysis import Analysis, sqnr_db
from mint.analysis.analyze import analyze
from mint.core.errors import MintError
from mint.formats.format import KEEP, parse_format
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan, plan_text, read_plan, write_plan
from mint.plan.recipe import Recipe
from mint.plan.size_range import possible_bytes

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def analysis(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyze(open_source(llama), tmp_path_factory.mktemp("analysis") / "a.mint")


def _budgets(analysis: Analysis, count: int = 12) -> list[int]:
    smallest, largest = possible_bytes(analysis.units, analysis.parameters)
    smallest = allocate(analysis, largest * 2, Recipe(veto_db=-100.0)).planned_bytes if smallest > largest else smallest
    return [smallest + (largest - smallest) * index // (count - 1) for index in range(count)]


def test_a_plan_never_exceeds_its_budget_and_says_how_far_it_is_from_the_best(analysis: Analysis) -> None:
    for budget in _budgets(analysis):
        plan = allocate(analysis, budget, Recipe(veto_db=-100.0))
        assert plan.planned_bytes <= budget
        assert plan.bound <= plan.loss * (1 + 1e-9)
        assert 0 <= plan.gap < 1e-3


def test_more_budget_never_means_more_loss(analysis: Analysis) -> None:
    losses = [allocate(analysis, budget, Recipe(veto_db=-100.0)).loss for budget in _budgets(analysis, 25)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0 < losses[0]


def test_a_budget_for_everything_keeps_everything(analysis: Analysis) -> None:
    plan = allocate(analysis, 10**9)
    assert {choice.format for choice in plan.choices} == {KEEP}
    assert plan.loss == plan.gap == 0


def test_a_budget_too_small_names_one_that_works(analysis: Analysis) -> None:
    with pytest.raises(MintError, match=r"smallest that works is (\d+) bytes") as caught:
        allocate(analysis, 1000)
    smallest = int(str(caught.value).split("smallest that works is ")[1].split()[0])
    assert allocate(analysis, smallest).planned_bytes <= smallest
    with pytest.raises(MintError, match="too small"):
        allocate(analysis, smallest - 1)


@pytest.mark.parametrize("veto_db", [0.0, 9.0, 15.0, 25.0])
def test_nothing_below_the_veto_is_chosen(analysis: Analysis, veto_db: float) -> None:
    budget = possible_bytes(analysis.units, analysis.parameters)[1] // 2
    plan = allocate(analysis, budget, Recipe(veto_db=veto_db))
    for choice in plan.choices:
        measurement = analysis.measurements[choice.path]
        worst_errors = dict(zip(measurement.formats, measurement.worst_errors, strict=True))
        assert sqnr_db(worst_errors.get(choice.format, 0.0)) >= veto_db


def test_a_unit_whose_every_format_is_vetoed_is_kept_and_the_plan_says_so(analysis: Analysis) -> None:
    plan = allocate(analysis, 10**9, Recipe(veto_db=200.0))
    assert {choice.format for choice in plan.choices} == {KEEP}
    assert all(choice.reason == "kept: every format is below 200 dB" for choice in plan.choices)


def test_the_models_floor_is_never_undercut(make_model: Make, tmp_path: Path) -> None:
    analysis = analyze(open_source(make_model("qwen3_moe")), tmp_path / "a.mint")
    smallest, largest = possible_bytes(analysis.units, analysis.parameters)
    plan = allocate(analysis, smallest + (largest - smallest) // 8, Recipe(veto_db=-100.0))
    routers = [choice for choice in plan.choices if choice.role == "router"]
    assert routers
    assert all(choice.format == KEEP or choice.format.bits >= 8 for choice in routers)


class _WithStrange(llama.Model):  # type: ignore[misc]
    """A llama with a module of a name that no rule knows."""

    def __init__(self, args: llama.ModelArgs) -> None:
        super().__init__(args)
        self.strange = Linear(64, 64, bias=False)


def test_an_unknown_module_is_kept_and_listed(
    make_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = SimpleNamespace(Model=_WithStrange, ModelArgs=llama.ModelArgs)
    monkeypatch.setitem(sys.modules, "mlx_lm.models.strange", architecture)
    folder = make_model("llama")
    config, shard = folder / "config.json", str(folder / "model.safetensors")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "strange"}))
    weights = mx.load(shard)
    assert isinstance(weights, dict)
    mx.save_safetensors(shard, {**weights, "strange.weight": mx.ones((64, 64), mx.bfloat16)})
    analysis = analyze(open_source(folder), tmp_path / "a.mint")
    plan = allocate(analysis, possible_bytes(analysis.units, analysis.parameters)[1] * 9 // 10)
    units = {choice.path: (choice.format, choice.reason) for choice in plan.choices if choice.role == "unknown"}
    assert units == {"strange": (KEEP, "kept: no rule knows this module")}


def _half(analysis: Analysis) -> Plan:
    return allocate(analysis, possible_bytes(analysis.units, analysis.parameters)[1] // 2)


def test_a_plan_reads_back_as_it_was_written(analysis: Analysis, tmp_path: Path) -> None:
    plan = _half(analysis)
    write_plan(plan, tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert again == plan
    assert plan_text(again) == (tmp_path / "plan.json").read_text()


def test_a_person_can_edit_a_format_and_the_plan_is_recomputed(analysis: Analysis, tmp_path: Path) -> None:
    plan = _half(analysis)
    path = tmp_path / "plan.json"
    lines = plan_text(plan).splitlines(keepends=True)
    row = next(index for index, line in enumerate(lines) if '"path": "model.layers.0.mlp.down_proj"' in line)
    old = json.loads(lines[row].rstrip(",\n"))["format"]
    lines[row] = lines[row].replace(f'"format": "{old}"', '"format": "2/128"')
    path.write_text("".join(lines))
    edited = read_plan(path)
    assert edited.edited == ("model.layers.0.mlp.down_proj",)
    choice = next(choice for choice in edited.choices if choice.path in edited.edited)
    assert choice.format == parse_format("2/128")
    assert choice.reason == "chosen by hand"
    assert edited.planned_bytes < plan.planned_bytes
    assert edited.loss > plan.loss
    assert edited.digest != plan.digest


def test_an_edit_that_breaks_the_budget_is_refused(analysis: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_text(_half(analysis)).replace('"format": "', '"format": "keep", "was": "'))
    with pytest.raises(MintError, match=r"needs \d+ bytes, its budget is \d+"):
        read_plan(path)


def test_an_edit_to_a_format_that_the_unit_cannot_have_is_refused(make_model: Make, tmp_path: Path) -> None:
    analysis = analyze(open_source(make_model("gemma3_text")), tmp_path / "a.mint")
    text = plan_text(allocate(analysis, possible_bytes(analysis.units, analysis.parameters)[1]))
    (tmp_path / "plan.json").write_text(text.replace('"format": "keep"', '"format": "4/128"', 1))
    with pytest.raises(MintError, match="cannot be stored as 4/128; needed one of"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text[:-30], "not valid JSON"),
        (lambda text: "[]", "not a plan"),
        (lambda text: text.replace('"kind": "mint plan"', '"kind": "shopping"'), "not a plan"),
        (lambda text: text.replace('"alpha"', '"beta"', 1), "damaged plan"),
        (lambda text: text.replace('"dtype": ""', '"dtype": "float16"'), "changed beyond its formats"),
    ],
)
def test_a_broken_plan_is_refused(
    analysis: Analysis, tmp_path: Path, change: Callable[[str], str], complaint: str
) -> None:
    (tmp_path / "plan.json").write_text(change(plan_text(_half(analysis))))
    with pytest.raises(MintError, match=complaint):
        read_plan(tmp_path / "plan.json")
