"""Predictions match the formulas, improve with more and faster machines, and give the right advice."""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.forecast.benchmark import BLOCK_BYTES, PIECE_BYTES, MachineRates, disk_rate, piece_of, source_bytes
from cluster.forecast.forecast import LINKS, WAYS, WORTHWHILE, Outlook, Work, forecast, outlook, plan_cluster
from cluster.forecast.simulate import Costs, Machine, Pipe, Run, simulate, simulate_alone
from cluster.schedule.events import Arrived, Event, Item
from mint.core.errors import MintError
from mint.formats.format import KEEP
from mint.formats.units import Unit
from mint.model.checkpoint.shards import Shard
from mint.model.source import open_source

FREE = Costs(start_seconds=0.0, batch_seconds=0.0, message_seconds=0.0)
SMALL = 4_000_000
RATES = [(1e9, 5e9), (1e9, 0.5e9), (0.07e9, 2e9)]


def equal_work(count: int, nbytes: int = SMALL) -> Work:
    items = tuple(Item(f"unit {index}", nbytes) for index in range(count))
    return Work(items, {item.name: {item.name: item.nbytes} for item in items})


def uneven_items(seed: int, count: int = 300) -> list[Item]:
    chance = random.Random(seed)
    return [Item(f"unit {index}", int(10 ** chance.uniform(5, 8))) for index in range(count)]


def run_on(items: list[Item], rates: list[float], disk: float = 1e12) -> Run:
    machines = [Machine(str(index), rate, Pipe(f"disk {index}", disk)) for index, rate in enumerate(rates)]
    return simulate(items, machines, costs=FREE)


IDEALS: dict[str, Callable[[int, float, float, float], float]] = {
    "local copies": lambda N, R, d, B: N * min(R, d),
    "one shares its folder": lambda N, R, d, B: min(R, d) + min((N - 1) * R, B, d),
    "NFS": lambda N, R, d, B: min(N * R, B),
}


@pytest.mark.parametrize(("rate", "disk"), RATES)
@pytest.mark.parametrize(("machines", "link"), [(2, 2.5e9), (8, 0.11e9), (8, 2.5e9)])
def test_many_equal_units_take_the_seconds_of_the_formulas(
    rate: float, disk: float, link: float, machines: int
) -> None:
    work = equal_work(2000)
    result = forecast(work, [MachineRates(rate, disk, 0.0)] * machines, link, costs=FREE)
    assert result.alone == pytest.approx(work.nbytes / min(rate, disk), rel=0.01)
    for way, ideal in IDEALS.items():
        expected = work.nbytes / ideal(machines, rate, disk, link)
        assert 0.999 * expected <= result.ways[way] <= 1.06 * expected, way


@pytest.mark.parametrize(("rate", "disk"), [(1e9, 4e9), (4e9, 1e9), (1e9, 1e9)])
def test_one_machine_reads_the_next_unit_while_it_computes_one(rate: float, disk: float) -> None:
    read, compute = SMALL / disk, SMALL / rate
    result = simulate_alone(equal_work(10).items, Machine("0", rate, Pipe("disk", disk)))
    assert result.seconds == pytest.approx(read + 9 * max(read, compute) + compute)


@pytest.mark.parametrize("rates", [[1e9, 4e9], [1e9, 4e9, 4e9, 1e9]])
@pytest.mark.parametrize("items", [list(equal_work(60).items), uneven_items(1)], ids=["60 equal", "300 uneven"])
def test_nodes_whose_speeds_differ_fourfold_are_within_a_tenth_of_the_ideal(
    rates: list[float], items: list[Item]
) -> None:
    ideal = sum(item.nbytes for item in items) / sum(rates)
    assert run_on(items, rates).seconds <= 1.1 * ideal


@pytest.mark.parametrize("seed", range(5))
def test_another_machine_costs_at_most_the_time_of_one_unit(seed: int) -> None:
    items = uneven_items(seed)
    largest = max(item.nbytes for item in items) / 1e9
    seconds = [run_on(items, [1e9] * machines).seconds for machines in range(1, 9)]
    assert all(more <= fewer + largest for fewer, more in pairwise(seconds))
    assert seconds[3] < seconds[0] / 3


@pytest.mark.parametrize("seed", range(5))
def test_a_faster_disk_costs_at_most_the_time_of_one_unit(seed: int) -> None:
    items = uneven_items(seed)
    largest = max(item.nbytes for item in items)
    disks = [0.2e9, 0.5e9, 1e9, 2e9, 8e9]
    seconds = [run_on(items, [1e9, 1e9, 2e9], disk).seconds for disk in disks]
    for (slow, before), (_, after) in pairwise(zip(disks, seconds, strict=True)):
        assert after <= before + largest / slow


@pytest.mark.parametrize("seed", range(3))
def test_every_unit_arrives_and_few_are_done_twice(seed: int) -> None:
    items = uneven_items(seed)
    arrived: Counter[str] = Counter()

    def listen(now: float, event: Event | None) -> None:
        if isinstance(event, Arrived):
            arrived[event.item] += 1

    machines = [Machine(name, rate, Pipe("disk", 5e9)) for name, rate in (("a", 1e9), ("b", 3e9))]
    result = simulate(items, machines, costs=FREE, listen=listen)
    total = sum(item.nbytes for item in items)
    assert set(arrived) == {item.name for item in items}
    assert total <= sum(result.done.values()) <= 1.05 * total + max(item.nbytes for item in items)


def test_a_machine_only_does_groups_within_its_reach() -> None:
    items = [Item(f"{group} {index}", SMALL, group) for index in range(50) for group in ("left", "right")]
    disk = Pipe("disk", 1e13)
    machines = [Machine("all", 1e9, disk), Machine("left only", 1e12, disk)]
    reach = {"all": {"left": 0, "right": 0}, "left only": {"left": 0}}
    result = simulate(items, machines, reach=reach, costs=FREE)
    assert result.done["all"] >= 50 * SMALL
    assert result.seconds >= 50 * SMALL / 1e9


def test_a_tensor_that_feeds_two_units_is_read_once_by_one_machine_and_again_by_another() -> None:
    items = [Item("gate", 2 << 30), Item("up", 2 << 30)]  # too large for one batch
    reads = {"gate": {"fused": 4 << 30}, "up": {"fused": 4 << 30}}
    machine = Machine("0", 1e9, Pipe("disk", 1e9))
    assert simulate_alone(items, machine, reads=reads).read["disk"] == 4 << 30
    assert simulate(items, [machine], reads=reads).read["disk"] == 8 << 30


def test_machines_far_too_slow_are_refused_with_the_reason() -> None:
    with pytest.raises(MintError, match=r"would be given up.*needed: machines that do more than"):
        run_on([Item("huge", 10**9)], [1e4])


@pytest.mark.parametrize("batch_seconds", [0.0, 0.5])
def test_a_tree_built_for_every_batch_costs_a_cluster_and_not_one_machine(batch_seconds: float) -> None:
    work = equal_work(64, nbytes=1 << 30)
    plain = forecast(work, [MachineRates(1e9, 5e9, 0.0)] * 2, LINKS["10GbE"], costs=FREE)
    result = forecast(work, [MachineRates(1e9, 5e9, batch_seconds)] * 2, LINKS["10GbE"], costs=FREE)
    assert result.alone == pytest.approx(plain.alone + batch_seconds)
    assert result.ways["local copies"] >= plain.ways["local copies"] + 31 * batch_seconds


@pytest.mark.parametrize(("count", "machines"), [(1, 2), (20, 2), (200, 1), (200, 2), (200, 8)])
@pytest.mark.parametrize("rate", [0.07e9, 1e9, 6e9])
def test_a_cluster_is_advised_exactly_if_it_gains_enough(count: int, machines: int, rate: float) -> None:
    result = outlook(equal_work(count, nbytes=1 << 28), MachineRates(rate, 5e9, 0.0), machines=machines)
    gain = max(link.gain(way) for link in result.forecasts for way in WAYS)
    assert result.advice.startswith("A cluster is worth it" if gain >= WORTHWHILE else "One machine is enough")
    assert result.advice in result.table()


def test_advice_for_links_that_are_too_slow_asks_for_copies() -> None:
    slow = outlook(equal_work(200, nbytes=1 << 28), MachineRates(1e9, 5e9, 0.0), links={"1GbE": 0.11e9})
    assert "Making one copy takes" in slow.advice
    assert "do not go without" in slow.advice
    fast = Outlook(slow.rates, (replace(slow.forecasts[0], ways={**slow.forecasts[0].ways, "NFS": 1.0}),))
    assert "NFS over 1GbE, " in fast.advice


def test_planning_a_cluster_measures_this_machine_on_the_model(llama: Path) -> None:
    result = plan_cluster(llama, machines=3, seconds=0.01)
    source = open_source(llama)
    reads = source_bytes(source)
    assert result.rates.measuring > 0
    assert result.rates.disk > 0
    assert [link.link_name for link in result.forecasts] == list(LINKS)
    assert result.forecasts[0].nbytes == sum(source.tensors()[name].nbytes for name in set().union(*reads.values()))
    assert result.advice.startswith("One machine is enough")
    assert json.loads(json.dumps(result.record()))["advice"] == result.advice


@pytest.mark.parametrize("shape", [(8, 64), (151_936, 2048), (128, 768, 2048), (16, 8192, 5120), (4, 100_000, 5120)])
def test_a_piece_is_a_unit_with_the_same_formats_and_bounded_bytes(shape: tuple[int, ...]) -> None:
    unit = Unit("layers.0.up_proj", shape, "BF16", "up", 0, ())
    piece = piece_of(unit)
    assert piece.nbytes <= min(PIECE_BYTES, unit.nbytes)
    assert piece.nbytes >= min(PIECE_BYTES // 2, unit.nbytes)
    assert [format for format in piece.formats if format != KEEP] == [f for f in unit.formats if f != KEEP]


@pytest.mark.parametrize("sparse", [False, True])
def test_sparse_shards_are_reported_as_a_caveat(tmp_path: Path, sparse: bool) -> None:
    nbytes = BLOCK_BYTES + 4096
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(nbytes)
        if not sparse:
            file.write(os.urandom(nbytes))
            file.flush()
            os.fsync(file.fileno())
    rate, caveats = disk_rate(tmp_path, [Shard("model.safetensors", nbytes, "", "", ())], seconds=1.0)
    assert rate > 0
    assert any("sparse" in caveat for caveat in caveats) is sparse
