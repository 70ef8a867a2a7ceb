"""Is the head of the cluster still there, and who else? Asked beside the work, in threads of their own.

Ray lets every question to a head that is gone wait for a minute, and then ends the program without a word of ours. A
head that is gone does not come back: one that is started anew knows nothing of this run. Refused connections say so
soon; a head that is merely not reached may be behind a pulled cable, and is waited for nearly as long as Ray would.
What the workers can do without it they do.
"""

import socket
import threading
import time
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
    """What to make of a row of tries to reach the head, given the clock."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._since: float | None = None  # when it was first not reached
        self._said = False
        self.verdict = ""  # why the run cannot go on; empty as long as it can

    def tried(self, now: float, trouble: OSError | None) -> str:
        """Take the outcome of a try; something to say, or nothing."""
        if trouble is None:
            back = self._said
            self._since, self._said = None, False
            return f"the head at {self._address} is back" if back else ""
        self._since = now if self._since is None else self._since
        lasted = now - self._since
        if lasted >= (REFUSED_SECONDS if isinstance(trouble, ConnectionRefusedError) else SILENT_SECONDS):
            self.verdict = (
                f"the head of the cluster at {self._address} is gone ({trouble}). What was done is kept; start it "
                "again (mint cluster up --head), let the others join, and run the same command again"
            )
        elif lasted >= SAY_SECONDS and not self._said:
            self._said = True
            return f"the head at {self._address} does not answer ({trouble}); waiting for it"
        return ""


class HeadWatch:
    """A thread that tries to reach the head as long as a run lasts; `on_note` is told what people should know."""

    def __init__(self, address: Address, on_note: Callable[[str], object]) -> None:
        self._address = address
        self._patience = Patience(address)
        self._on_note = on_note
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="mint-head-watch", daemon=True)
        self._thread.start()

    @property
    def is_gone(self) -> bool:
        """Whether the head is: no call that needs it will ever end."""
        return bool(self._patience.verdict)

    def insist(self) -> None:
        """Raise `MintError` when the head is gone."""
        if self.is_gone:
            raise MintError(self._patience.verdict)

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            if said := self._patience.tried(time.monotonic(), _trouble(self._address)):
                self._on_note(said)


class Beside(Generic[T]):
    """An answer that may never come, asked for again and again; at most one question is open."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._answers: list[T] = []
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Ask, unless that is being done."""
        if not (self._thread and self._thread.is_alive()):
            self._thread = threading.Thread(target=self._wait, daemon=True)
            self._thread.start()

    def take(self) -> T | None:
        """The answer, once, when it is here."""
        return self._answers.pop() if self._answers else None

    def _wait(self) -> None:
        self._answers[:] = [self._ask()]


def _trouble(address: Address) -> OSError | None:
    try:
        socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error
    return None
