"""Runs a model of more than 1 GB over three machines, with a killed node and a cut network, and compares the bytes.

    sudo python -m tools.lab.show_cluster [--shape qwen3-0.6b] [--layers N] [--bits 4.5bpw]
    sudo python -m tools.lab.show_cluster --mbit 20      assembles over cables that are too slow to help

The machines are network namespaces (`tools.lab`) that share cores and disk: the run shows that nothing is lost, not
that it is faster. It writes random bf16 weights in the shapes of a real model, then analyzes and assembles it in one
process and over the cluster. In both stages one worker has no network for a while; in the first, the other worker is
killed. The results are compared byte for byte, and everything is removed.
"""

import argparse
import filecmp
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mint.core.cache import cache_folder
from mint.model.source import open_source
from tools.lab.service import Host, Lab, cut_off, not_permitted
from tools.models.make_shape import write_shape
from tools.models.make_smollm2 import say
from tools.models.shapes import SHAPES

STAGES = ("analyze", "assemble")
# of the units, done before the network is cut: by then the packing nodes are known
SHARES = {"analyze": 0.2, "assemble": 0.6}
PROGRAM = "from mint.cli.main import main; main()"
ALONE = "this machine packs everything itself"
LOOK_SECONDS = 0.05
LIMIT_SECONDS = 600.0
_GROUP_BYTES = 400_000_000  # of a shard


@dataclass(slots=True)
class RunLog:
    """History of the units of one run, read from its log."""

    arrived: Counter[str] = field(default_factory=Counter)  # results by host
    again: list[str] = field(default_factory=list)  # units that were sent to a worker while another had them
    doubled: list[str] = field(default_factory=list)  # units whose result arrived twice
    lost: dict[str, str] = field(default_factory=dict)  # workers, with the reason
    done: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)  # messages of mint
    holders: dict[str, set[str]] = field(default_factory=dict)  # workers that have a unit to do

    def read(self, line: str) -> None:
        """Read one line of the log."""
        if not line.startswith("{"):
            self.notes += [line] if line.startswith(ALONE) else []
            return
        record: dict[str, Any] = json.loads(line)
        if record["event"] == "batch.sent":
            for unit in record["units"]:
                holders = self.holders.setdefault(unit, set())
                self.again += [unit] if holders else []
                holders.add(record["worker"])
        elif record["event"] == "batch.shortened":
            for unit in record["units"]:
                self.holders.setdefault(unit, set()).discard(record["worker"])
        elif record["event"] == "result.arrived":
            self.arrived[record["worker"].split("/")[0]] += 1
            self.doubled += [] if record["accepted"] else [record["unit"]]
        elif record["event"] in ("unit.measured", "unit.written"):
            self.done.add(record["unit"])
        elif record["event"] in ("worker.dismissed", "worker.lost"):
            self.lost[record["worker"]] = record["reason"]


@dataclass(frozen=True, slots=True)
class Accident:
    """An event at a share of the units."""

    share: float
    title: str
    happen: Callable[[], object]


def main() -> int:
    """Run everything and print the figures; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--bits", default="4.5bpw", help="budget (default %(default)s)")
    parser.add_argument("--cable", type=float, default=20.0, help="seconds (default %(default)s)")
    parser.add_argument("--mbit", type=int, help="rate of each cable while assembling, without accidents")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if reason := not_permitted():
        say(f"cannot make machines: {reason}")
        return 1
    with tempfile.TemporaryDirectory(prefix="mint-show-") as folder:
        record = show(Path(folder), options)
    print(json.dumps(record, indent=2) if options.json else _table(record))
    return 0 if record["same_bytes"] else 1


def show(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run all stages in `folder`; return seconds and the work of each host."""
    model = folder / "model"
    model.mkdir()
    say(f"writing {options.shape} with random weights")
    write_shape(model, SHAPES[options.shape], layers=options.layers, shard_bytes=_GROUP_BYTES, random=True)
    source = open_source(model)
    sizes = {unit.path: unit.nbytes for unit in source.units}
    cache = folder / "cache"
    cache.mkdir()
    (cache_folder() / "kernels").mkdir(parents=True, exist_ok=True)
    (cache / "kernels").symlink_to(cache_folder() / "kernels")  # compiled once per machine
    say(f"{source.nbytes / 1e9:.2f} GB in {len(sizes)} units and {len(source.shards)} shards")
    with ExitStack() as until_the_end:
        lab = Lab(folder / "lab", cache)
        until_the_end.callback(lab.remove)
        stages: dict[str, Any] = {}
        for stage in STAGES:
            seconds, _ = _run(lab, _command(stage, folder, "alone"))
            say(f"{stage} in one process: {seconds:.1f} s")
            stages[stage] = {"alone_seconds": seconds}
            if stage == "analyze":
                _run(lab, ["allocate", str(folder / "alone.mint"), "-b", options.bits, "-o", str(folder / "plan.json")])
        say("starting three machines")
        lab.start_head()
        lab.join(*lab.hosts[1:])
        for stage in STAGES:
            slow = bool(options.mbit) and stage == "assemble"
            plug = threading.Timer(options.cable, lab.hosts[1].plug_cable)
            accidents = [
                Accident(
                    SHARES[stage], f"host2: cable out for {options.cable:.0f} s", partial(_trip, lab.hosts[1], plug)
                )
            ]
            if stage == "analyze":
                accidents.append(Accident(0.4, "host3: killed", lab.hosts[2].kill))
            command = [*_command(stage, folder, "cluster"), "--cluster", lab.address]
            with ExitStack() as until_then:
                for host in lab.hosts if slow else ():
                    until_then.enter_context(host.slow_cable(options.mbit))
                accidents = [] if slow else accidents
                seconds, run_log = _run(lab, command, len(sizes), accidents)
            if accidents:
                plug.join()
            say(f"{stage} over the cluster: {seconds:.1f} s")
            stages[stage] |= {
                "cluster_seconds": seconds,
                "accidents": [accident.title for accident in accidents] or [f"{options.mbit} Mbit/s cables"],
                "said": run_log.notes,
                "units_by_host": dict(sorted(run_log.arrived.items())),
                "units_asked_for_again": len(run_log.again),  # upper bound of the units that were begun twice
                "bytes_asked_for_again": sum(sizes[unit] for unit in run_log.again),
                "units_that_came_twice": len(run_log.doubled),
                "units_lost": len(sizes.keys() - run_log.done),
                "workers_lost": run_log.lost,
            }
    same = filecmp.cmp(folder / "alone.mint", folder / "cluster.mint", shallow=False)
    names = sorted(path.name for path in (folder / "alone").iterdir())
    same = same and names == sorted(path.name for path in (folder / "cluster").iterdir())
    same = same and filecmp.cmpfiles(folder / "alone", folder / "cluster", names, shallow=False)[0] == names
    return {"source_nbytes": source.nbytes, "units": len(sizes), "same_bytes": same, "stages": stages}


def _run(lab: Lab, command: Sequence[str], units: int = 0, accidents: Sequence[Accident] = ()) -> tuple[float, RunLog]:
    """Seconds of a command of mint on the first host, and its log; raises RuntimeError if it fails."""
    log = lab.folder / f"log-{command[0]}"
    started = time.perf_counter()
    child = lab.hosts[0].python(PROGRAM, "--verbose", *command, log=log)
    limit = threading.Timer(LIMIT_SECONDS, cut_off, [child])
    limit.start()
    run_log, waiting, rest = RunLog(), list(accidents), ""
    try:
        with log.open() as lines:
            while True:
                over = child.poll() is not None
                *whole, rest = (rest + lines.read()).split("\n")
                for line in whole:
                    run_log.read(line)
                while waiting and len(run_log.done) >= waiting[0].share * units:
                    say(f"{len(run_log.done)} of {units} units: {waiting[0].title}")
                    waiting.pop(0).happen()
                if over:
                    break
                try:
                    child.wait(LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
    finally:
        limit.cancel()
        cut_off(child)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {child.returncode}: {log.read_text()[-2000:]}")
    return time.perf_counter() - started, run_log


def _command(stage: str, folder: Path, name: str) -> list[str]:
    """The command that makes NAME.mint, or the folder NAME from the plan."""
    if stage == "analyze":
        return [stage, str(folder / "model"), "-o", str(folder / f"{name}.mint")]
    return [stage, str(folder / "plan.json"), "-m", str(folder / "model"), "-o", str(folder / name)]


def _trip(host: Host, plug: threading.Timer) -> None:
    host.pull_cable()
    plug.start()


def _table(record: dict[str, Any]) -> str:
    lines = [f"{record['source_nbytes'] / 1e9:.2f} GB, {record['units']} units"]
    for stage, figures in record["stages"].items():
        hosts = ", ".join(f"{host} {count}" for host, count in figures["units_by_host"].items())
        lines += [
            f"{stage}: alone {figures['alone_seconds']:.1f} s, cluster {figures['cluster_seconds']:.1f} s "
            f"({'; '.join(figures['accidents'])})",
            f"  results: {hosts}; lost {figures['units_lost']}; asked for again {figures['units_asked_for_again']} "
            f"({figures['bytes_asked_for_again'] / 1e6:.1f} MB), came twice {figures['units_that_came_twice']}",
            *(f"  said: {note}" for note in figures["said"]),
            *(f"  {worker}: {reason}" for worker, reason in figures["workers_lost"].items()),
        ]
    return "\n".join([*lines, "byte for byte the same" if record["same_bytes"] else "THEY DIFFER"])


if __name__ == "__main__":
    sys.exit(main())
