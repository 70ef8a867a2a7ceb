"""How fast this machine measures weights and reads its disk, from a few seconds of both.

Measuring is timed on pieces of the model's own units, a piece of each kind of unit, weighted by the kind's bytes.
Reading is timed on blocks all over the largest shard, after asking the system to forget them; whether it did can be
told on Linux. What makes a figure mean less than it says is said with it.
"""

import fcntl
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from mint.analysis.unit_jobs import measure, ready_kernels
from mint.core.progress import OnProgress, ignore
from mint.formats.format import ITEMSIZE, KEEP
from mint.formats.units import Unit
from mint.model.checkpoint.shards import Shard
from mint.model.source import Source

PIECE_BYTES = 32 << 20  # of a unit that is timed: enough that threads and calls do not count
BLOCK_BYTES = 16 << 20  # read at once
WHOLE_BYTES = 1 << 30  # units above are read only when there are no others
_F_NOCACHE = 48  # fcntl of macOS

Weights = Callable[[Unit, Unit], mx.array]  # of a unit, the weight of its piece


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second of a machine, seconds to build the model's lazy tree, and what to know about the figures."""

    measuring: float
    disk: float
    tree_seconds: float
    caveats: tuple[str, ...] = ()


def measure_rates(
    source: Source, *, seconds: float = 4.0, rounding: str = "nearest", on_progress: OnProgress = ignore
) -> Rates:
    """The rates of this machine for `source`, from about so many seconds of work, half of them reading."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    busy = (f"this machine is busy (load {load:.1f} on {cores} cores): both rates are lower than they could be",)
    ready_kernels(rounding, on_progress)
    disk, caveats = disk_rate(source.folder, source.shards, seconds=seconds / 4)
    tree_seconds = seconds_of_tree(source)
    arrays = source.arrays()
    sizes = source_bytes(source)
    small = [unit for unit in source.units if sum(sizes[unit.path].values()) <= WHOLE_BYTES]

    def take(unit: Unit, piece: Unit) -> mx.array:
        whole = arrays.pop(f"{unit.path}.weight").reshape(unit.slices, *unit.shape[-2:])
        return whole[: piece.slices, : piece.shape[-2]].reshape(piece.shape)

    measured = measuring_rate(small or source.units, take, seconds=seconds / 2, rounding=rounding)
    caveats += busy if load > cores / 2 else ()
    if not small:
        caveats += (f"every unit is made of more than {WHOLE_BYTES} bytes; reading them took longer than asked for",)
    return Rates(measured, disk, tree_seconds, caveats)


def seconds_of_tree(source: Source) -> float:
    """CPU seconds to build the lazy tree once more, as a worker does for every batch."""
    source.arrays()  # those that opening made
    started = time.process_time()
    source.arrays()
    return time.process_time() - started


def source_bytes(source: Source) -> dict[str, dict[str, int]]:
    """The bytes of every source tensor that a unit is made of, by the unit's path."""
    tensors = source.tensors()
    return {unit.path: {name: tensors[name].nbytes for name in unit.sources} for unit in source.units}


def measuring_rate(units: Iterable[Unit], weights: Weights, *, seconds: float, rounding: str = "nearest") -> float:
    """Bytes of weights per second that this machine measures, over the kinds of `units`, the heaviest kinds first.

    Stops after so many seconds, but not before the first kind. A rate of mixed kinds is that of their bytes over
    their seconds.
    """
    kinds: dict[tuple[object, ...], list[Unit]] = defaultdict(list)
    for unit in units:
        if any(format != KEEP for format in unit.formats):
            kinds[unit.shape, unit.dtype].append(unit)
    assert kinds, "nothing here can be quantized"
    heaviest = sorted(kinds.values(), key=lambda kind: -sum(unit.nbytes for unit in kind))
    nbytes = spent = 0.0
    began = time.perf_counter()
    for position, kind in enumerate(heaviest):
        piece = piece_of(kind[0])
        weight = mx.contiguous(weights(kind[0], piece))
        mx.eval(weight)
        if not position:
            measure(piece, weight, rounding)  # threads and kernels wake up
        started = time.perf_counter()
        measure(piece, weight, rounding)
        took = time.perf_counter() - started
        share = sum(unit.nbytes for unit in kind)
        nbytes += share
        spent += took * share / piece.nbytes
        if time.perf_counter() - began > seconds:
            break
    return nbytes / spent


def piece_of(unit: Unit) -> Unit:
    """As a unit of its own, the first matrices of a stack, or rows of a matrix, that are about `PIECE_BYTES`."""
    *_, rows, columns = unit.shape
    fitting = max(PIECE_BYTES // (columns * ITEMSIZE[unit.dtype]), 1)
    matrix = (min(rows, fitting), columns)
    if len(unit.shape) == 2:
        return replace(unit, shape=matrix)
    return replace(unit, shape=(min(max(fitting // rows, 1), unit.slices), *matrix))


def disk_rate(folder: Path, shards: Iterable[Shard], *, seconds: float) -> tuple[float, tuple[str, ...]]:
    """Bytes per second at which the largest shard is read, and what makes that figure doubtful."""
    path = folder / max(shards, key=lambda shard: shard.nbytes).name
    nbytes = path.stat().st_size
    caveats: dict[str, None] = {}
    if path.stat().st_blocks * 512 < nbytes // 2:
        caveats["the shards are sparse files: holes are not read from a disk"] = None
    with path.open("rb", buffering=0) as file:
        read, spent = 0, 0.0
        for start in _scattered(nbytes):
            if not _forget(file.fileno(), start, min(BLOCK_BYTES, nbytes - start)):
                caveats["the system kept what was to be read in its cache: the disk is slower than this"] = None
            started = time.perf_counter()
            read += len(os.pread(file.fileno(), BLOCK_BYTES, start))
            spent += time.perf_counter() - started
            if spent > seconds:
                break
    if sys.platform != "linux":
        caveats["whether the shard was in the cache cannot be told here: the disk may be slower than this"] = None
    return read / spent, tuple(caveats)


def _scattered(nbytes: int) -> list[int]:
    """Where to read blocks of a file: every third, then those between, so that reading ahead helps little."""
    starts = range(0, nbytes, BLOCK_BYTES)
    return [start for first in range(3) for start in starts[first::3]]


def _forget(descriptor: int, start: int, nbytes: int) -> bool:
    """Ask the system not to have this range in its cache; False where it is known to be there all the same."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, _F_NOCACHE, 1)
        return True
    os.posix_fadvise(descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(descriptor, [bytearray(4096)], start + nbytes // 2, os.RWF_NOWAIT)
    except OSError:  # not without waiting for the disk, or not to be told on this file system
        return True
    return False


def read_bytes(reads: Mapping[str, Mapping[str, int]]) -> int:
    """Bytes of all source tensors, each counted once."""
    return sum({name: nbytes for tensors in reads.values() for name, nbytes in tensors.items()}.values())
