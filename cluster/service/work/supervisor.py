"""Starts, reaps and cancels the runner processes of this machine.

A thread in the server. All its state of jobs is in the database and in the data folder, so nothing is lost with it:
when the service ends, its runners continue, and the next service finds their jobs at work on this host. A round: reap
dead runners, expire leases, end cancelled runners, requeue blocked jobs that now fit, start the next jobs, evict, and
remove the folders of finished jobs, and now and then the events and logs of jobs that ended long ago.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from cluster.service.data.records import Claim, Job
from cluster.service.data.states import ACTIVE, BLOCKED, FINAL
from cluster.service.errors import DatabaseUnavailableError, LeaseLostError, NotFoundError
from cluster.service.queue.history import RETENTION_SECONDS
from cluster.service.queue.queue import Queue
from cluster.service.recipe_of_wish import recipe_of
from cluster.service.settings import Settings
from cluster.service.store.reservation import written_bytes
from cluster.service.store.store import RESERVE_BYTES, Store
from cluster.service.work.folder_lock import holder
from cluster.service.work.runner import DISK, RunnerSettings, is_full
from cluster.service.work.warm_runner import WarmRunner, start
from mint.core.log import log
from mint.formats.rounding import ROUNDINGS
from mint.kernels.warmup import is_ready
from mint.plan.recipe import Recipe
from mint.run.blas import find_openblas

ROUND_SECONDS = 0.5
LOOK_SECONDS = 0.05  # between looks for a job that a free slot could take, and for a runner that ended
KILL_SECONDS = 5.0  # from SIGTERM to SIGKILL for the runner of a cancelled job
FORGET_SECONDS = 3600.0  # between removals of old events and logs
_MAX_JOBS = 1000


@dataclass
class _Child:
    """A runner that this process started."""

    process: subprocess.Popen[bytes]
    claim: Claim


@dataclass
class _Cancelling:
    """A runner that was sent SIGTERM."""

    signalled_at: float
    pid: int


class Supervisor:
    """Works for the queue on this machine, with at most `settings.slots` jobs at a time."""

    def __init__(
        self,
        queue: Queue,
        store: Store,
        settings: Settings,
        *,
        host: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._store = store
        self._slots = settings.slots
        self._database = settings.database_url
        self._runners = RunnerSettings(
            settings.data, settings.roots, settings.allow_hub, settings.cluster, settings.max_store_bytes
        )
        self._host = host or socket.gethostname()
        self._clock = clock
        self._children: dict[str, _Child] = {}
        self._warm_runner = WarmRunner(self._runners, early=not is_ready(Recipe().rounding), clock=clock)
        self._cancelling: dict[str, _Cancelling] = {}
        self._forget_at = clock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="supervisor", daemon=True)
        self._logs = self._runners.log_path("").parent
        for folder in (self._runners.lock_folder, self._logs):
            folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Start no more runners; those at work continue."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._warm_runner.drop()

    def wait(self) -> None:
        """Wait until the runners that this process started have ended."""
        for child in list(self._children.values()):
            child.process.wait()

    def step(self) -> None:
        """Do one round."""
        self._reap()
        self._queue.expire()
        active = [job for state in ACTIVE for job in self._queue.find(state=state, limit=_MAX_JOBS)]
        here = [job for job in active if job.host == self._host]
        self._end_cancelled(here)
        self.unblock()
        running = len({*(job.id for job in here), *self._children})
        while running < self._slots and not self._stopping.is_set():
            claim = self._queue.claim(self._host)
            if claim is None:
                break
            self._spawn(claim)
            running += 1
        self._store.evict()
        self._clear()
        if self._clock() >= self._forget_at:
            self._forget(time.time() - RETENTION_SECONDS)

    def _work(self) -> None:
        is_swept, failure = False, ""
        while not self._pause():
            try:
                if not is_swept:
                    self._store.sweep()
                    is_swept = True
                self.step()
                self._warm_runner.keep(working=bool(self._children))
                failure = ""
            except DatabaseUnavailableError:  # logged by the database itself
                self._stopping.wait(ROUND_SECONDS * 4)
            except Exception as error:  # one bad round must not end the service's work
                reason = f"{type(error).__name__}: {error}"
                if reason != failure:
                    log.error("round.failed", reason=reason)
                failure = reason
                self._stopping.wait(ROUND_SECONDS * 4)

    def _pause(self) -> bool:
        """Wait for the next round, or for news of a slot or a job; True if the thread must stop."""
        for _ in range(round(ROUND_SECONDS / LOOK_SECONDS)):
            if self._stopping.wait(LOOK_SECONDS):
                return True
            if any(child.process.poll() is not None for child in self._children.values()):
                return False
            if len(self._children) < self._slots and self._queue.submitted.is_set():
                self._queue.submitted.clear()
                return False
        self._queue.submitted.clear()
        return self._stopping.is_set()

    # runners

    def _spawn(self, claim: Claim) -> None:
        job = claim.job
        library = _library(job)
        process = self._warm_runner.take(library)
        try:
            if process is None:
                with self._runners.log_path(job.id).open("ab") as output:
                    process = start(self._runners, job.id, output.fileno(), library)
        except OSError as error:
            if is_full(error):
                self._queue.block(claim, f"{DISK}{error.strerror}, not even a log can be written")
            else:
                self._forfeit(claim, f"its process could not be started: {error.strerror}")
            return
        self._children[job.id] = _Child(process, claim)
        message = {"job": job.id, "database": self._database, "lease": claim.lease}
        assert process.stdin
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # it died at once, and is reaped in the next round
        log.info("runner.started", job=job.id, pid=process.pid, attempt=job.attempts)

    def _reap(self) -> None:
        for id, child in list(self._children.items()):
            code = child.process.poll()
            if code is None:
                continue
            del self._children[id]
            self._cancelling.pop(id, None)
            log.info("runner.ended", job=id, code=code)
            self._forfeit(child.claim, f"its process {_ending(code)}")

    def _forfeit(self, claim: Claim, reason: str) -> None:
        """Take a job back from a dead runner; one that finished its job has none."""
        try:
            job = self._queue.forfeit(claim, reason)
        except LeaseLostError:
            return
        log.warning("runner.lost", job=job.id, state=job.state, reason=job.reason)

    def _end_cancelled(self, here: list[Job]) -> None:
        cancelled = {job.id: job for job in here if job.cancel_wanted}
        for id in [id for id in self._cancelling if id not in cancelled]:
            del self._cancelling[id]
        for id, job in cancelled.items():
            child = self._children.get(id)
            pid = child.process.pid if child else holder(self._runners.lock_folder / job.wish.analysis_key)
            cancelling = self._cancelling.get(id)
            if not pid:
                continue  # not yet at work, or just over: it notices by itself
            if cancelling is None:
                self._cancelling[id] = _Cancelling(self._clock(), pid)
                _signal_group(pid, signal.SIGTERM)
            elif cancelling.pid == pid and self._clock() - cancelling.signalled_at >= KILL_SECONDS:
                _signal_group(pid, signal.SIGKILL)

    # room

    def unblock(self) -> None:
        """Requeue jobs that wait for room, once there is a little more than they need."""
        for job in reversed(self._queue.find(state=BLOCKED, limit=_MAX_JOBS)):
            if not job.reason.startswith(DISK):
                continue
            work = self._runners.work_folder(job.id)
            written = max(map(written_bytes, work.glob("*")), default=0)
            shortage = self._store.shortage(
                job.needed_bytes, work if work.exists() else None, written=written,
                reserved=self._queue.expected_bytes(), spare=job.needed_bytes // 20 + RESERVE_BYTES // 4,
            )  # fmt: skip
            if not shortage:
                self._queue.unblock(job.id)
                log.info("job.unblocked", job=job.id)

    def _forget(self, before: float) -> None:
        """Remove events and logs of jobs that ended before a time, some in each round."""
        more = self._queue.trim(before)
        self._forget_at = self._clock() + (0.0 if more else FORGET_SECONDS)
        for path in () if more else self._logs.glob("*.log"):
            with suppress(FileNotFoundError):  # another server removed it
                if path.stat().st_mtime < before and self._is_over(path.stem):
                    path.unlink()

    def _clear(self) -> None:
        """Remove the work folders of finished jobs."""
        for folder in self._runners.lock_folder.parent.iterdir():
            if folder == self._runners.lock_folder or folder.name in self._children:
                continue
            if self._is_over(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def _is_over(self, id: str) -> bool:
        try:
            return self._queue.get(id).state in FINAL
        except NotFoundError:
            return True


def _library(job: Job) -> str:
    """The fast BLAS that the runner must preload, if the job runs the model on a CPU whose MLX has a slow one."""
    recipe = recipe_of(None, job.wish.options)
    runs_model = recipe.probe or ROUNDINGS[recipe.rounding].needs_model
    return find_openblas() if runs_model and sys.platform == "linux" else ""


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
