"""Renews a runner's lease from a thread, and kills the runner's process group when the lease is lost.

The thread works beside native code: MLX and mint's kernels release the interpreter while they compute, and a signal
arrives through a pipe that C code writes to. A runner that cannot renew must not continue: another may have its job.
"""

import os
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Self

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from cluster.service.data.records import Claim, Lease
from cluster.service.data.states import CANCELLED
from cluster.service.errors import DatabaseUnavailableError, LeaseLostError
from cluster.service.queue.queue import LEASE_SECONDS, Queue
from cluster.service.work.awake_clock import AwakeClock
from mint.core.log import log

RENEW_SECONDS = 2.0
PATIENCE_SECONDS = LEASE_SECONDS - 4.0  # without a renewal; a runner must have ended before others take its lease back
_PAUSE_SECONDS = 0.5  # between two attempts to reach the database

# calls the database; while it is away, repeats for as long as a lease lives
retry_while_leased = Retrying(
    retry=retry_if_exception_type(DatabaseUnavailableError),
    stop=stop_after_delay(PATIENCE_SECONDS),
    wait=wait_fixed(_PAUSE_SECONDS),
    reraise=True,
)


def end_group() -> None:
    """Kill this process and all that it started."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def end_descendants() -> None:
    """End all that this process started and did not wait for; it leads their process group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signal.SIGTERM)


@dataclass
class LeaseKeeper:
    """Keeps the lease of `claim` while its block runs. SIGTERM returns the job to the queue, and calls `end`.

    `must_yield` is set when the job must return to the queue after the unit at work.
    """

    queue: Queue
    claim: Claim
    end: Callable[[], None] = end_group
    renew_seconds: float = RENEW_SECONDS
    patience_seconds: float = PATIENCE_SECONDS

    def __post_init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._stopping = threading.Event()
        self.must_yield = threading.Event()
        context = copy_context()  # with the names that events are logged with
        self._thread = threading.Thread(target=context.run, args=(self._keep,), name="lease", daemon=True)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop renewing: the next write is the last, and returns the lease."""
        if not self._stopping.is_set():
            self._stopping.set()
            os.write(self._write, b"\0")
            self._thread.join()

    def _keep(self) -> None:
        awake = AwakeClock(2 * self.renew_seconds)
        renewed_at = awake()
        while True:
            ready, _, _ = select.select([self._read], [], [], self.renew_seconds)
            signals = os.read(self._read, 512) if ready else b""
            if self._stopping.is_set():
                return
            if signal.SIGTERM in signals:
                self._update(lambda: self.queue.release(self.claim, "its runner was told to stop"))
                break
            now = awake()
            try:
                lease = self.queue.renew(self.claim)
            except Exception as error:  # the database is away; the lease lives a little longer
                self._warn("lease.not_renewed", error)
                if now - renewed_at > self.patience_seconds:
                    break
                continue
            renewed_at = now
            if lease is Lease.CANCEL_WANTED:
                self._update(lambda: self.queue.advance(self.claim, CANCELLED))
            if lease in (Lease.HELD, Lease.YIELD_WANTED):
                (self.must_yield.set if lease is Lease.YIELD_WANTED else self.must_yield.clear)()
                continue
            with suppress(OSError):
                log.info("lease.ended", reason=lease.value)
            break
        self.end()

    def _update(self, call: Callable[[], object]) -> None:
        """Write the end of the job; without a database, the observer that takes the lease back writes it."""
        try:
            call()
        except LeaseLostError:
            pass
        except Exception as error:
            self._warn("job.not_updated", error)

    def _warn(self, event: str, error: Exception) -> None:
        with suppress(OSError):  # the full disk may be that of the log
            log.warning(event, reason=str(error))
