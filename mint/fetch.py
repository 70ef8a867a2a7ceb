"""A model of the Hugging Face hub into its cache on this machine: what mint needs of it, and nothing else.

The cache is huggingface_hub's own, laid out by its own code. Only the weights are brought by `fetch_file`: what came of
a file huggingface_hub 2.4 throws away when a download ends early (or leaves behind for good when it is killed), and it
compares sizes alone. Here the same command goes on at the byte where it was, and a file has the SHA-256 that the hub
names it by. It lies among the cache's `blobs` under that name, where huggingface_hub finds it and links it into the
snapshot. The lock that it has for a blob is held meanwhile, so two who ask at once download once.
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, tqdm  # type: ignore[attr-defined]

from mint.budget import format_size
from mint.connection import SilentError
from mint.download import Answer, Wanted, fetch_file
from mint.errors import DiskFull, MintError
from mint.hub import NESTED, WANTED, HubId, NotOnHub
from mint.progress import OnProgress, Progress, ignore
from mint.shards import PATTERN

STREAMS = 4  # files at a time
_SECONDS = 30.0  # without a word from the hub
_TICK_SECONDS = 0.2  # between two reports
_SHA256 = re.compile("[0-9a-f]{64}")
_LOG_IN = "log in (hf auth login, or HF_TOKEN)"


def fetch(
    id: HubId,
    on_progress: OnProgress = ignore,
    *,
    check: Callable[[Path], object] = lambda folder: None,
    reserve_bytes: int = 0,
) -> Path:
    """Download what is missing of a model and return its snapshot's folder; interrupted, the same call goes on.

    `check` is given the folder before any large file is asked for, and may raise. Raises `NotOnHub` where the hub has
    no such model or does not answer, `DiskFull` where less than `reserve_bytes` would stay free, and `MintError` for
    everything else that can be mended.
    """
    if is_offline_mode():
        raise NotOnHub(
            f"{id} is not whole in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set; needed: "
            "HF_HUB_OFFLINE=0 to download it, or the path of a folder that holds it"
        )
    with _mending(id):
        files = _listed(id)
        place = partial(snapshot_download, id.repository, revision=id.revision, tqdm_class=_Unseen)
        small = [file for file in files if not fnmatchcase(file.name, PATTERN)]
        total = sum(file.nbytes for file in files)
        on_progress(Progress("download", 0, total, str(id)))
        folder = Path(place(allow_patterns=[file.name for file in small]))
        check(folder)
        weights = [file for file in files if file not in small and _SHA256.fullmatch(file.digest)]
        _need_room(folder, weights, reserve_bytes)
        done = sum(file.nbytes for file in small)
        with closing(_bring(id, folder, weights)) as coming:
            for came, name in coming:
                on_progress(Progress("download", done + came, total, name))
        whole = Path(place(allow_patterns=list(WANTED), ignore_patterns=NESTED))
    on_progress(Progress("download", total, total, str(id)))
    return whole


def _listed(id: HubId) -> list[Wanted]:
    """The files of a model that mint needs, with the digests of those that the hub keeps as large files."""
    told = HfApi().model_info(id.repository, revision=id.revision, files_metadata=True, timeout=_SECONDS)
    found = told.siblings or []
    files = [
        Wanted(each.rfilename, each.lfs.sha256 if each.lfs else "", each.size or 0)
        for each in found
        if "/" not in each.rfilename and any(fnmatchcase(each.rfilename, pattern) for pattern in WANTED)
    ]
    for pattern in (PATTERN, "config.json"):
        if not any(fnmatchcase(file.name, pattern) for file in files):
            others = ", ".join(sorted(each.rfilename for each in found)[:8]) or "nothing"
            raise MintError(
                f"{id} has no {pattern} (found {others}); needed: a model in safetensors format. Look for one that was "
                "converted, or for another revision (OWNER/NAME@refs/pr/N)"
            )
    return files


def _blob(folder: Path, file: Wanted) -> Path:
    return folder.parent.parent / "blobs" / file.digest


def _partial(folder: Path, file: Wanted) -> Path:
    """Where a file is until it is whole: as `hf cache prune` knows it."""
    return _blob(folder, file).with_name(f"{file.digest}.mint.incomplete")


def _is_there(folder: Path, file: Wanted) -> bool:
    return (folder / file.name).exists() or _blob(folder, file).exists()


def _there(folder: Path, file: Wanted) -> int:
    """Bytes of a file that have come."""
    path = _partial(folder, file)
    return file.nbytes if _is_there(folder, file) else path.stat().st_size if path.exists() else 0


def _need_room(folder: Path, files: Sequence[Wanted], reserve_bytes: int) -> None:
    needed = sum(file.nbytes - _there(folder, file) for file in files)
    free = max(0, shutil.disk_usage(folder).free - reserve_bytes)
    if needed > free:
        raise DiskFull(
            f"{constants.HF_HUB_CACHE}: {format_size(needed)} are still to come, {format_size(free)} are free there; "
            "make room (hf cache ls), or set HF_HUB_CACHE to a folder on another disk"
        )


def _bring(id: HubId, folder: Path, files: Sequence[Wanted]) -> Generator[tuple[int, str]]:
    """Bring files to their place among the blobs; how many bytes have come, now and then, and a file of them.

    The threads are nobody's to wait for: who has had enough leaves at once, and what came is whole at every byte.
    """
    came = {file.name: _there(folder, file) for file in files}
    stop = threading.Event()
    wanted: SimpleQueue[Wanted] = SimpleQueue()
    ended: SimpleQueue[Exception | None] = SimpleQueue()

    def bring(file: Wanted) -> None:
        def heard(nbytes: int) -> None:
            came[file.name] = nbytes
            if stop.is_set():
                raise _StoppedError

        with _turn(folder, file, heard):
            if not _is_there(folder, file):
                _blob(folder, file).parent.mkdir(exist_ok=True)
                url = hf_hub_url(id.repository, file.name, revision=folder.name)
                fetch_file(partial(_answer, url), file, _partial(folder, file), heard)
                _partial(folder, file).rename(_blob(folder, file))
        heard(file.nbytes)

    def work() -> None:
        with suppress(Empty):
            while not stop.is_set():
                file = wanted.get_nowait()
                try:
                    bring(file)
                except Exception as error:
                    ended.put(error)
                else:
                    ended.put(None)

    for file in files:
        wanted.put(file)
    try:
        for _ in files[:STREAMS]:
            threading.Thread(target=work, name="fetch", daemon=True).start()
        left = len(files)
        while left:
            with suppress(Empty):
                if error := ended.get(timeout=_TICK_SECONDS):
                    raise error
                left -= 1
            unfinished = [file.name for file in files if came[file.name] < file.nbytes]
            yield sum(came.values()), unfinished[0] if unfinished else ""
    finally:
        stop.set()


class _StoppedError(Exception):
    """Another file failed, or the user had enough."""


@contextmanager
def _turn(folder: Path, file: Wanted, heard: Callable[[int], object]) -> Iterator[None]:
    """Hold huggingface_hub's lock of a blob; while another process does, tell how much of it has come."""
    repository = folder.parent.parent
    place = repository.parent / ".locks" / repository.name / f"{file.digest}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        while not _locked(descriptor):
            heard(_there(folder, file))
            threading.Event().wait(_TICK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _answer(url: str, nbytes: int) -> Iterator[Answer]:
    """The hub's answer to who wants a file from a byte on."""
    headers = {**build_hf_headers(), "Range": f"bytes={nbytes}-", "Accept-Encoding": "identity"}
    try:
        with get_session().stream("GET", url, headers=headers, timeout=_SECONDS) as response:
            if response.status_code in (408, 429) or response.status_code >= 500:
                raise SilentError(f"{url}: the hub answers {response.status_code}; run the same command again")
            hf_raise_for_status(response)
            yield response
    except httpx2.TransportError as error:
        raise SilentError(f"{url}: broken off ({_kind(error)}); run the same command again, it goes on") from error


class _Unseen(tqdm):
    """A progress bar of huggingface_hub that nobody sees."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]


@contextmanager
def _mending(id: HubId) -> Iterator[None]:
    """Say what can be done about an error of huggingface_hub."""
    hub = constants.ENDPOINT
    try:
        yield
    except GatedRepoError as error:
        raise MintError(
            f"{id}: its owner lets only those download it who accept its terms; accept them at {hub}/{id.repository} "
            f"and {_LOG_IN}"
        ) from error
    except RevisionNotFoundError as error:
        raise MintError(
            f"{id.repository} has no revision {id.revision!r}; needed: a branch, tag or commit of "
            f"{hub}/{id.repository}/commits/main"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if isinstance(error, RepositoryNotFoundError) or (status == 401 and not get_token()):
            raise NotOnHub(
                f"{hub} knows no model {id.repository}; check its name. If it is private, {_LOG_IN} as somebody who "
                "may read it"
            ) from error
        if status in (401, 403):
            raise MintError(
                f"{id}: {hub} refuses the token of this machine ({status}: {_kind(error)}); {_LOG_IN} as somebody who "
                "may read it"
            ) from error
        raise NotOnHub(f"{id}: {hub} answers {status}; run the same command again later") from error
    except HFValidationError as error:
        raise NotOnHub(f"{id} is no id of the hub: {error}") from error
    except (httpx2.TransportError, LocalEntryNotFoundError, XetDownloadError) as error:
        raise NotOnHub(
            f"{id} is not whole in the hub's cache ({constants.HF_HUB_CACHE}), and {hub} does not answer "
            f"({_kind(error)}); connect this machine and run the same command again, or give the path of a folder that "
            "holds it"
        ) from error


def _kind(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
