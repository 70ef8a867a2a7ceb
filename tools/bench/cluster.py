"""Benchmarks of the cluster: predicted minutes, cost of the coordinator, and every step for a very large model.

    python -m tools.bench.cluster --simulate MODEL      minutes for 1 to 8 machines by disk and link, from rates
                                                        measured here, or from --rate and --disk
    python -m tools.bench.cluster --coordinator         seconds per unit and memory at 1,000 to 100,000 units
    python -m tools.bench.cluster --shape FOLDER        every step but the arithmetic for a folder of any size, such
                                                        as tools.models.make_shape writes: seconds and memory of each

MODEL may be such a folder too: then the rate is that of random weights in the shapes of its units.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from cluster.copies.inventory import agree, needed_shards, take_inventory
from cluster.forecast.benchmark import MachineRates, disk_rate, measuring_rate, seconds_of_tree
from cluster.forecast.forecast import LINKS, Work, forecast, minutes, work_of
from cluster.forecast.simulate import Costs, Machine, Pipe, simulate
from cluster.schedule.coordinator import Coordinator
from cluster.schedule.events import Event, Item
from cluster.schedule.placement import Placement, place_units
from mint.analysis.analysis import Analysis, write_analysis
from mint.analysis.analyze import header_of, traced_header
from mint.core.memory import peak_rss_bytes
from mint.core.progress import ignore
from mint.formats.units import Unit
from mint.kernels.ready import ready_kernels
from mint.kernels.warmup import MEASURE
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan, quantization_entries
from mint.run.device_kind import device_kind
from tools.bench.allocate import made_measurement

_COUNTS = (1, 2, 4, 8)
_UNITS = (1_000, 20_000, 100_000)
_EXPERT = Unit("expert", (768, 2048), "BF16", "expert_up", 0, ())  # the small unit: one expert of Qwen3-30B-A3B
_SHARDS = 16
_NODES = 4
_DISKS = (1.5e9, 7e9)  # bytes per second: a small Mac's, and a large one's


def main() -> int:
    """Run the selected benchmarks and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", type=Path, metavar="MODEL")
    parser.add_argument("--coordinator", action="store_true")
    parser.add_argument("--shape", type=Path, metavar="FOLDER")
    parser.add_argument("--rate", type=float, help="GB of weights measured per second, instead of this machine's")
    parser.add_argument("--disk", type=float, action="append", help="GB/s; default: this machine's, 1.5 and 7")
    parser.add_argument("--units", type=int, action="append", help="with --coordinator; default: 1000, 20000, 100000")
    parser.add_argument("--bits", default="4.5bpw", help="budget with --shape (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if not (options.simulate or options.coordinator or options.shape):
        parser.error("give --simulate MODEL, --coordinator or --shape FOLDER")
    record: dict[str, Any] = {"cores": os.cpu_count()}
    rate = options.rate * 1e9 if options.rate else 0.0
    if options.simulate:
        record["simulate"] = simulated(open_source(options.simulate), rate, [disk * 1e9 for disk in options.disk or ()])
    if options.coordinator:
        record["coordinator"] = [coordinating(count, rate) for count in options.units or _UNITS]
    if options.shape:
        record["shape"] = shape(options.shape, rate, options.bits)
    print(json.dumps(record, indent=2) if options.json else _table(record))
    return 0


# predicted minutes


def simulated(source: Source, rate: float, disks: Sequence[float]) -> dict[str, Any]:
    """Predicted seconds by machine count: local copies by disk, the other ways by link."""
    rates = here(source, rate)
    work = work_of(source)
    kinds = [replace(rates, disk=disk) for disk in disks or (rates.disk, *_DISKS)]
    rows = []
    for machines in range(1, 9):
        row: dict[str, float] = {}
        for kind in kinds:
            prediction = forecast(work, [kind] * machines, LINKS["10GbE"])
            seconds = prediction.alone if machines == 1 else prediction.ways["local copies"]
            row[f"copies, disk {kind.disk / 1e9:.2f}"] = seconds
        for name, link in LINKS.items():
            ways = forecast(work, [kinds[-1]] * machines, link).ways
            row |= {f"{way}, {name}": seconds for way, seconds in ways.items() if way != "local copies"}
        rows.append({"machines": machines, "seconds": row})
    return {
        "source_nbytes": work.nbytes,
        "measuring_bytes_per_second": rates.measuring,
        "disk_bytes_per_second": rates.disk,
        "shared_disk_bytes_per_second": kinds[-1].disk,
        "tree_seconds": rates.tree_seconds,
        "notes": list(rates.caveats),
        "rows": rows,
    }


def here(source: Source, rate: float) -> MachineRates:
    """This machine's rates for a model, on random weights in the shapes of its units."""
    if not rate:
        ready_kernels("nearest", ignore, (MEASURE,))
        rate = measuring_rate(source.units, random_weights, seconds=3.0)
    disk, notes = disk_rate(source.folder, source.shards, seconds=1.0)
    return MachineRates(rate, disk, seconds_of_tree(source), notes)


def random_weights(unit: Unit, piece: Unit) -> mx.array:
    """Normal weights for a piece of a unit."""
    kind = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}[piece.dtype]
    return mx.random.normal(piece.shape, scale=0.02).astype(kind)


# the coordinator


def coordinating(count: int, rate: float, machines: int = 8) -> dict[str, float]:
    """CPU seconds and memory of the coordinator alone, replaying the events of a simulated run over `machines`."""
    if not rate:
        ready_kernels("nearest", ignore, (MEASURE,))
        rate = measuring_rate([_EXPERT], random_weights, seconds=1.0)
    nodes = [Machine(str(index), rate, Pipe(f"disk {index}", 5e9)) for index in range(machines)]
    events: list[tuple[float, Event | None]] = []
    run = simulate(list(_small(count)), nodes, listen=lambda now, event: events.append((now, event)))
    seconds = min(_replay(count, events)[0] for _ in range(3))
    paths = [item.name for item in _small(count)]  # a source holds the names anyway
    tracemalloc.start()
    coordinator = Coordinator(replace(item, name=path) for item, path in zip(_small(count), paths, strict=True))
    initial = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for now, event in events:
        coordinator.step(now, event)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    work = count * _EXPERT.nbytes / rate
    ray = run.messages * Costs().message_seconds
    return {
        "units": count,
        "machines": machines,
        "measuring_bytes_per_second": rate,
        "simulated_seconds": run.seconds,
        "units_per_message": count / run.messages,
        "coordinator_microseconds_per_unit": seconds / count * 1e6,
        "coordinator_share_of_work": seconds / work,
        "share_of_work_with_ray": (seconds + ray) / work,
        "share_of_the_run": seconds / run.seconds,
        "memory_bytes": peak,
        "memory_bytes_at_first": initial,
        "memory_bytes_per_unit": peak / count,
    }


def _small(count: int) -> Iterator[Item]:
    for i in range(count):
        path = f"model.layers.{i // 384}.mlp.experts.{i % 384 // 3}.{i % 3}"
        yield Item(path, _EXPERT.nbytes, f"{i * _SHARDS // count}")


def _replay(count: int, events: Sequence[tuple[float, Event | None]]) -> tuple[float, Coordinator]:
    """CPU seconds of a coordinator that handles all events, and the coordinator."""
    started = time.process_time()
    coordinator = Coordinator(_small(count))
    for now, event in events:
        coordinator.step(now, event)
    assert coordinator.finished
    return time.process_time() - started, coordinator


# a model of any size


@dataclass(frozen=True, slots=True)
class Step:
    """Wall and CPU seconds of a step, and the memory of the process after it."""

    name: str
    seconds: float
    cpu_seconds: float
    resident_bytes: int
    result: Mapping[str, Any]


def shape(folder: Path, rate: float, budget: str) -> dict[str, Any]:
    """Run all steps that read no weights on the model in `folder`: open, place, simulate, allocate, lay out."""
    steps: list[Step] = []

    @contextmanager
    def step(name: str) -> Iterator[dict[str, Any]]:
        result: dict[str, Any] = {}
        started, cpu = time.perf_counter(), time.process_time()
        yield result
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        steps.append(Step(name, seconds, cpu_seconds, _resident_bytes(), result))

    with step("open") as result:
        source = open_source(folder)
        result |= {"units": len(source.units), "tensors": len(source.tensors()), "nbytes": source.nbytes}
    with step("inventory and placement") as result:
        placement = placed(source)
        result |= {"nodes": len(placement.missing), "groups": len({item.group for item in placement.items})}
        result["units by node"] = [_able(placement, node) for node in placement.missing]
    with step("rates") as result:
        rates = here(source, rate)
        result |= {"measuring": rates.measuring, "tree_seconds": rates.tree_seconds}
    work = work_of(source)
    with step("simulated runs, local copies on 7 GB/s") as result:
        fast = replace(rates, disk=_DISKS[-1])
        for machines in _COUNTS:
            prediction = forecast(work, [fast] * machines, LINKS["10GbE"])
            seconds = prediction.alone if machines == 1 else prediction.ways["local copies"]
            result[f"minutes, {machines}"] = minutes(seconds)
    with step("simulated run over the made-up nodes") as result:
        result["minutes"] = minutes(_scattered(placement, work, fast))
    with step("analysis with made errors") as result:
        analysis = made_analysis(source)
        result["measurements"] = len(analysis.measurements)
    with step(f"allocation at {budget}") as result:
        plan = allocate(analysis, budget)
        result |= {"planned_bytes": plan.planned_bytes, "budget_bytes": plan.budget_bytes, "gap": plan.gap}
    with step("dry assembly") as result:
        result |= dry_assembly(plan)
    return {"peak_bytes": peak_rss_bytes(), "steps": [asdict(step) for step in steps]}


def placed(source: Source) -> Placement:
    """The units over made-up nodes: the first holds all shards, the others every shard but one in `_NODES - 1`."""
    whole = take_inventory("node 0", source.folder)
    inventories = [whole]
    for node in range(1, _NODES):
        shards = tuple(shard for i, shard in enumerate(whole.shards) if i % (_NODES - 1) != node - 1)
        inventories.append(replace(whole, node=f"node {node}", shards=shards))
    holders = agree(needed_shards(whole, inventories), inventories)
    return place_units(source.units, source.tensors(), holders, [inventory.node for inventory in inventories])


def _able(placement: Placement, node: str) -> int:
    return sum(item.group in placement.missing[node] for item in placement.items)


def _scattered(placement: Placement, work: Work, rates: MachineRates) -> float:
    machines = [Machine(node, rates.measuring, Pipe(node, rates.disk)) for node in placement.missing]
    costs = replace(Costs(), batch_seconds=Costs().batch_seconds + rates.tree_seconds)
    run = simulate(placement.items, machines, reads=work.reads, reach=placement.missing, costs=costs)
    return run.seconds


def made_analysis(source: Source) -> Analysis:
    """An analysis of `source`, written and read back, with made-up errors of units and of single experts."""
    random = np.random.default_rng(0)
    measurements = {}
    for unit in source.units:
        made = made_measurement(unit, random)
        if unit.slices > 1:
            spread = random.uniform(0.7, 1.4, (unit.slices, 1)) * np.array(made.errors)
            made = replace(
                made, worst_errors=tuple(spread.max(axis=0).tolist()), slice_errors=spread.astype("<f4").tobytes()
            )
        measurements[unit.path] = made
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "made.mint"
        header = header_of(source, "nearest", device_kind()) | traced_header(source)
        header["parameter_checksums"] = dict.fromkeys((parameter.name for parameter in source.parameters), "")
        return write_analysis(path, header, measurements)


def dry_assembly(plan: Plan) -> dict[str, Any]:
    """Lay out every byte of the output and check it: shards without holes, headers that match their tensors."""
    expected = {tensor.name for group in plan.groups() for tensor in group}
    names: set[str] = set()
    for shard in plan.layout:
        entries = json.loads(shard.head[8:])
        end = len(shard.head)
        for placed in shard.tensors:
            entry = entries[placed.tensor.name]
            assert placed.offset == end and placed.tensor.name not in names, placed
            assert [begin + len(shard.head) for begin in entry["data_offsets"]] == [end, end + placed.tensor.nbytes]
            end += placed.tensor.nbytes
            names.add(placed.tensor.name)
        assert end == shard.nbytes
    assert names == expected
    nbytes = sum(shard.nbytes for shard in plan.layout)
    assert nbytes == plan.planned_bytes
    config = json.dumps(quantization_entries(plan))
    return {"shards": len(plan.layout), "tensors": len(names), "nbytes": nbytes, "config_bytes": len(config)}


def _resident_bytes() -> int:
    """Resident bytes of this process; its peak so far where the system does not report them."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _table(record: Mapping[str, Any]) -> str:
    return "\n".join(line for name, lines in _TABLES.items() if name in record for line in lines(record[name]))


def _simulated_table(record: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{record['source_nbytes'] / 1e9:.1f} GB at {record['measuring_bytes_per_second'] / 1e9:.3f} GB/s measured; "
        f"disk {record['disk_bytes_per_second'] / 1e9:.2f} GB/s; lazy tree {record['tree_seconds']:.2f} s a batch"
    )
    yield from (f"note: {note}" for note in record["notes"])
    columns = list(record["rows"][0]["seconds"])
    yield f"{'minutes, machines':<48}" + "".join(f"{row['machines']:>8}" for row in record["rows"])
    for column in columns:
        yield f"{column:<48}" + "".join(f"{minutes(row['seconds'][column]):>8}" for row in record["rows"])


def _coordinator_table(rows: Sequence[Mapping[str, float]]) -> Iterator[str]:
    for name in rows[0]:
        yield f"{name:<40}" + "".join(f"{row[name]:>16.6g}" for row in rows)


def _shape_table(record: Mapping[str, Any]) -> Iterator[str]:
    for step in record["steps"]:
        results = ", ".join(f"{name} {value}" for name, value in step["result"].items())
        spent = f"{step['seconds']:>8.2f} s {step['cpu_seconds']:>6.2f} s CPU"
        yield f"{step['name']:<40}{spent} {step['resident_bytes'] / 1e6:>6.0f} MB  {results}"
    yield f"peak memory {record['peak_bytes'] / 1e6:.0f} MB"


_TABLES: Mapping[str, Callable[[Any], Iterator[str]]] = {
    "simulate": _simulated_table,
    "coordinator": _coordinator_table,
    "shape": _shape_table,
}


if __name__ == "__main__":
    sys.exit(main())
