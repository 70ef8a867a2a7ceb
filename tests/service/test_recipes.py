"""A recipe means the same to the command line, to Python and to the service, however it is written."""

import json
from pathlib import Path

from hypothesis import given

from cluster.service.data.records import ModelRequest
from cluster.service.request_options import budget_of, canonical, checked_options, recipe_of
from mint.analysis.analysis import read_analysis
from mint.analysis.analyze import analyze
from mint.cli.main import run_command
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.plan import read_plan
from mint.plan.recipe import Budget, Recipe
from tests.mint.plan.test_recipe import BUDGETS, recipes
from tests.worlds.served import served


def _request(budget: Budget | None, options: dict[str, object]) -> ModelRequest:
    return ModelRequest("model", "0" * 64, canonical(budget), checked_options(budget, options))


@given(recipes(), BUDGETS)
def test_a_request_keeps_its_recipe_and_its_budget(recipe: Recipe, budget: Budget) -> None:
    request = _request(budget, {**recipe.to_dict(), **budget.room.to_dict()})
    again = budget_of(request.budget, request.options)
    assert canonical(again) == canonical(budget)
    assert again.room == budget.room
    assert recipe_of(again, request.options) == recipe


@given(recipes(), BUDGETS)
def test_writing_a_default_out_does_not_change_a_request(recipe: Recipe, budget: Budget) -> None:
    written = {**recipe.to_dict(), **budget.room.to_dict()}
    brief = checked_options(budget, written)
    assert _request(budget, brief).key == _request(budget, written).key
    assert _request(None, checked_options(None, written)).key == _request(None, written).key


def test_command_line_python_and_service_make_the_same_plan(tmp_path: Path, llama: Path) -> None:
    recipe = Recipe(
        veto_db=3.0, min_bits=3, max_bits=8, formats=("3,4,8@32,64",), lock=("*.q_proj=keep", "*.v_proj=8/64"),
        compat="mlx-0.21.1", prefer_speed=0.5, max_shard_size="1MB",
    )  # fmt: skip
    path, output = tmp_path / "llama.mint", tmp_path / "plan.json"
    analysis = analyze(open_source(llama), path)
    plan = allocate(read_analysis(path), "5bpw", recipe)
    arguments = [
        "--veto", "3", "--min-bits", "3", "--max-bits", "8", "--formats", "3,4,8@32,64", "--keep", "*.q_proj",
        "--set", "*.v_proj=8/64", "--compat", "mlx-0.21.1", "--prefer-speed", "0.5", "--max-shard-size", "1MB",
    ]  # fmt: skip
    assert run_command(["allocate", str(path), "--budget", "5bpw", *arguments, "--output", str(output), "--json"]) == 0
    assert read_plan(output) == plan
    with served(tmp_path / "data", roots=(llama.parent,)) as world:
        world.store("analysis", analysis.model, analysis_mint=path.read_bytes())
        asked = {"model": "llama", "budget": "5bpw", "options": json.loads(json.dumps(recipe.to_dict()))}
        answer = world.client.post("/v1/plans", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.json()["digest"] == plan.digest
