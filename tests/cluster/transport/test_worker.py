"""Placement by chips and memory, and the reading of workers: trees built once, reading ahead."""

import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from math import ceil, nextafter
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.base import Module

from cluster.schedule.cross_check import FEWEST, SHARE, check_agreement, cross_check_units
from cluster.schedule.events import Item
from cluster.schedule.placement import Placement, place_whole_model, within_memory
from cluster.transport.messages import from_pieces, pack, tell_job, tell_model, unpack
from cluster.transport.prefetch import BatchWeights, ReadAhead, read
from cluster.transport.worker import Worker
from mint.analysis.analysis import Measurement
from mint.analysis.cross_device import ROUNDING, TOLERANCE, difference, is_mixed, rounded
from mint.analysis.unit_jobs import Measure, peak_bytes
from mint.core.errors import MintError
from mint.core.memory import is_short
from mint.formats.format import parse_format
from mint.formats.units import Unit
from mint.model.loaders.table import TREE_LOADERS
from mint.model.source import Source, open_source
from mint.run.device_kind import joined_kinds, kinds_in
from mint.run.executor import in_process
from tests.worlds.zoo import write_model

JOB = Measure("nearest")
UNITS = [Unit(f"layers.{n}.up", (64, 64), "BF16", "up", n, (f"{n}.weight",)) for n in range(1000)]


def _found(*errors: float, nonfinite: int = 0) -> Measurement:
    formats = tuple(map(parse_format, ("2/64", "4/64", "8/64")))[: len(errors)]
    return Measurement("unit", formats, errors, errors, 12.3456, nonfinite)


# chips


def test_rounding_keeps_three_digits_changes_little_and_is_done_once() -> None:
    found = replace(_found(0.123456, 9.99999e-5, 1.0), slice_errors=b"")
    assert rounded(found).errors == (0.123, 1e-4, 1.0)
    assert rounded(rounded(found)) == rounded(found)
    for error in (1.0049e-7, 0.00123499, 0.5, 0.0):
        (once,) = rounded(_found(error)).errors
        assert abs(once - error) <= ROUNDING * error


def test_float_noise_changes_no_rounded_value_but_at_a_boundary() -> None:
    noisy = [(n / 977, n / 977 * (1 + 1e-7)) for n in range(1, 977)]
    flips = sum(rounded(_found(a)) != rounded(_found(b)) for a, b in noisy)
    assert flips <= 2


def test_measurements_disagree_beyond_the_tolerance_and_not_within() -> None:
    found = _found(0.1, 0.01)
    assert difference(found, _found(0.1 * (1 + TOLERANCE / 2), 0.01)) is None
    differs = difference(found, _found(0.1, 0.01 * (1 + 2 * TOLERANCE)))
    assert differs and differs[:2] == ("error in 4/64", 0.01)
    assert differs[2] == pytest.approx(0.010002)
    assert difference(_found(0.0), _found(nextafter(0.0, 1.0))) is not None
    found_bad = difference(found, _found(0.1, 0.01, nonfinite=3))
    assert found_bad and found_bad[0] == "bad weights"


def test_a_disagreement_names_the_unit_both_nodes_and_both_values() -> None:
    check_agreement("unit", {"a (M2)": _found(0.25)}, difference)
    with pytest.raises(MintError, match=r"unit unit: error in 2/64 is 0.25 on a \(M2\) and 0.26 on b \(M4\)"):
        check_agreement("unit", {"a (M2)": _found(0.25), "b (M4)": _found(0.26)}, difference)


@pytest.mark.parametrize("count", [2, 3, 399, 401, 1000])
def test_half_a_percent_of_the_units_and_at_least_two_are_measured_on_every_kind(count: int) -> None:
    units, paths = UNITS[:count], {unit.path for unit in UNITS[:count]}
    twice = cross_check_units(units, {"M2": paths, "M4": paths})
    assert len(twice) == max(FEWEST, ceil(SHARE * count))
    assert cross_check_units(units[::-1], {"M4": paths, "M2": paths}) == twice[::-1]


def test_only_what_two_kinds_can_do_is_measured_on_every_kind() -> None:
    able = {"M2": {unit.path for unit in UNITS[:10]}, "M4": {unit.path for unit in UNITS[9:]}}
    assert cross_check_units(UNITS, able) == (UNITS[9],)
    assert cross_check_units(UNITS, {"M2": {unit.path for unit in UNITS}}) == ()


def test_kinds_are_joined_in_one_order_and_found_again() -> None:
    assert joined_kinds(["gpu M4", "cpu", "gpu M4"]) == joined_kinds(["cpu", "gpu M4"]) == "cpu + gpu M4"
    assert kinds_in("cpu + gpu M4") == ("cpu", "gpu M4")
    assert is_mixed("cpu + gpu M4") and not is_mixed("gpu M4")


# eligible nodes


def test_whoever_holds_every_shard_can_run_the_model() -> None:
    holders = {"one": ("a", "b"), "two": ("b", "c")}
    placement = place_whole_model(UNITS[:3], 10**9, holders, ["a", "b", "c"])
    assert [node for node, reach in placement.missing.items() if reach] == ["b"]
    assert {item.nbytes for item in placement.items} == {10**9}
    (group,) = {item.group for item in placement.items}
    assert placement.missing["b"] == {group: 0}


def test_a_unit_goes_to_nodes_with_the_memory_for_it() -> None:
    items = (Item("small", 1, "shard"), Item("large", 5, "shard"))
    placement = Placement(items, {"mini": {"shard": 0}, "studio": {"shard": 7}})
    peaks = {"small": 10, "large": 50}
    assert within_memory(placement, peaks, {"mini": 50, "studio": 50}) == placement
    found = within_memory(placement, peaks, {"mini": 49, "studio": 50})
    small, large = found.items
    assert small == items[0] and large.group != "shard"
    assert found.missing == {"mini": {"shard": 0}, "studio": {"shard": 7, large.group: 7}}
    with pytest.raises(MintError, match="large takes about 50"):
        within_memory(placement, peaks, {"mini": 49, "studio": 49})


# reading


def _worker(source: Source, memory_bytes: int | None = None) -> Worker:
    worker = Worker("node", memory_bytes)
    worker.hello(str(source.folder))
    worker.open(1, pack(tell_model(source, {})), pack(tell_job(JOB)), {})
    return worker


def _results(messages: Iterator[bytes]) -> dict[str, Any]:
    pieces: dict[str, list[bytes]] = {}
    reasons: dict[str, str] = {}
    for path, reason, piece, _ in (entry for message in messages for entry in unpack(message)):
        pieces.setdefault(path, []).append(piece)
        reasons[path] = reason
    return {path: reasons[path] or from_pieces(JOB, UNITS[0], parts) for path, parts in pieces.items()}


@pytest.fixture
def built() -> Iterator[list[Module]]:
    """The module trees that this test has built."""
    trees: list[Module] = []
    loader = TREE_LOADERS[0]

    def module(config: dict[str, Any]) -> Module:
        trees.append(loader.module(config))
        return trees[-1]

    TREE_LOADERS.insert(0, replace(loader, module=module))
    yield trees
    del TREE_LOADERS[0]


@pytest.mark.parametrize("known", ["before", "never"])
def test_a_worker_builds_the_tree_once_whatever_the_batches(known: str, tmp_path: Path, built: list[Module]) -> None:
    source = open_source(write_model("qwen3_moe", tmp_path / "model"))
    expected = {unit.path: found for unit, found in in_process(source, JOB, source.units)}
    worker = _worker(source)
    built.clear()
    names = [unit.path for unit in source.units]
    found: dict[str, Any] = {}
    for batch, start in enumerate(range(0, len(names), 5)):
        if known == "before":
            worker.expect(1, batch + 1, names[start + 5 : start + 10] or names[:1])
        found |= _results(worker.run(1, batch, names[start : start + 5]))
    assert found == expected
    assert len(built) == 1
    worker.open(1, pack(tell_model(source, {})), pack(tell_job(JOB)), {})
    assert _results(worker.run(1, 99, names[:1])) == {names[0]: expected[names[0]]}
    assert len(built) == 2  # that unit was done before


def test_what_was_read_for_one_unit_is_not_kept_for_its_kin(tmp_path: Path) -> None:
    source = open_source(write_model("llama4", tmp_path / "model"))
    one, other = next(
        (a, b) for a in source.units for b in source.units if a is not b and set(a.sources) & set(b.sources)
    )
    weights = BatchWeights(source, source.units)
    before = mx.get_active_memory()
    mx.eval(weights.take(one))
    assert mx.get_active_memory() - before >= one.nbytes  # the tensor that both are made of
    weights.forget_kin([one])
    assert mx.get_active_memory() == before
    assert weights.take(other).shape == other.shape


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "llama4", "deepseek_v3"])
def test_the_peak_of_a_unit_is_no_more_than_was_estimated(name: str, tmp_path: Path) -> None:
    source = open_source(write_model(name, tmp_path / name))
    tensors = source.tensors()
    gc.collect()  # arrays of other tests would leave the memory meanwhile
    for unit in source.units:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        list(in_process(source, JOB, [unit]))
        assert unit.nbytes <= mx.get_peak_memory() - before <= peak_bytes(source, unit, tensors)


def test_what_is_said_of_an_earlier_job_changes_nothing(tmp_path: Path) -> None:
    sources = [open_source(write_model("llama", tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    worker = _worker(sources[0])
    names = [unit.path for unit in sources[0].units]
    expected = {unit.path: result for unit, result in in_process(sources[1], JOB, sources[1].units)}
    worker.hello(str(sources[1].folder))
    for number, source in ((3, sources[1]), (2, sources[0])):  # they may overtake each other
        worker.open(number, pack(tell_model(source, {})), pack(tell_job(JOB)), {})
    worker.skip(2, 1, names)
    worker.expect(2, 1, names)
    assert _results(worker.run(2, 1, names)) == {}
    assert _results(worker.run(3, 1, names)) == expected


def test_a_worker_refuses_a_unit_that_its_memory_is_too_small_for(tmp_path: Path) -> None:
    source = open_source(write_model("llama", tmp_path / "model"))
    sizes = {unit.path: peak_bytes(source, unit, source.tensors()) for unit in source.units}
    memory_bytes = sorted(sizes.values())[len(sizes) // 2]
    results = _results(_worker(source, memory_bytes).run(1, 1, list(sizes)))
    refused = {path for path, result in results.items() if isinstance(result, str)}
    assert refused == {path for path, nbytes in sizes.items() if nbytes > memory_bytes}
    assert refused and len(refused) < len(sizes)


def test_reading_ahead_reads_what_is_wanted_next_once_the_disk_is_free(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000_000))
    assert read([(path, 5, 9_000_000), (path, 0, 7)], threading.Event()) == 9_000_007
    stopped = threading.Event()
    stopped.set()
    assert read([(path, 0, 100)], stopped) == 0
    assert read([(path, 9_999_990, 100)], threading.Event()) == 10  # a file that became shorter
    ahead = ReadAhead()
    ahead.want(1, ((path, 0, 100),), "one")
    ahead.want(2, ((path, 0, 100),), "two")
    assert ahead.next == "one"
    ahead.stop(1)
    assert ahead.next == "two"
    ahead.free()
    assert ahead.next == ""  # it is being read
    ahead.want(3, ((path, 0, 100),), "three")
    assert ahead.next == "three"  # one at a time


def test_memory_is_short_when_little_is_available() -> None:
    assert is_short(1000, 49)
    assert not is_short(1000, 50)
