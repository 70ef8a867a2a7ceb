"""Folders in the shape of very large models: their headers are true, their data are holes, all planning works."""

from math import prod
from pathlib import Path

import pytest

from mint.model.opening.towers import towers_in
from mint.model.roles import TOWER
from mint.model.source import open_source
from mint.render.models import source_record
from tools.bench.cluster import coordinating, shape
from tools.models.make_shape import write_shape
from tools.models.shapes import SHAPES

BF16 = ("qwen3-30b-a3b", "llama4-scout")
WEIGHTS = {  # as the hub counts them
    "qwen3-30b-a3b": 30_532_122_624, "qwen3-30b-a3b-fp8": 30_532_122_624, "llama4-scout": 108_641_793_536,
    "deepseek-v3": 684_489_845_504, "gpt-oss-20b": 20_914_757_184, "gpt-oss-20b-bf16": 20_914_757_184,
}  # fmt: skip
TENSORS = {"qwen3-30b-a3b": 18_867, "deepseek-v3": 91_991, "gpt-oss-20b": 459}  # in the published index


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_shape_has_as_many_weights_as_the_model(name: str) -> None:
    shape = SHAPES[name]
    assert sum(prod(size) for _, size in shape.tensors(shape.config)) == WEIGHTS[name]


@pytest.mark.parametrize("name", TENSORS)
def test_a_shape_has_as_many_tensors_as_the_model(name: str) -> None:
    names = [tensor.name for tensor in SHAPES[name].specs(SHAPES[name].config)]
    assert len(set(names)) == len(names) == TENSORS[name]


@pytest.fixture(scope="module", params=BF16)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of each shape, in several shards."""
    folder = tmp_path_factory.mktemp("shape")
    write_shape(folder, SHAPES[request.param], layers=4, shard_bytes=10**9)
    return folder


def test_a_shape_opens_as_a_model_and_takes_hardly_any_disk(folder: Path) -> None:
    source = open_source(folder)
    assert all(tensor.startswith(("vision_model", "multi_modal")) for tensor in source.dropped)
    assert all(not unit.keep_reason for unit in source.units)
    assert len(source.shards) > 3
    taken = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert taken < source.nbytes / 100


ENCODED = {"qwen3-30b-a3b-fp8": 1552, "deepseek-v3": 800, "gpt-oss-20b": 8, "gpt-oss-20b-bf16": 8}


@pytest.mark.parametrize("name", ENCODED)
def test_an_encoded_shape_opens_with_every_weight_decoded(name: str, tmp_path: Path) -> None:
    write_shape(tmp_path, SHAPES[name], layers=4)
    source = open_source(tmp_path)
    *told, decoded = source.notices
    assert decoded.startswith(f"{ENCODED[name]} weights of ")
    # mlx_lm rounds the range of YaRN, and gpt-oss does not
    assert ["rope_scaling.truncate" in notice for notice in told] == ([True] if "gpt-oss" in name else [])
    assert not source.dropped
    assert {unit.dtype for unit in source.units} == {"BF16"}
    feeding = {tensor for unit in source.units for tensor in unit.sources}
    feeding |= {tensor for parameter in source.parameters for tensor in parameter.sources}
    assert feeding == source.tensors().keys()


@pytest.mark.usefixtures("vision")
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_inspected_with_its_towers(name: str, tmp_path: Path) -> None:
    write_shape(tmp_path, SHAPES[name], layers=4)
    source = open_source(tmp_path)
    towers = towers_in(source.tensors())
    assert (source.loader == "mlx_vlm") == bool(towers) == any(unit.role == TOWER for unit in source.units)
    record = source_record(source, name)
    assert (record["units"], record["dropped_towers"]) == (len(source.units), [])
    assert record["smallest_bytes"] < record["largest_bytes"]


def test_a_shape_goes_through_everything_but_the_arithmetic(folder: Path) -> None:
    result = shape(folder, 1e9, "4.5bpw")
    steps = {step["name"]: step["result"] for step in result["steps"]}
    units = steps["open"]["units"]
    whole, *partial = steps["inventory and placement"]["units by node"]
    assert whole == units
    assert all(able < units for able in partial)
    assert steps["analysis with made errors"]["measurements"] == units
    allocated = steps["allocation at 4.5bpw"]
    assert steps["dry assembly"]["nbytes"] == allocated["planned_bytes"] <= allocated["budget_bytes"]


def test_the_coordinator_is_replayed_to_its_end_and_its_memory_counted() -> None:
    result = coordinating(600, 1e9)
    assert result["coordinator_microseconds_per_unit"] > 0
    assert 10 < result["memory_bytes_per_unit"] < 500
    assert result["simulated_seconds"] >= result["units"] * 768 * 2048 * 2 / 1e9 / result["machines"]
