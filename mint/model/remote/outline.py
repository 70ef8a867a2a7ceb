"""A folder that looks like a model of the hub, made of its headers: no weights are downloaded.

The files beside the weights are links into the hub's cache, and so are shards that it has already. Every other shard
is a sparse file (`mint/model/checkpoint/sparse_copy.py`). Tensors that say how others are stored are filled in, since
the model cannot be opened without them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from mint.core.errors import MintError
from mint.core.files import write_all
from mint.core.progress import OnProgress, Progress, ignore
from mint.model.checkpoint.shards import MAX_HEADER_BYTES, SourceTensor, read_shard, sampled_ranges, tensors_of
from mint.model.checkpoint.sparse_copy import Outline, Range, make_view
from mint.model.hub_cache import Check, HubId, snapshot_path
from mint.model.hub_download import explained, fetch_beside, record_download, require_online
from mint.model.locate import no_folder
from mint.model.remote.ranges import HubFile

_AT_ONCE = 8  # requests
_NEAR = 1 << 16  # bytes between two ranges that one request brings
_LONG = 64 << 20  # bytes of a request at most
_SETTING_BYTES = 4096  # of a tensor of integers that may say how a weight is stored
_SETTINGS = ("U8", "I8", "I32", "I64")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """The outline of a model in `folder`, and the files of the hub behind its sparse shards."""

    id: HubId
    folder: Path
    outlines: Mapping[str, Outline]
    files: Mapping[str, HubFile]
    tensors: Mapping[str, SourceTensor]  # of the sparse shards
    _stop: Event = field(default_factory=Event, repr=False)

    @property
    def samples(self) -> dict[str, list[Range]]:
        """The ranges by shard that the identity of the model is made of."""
        return {name: sampled_ranges(8 + len(shard.header), shard.nbytes) for name, shard in self.outlines.items()}

    @property
    def settings(self) -> list[str]:
        """The tensors that may say how others are stored: without them the model cannot be opened."""
        small = (tensor for tensor in self.tensors.values() if tensor.nbytes <= _SETTING_BYTES)
        return [tensor.name for tensor in small if tensor.dtype in _SETTINGS]

    def ranges_of(self, names: Iterable[str]) -> dict[str, list[Range]]:
        """The ranges of these tensors by shard, without those that are on the disk."""
        ranges: dict[str, list[Range]] = {}
        for tensor in (self.tensors[name] for name in names if name in self.tensors):
            ranges.setdefault(tensor.shard, []).append((tensor.offset, tensor.nbytes))
        return ranges

    def bring(self, ranges: Mapping[str, Sequence[Range]], on_progress: OnProgress = ignore) -> None:
        """Download these ranges into the sparse shards."""
        requests = [(name, part) for name, parts in ranges.items() for part in _requests(parts)]
        total, done, started = sum(nbytes for _, (_, nbytes) in requests), 0, time.perf_counter()
        with explained(self.id), _hurrying(self._stop) as pool:
            for nbytes in pool.map(lambda request: self._fill(*request), requests):
                done += nbytes
                on_progress(Progress("download", done, total, str(self.id)))
        record_download(total, time.perf_counter() - started)

    def _fill(self, name: str, part: Range) -> int:
        start, nbytes = part
        with (self.folder / name).open("r+b") as file:
            for piece in self.files[name].pieces(start, nbytes):
                if self._stop.is_set():
                    break
                write_all(file.fileno(), piece, start)
                start += len(piece)
        return nbytes


def outline_in(id: HubId, folder: Path, *, check: Check = lambda folder: None) -> RemoteModel:
    """Make the outline of a model in a new folder within `folder`; errors are those of `fetch`."""
    with no_folder(str(id)), explained(id), _hurrying(Event()) as pool:
        require_online(id)
        hub = fetch_beside(id, check=check)
        missing = {name: nbytes for name, nbytes in hub.shards.items() if not (hub.folder / name).exists()}
        files = {name: HubFile(id, hub.folder.name, name) for name in missing}
        read = pool.map(lambda name: _header(files[name], name, missing[name]), missing)
        outlines = dict(zip(missing, map(Outline, missing.values(), read), strict=True))
    view = snapshot_path(id, hub.folder.name, folder)
    make_view(view, hub.folder, (hub.folder / "config.json").read_bytes(), outlines)
    tensors = tensors_of(read_shard(view, name) for name in outlines)
    remote = RemoteModel(id, view, outlines, files, tensors)
    remote.bring(remote.ranges_of(remote.settings))
    return remote


@contextmanager
def outlined(id: HubId, *, check: Check = lambda folder: None) -> Iterator[Path]:
    """The folder of an outline that is gone afterwards. Its samples are zeros: it has no identity."""
    with TemporaryDirectory(prefix="mint-") as scratch:
        yield outline_in(id, Path(scratch), check=check).folder


def _header(file: HubFile, name: str, nbytes: int) -> bytes:
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(nbytes - 8, MAX_HEADER_BYTES):
        lengths = f"its header claims {length} bytes, the file has {nbytes}"
        raise MintError(f"{name}: not a safetensors file: {lengths}; look for another revision of the model")
    return file.read(8, length)


def _requests(ranges: Iterable[Range]) -> Iterator[Range]:
    """The ranges to ask for: near ones joined, long ones in parts."""
    joined: list[list[int]] = []  # starts and ends
    for start, nbytes in sorted(ranges):
        if joined and start - joined[-1][1] <= _NEAR:
            joined[-1][1] = max(joined[-1][1], start + nbytes)
        else:
            joined.append([start, start + nbytes])
    parts = ((range(start, end, _LONG), end) for start, end in joined)
    return chain.from_iterable(((start, min(_LONG, end - start)) for start in starts) for starts, end in parts)


@contextmanager
def _hurrying(stop: Event) -> Iterator[ThreadPoolExecutor]:
    """Threads that end at the next piece, told by `stop`, when an exception leaves this block."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mint-fetch") as pool:
        try:
            yield pool
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
