"""Watches the head of the cluster from threads beside the work.

Ray lets every call to a head that is gone wait for a minute, and then ends the program without an error of ours. A head
that is gone does not come back: one that is started anew knows nothing of this run. Refused connections end the wait
soon. A head that cannot be reached may be behind a pulled cable, so the wait is nearly as long as Ray's.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from cluster.settings import Address
from mint.core.errors import MintError

EVERY_SECONDS = 2.0
CONNECT_SECONDS = 3.0
REFUSED_SECONDS = 8.0  # the host answers, nobody listens
SILENT_SECONDS = 45.0  # nobody answers; Ray itself gives up after 60
SAY_SECONDS = 10.0  # of silence, until it is mentioned

T = TypeVar("T")


class Patience:
    """Judges a series of tries to reach the head, given the clock; refused connections count for `refused_seconds`."""

    def __init__(self, address: Address, refused_seconds: float = REFUSED_SECONDS) -> None:
        self.address = address
        self._refused_seconds = refused_seconds
        self._since: float | None = None  # the first try that failed
        self._is_noted = False
        self.verdict = ""  # the reason why the run cannot go on; empty as long as it can

    def tried(self, now: float, trouble: OSError | None) -> str:
        """Take the outcome of a try; return a note for people, or nothing."""
        if trouble is None:
            note = f"the head at {self.address} is back" if self._is_noted else ""
            self._since, self._is_noted = None, False
            return note
        self._since = now if self._since is None else self._since
        seconds = now - self._since
        if seconds >= (self._refused_seconds if isinstance(trouble, ConnectionRefusedError) else SILENT_SECONDS):
            self.verdict = (
                f"the head of the cluster at {self.address} is gone ({trouble}). Finished work is kept; start it "
                "again (mint cluster up --head), let the others join, and run the same command again"
            )
        elif seconds >= SAY_SECONDS and not self._is_noted:
            self._is_noted = True
            return f"the head at {self.address} does not answer ({trouble}); waiting for it"
        return ""


class HeadWatch:
    """A thread that tries to reach the head as long as a run lasts; `on_note` takes its notes for people."""

    def __init__(
        self, patience: Patience, on_note: Callable[[str], object], *, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._patience = patience
        self._on_note = on_note
        self._every_seconds = every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="mint-head-watch", daemon=True)
        self._thread.start()

    @property
    def is_gone(self) -> bool:
        """True if the head is gone: no call that needs it will ever end."""
        return bool(self._patience.verdict)

    def insist(self) -> None:
        """Raise `MintError` when the head is gone."""
        if self.is_gone:
            raise MintError(self._patience.verdict)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._every_seconds):
            if note := self._patience.tried(time.monotonic(), self._patience.address.trouble(CONNECT_SECONDS)):
                self._on_note(note)


class Beside(Generic[T]):
    """An answer that may never come, asked for in a thread; at most one question is open, one in `every_seconds`."""

    def __init__(self, ask: Callable[[], T], every_seconds: float = 0.0) -> None:
        self._ask = ask
        self._every_seconds = every_seconds
        self._next = 0.0  # question, by the clock
        self._answers: deque[T] = deque(maxlen=1)
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Ask, unless it is too early or a question is open."""
        if time.monotonic() >= self._next and not (self._thread and self._thread.is_alive()):
            self._next = time.monotonic() + self._every_seconds
            self._thread = threading.Thread(target=lambda: self._answers.append(self._ask()), daemon=True)
            self._thread.start()

    def take(self) -> T | None:
        """The last answer, once."""
        return self._answers.pop() if self._answers else None
