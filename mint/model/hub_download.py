"""Downloads a model of the Hugging Face hub into its cache on this machine: the files that mint needs, nothing else.

huggingface_hub brings the files, checks their sizes, and keeps those that are whole: the same command resumes with the
others. This file adds checks of the config and of the free space before the weights come, mint's own progress, an
immediate end on Ctrl-C, and a remedy in every error.
"""

import fnmatch
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, errors, get_token, is_offline_mode
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, tqdm  # type: ignore[attr-defined]

from mint.core.cache import cache_folder, keep, recall
from mint.core.errors import DiskFullError, MintError
from mint.core.progress import OnProgress, Progress, ignore
from mint.core.records import MALFORMED
from mint.core.sizes import enough_size, format_size
from mint.model.checkpoint.beside import is_wanted
from mint.model.checkpoint.shards import PATTERN, read_index
from mint.model.hub_cache import Check, HubId, NotOnHubError, snapshot
from mint.model.opening.kinds import kind_of

_SECONDS = 30.0  # without an answer of the hub
_TICK_SECONDS = 0.2  # between two reports
_UNFINISHED = "*.????????.incomplete"  # names of huggingface_hub for blobs that it writes, other ones in each process
_BYTES_BAR = "huggingface_hub.snapshot_download"  # its bar that counts written bytes
_EXPLAINED = (
    errors.HfHubHTTPError, errors.HFValidationError, httpx2.TransportError, errors.LocalEntryNotFoundError,
    errors.XetDownloadError,
)  # fmt: skip
_RATE = "downloads/rate.json"  # in the cache
_LEAST_BYTES = 32 << 20  # a shorter download measures how fast it begins
_LOG_IN = "log in (hf auth login, or HF_TOKEN)"


def fetch(
    id: HubId, on_progress: OnProgress = ignore, *, check: Check = lambda folder: None, reserve_bytes: int = 0
) -> Path:
    """Download what is missing of a model and return its snapshot's folder; interrupted, the same call resumes.

    `check` gets the folder before any large file is requested, and may raise. Raises `NotOnHubError` where the hub
    has no such model or does not answer, `DiskFullError` where less than `reserve_bytes` would stay free, and
    `MintError` for everything else that can be fixed.
    """
    require_online(id)

    def report(done: int) -> None:
        on_progress(Progress("download", done, total, str(id)))

    with explained(id):
        files = fetch_beside(id, check=check, reserve_bytes=reserve_bytes)
        sizes, folder = {**files.beside, **files.shards}, files.folder
        total = sum(sizes.values())
        report(0)
        missing = sum(nbytes for name, nbytes in sizes.items() if not (folder / name).exists())
        _need_room(folder, missing, reserve_bytes)
        started = time.perf_counter()
        folder = _bring(id, sorted(sizes), lambda nbytes: report(total - missing + min(nbytes, missing)))
        record_download(missing, time.perf_counter() - started)
    report(total)
    return folder


def record_download(nbytes: int, seconds: float) -> None:
    """Remember the rate of a download, unless it was too short to tell."""
    if nbytes > _LEAST_BYTES:
        keep(cache_folder() / _RATE, json.dumps({"bytes_per_second": nbytes / seconds}).encode())


def download_rate() -> float:
    """Bytes per second of this machine's last download of some size; 0 where there was none."""
    rate = recall(cache_folder() / _RATE, lambda text: float(json.loads(text)["bytes_per_second"]))
    return rate if rate and 0 < rate < inf else 0.0


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The files of a model that mint needs, with their bytes; `folder` is the snapshot, and has those `beside`."""

    folder: Path
    beside: Mapping[str, int]
    shards: Mapping[str, int]


def fetch_beside(id: HubId, *, check: Check = lambda folder: None, reserve_bytes: int = 0) -> HubFiles:
    """Download the files of a model beside its weights; `check` gets their folder. Call it within `explained`."""
    sizes = _listed(id)
    _remove_unfinished(id)
    beside = {name: nbytes for name, nbytes in sizes.items() if is_wanted(name)}
    _need_room(Path(constants.HF_HUB_CACHE), sum(beside.values()), reserve_bytes)
    folder = _bring(id, sorted(beside), lambda nbytes: None)
    check(folder)
    indexed = set(read_index(folder).values())
    shards = {name for name in fnmatch.filter(sizes, PATTERN) if "/" not in name} | (sizes.keys() & indexed)
    return HubFiles(folder, beside, {name: sizes[name] for name in sorted(shards)})


@contextmanager
def explained(id: HubId) -> Iterator[None]:
    """Turn an error of huggingface_hub into one with its remedy."""
    try:
        yield
    except _EXPLAINED as error:
        raise _explained(id, error) from error


@contextmanager
def _answered(id: HubId) -> Iterator[None]:
    """Turn the errors of an answer that is none of the hub's into `MintError`; `explained` gets all others."""
    try:
        yield
    except _EXPLAINED:
        raise
    except (*MALFORMED, AssertionError) as error:  # huggingface_hub asserts what a hub has to send
        raise _no_hub(id, f"{type(error).__name__}: {error!s:.200}") from error


def _no_hub(id: HubId, fault: str) -> MintError:
    remedy = "check HF_ENDPOINT and proxies, then run the same command again"
    return MintError(f"{id}: {constants.ENDPOINT} answers as no hub does ({fault}); {remedy}")


def require_online(id: HubId) -> None:
    """Raise `NotOnHubError` where huggingface_hub is told to ask no network."""
    if is_offline_mode():
        fault = f"{id} is not whole in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set"
        raise NotOnHubError(f"{fault}; needed: HF_HUB_OFFLINE=0, or the path of a folder that holds it")


def _listed(id: HubId) -> Mapping[str, int]:
    """The files of a model and their bytes; `MintError` for one without a config or without safetensors files."""
    with _answered(id):
        listing = HfApi().model_info(id.repository, revision=id.revision, files_metadata=True, timeout=_SECONDS)
        sizes = {str(file.rfilename): int(file.size or 0) for file in listing.siblings or []}
    names = [name for name in sizes if "/" not in name]
    has_index = any(name.endswith(".safetensors.index.json") for name in names)
    for pattern in ("*.safetensors" if has_index else PATTERN, "config.json"):
        if not fnmatch.filter(sizes if has_index else names, pattern):
            others = ", ".join(sorted(sizes)[:8]) or "nothing"
            remedy = "Look for one that was converted, or for another revision (OWNER/NAME@refs/pr/N)"
            needed = kind_of(id.repository, sizes) or f"needed: a model in safetensors format. {remedy}"
            raise MintError(f"{id} has no {pattern} (found {others}); {needed}")
    return sizes


def _remove_unfinished(id: HubId) -> None:
    """Remove the unfinished blobs of killed downloads, each as large as a shard: no other process resumes them.

    A download that runs has the lock of its blob.
    """
    cache, name = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=id.repository, repo_type="model")
    for path in (cache / name / "blobs").glob(_UNFINISHED):
        lock = cache / ".locks" / name / f"{path.name.partition('.')[0]}.lock"
        with suppress(OSError), WeakFileLock(lock, timeout=_TICK_SECONDS):
            path.unlink()


def _need_room(folder: Path, needed: int, reserve_bytes: int) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = max(0, shutil.disk_usage(existing).free - reserve_bytes)
    if needed > free:
        sizes = f"{enough_size(needed)} are still to come, {format_size(free)} are free there"
        remedy = "make room (hf cache ls), or set HF_HUB_CACHE to a folder on another disk"
        raise DiskFullError(f"{constants.HF_HUB_CACHE}: {sizes}; {remedy}")


def _bring(id: HubId, names: Sequence[str], on_bytes: Callable[[int], object]) -> Path:
    """Download what is missing of these files; `on_bytes` gets the bytes so far, several times a second.

    huggingface_hub works in threads of its own and waits for them in every case. So it runs in one more thread, which
    an exception here leaves behind: it ends with its next bytes.
    """
    counts: list[int] = []  # of bytes, which several threads append
    stop, snapshot_path = threading.Event(), Future[Path]()

    class Bar(tqdm):
        """A progress bar that nobody sees."""

        monitor_interval = 0  # else tqdm starts one more thread for every such class, which never ends

        def __init__(self, *args: Any, name: str | None = None, **options: Any) -> None:
            super().__init__(*args, **{**options, "name": name, "disable": True})  # type: ignore[no-untyped-call]
            self._counts = name == _BYTES_BAR

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise CancelledError
            if self._counts:
                counts.append(int(n or 0))

    def download() -> None:
        try:
            with _answered(id):
                snapshot_path.set_result(snapshot(id, names, tqdm_class=Bar))
        except BaseException as error:
            snapshot_path.set_exception(error)

    thread = threading.Thread(target=download, name="fetch", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_TICK_SECONDS)
            on_bytes(sum(counts))
    finally:
        stop.set()
    folder = snapshot_path.result()
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise _no_hub(id, f"its two listings differ: {', '.join(absent)} stands in one")
    return folder


def _explained(id: HubId, error: Exception) -> MintError:
    """The error of huggingface_hub, with its remedy."""
    hub, page, reader = constants.ENDPOINT, f"{constants.ENDPOINT}/{id.repository}", f"{_LOG_IN} as one of its readers"
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        return MintError(f"{id}: its users accept its terms first; accept them at {page} and {_LOG_IN}")
    if isinstance(error, errors.RevisionNotFoundError):
        return MintError(f"{id.repository} has no revision {id.revision!r}; needed: a branch, tag or commit of {page}")
    if isinstance(error, errors.HFValidationError):
        return NotOnHubError(f"{id} is no id of the hub: {error}")
    if not isinstance(error, errors.HfHubHTTPError):
        fault = f"{id} is not whole in the hub's cache ({constants.HF_HUB_CACHE}), and {hub} does not answer ({reason})"
        remedy = "connect this machine and run the same command again, or give the path of a folder that holds it"
        return NotOnHubError(f"{fault}; {remedy}")
    status = error.response.status_code
    if isinstance(error, errors.RepositoryNotFoundError) or (status == 401 and not get_token()):
        return NotOnHubError(f"{hub} knows no model {id.repository}; check its name. If it is private, {reader}")
    if status in (401, 403):
        return MintError(f"{id}: {hub} refuses the token of this machine ({status}: {reason}); {reader}")
    return NotOnHubError(f"{id}: {hub} answers {status}; run the same command again later")
