"""Models of the hub on their way to this machine: a few at a time, each once, in a process of its own.

What is known of them lies in memory, and what came of them in the hub's cache: after a restart whoever asks again gets
a new fetch, which goes on where the old one was.
"""

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.service.data.records import Person
from cluster.service.errors import NotFoundError, QuotaExceededError
from cluster.service.offload.plan_pool import ServiceBusyError
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
    """A model that was asked for: how many of how many bytes have come, and why it failed."""

    id: str
    model: str
    by: str
    state: str = WAITING
    done_bytes: int = 0
    total_bytes: int = 0  # 0: not known yet
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in (DONE, FAILED)


class Fetches:
    """The fetches of this service; their processes say what went wrong in the file `said`."""

    def __init__(self, said: Path) -> None:
        self._said = said
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Fetch] = OrderedDict()
        self._processes: dict[str, Child] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def ask(self, model: str, person: Person) -> tuple[Fetch, bool]:
        """The fetch of a model, and whether it begins now: who asks for one that is on its way joins it.

        Raises `QuotaExceededError` where a person has too many on their way, `ServiceBusyError` where all people have.
        """
        id = hashlib.sha256(model.encode()).hexdigest()[:16]
        with self._lock:
            if (known := self._known.get(id)) and not known.is_over:
                return known, False
            self._need_room_for(person)
            found = self._known[id] = Fetch(id, model, person.name)
            self._known.move_to_end(id)
            self._forget()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch")
            self._pool.submit(self._run, id)
        return found, True

    def get(self, id: str) -> Fetch:
        """A fetch as it stands; raises `NotFoundError`."""
        with self._lock:
            if id not in self._known:
                raise NotFoundError(f"there is no fetch {id}; ask for the model again, what came of it is kept")
            return self._known[id]

    def running(self) -> int:
        """How many are on their way now."""
        with self._lock:
            return len(self._processes)

    def close(self) -> None:
        """End all of them; what came stays."""
        with self._lock:
            self._closed = True
            for process in self._processes.values():
                process.kill()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _need_room_for(self, person: Person) -> None:
        unfinished = [each.by for each in self._known.values() if not each.is_over]
        most = _MOST_OF_ONE if person.quota.queued is None else min(_MOST_OF_ONE, person.quota.queued)
        if unfinished.count(person.name) >= most:
            raise QuotaExceededError(
                f"{person.name} has {unfinished.count(person.name)} models of the hub on their way and may have {most};"
                " needed one of them here first",
                retry_after=_RETRY_SECONDS,
            )
        if len(unfinished) >= _MOST:
            raise ServiceBusyError(f"{_MOST} models of the hub are on their way; come back later")

    def _forget(self) -> None:
        """Let go of what is over, the oldest first, where there is too much of it."""
        over = [each.id for each in self._known.values() if each.is_over]
        for id in over[: max(0, len(self._known) - _REMEMBERED)]:
            del self._known[id]

    def _change(self, id: str, **what: object) -> None:
        with self._lock:
            self._known[id] = replace(self._known[id], **what)  # type: ignore[arg-type]

    def _run(self, id: str) -> None:
        """The life of a fetch, in a thread."""
        model = self.get(id).model
        self._change(id, state=RUNNING)
        log.info("fetch.started", model=model)
        try:
            reason = self._follow(id, model)
        except OSError as error:
            reason = f"its process could not be started: {error.strerror}"
        except Exception as error:  # whoever waits is told
            log.error("fetch.failed", model=model, reason=repr(error))
            reason = f"something unforeseen ({type(error).__name__}); please report it"
        log.info("fetch.ended", model=model, reason=reason)
        self._change(id, state=FAILED if reason else DONE, reason=reason)

    def _follow(self, id: str, model: str) -> str:
        """Start the process of a fetch and take in what it tells; why it failed, or nothing."""
        self._said.parent.mkdir(parents=True, exist_ok=True)
        with self._said.open("a") as said:
            with self._lock:
                if self._closed:
                    return "the service ends; ask for it again"
                child = Child("cluster.service.offload.fetch_child:main", model, str(RESERVE_BYTES), stderr=said)
                self._processes[id] = child
            reason = ""
            try:
                with child:
                    for told in child.answers():
                        if "error" in told:
                            reason = told["error"]
                        else:
                            self._change(id, done_bytes=told["done"], total_bytes=told["total"])
                    message = child.exit_message()
            finally:
                with self._lock:
                    del self._processes[id]
        if child.exit_code and not reason:
            reason = f"its process {message}; ask for it again, files that are whole are kept"
        return reason
