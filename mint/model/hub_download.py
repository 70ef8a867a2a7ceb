"""A model of the Hugging Face hub into its cache on this machine: what mint needs of it, and nothing else.

huggingface_hub brings the files, checks their sizes, and keeps those that are whole: the same command goes on with the
others. Here is what it leaves out: what mint can take and whether there is room, before the weights come; progress as
mint tells it; a way out at once; and what can be done about every error.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, get_token, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from mint.core.errors import DiskFullError, MintError
from mint.core.progress import OnProgress, Progress, ignore
from mint.core.sizes import format_size
from mint.model.checkpoint.shards import PATTERN
from mint.model.hub_cache import NESTED, WANTED, HubId, NotOnHubError

_SECONDS = 30.0  # without a word from the hub
_TICK_SECONDS = 0.2  # between two reports
_BYTES_BAR = "huggingface_hub.snapshot_download"  # the one of its bars that counts what is written
_LOG_IN = "log in (hf auth login, or HF_TOKEN)"


def fetch(
    id: HubId,
    on_progress: OnProgress = ignore,
    *,
    check: Callable[[Path], object] = lambda folder: None,
    reserve_bytes: int = 0,
) -> Path:
    """Download what is missing of a model and return its snapshot's folder; interrupted, the same call goes on.

    `check` is given the folder before any large file is asked for, and may raise. Raises `NotOnHubError` where the hub
    has no such model or does not answer, `DiskFullError` where less than `reserve_bytes` would stay free, and
    `MintError` for everything else that can be mended.
    """
    if is_offline_mode():
        raise NotOnHubError(
            f"{id} is not whole in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set; needed: "
            "HF_HUB_OFFLINE=0 to download it, or the path of a folder that holds it"
        )
    with _mending(id):
        sizes = _listed(id)
        total = sum(sizes.values())
        on_progress(Progress("download", 0, total, str(id)))
        small = {name: nbytes for name, nbytes in sizes.items() if not fnmatchcase(name, PATTERN)}
        _need_room(Path(constants.HF_HUB_CACHE), sum(small.values()), reserve_bytes)
        folder = _bring(id, list(small), lambda came: None)
        check(folder)
        missing = sum(nbytes for name, nbytes in sizes.items() if not (folder / name).exists())
        _need_room(folder, missing, reserve_bytes)

        def heard(came: int) -> None:
            on_progress(Progress("download", total - missing + min(came, missing), total, str(id)))

        whole = _bring(id, list(WANTED), heard)
    on_progress(Progress("download", total, total, str(id)))
    return whole


def _listed(id: HubId) -> Mapping[str, int]:
    """The files of a model that mint needs, and their bytes."""
    listing = HfApi().model_info(id.repository, revision=id.revision, files_metadata=True, timeout=_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in listing.siblings or []}
    needed = {
        name: nbytes
        for name, nbytes in sizes.items()
        if "/" not in name and any(fnmatchcase(name, pattern) for pattern in WANTED)
    }
    for pattern in (PATTERN, "config.json"):
        if not any(fnmatchcase(name, pattern) for name in needed):
            others = ", ".join(sorted(sizes)[:8]) or "nothing"
            raise MintError(
                f"{id} has no {pattern} (found {others}); needed: a model in safetensors format. Look for one that was "
                "converted, or for another revision (OWNER/NAME@refs/pr/N)"
            )
    return needed


def _need_room(folder: Path, needed: int, reserve_bytes: int) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = max(0, shutil.disk_usage(existing).free - reserve_bytes)
    if needed > free:
        raise DiskFullError(
            f"{constants.HF_HUB_CACHE}: {format_size(needed)} are still to come, {format_size(free)} are free there; "
            "make room (hf cache ls), or set HF_HUB_CACHE to a folder on another disk"
        )


def _bring(id: HubId, patterns: list[str], heard: Callable[[int], object]) -> Path:
    """Let huggingface_hub download what is missing of these files; `heard` is told now and then how much has come.

    It does so in threads of its own, and waits for all of them whatever happens: who has had enough of it here leaves
    at once, and they end with their next bytes.
    """
    came, stop, done = _Came(), threading.Event(), Future[str]()

    class Bar(tqdm):
        """A progress bar that nobody sees."""

        def __init__(self, *args: Any, name: str | None = None, **options: Any) -> None:
            super().__init__(*args, **{**options, "name": name, "disable": True})  # type: ignore[no-untyped-call]
            self._counts = name == _BYTES_BAR

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise _StoppedError
            if self._counts:
                came.add(int(n or 0))

    def download() -> None:
        try:
            done.set_result(
                snapshot_download(
                    id.repository,
                    revision=id.revision,
                    allow_patterns=patterns,
                    ignore_patterns=NESTED,
                    tqdm_class=Bar,
                )
            )
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=download, name="fetch", daemon=True).start()
    try:
        while True:
            try:
                return Path(done.result(_TICK_SECONDS))
            except NotYet:
                if done.done():  # just now, or the error is the download's own
                    return Path(done.result())
                heard(came.nbytes)
    finally:
        stop.set()


class _Came:
    """Bytes that several threads have brought."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes


class _StoppedError(Exception):
    """The user had enough."""


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
            raise NotOnHubError(
                f"{hub} knows no model {id.repository}; check its name. If it is private, {_LOG_IN} as somebody who "
                "may read it"
            ) from error
        if status in (401, 403):
            raise MintError(
                f"{id}: {hub} refuses the token of this machine ({status}: {_kind(error)}); {_LOG_IN} as somebody who "
                "may read it"
            ) from error
        raise NotOnHubError(f"{id}: {hub} answers {status}; run the same command again later") from error
    except HFValidationError as error:
        raise NotOnHubError(f"{id} is no id of the hub: {error}") from error
    except (httpx2.TransportError, LocalEntryNotFoundError, XetDownloadError) as error:
        raise NotOnHubError(
            f"{id} is not whole in the hub's cache ({constants.HF_HUB_CACHE}), and {hub} does not answer "
            f"({_kind(error)}); connect this machine and run the same command again, or give the path of a folder that "
            "holds it"
        ) from error


def _kind(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
