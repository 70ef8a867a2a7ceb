"""Measures the rates at which this machine measures weights and reads its disk, in a few seconds.

Measuring is timed on a piece of each kind of unit of the model, weighted by the bytes of the kind. Reading is timed on
scattered blocks of the largest shard, after a request to drop them from the cache; only Linux reports if it did. A rate
comes with the caveats that limit it.
"""

import fcntl
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx

from mint.analysis.unit_jobs import Measure
from mint.core.progress import OnProgress, ignore
from mint.formats.format import ITEMSIZE, KEEP
from mint.formats.rounding import DEFAULT_ROUNDING
from mint.formats.units import Unit
from mint.kernels.ready import ready_kernels
from mint.kernels.warmup import MEASURE
from mint.model.checkpoint.shards import Shard
from mint.model.source import Source

PIECE_BYTES = 32 << 20  # of a timed unit: large enough to hide the cost of threads and calls
BLOCK_BYTES = 16 << 20  # of one read
WHOLE_BYTES = 1 << 30  # larger units are read only if there are no others
_F_NOCACHE = 48  # fcntl of macOS

LoadPiece = Callable[[Unit, Unit], mx.array]  # a unit and its piece -> the weight of the piece


@dataclass(frozen=True, slots=True)
class MachineRates:
    """Bytes per second of a machine, seconds to build the model's lazy tree, and caveats."""

    measuring: float
    disk: float
    tree_seconds: float
    caveats: tuple[str, ...] = ()


def measure_rates(
    source: Source, *, seconds: float = 4.0, rounding: str = DEFAULT_ROUNDING, on_progress: OnProgress = ignore
) -> MachineRates:
    """The rates of this machine for `source`, measured in about `seconds`."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    ready_kernels(rounding, on_progress, (MEASURE,))
    disk, caveats = disk_rate(source.folder, source.shards, seconds=seconds / 4)
    tree_seconds, arrays = seconds_of_tree(source), source.arrays()
    reads = source_bytes(source)
    small = [unit for unit in source.units if sum(reads[unit.path].values()) <= WHOLE_BYTES]

    def take(unit: Unit, piece: Unit) -> mx.array:
        whole = arrays.pop(f"{unit.path}.weight").reshape(unit.slices, *unit.shape[-2:])
        return whole[: piece.slices, : piece.shape[-2]].reshape(piece.shape)

    measured = measuring_rate(small or source.units, take, seconds=seconds / 2, rounding=rounding)
    if load > cores / 2:
        caveats += (
            f"this machine is busy (load {load:.1f} on {cores} cores): both rates are lower than they could be",
        )
    if not small:
        caveats += (f"every unit has more than {WHOLE_BYTES} bytes; the measurement took longer than intended",)
    return MachineRates(measured, disk, tree_seconds, caveats)


def seconds_of_tree(source: Source) -> float:
    """CPU seconds to build the lazy tree again, as a worker does for every batch."""
    source.arrays()  # the tree that opening made
    started = time.process_time()
    source.arrays()
    return time.process_time() - started


def source_bytes(source: Source) -> dict[str, dict[str, int]]:
    """The bytes of each source tensor of a unit, by the unit's path."""
    tensors = source.tensors()
    return {unit.path: {name: tensors[name].nbytes for name in unit.sources} for unit in source.units}


def measuring_rate(
    units: Iterable[Unit], load: LoadPiece, *, seconds: float, rounding: str = DEFAULT_ROUNDING
) -> float:
    """Bytes of weights per second that this machine measures, over the kinds of `units`, the heaviest kinds first.

    Stops after `seconds`, but not before the first kind. The rate is the bytes of all kinds over their seconds.
    """
    kinds: dict[tuple[object, ...], list[Unit]] = defaultdict(list)
    for unit in units:
        if any(format != KEEP for format in unit.formats):
            kinds[unit.shape, unit.dtype].append(unit)
    assert kinds, "no unit can be quantized"
    heaviest = sorted(kinds.values(), key=lambda kind: -sum(unit.nbytes for unit in kind))
    nbytes = estimate = 0.0
    began = time.perf_counter()
    for kind in heaviest:
        piece = piece_of(kind[0])
        weight = mx.contiguous(load(kind[0], piece))
        mx.eval(weight)
        if not nbytes:
            Measure(rounding)(piece, weight)  # warm up threads and kernels
        started = time.perf_counter()
        Measure(rounding)(piece, weight)
        piece_seconds = time.perf_counter() - started
        kind_nbytes = sum(unit.nbytes for unit in kind)
        nbytes += kind_nbytes
        estimate += piece_seconds * kind_nbytes / piece.nbytes
        if time.perf_counter() - began > seconds:
            break
    return nbytes / estimate


def piece_of(unit: Unit) -> Unit:
    """A unit of about `PIECE_BYTES`: the first matrices of a stack, or the first rows of a matrix."""
    *_, rows, columns = unit.shape
    most_rows = max(PIECE_BYTES // (columns * ITEMSIZE[unit.dtype]), 1)
    matrix = (min(rows, most_rows), columns)
    if len(unit.shape) == 2:
        return replace(unit, shape=matrix)
    return replace(unit, shape=(min(max(most_rows // rows, 1), unit.slices), *matrix))


def disk_rate(folder: Path, shards: Iterable[Shard], *, seconds: float) -> tuple[float, tuple[str, ...]]:
    """Bytes per second of reading the largest shard, and caveats."""
    path = folder / max(shards, key=lambda shard: shard.nbytes).name
    nbytes = path.stat().st_size
    caveats = []
    if path.stat().st_blocks * 512 < nbytes // 2:
        caveats.append("the shards are sparse files: holes are not read from a disk")
    with path.open("rb", buffering=0) as file:
        nbytes_read, spent, is_cached = 0, 0.0, False
        starts = range(0, nbytes, BLOCK_BYTES)
        for start in (*starts[::3], *starts[1::3], *starts[2::3]):  # scattered, so that readahead helps little
            is_cached |= not _drop_cache(file.fileno(), start, min(BLOCK_BYTES, nbytes - start))
            started = time.perf_counter()
            nbytes_read += len(os.pread(file.fileno(), BLOCK_BYTES, start))
            spent += time.perf_counter() - started
            if spent > seconds:
                break
    if is_cached:
        caveats.append("the system had the shard in its cache: the disk is slower than this")
    if sys.platform != "linux":
        caveats.append("this system does not report if the shard was in its cache: the disk may be slower than this")
    return nbytes_read / spent, tuple(caveats)


def _drop_cache(descriptor: int, start: int, nbytes: int) -> bool:
    """Ask the system to drop this range from its cache; False if it is known to be there still."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, _F_NOCACHE, 1)
        return True
    os.posix_fadvise(descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(descriptor, [bytearray(4096)], start + nbytes // 2, os.RWF_NOWAIT)
    except OSError:  # a read would wait for the disk, or the file system does not report it
        return True
    return False
