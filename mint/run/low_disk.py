"""Quantizes a model of the hub with little disk: weights come when their units are worked on, and go.

Every unit is downloaded twice, to be measured and to be written; a batch of units takes the disk of one shard. The
identity of the model is that of its whole files, so its analysis and its result are those of an ordinary run.
"""

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

from mint.core.cache import cache_folder
from mint.core.errors import DiskFullError, MintError
from mint.core.log import log
from mint.core.progress import OnNote, OnProgress, ignore, say_nothing
from mint.core.sizes import enough_size, format_size
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.model.checkpoint.lazy import READ_AT_ONCE
from mint.model.config import check_config
from mint.model.hub_cache import HubId, cached
from mint.model.locate import hub_id
from mint.model.remote.window import Window
from mint.model.source import Source, open_source
from mint.run.device_kind import device_kind
from mint.run.executor import Executor, Weights, do, in_process
from mint.run.job import Job, T


class Streamed:
    """The executor of one machine for a model whose weights are on the hub: as `InProcess`, batch by batch."""

    made_by: Mapping[str, str] = MappingProxyType({})

    def __init__(self, window: Window, lacking: Sequence[str], disk_bytes: int, on_progress: OnProgress) -> None:
        self.lacking, self.disk_bytes = lacking, disk_bytes
        self.model_bytes = window.total_bytes
        self._window, self._on_progress = window, on_progress

    model_memory = 0  # no moment has all weights here

    @property
    def devices(self) -> Sequence[str]:
        return (device_kind(),)

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        weights = Weights(source, units)
        for batch in self._window.batches(units):
            names = {name for unit in batch for name in unit.sources}
            self._window.show(names, self._on_progress)
            log.debug("batch.downloaded", units=len(batch), nbytes=self._window.nbytes(names))
            yield from do(job, batch, weights)
        self._window.show(())


def check_streamable(rounding: str, *, probe: bool, is_cluster: bool) -> None:
    """Raise `MintError` for a request that needs all weights at once."""
    if ROUNDINGS[rounding].needs_model:
        needs = f"--rounding {rounding} runs the whole model"
        raise MintError(f"--low-disk: {needs}; needed: --quality fast, or --rounding search, which rounds units alone")
    if probe:
        raise MintError("--low-disk: --probe runs the whole model; needed: a plan without it")
    if is_cluster:
        raise MintError("--low-disk: the nodes of a cluster read whole shards; needed: no --cluster")


@contextmanager
def streaming(
    model: Path | str,
    dtype: str = "",
    loader: str = "",
    *,
    requantize: bool = False,
    on_progress: OnProgress = ignore,
    on_note: OnNote = say_nothing,
) -> Iterator[tuple[Source, Executor]]:
    """A model of the hub, opened without its weights, and the executor that brings them; all are gone afterwards.

    A model that the hub's cache has whole is read from there. Raises `MintError` for a path, and while another process
    streams the same model; `DiskFullError` where a batch does not fit the disk of the cache.
    """
    id = hub_id(model)
    if id is None:
        raise MintError(f"--low-disk: {model} is a path, nothing has to be downloaded; needed: an id of the hub")
    if folder := cached(id):
        on_note(f"{id} is in the hub's cache: nothing has to be downloaded")
        yield open_source(folder, dtype=dtype, loader=loader, requantize=requantize), in_process
        return
    from mint.model.remote.outline import outline_in  # imports what asks a network

    with _own_folder(id) as folder:
        remote = outline_in(id, folder, check=partial(check_config, requantize=requantize))
        if any(tensor.dtype in READ_AT_ONCE for tensor in remote.tensors.values()):
            fault = f"{id} has tensors of {', '.join(READ_AT_ONCE)}, and MLX reads shards with such tensors whole"
            raise MintError(f"--low-disk: {fault}; needed: no --low-disk")
        remote.bring(remote.samples)
        window = Window(remote)
        source = open_source(remote.folder, dtype=dtype, loader=loader, requantize=requantize)
        parameters = {name for parameter in source.parameters for name in parameter.sources}
        most = max(window.nbytes(unit.sources) for unit in source.units)
        needed = max(window.most_bytes, most) + window.nbytes({*parameters, *remote.settings})
        if needed > (free := shutil.disk_usage(folder).free):
            sizes = f"{format_size(free)} are free, needed {enough_size(needed)}"
            raise DiskFullError(f"{folder}: {sizes}; free some space, or set MINT_CACHE to a folder on another disk")
        total = format_size(window.total_bytes)
        on_note(
            f"low disk: {total} are downloaded to measure, and again to write; at most {format_size(needed)} of them "
            f"are on the disk at once, in {folder}"
        )
        window.show(())
        window.keep(parameters)
        yield source, Streamed(window, sorted(remote.outlines), needed, on_progress)


@contextmanager
def _own_folder(id: HubId) -> Iterator[Path]:
    """The folder for the weights of a model; a killed process left its content, which is removed."""
    folder = cache_folder() / "streams" / str(id).replace("/", "--")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            fault = f"another process streams {id} to {folder}"
            raise MintError(f"{fault}; wait for it, or set MINT_CACHE to another folder") from error
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
