"""Gain of keeping the module tree, and of reading the next batch ahead, for the worker of a node without Ray.

    python -m tools.bench.worker --tree MODEL           CPU seconds of a batch of one small unit, the tree built for
                                                        every batch and built once
    python -m tools.bench.worker --ahead FOLDER         seconds for batches of one large unit each whose files are not
                                                        in the system's cache, with and without reading ahead

MODEL may be a folder of tools.models.make_shape. FOLDER is made, with `--units` random units of `--mib` each, unless it
is there. With `--compute SECONDS` nothing is measured: a unit takes that long and no processor, as where a GPU
computes. Both ways are measured in turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import mlx.core as mx
import numpy as np

from cluster.transport.messages import pack, tell_job, tell_model
from cluster.transport.prefetch import BatchWeights
from cluster.transport.worker import Worker
from mint.analysis.analysis import Measurement
from mint.analysis.unit_jobs import Measure
from mint.formats.units import Unit
from mint.model.source import Source, open_source
from mint.run.job import Job

_COLUMNS = 4096


def main() -> int:
    """Run the selected measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, metavar="MODEL")
    parser.add_argument("--ahead", type=Path, metavar="FOLDER")
    parser.add_argument("--units", type=int, default=6, help="of the FOLDER (default %(default)s)")
    parser.add_argument("--mib", type=int, default=128, help="of each unit (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each way (default %(default)s)")
    parser.add_argument("--compute", type=float, metavar="SECONDS", help="of each unit, instead of measuring it")
    options = parser.parse_args()
    if not (options.tree or options.ahead):
        parser.error("give --tree MODEL or --ahead FOLDER")
    record: dict[str, object] = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MINT_CACHE"] = cache
        if options.tree:
            record["tree"] = tree(options.tree, options.rounds)
        if options.ahead:
            if not options.ahead.exists():
                make_large_units(options.ahead, options.units, options.mib << 20)
            record["ahead"] = ahead(options.ahead, options.rounds, options.compute)
    print(json.dumps(record, indent=2))
    return 0


def tree(model: Path, rounds: int) -> dict[str, object]:
    """CPU seconds of a batch, which the tree takes nearly all of where the unit is small."""
    source = open_source(model)
    worker = _opened(source)
    smallest = min(source.units, key=lambda unit: unit.nbytes)
    names = [unit.path for unit in source.units if unit.nbytes == smallest.nbytes][: rounds + 1]
    ways: dict[str, list[float]] = {"every batch": [], "once": []}
    _run(worker, 0, names[:1])  # compiles, and builds the tree
    for batch, name in enumerate(names[1:], start=1):
        opened = worker.weights
        worker.weights = BatchWeights(source, source.units)
        ways["every batch"].append(_seconds(time.process_time, partial(_run, worker, 2 * batch, [name])))
        worker.weights = opened
        ways["once"].append(_seconds(time.process_time, partial(_run, worker, 2 * batch + 1, [name])))
    tensors = len(source.tensors())
    return {"tensors": tensors, "units": len(source.units), "cpu_seconds_per_batch": _medians(ways)}


def ahead(folder: Path, rounds: int, compute: float | None) -> dict[str, object]:
    """Seconds for all units, one a batch, the next announced before the one before it begins, while it is computed,
    or not before it has ended."""
    source = open_source(folder)
    worker = _opened(source)
    if compute is not None:
        worker.job = Waiting(seconds=compute)
    largest = max(unit.nbytes for unit in source.units)
    names = [unit.path for unit in source.units if unit.nbytes == largest]
    ways: dict[str, list[float]] = {"not": [], "while": [], "before": []}
    _run(worker, 0, names[:1])
    for turn in range(rounds):
        for way, seconds in ways.items():
            _drop_from_cache(folder)
            worker.weights = BatchWeights(source, source.units)
            seconds.append(_seconds(time.perf_counter, partial(_run_all, worker, names, turn, way)))
    _drop_from_cache(folder)
    reading = _seconds(time.perf_counter, partial(_read, folder))
    return {
        "bytes": source.nbytes,
        "seconds_to_read": round(reading, 3),
        "seconds_by_when_the_next_is_known": _medians(ways),
        "least": {way: round(min(seconds), 3) for way, seconds in ways.items()},
    }


@dataclass(frozen=True)
class Waiting(Measure):
    """Takes some seconds and measures nothing."""

    seconds: float = 0.0

    def __call__(self, unit: Unit, weight: mx.array) -> Measurement:
        time.sleep(self.seconds)
        return Measurement(unit.path, (), (), (), 0.0)


@dataclass(frozen=True)
class Telling(Measure):
    """Calls `tell` before it does `job`."""

    tell: Callable[[], None] = lambda: None
    job: Job[Measurement] = field(default_factory=Measure)

    def __call__(self, unit: Unit, weight: mx.array) -> Measurement:
        self.tell()
        return self.job(unit, weight)


def make_large_units(folder: Path, count: int, nbytes: int) -> None:
    """A llama whose MLPs are of `nbytes` a matrix and whose other units are small."""
    rows = nbytes // 2 // _COLUMNS
    config = {
        "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": _COLUMNS, "intermediate_size": rows,
        "num_hidden_layers": count // 3, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64,
        "rms_norm_eps": 1e-6, "vocab_size": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> mx.array:
        return mx.array(random.standard_normal(shape, np.float32)).astype(mx.bfloat16)

    for layer in range(count // 3):
        prefix = f"model.layers.{layer}."
        arrays = {
            f"{prefix}mlp.gate_proj.weight": drawn(rows, _COLUMNS),
            f"{prefix}mlp.up_proj.weight": drawn(rows, _COLUMNS),
            f"{prefix}mlp.down_proj.weight": drawn(_COLUMNS, rows),
            **{f"{prefix}self_attn.{name}_proj.weight": drawn(64, _COLUMNS) for name in "qkv"},
            f"{prefix}self_attn.o_proj.weight": drawn(_COLUMNS, 64),
            f"{prefix}input_layernorm.weight": drawn(_COLUMNS),
            f"{prefix}post_attention_layernorm.weight": drawn(_COLUMNS),
        }
        mx.save_safetensors(str(folder / f"model-{layer}.safetensors"), arrays)
    outer = {"model.embed_tokens.weight": drawn(64, _COLUMNS), "model.norm.weight": drawn(_COLUMNS)}
    mx.save_safetensors(str(folder / "model-outer.safetensors"), outer)


def _opened(source: Source) -> Worker:
    worker = Worker("bench")
    worker.hello(str(source.folder))
    job = Measure("nearest")
    worker.open(1, pack(tell_model(source, {})), pack(tell_job(job)), {})
    return worker


def _run(worker: Worker, batch: int, names: Sequence[str]) -> None:
    for _ in worker.run(1, batch, names):
        pass


def _run_all(worker: Worker, names: Sequence[str], turn: int, way: str) -> None:
    batch = 10_000 * (turn + 1) + 1_000 * len(way)
    job = worker.job
    assert job
    for index, name in enumerate(names):
        if index + 1 < len(names):
            tell = partial(worker.expect, 1, batch + index + 1, names[index + 1 : index + 2])
            if way == "before":
                tell()
            if way == "while":
                worker.job = Telling(tell=tell, job=job)
        _run(worker, batch + index, [name])
    worker.job = job


def _drop_from_cache(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.read_bytes()


def _seconds(clock: Callable[[], float], do: Callable[[], None]) -> float:
    started = clock()
    do()
    return clock() - started


def _medians(ways: dict[str, list[float]]) -> dict[str, float]:
    return {way: round(median(seconds), 4) for way, seconds in ways.items()}


if __name__ == "__main__":
    sys.exit(main())
