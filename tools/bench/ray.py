"""Overhead of the cluster beside the work, with a real Ray of this machine and the real coordinator and messages.

    python -m tools.bench.ray 20000                  units of one size: CPU seconds and memory of every process
    python -m tools.bench.ray 20000 --shape 8 512    smaller ones
    python -m tools.bench.ray 200 --packed           packed units of 200 MB in all, as Ray brings them

Units are made up: one expert of Qwen3-30B-A3B (768 x 2048 in bfloat16) measured again and again with mint's own job, in
memory, so nothing is read and the work is the least that it can be. Overhead is all CPU time of the driver, of Ray's
own processes and of the worker that is not spent in the job, less what they use by the second when nothing is done;
it is printed with that too. So is the time by the clock in which the one worker was not at the job. Needs Linux.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil

from cluster.copies.inventory import Holder, Inventory
from cluster.copies.lending import Peers
from cluster.schedule.commands import Accept, Send
from cluster.schedule.coordinator import Coordinator
from cluster.schedule.events import Arrived, Failed, Item
from cluster.transport.connect import driving
from cluster.transport.messages import pack, unpack
from cluster.transport.prefetch import BatchWeights
from mint.analysis.unit_jobs import Measure, Packed, Quantize
from mint.formats.format import KEEP
from mint.formats.units import Unit
from mint.kernels.ready import ready_kernels
from mint.model.checkpoint.file_states import FileStates
from mint.model.module_tree import OpenedModel
from mint.model.source import Source
from mint.run.device_kind import device_kind, versions

_IDLE_SECONDS = 10.0
PACKED_BYTES = 25_000_000


def making_actor() -> Any:
    """The actor of `Making`, made where Ray may be imported: after its environment is set."""
    from cluster.transport.actor import as_actor
    from cluster.transport.worker import Worker

    class Making(Worker):
        """A worker whose units are made up: there is no model."""

        def hello(self, model: str, *, share: bool = False) -> bytes:
            return pack(Holder(Inventory(self.node, "none"), device_kind(), self.memory_bytes, os.getpid(), versions()))

        def open(self, number: int, model: bytes, job: bytes, peers: Peers) -> None:
            self.number = number
            record = unpack(model)
            self.units = {name: _unit(name, record["shape"]) for name in record["names"]}
            ready_kernels("nearest", lambda progress: None)
            self._one: list[mx.array] = []
            self.job = Measure() if record["job"] == "measure" else Quantize({}, {})
            nothing = Source(
                Path(), {}, "", "", "", (), (), (), (), FileStates(Path(), {}), OpenedModel(Path(), {}, ())
            )
            self.weights, self.tensors = BatchWeights(nothing, ()), nothing.tensors()
            self._cpu = self._seconds = 0.0
            self._began = 0.0

        def results(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Any]]:
            if not self._one:
                self._one.append(mx.random.normal(units[0].shape, scale=0.02).astype(mx.bfloat16))
                Measure()(units[0], self._one[0])  # the first time loads what was compiled
                self._began = time.process_time()
            if isinstance(self.job, Quantize):
                data = os.urandom(PACKED_BYTES)
                yield from ((unit, Packed(unit.path, KEEP, (), (data,))) for unit in units)
                return
            for unit in units:
                started, cpu = time.perf_counter(), time.process_time()
                result = Measure()(unit, self._one[0])
                self._cpu += time.process_time() - cpu
                self._seconds += time.perf_counter() - started
                yield unit, result

        def expect(self, number: int, batch: int, names: Sequence[str]) -> None:
            """Nothing is read, so nothing ahead."""

        def ping(self) -> tuple[float, float, float]:  # type: ignore[override]
            return self._cpu, time.process_time() - self._began, self._seconds

    return as_actor(Making)


def _unit(name: str, shape: Sequence[int]) -> Unit:
    return Unit(name, tuple(shape), "BF16", "expert_up", 0, ())


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", type=int)
    parser.add_argument("--shape", type=int, nargs=2, default=(768, 2048))
    parser.add_argument("--packed", action="store_true")
    options = parser.parse_args()
    record = packed(options.units * 10**6) if options.packed else overhead(options.units, options.shape)
    print(json.dumps(record, indent=2))
    return 0


def overhead(count: int, shape: Sequence[int]) -> dict[str, Any]:
    """CPU seconds and resident memory by process of a run over `count` units."""
    names = [f"model.layers.{i // 384}.mlp.experts.{i % 384 // 3}.{i % 3}" for i in range(count)]
    nbytes = _unit("", shape).nbytes
    looks = []
    with driving(None):
        import ray

        from cluster.transport.driver import Carrier

        carrier = Carrier(making_actor())
        (link,) = carrier.meet(Path("made"))
        assert link.holder
        pid = link.holder.pid
        model = ray.put(pack({"names": names, "shape": list(shape), "job": "measure"}))
        carrier.open(link, model, b"", {"": 0}, {})
        while not (heard := carrier.hear(1.0)):
            assert not carrier.refused, carrier.refused
        coordinator = Coordinator(Item(name, nbytes) for name in names)
        idle_from = _processes(pid)
        time.sleep(_IDLE_SECONDS)  # CPU that Ray's processes use while idle
        before, started = _processes(pid), time.perf_counter()
        done = messages = 0
        while coordinator.finished is None:
            messages += bool(heard)
            for event in heard:
                for command in coordinator.step(time.monotonic(), event):
                    carrier.carry(command)
                    done += isinstance(command, Accept)
                    if isinstance(command, Accept) and done in {count // 4, count // 2, count}:
                        looks.append({"done": done, "resident_mb": _resident(_processes(pid))})
            heard = carrier.hear(0.5)
        seconds, after = time.perf_counter() - started, _processes(pid)
        work, all_of_worker, in_job = ray.get(link.actor.ping.remote())
        carrier.quit()
    idle = {name: (before[name][0] - idle_from[name][0]) / _IDLE_SECONDS for name in before if name in idle_from}
    spent = {name: after[name][0] - before.get(name, (0.0, 0))[0] for name in after}
    spent["worker"] = all_of_worker - work
    beyond = {name: max(value - idle.get(name, 0.0) * seconds, 0.0) for name, value in spent.items()}
    return {
        "units": count,
        "shape": list(shape),
        "seconds": seconds,
        "seconds_in_the_job": in_job,
        "seconds_beside_the_job_share": (seconds - in_job) / in_job,
        "work_cpu_seconds": work,
        "work_cpu_milliseconds_per_unit": work / count * 1e3,
        "cpu_seconds_beside_the_work": {name: round(value, 3) for name, value in spent.items()},
        "idle_cpu_share_of_a_core": {name: round(value, 4) for name, value in idle.items()},
        "overhead_milliseconds_per_unit": sum(beyond.values()) / count * 1e3,
        "overhead_share_of_work": sum(beyond.values()) / work,
        "share_with_what_ray_uses_idle": sum(spent.values()) / work,
        "times_the_head_heard": messages,
        "resident_mb_before": _resident(before),
        "resident_mb": looks,
    }


def packed(nbytes: int) -> dict[str, Any]:
    """Seconds, CPU seconds and memory of bringing packed units of so many bytes in all to the head."""
    names = [f"unit {number}" for number in range(nbytes // PACKED_BYTES)]
    record: dict[str, Any] = {"nbytes": len(names) * PACKED_BYTES, "unit_nbytes": PACKED_BYTES}
    with driving(None):
        import ray

        from cluster.transport.driver import Carrier

        carrier = Carrier(making_actor())
        (link,) = carrier.meet(Path("made"))
        assert link.holder
        pid = link.holder.pid
        model = ray.put(pack({"names": names, "shape": [8, 512], "job": "quantize"}))
        for batch, way in enumerate(("ray, first time", "ray")):
            carrier.open(link, model, b"", {"": 0}, {})  # again: `rest` has ended the job
            while not carrier.hear(1.0):
                assert not carrier.refused, carrier.refused
            before, started, most, done = _processes(pid), time.perf_counter(), 0, 0
            carrier.carry(Send(link.worker, batch, tuple(names)))
            while done < len(names):
                for event in carrier.hear(0.5):
                    assert not isinstance(event, Failed), event
                    if isinstance(event, Arrived):
                        *body, digest = event.pieces
                        assert hashlib.sha256(memoryview(b"".join(body))).digest() == digest
                        done += 1
                        most = max(most, _store_bytes())
            record[way] = _cost(before, _processes(pid), started) | {"shared_memory_mb": most / 1e6}
            carrier.rest()
        carrier.quit()
    return record


def _cost(
    before: dict[str, tuple[float, int]], after: dict[str, tuple[float, int]], started: float
) -> dict[str, Any]:  # fmt: skip
    cpu = {name: round(after[name][0] - before.get(name, (0.0, 0))[0], 2) for name in after}
    return {"seconds": round(time.perf_counter() - started, 2), "cpu_seconds": round(sum(cpu.values()), 2), "by": cpu}


def _store_bytes() -> int:
    """Of shared memory that is in use: Ray's object store lies there."""
    store = os.statvfs("/dev/shm")
    return (store.f_blocks - store.f_bfree) * store.f_frsize


def _resident(processes: dict[str, tuple[float, int]]) -> dict[str, float]:
    return {name: round(nbytes / 1e6, 1) for name, (_, nbytes) in processes.items()}


def _processes(worker: int) -> dict[str, tuple[float, int]]:
    """CPU seconds and resident bytes of this process, of the worker, and of Ray's own by their names."""
    here = psutil.Process()
    usage: dict[str, tuple[float, int]] = {}
    for process in [here, *here.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess), process.oneshot():
            name = {here.pid: "driver", worker: "worker"}.get(process.pid, process.name())
            seconds, resident = usage.get(name, (0.0, 0))
            times = process.cpu_times()
            usage[name] = seconds + times.user + times.system, resident + process.memory_info().rss
    return usage


if __name__ == "__main__":
    raise SystemExit(main())
