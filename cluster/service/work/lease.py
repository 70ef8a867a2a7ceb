"""Who keeps a runner honest: a thread that renews its lease, and ends its whole process group when that is over.

It works beside native code: MLX and mint's kernels give the interpreter away while they compute, and a signal's byte
comes through a pipe that C code writes to. A runner that cannot renew must not go on: another may have its job.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

from cluster.service.data.records import Claim, Lease
from cluster.service.data.states import CANCELLED
from cluster.service.errors import DatabaseUnavailableError, LeaseLostError
from cluster.service.queue.queue import LEASE_SECONDS, Queue
from mint.core.log import log

RENEW_SECONDS = 2.0
_MARGIN_SECONDS = 4.0  # before a lease that could not be renewed runs out, its runner has ended
T = TypeVar("T")


def retry_while_leased(what: Callable[[], T], seconds: float = LEASE_SECONDS - _MARGIN_SECONDS) -> T:
    """Do something with the database; if that is away, again for as long as a lease lives."""
    began = time.monotonic()
    while True:
        try:
            return what()
        except DatabaseUnavailableError:
            if time.monotonic() - began > seconds:
                raise
            time.sleep(0.5)


def end_group() -> None:
    """End this process and all that it started, at once."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


class LeaseKeeper:
    """Holds the lease of `claim` while its block runs. SIGTERM gives the job back to the queue, and ends the group."""

    def __init__(self, queue: Queue, claim: Claim, end: Callable[[], None] = end_group) -> None:
        self._queue = queue
        self._claim = claim
        self._end = end
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._resting = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Renew no more: what is written next is the last, and gives the lease back."""
        if not self._resting.is_set():
            self._resting.set()
            os.write(self._write, b"\0")
            self._thread.join()

    def _keep(self) -> None:
        renewed = time.monotonic()
        while True:
            ready, _, _ = select.select([self._read], [], [], RENEW_SECONDS)
            signals = os.read(self._read, 512) if ready else b""
            if self._resting.is_set():
                return
            if signal.SIGTERM in signals:
                self._give_back()
                return
            try:
                found = self._queue.renew(self._claim)
            except Exception as error:  # the database is away; the lease lives a little longer
                self._warn("lease.unrenewed", error)
                if time.monotonic() - renewed > LEASE_SECONDS - _MARGIN_SECONDS:
                    self._end()
                    return
                continue
            renewed = time.monotonic()
            if found is Lease.CANCEL_WANTED:
                self._tell(lambda: self._queue.advance(self._claim, CANCELLED))
            if found is not Lease.HELD:
                with suppress(OSError):
                    log.info("lease.over", job=self._claim.job.id, found=found.value)
                self._end()
                return

    def _give_back(self) -> None:
        self._tell(lambda: self._queue.release(self._claim, "its runner was told to stop"))
        self._end()

    def _tell(self, what: Callable[[], object]) -> None:
        try:
            what()
        except LeaseLostError:
            pass
        except Exception as error:  # the lease runs out, and whoever sees that writes the end
            self._warn("job.untold", error)

    def _warn(self, event: str, error: Exception) -> None:
        with suppress(OSError):  # the disk of the log may be what is full
            log.warning(event, job=self._claim.job.id, reason=str(error))
