"""Downloads models of the hub to this machine, and converts GGUF files: a few at a time, each in its own process.

The state of the fetches lies in memory, and their files in the caches. After a restart, a new request begins a new
fetch; a download continues where the old one was.
"""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.service.data.records import Person
from cluster.service.errors import NotFoundError, QuotaExceededError, ServiceBusyError
from cluster.service.store.store import RESERVE_BYTES
from mint.core.log import log
from mint.run.child import Child

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
AT_ONCE = 2
_MOST = 32  # that wait or run
_MOST_OF_ONE = 4  # person, unless the quota of their jobs says less
_REMEMBERED = 200  # with those that are over
_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Fetch:
    """A requested model: how many of how many bytes have come, and the reason of a failure."""

    id: str
    model: str
    source: str  # an id of the hub, or the absolute path of a GGUF file
    by: str
    state: str = WAITING
    done_bytes: int = 0
    total_bytes: int = 0  # 0: not known yet
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """True once the fetch is done or has failed."""
        return self.state in (DONE, FAILED)


class Fetches:
    """The fetches of this service; their processes log to the file `log_path` and convert in the folder `cache`."""

    def __init__(self, log_path: Path, cache: Path) -> None:
        self._log_path, self._cache = log_path, cache
        self._lock = threading.Lock()
        self._fetches: dict[str, Fetch] = {}  # the oldest first
        self._children: dict[str, Child] = {}
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch")  # starts threads when they are needed
        self._closed = False

    def ask(self, model: str, person: Person, source: str) -> tuple[Fetch, bool]:
        """The fetch of a model, and true if it begins now; a request for a model on its way joins the fetch.

        Raises `QuotaExceededError` if the person has too many on their way, `ServiceBusyError` if all people have.
        """
        id = hashlib.sha256(model.encode()).hexdigest()[:16]
        with self._lock:
            if (current := self._fetches.get(id)) and not current.is_over:
                return current, False
            self._need_room_for(person)
            self._fetches.pop(id, None)
            fetch = self._fetches[id] = Fetch(id, model, source, person.name)
            over = [fetch.id for fetch in self._fetches.values() if fetch.is_over]
            for old in over[: max(0, len(self._fetches) - _REMEMBERED)]:
                del self._fetches[old]
            self._pool.submit(self._run, fetch)
        return fetch, True

    def get(self, id: str) -> Fetch:
        """A fetch as it stands; raises `NotFoundError`."""
        with self._lock:
            if id not in self._fetches:
                raise NotFoundError(f"there is no fetch {id}; request the model again, its whole files are kept")
            return self._fetches[id]

    def running(self) -> int:
        """The number of fetches on their way now."""
        with self._lock:
            return len(self._children)

    def close(self) -> None:
        """End all of them; their whole files stay."""
        with self._lock:
            self._closed = True
            for child in self._children.values():
                child.kill()
        self._pool.shutdown(cancel_futures=True)

    def _need_room_for(self, person: Person) -> None:
        unfinished = [fetch.by for fetch in self._fetches.values() if not fetch.is_over]
        most = _MOST_OF_ONE if person.quota.queued is None else min(_MOST_OF_ONE, person.quota.queued)
        if unfinished.count(person.name) >= most:
            raise QuotaExceededError(
                f"{person.name} has {unfinished.count(person.name)} models on their way and may have {most};"
                " needed: one of them here first",
                retry_after=_RETRY_SECONDS,
            )
        if len(unfinished) >= _MOST:
            raise ServiceBusyError(f"{_MOST} models are on their way; come back later")

    def _change(self, id: str, **figures: Any) -> None:
        with self._lock:
            self._fetches[id] = replace(self._fetches[id], **figures)

    def _run(self, fetch: Fetch) -> None:
        """Do a fetch, in a thread."""
        self._change(fetch.id, state=RUNNING)
        log.info("fetch.started", model=fetch.model)
        try:
            reason = self._download(fetch)
        except OSError as error:
            reason = f"its process could not be started: {error.strerror}"
        except Exception as error:  # the person who waits gets a reason
            log.error("fetch.failed", model=fetch.model, reason=repr(error))
            reason = f"something unforeseen ({type(error).__name__}); please report it"
        log.info("fetch.ended", model=fetch.model, reason=reason)
        self._change(fetch.id, state=FAILED if reason else DONE, reason=reason)

    def _download(self, fetch: Fetch) -> str:
        """Start the process of a fetch and follow its progress; the reason of a failure, or nothing."""
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("a") as output:
            with self._lock:
                if self._closed:
                    return "the service ends; request it again"
                arguments = (fetch.source, str(RESERVE_BYTES))
                environment = {**os.environ, "MINT_CACHE": str(self._cache)}
                function = "cluster.service.subprocesses.fetch_child:main"
                child = Child(function, *arguments, environment=environment, stderr=output)
                self._children[fetch.id] = child
            reason = ""
            try:
                with child:
                    for answer in child.answers():
                        if "error" in answer:
                            reason = answer["error"]
                        else:
                            self._change(fetch.id, done_bytes=answer["done"], total_bytes=answer["total"])
                    message = child.exit_message()
            finally:
                with self._lock:
                    del self._children[fetch.id]
        if child.exit_code and not reason:
            reason = f"its process {message}; request it again, files that are whole are kept"
        return reason
