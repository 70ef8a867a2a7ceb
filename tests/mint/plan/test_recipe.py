"""Recipe, room and budget: one spelling, the same from text, JSON and the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from mint.cli import options
from mint.cli.main import app
from mint.core.errors import MintError
from mint.formats.format import FORMATS
from mint.formats.rounding import ROUNDINGS
from mint.plan.objectives import OBJECTIVES
from mint.plan.recipe import DTYPES, Budget, Recipe, Room
from mint.targets.devices import devices
from mint.targets.loaders import loaders

FORMAT_NAMES = [str(format) for format in FORMATS if str(format) != "keep"]
SIZES = st.builds("{}{}".format, st.integers(1, 999), st.sampled_from(["MB", "GB", "GiB"]))
ROOMS = st.builds(
    Room,
    context=st.sampled_from(["512", "8k", "32k", "1M"]),
    kv_bits=st.sampled_from([None, 4, 8]),
    reserve=SIZES | st.just("0"),
)
BUDGETS = st.builds(
    Budget.of, SIZES | st.sampled_from(["min", "max", "4.5bpw", "0.3x"]) | st.integers(1, 10**12)
) | st.builds(Budget, device=st.sampled_from([device.name for device in devices()]), room=ROOMS)


@st.composite
def recipes(draw: Callable[[Any], Any]) -> Recipe:
    """Any recipe that can be: those whose loader reads none of the formats cannot."""
    record = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "rounding": st.sampled_from(list(ROUNDINGS)),
                "dtype": st.sampled_from(["", *DTYPES]),
                "probe": st.booleans(),
                "objective": st.sampled_from(list(OBJECTIVES)),
                "veto_db": st.floats(-20, 120),
                "min_bits": st.integers(0, 8),
                "max_bits": st.integers(2, 64),
                "formats": st.lists(st.sampled_from(FORMAT_NAMES), max_size=3),
                "lock": st.lists(
                    st.builds("*.{}_proj={}".format, st.sampled_from("qkv"), st.sampled_from(FORMAT_NAMES))
                ),
                "ignore_floors": st.lists(st.builds("*.{}_proj".format, st.sampled_from("qkv"))),
                "prefer_speed": st.floats(0, 10),
                "ignore_probe": st.booleans(),
                "max_shard_size": SIZES,
            },
        )
    )
    if not record.get("formats"):
        record["compat"] = draw(st.sampled_from(["", *(loader.name for loader in loaders() if loader.mixed)]))
    return Recipe.from_dict(record)


@given(recipes())
def test_a_recipe_reads_back_from_json(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@given(BUDGETS)
def test_a_budget_reads_back_from_json(budget: Budget) -> None:
    assert Budget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget


@given(recipes())
def test_the_measurements_depend_only_on_the_part_for_the_analysis(recipe: Recipe) -> None:
    part = recipe.analysis
    assert (part.rounding, part.dtype, part.probe) == (recipe.rounding, recipe.dtype, recipe.probe)
    assert part.analysis == part


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"veto": 9.0}, "unknown options: veto"),
        ({"veto_db": "9"}, "veto_db: found '9', needed a number"),
        ({"min_bits": 2.5}, "min_bits: found 2.5, needed a whole number"),
        ({"probe": 1}, "probe: found 1, needed true or false"),
        ({"formats": "4"}, "formats: found '4', needed a list of texts"),
        ({"rounding": "best"}, "best"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"objective": "best"}, "not an objective"),
        ({"prefer_speed": -1}, "prefer_speed -1 is negative"),
        ({"lock": ["*.q_proj"]}, "found no format"),
        ({"max_shard_size": "5"}, "has no unit"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(record: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MintError, match=complaint.replace("(", r"\(")):
        Recipe.from_dict(record)


@pytest.mark.parametrize(
    "record",
    [{}, {"amount": "1GB", "device": "m1-8"}, {"device": "pdp-11"}, {"amount": 1}, {"amount": "1GB", "kv_bits": "4"},
     {"amount": "1GB", "context": "long"}, {"amount": "1GB", "size": 1}],
)  # fmt: skip
def test_an_invalid_budget_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(MintError):
        Budget.from_dict(record)


# the command line

VALUES: dict[str, Any] = {
    "rounding": "search", "dtype": "float16", "quality": "good", "vision": True, "probe": True, "objective": "mint",
    "veto_db": 3.0, "min_bits": 3, "max_bits": 8, "formats": ["4"], "keep": ["*.q_proj"], "set": ["*.q_proj=4/64"],
    "compat": "mlx-0.21.1", "prefer_speed": 1.0, "ignore_probe": True, "max_shard_size": "1GB",
    "ignore_floors": ["*.q_proj"], "requantize": True,
}  # fmt: skip
ROOM_VALUES: dict[str, Any] = {"context": "32k", "kv_bits": 8, "reserve": "2GB"}


def _parameters(command: str) -> dict[str, Any]:
    """The defaults of a command's parameters, as click has them."""
    group: Any = typer.main.get_command(app)
    return {parameter.name: parameter.default for parameter in group.commands[command].params}


def _recipe(values: dict[str, Any]) -> Recipe:
    """The recipe of a command's options."""
    measuring = {name: values[name] for name in ("dtype", "vision", "requantize", "quality", "rounding", "probe")}
    limits = {name: value for name, value in values.items() if name not in measuring}
    return options.recipe(options.rules(**limits), **measuring)


@pytest.mark.parametrize("command", ["quantize", "allocate", "submit"])
def test_every_option_of_a_recipe_stands_for_exactly_one_field_with_its_default(command: str, tmp_path: Path) -> None:
    locks = tmp_path / "locks.json"
    locks.write_text('{"lm_head": "8/64"}')
    parameters = _parameters(command)
    defaults = {name: parameters[name] or [] if name in ("formats", "keep", "set") else parameters[name]
                for name in (*VALUES, "locks")}  # fmt: skip
    assert _recipe(defaults) == Recipe()
    reached = set()
    for name, value in {**VALUES, "locks": locks}.items():
        changed = _recipe({**defaults, name: value}).to_dict()
        (field,) = (field for field, default in Recipe().to_dict().items() if changed[field] != default)
        reached.add(field)
    assert reached == set(Recipe().to_dict())


@pytest.mark.parametrize("command", ["quantize", "allocate", "submit"])
def test_every_option_of_a_device_stands_for_exactly_one_field_with_its_default(command: str) -> None:
    parameters = _parameters(command)
    defaults = {name: parameters[name] for name in ROOM_VALUES}
    for name, value in ROOM_VALUES.items():
        (budget,) = options.devices(**{**defaults, name: value}, device=["m1-8"])
        changed = budget.room.to_dict()
        assert [field for field, default in Room().to_dict().items() if changed[field] != default] == [name]
    assert options.budgets(["1GB"], options.devices(**defaults, device=[])) == [Budget.of("1GB")]


def test_the_memory_of_a_curve_has_the_same_defaults() -> None:
    parameters = _parameters("curve")
    assert Room(context=parameters["context"], reserve=parameters["reserve"]) == Room()
