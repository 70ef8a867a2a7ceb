"""Executors: they run jobs, and a verb that gets one does not know which.

The in-process executor is the default: no server, no other process. It evaluates one weight, starts to read the next
while this one is computed, and drops it; memory is bounded by the two largest neighbours, not by the model. Where
memory is short nothing is read ahead.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

import mlx.core as mx

from mint.core.errors import MintError
from mint.core.log import log
from mint.core.memory import memory_is_short
from mint.core.progress import OnProgress, ignore
from mint.core.version import install_command
from mint.formats.units import Unit
from mint.kernels.backend import backend
from mint.model.config import check_config
from mint.model.hub_cache import NotOnHubError
from mint.model.locate import locate
from mint.model.source import Source
from mint.run.device_kind import device_kind, joined_kinds
from mint.run.job import BlockJob, Job, PortableJob
from mint.run.stacks import blocks_of, in_blocks

T = TypeVar("T")
GROUP = "mint.executors"  # of the entry points by which installed packages offer theirs
CACHE_BYTES = 64 << 20  # freed buffers that MLX may hoard
_SHARE = 0.8  # of the memory is for a model; the rest is for everything else


class Executor(Protocol):
    """Do `job` for every unit of `source`; yield each unit with its result as it finishes, in any order."""

    @property
    def devices(self) -> Sequence[str]:
        """The kinds of device that it measures on."""

    @property
    def made_by(self) -> Mapping[str, str]:
        """The node that did a unit last, by the unit's path; without those of this process."""

    @property
    def lacking(self) -> Sequence[str]:
        """The shards that this machine does not hold, in files that read as zeros."""

    @property
    def model_memory(self) -> int:
        """The most bytes that a machine with all weights has for the whole model; 0 if no machine has them all."""

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]: ...


def measuring_device(executor: Executor) -> str:
    """The kinds of device that an executor measures on, as one name."""
    return joined_kinds(executor.devices)


def memory_for_models() -> int:
    """Bytes that this machine has for a model: its GPU's working set, else its memory, less a reserve."""
    return int(_SHARE * backend().memory_bytes())


@contextmanager
def small_cache() -> Iterator[None]:
    """Let MLX hoard few freed buffers while weights stream through, and none afterwards."""
    before = mx.set_cache_limit(CACHE_BYTES)
    try:
        yield
    finally:
        mx.set_cache_limit(before)
        mx.clear_cache()


class Weights:
    """The weights of some units of a source, lazy and from one module tree; one taken again comes from a new tree."""

    def __init__(self, source: Source, units: Iterable[Unit]) -> None:
        self.source = source
        self.units = tuple(units)
        self.lazy: dict[str, mx.array] = {}  # by path, of those that were not taken yet
        self.codes: dict[str, list[mx.array]] = {}  # the encoded tensors of these, until they are read

    def take(self, unit: Unit) -> mx.array:
        """The lazy weight of `unit`: evaluate it, use it, drop it."""
        self._open(unit)
        self.codes.pop(unit.path, None)
        return self.lazy.pop(unit.path)

    def begin(self, unit: Unit) -> None:
        """Start to read the weight of `unit`; of an encoded one its small codes."""
        self._open(unit)
        mx.async_eval(self.codes.pop(unit.path, None) or self.lazy[unit.path])

    def _open(self, unit: Unit) -> None:
        if unit.path not in self.lazy:
            tree = self.source.opened.release()
            encoded, leaves = tree.stored.parts, tree.leaves
            self.lazy = {unit.path: tree.arrays[f"{unit.path}.weight"] for unit in self.units}
            self.codes = {unit.path: [leaves[name] for name in unit.sources if name in encoded] for unit in self.units}


class InProcess:
    """The executor of one machine: every job in this process, in the order given."""

    made_by: Mapping[str, str] = MappingProxyType({})
    lacking: Sequence[str] = ()

    @property
    def devices(self) -> Sequence[str]:
        return (device_kind(),)

    @property
    def model_memory(self) -> int:
        return memory_for_models()

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        return do(job, units, Weights(source, units)) if units else iter(())


in_process = InProcess()


def do(
    job: Job[T], units: Sequence[Unit], weights: Weights, on_last: Callable[[], object] = lambda: None
) -> Iterator[tuple[Unit, T]]:
    """Do `job` for every unit in the order given, and read the next weight meanwhile; `on_last` follows the last read.

    Raises `MintError` when a file of the source cannot be read or changed before a result was there. The results so
    far stay good. The weight that is read meanwhile is dropped: MLX reports a failed read once, to any array.
    """
    files = weights.source.files
    shards = {name: tensor.shard for name, tensor in weights.source.tensors().items()}
    if isinstance(job, PortableJob):
        job.ready(units)
    with small_cache(), files.reading():
        for unit, following in zip(units, [*units[1:], None], strict=True):
            work: Callable[[], T]
            if isinstance(job, BlockJob) and in_blocks(job, weights.source, unit):
                work = partial(job.of_blocks, unit, blocks_of(weights.source, unit))
            else:
                weight = weights.take(unit)
                mx.eval(weight)
                work = partial(job, unit, weight)
                del weight
            if not following:
                on_last()
            elif not memory_is_short() and not in_blocks(job, weights.source, following):
                weights.begin(following)
            result = work()
            del work
            files.check({shards[name] for name in unit.sources})
            yield unit, result
            del result


@contextmanager
def executing(
    address: str,
    model: Path | str,
    dtype: str = "",
    loader: str = "",
    *,
    share: bool = False,
    requantize: bool = False,
    on_progress: OnProgress = ignore,
    on_note: Callable[[str], object] = lambda text: None,
) -> Iterator[tuple[Path, Executor]]:
    """The folder to open `model` from and the executor for it: this process without an `address`.

    A model of the hub is downloaded to this machine if need be. `requantize` accepts one that MLX has quantized;
    `share` lets the machines at that address read from each other what one of them lacks; `on_note` gets each decision
    with its reason. Raises `MintError` when there is an address and nothing installed that can work there, or when
    there is no other machine to share with.
    """
    if share and not address:
        raise MintError("--share: there is one machine; needed: --cluster ADDRESS with it")
    check = partial(check_config, requantize=requantize)
    if not address:
        yield locate(model, on_progress, check=check), in_process
        return
    offers = metadata.entry_points(group=GROUP)
    if not offers:
        raise MintError(f"--cluster {address}: no executor is installed; needed: {install_command('cluster')}")
    try:
        folder = locate(model, on_progress, check=check)
    except NotOnHubError as error:  # it may be a folder that only nodes have
        log.warning("model.not_found", reason=str(error))
        folder = Path(model)
    with next(iter(offers)).load()(address, folder, dtype, loader, share=share, on_note=on_note) as execution:
        yield execution
