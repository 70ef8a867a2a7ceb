"""Starts, reaps and cancels the runner processes of this machine.

A thread in the server. All its state of jobs is in the database and in the data folder, so nothing is lost with it:
when the service ends, its runners continue, and the next service finds their jobs at work on this host. A round: reap
dead runners, take back silent leases, end cancelled runners and those beyond their limits, requeue blocked jobs that
now fit, start the next jobs or let a long one yield, evict, and remove the folders of finished jobs, and now and then
the events and logs of jobs that ended long ago.
"""

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

from cluster.service.data.records import Claim, HeldLease, Job
from cluster.service.data.states import ACTIVE, BLOCKED, FAILED, FINAL, QUEUED
from cluster.service.errors import DatabaseUnavailableError, LeaseLostError, NotFoundError
from cluster.service.queue.queue import Queue
from cluster.service.request_options import recipe_of
from cluster.service.settings import Settings
from cluster.service.store.store import RESERVE_BYTES, Store, written_bytes
from cluster.service.work.folder_lock import holder
from cluster.service.work.lease_watch import LeaseWatch
from cluster.service.work.limits import excess
from cluster.service.work.runner import AWAY, DISK, is_full
from cluster.service.work.warm_runner import WarmRunner, send_order, start
from mint.core.log import log
from mint.formats.rounding import ROUNDINGS
from mint.kernels.warmup import MEASURE, WRITE, is_ready, kernel_sets
from mint.plan.recipe import Recipe
from mint.run.blas import find_openblas

ROUND_SECONDS = 0.5
LOOK_SECONDS = 0.05  # between looks for a job that a free slot could take, and for a runner that ended
YIELD_SECONDS = 30.0  # for a unit of a job that must yield; then a short one runs beside it
KILL_SECONDS = 5.0  # from SIGTERM to SIGKILL for the runner of a cancelled job
FORGET_SECONDS = 3600.0  # between removals of old events and logs
_MAX_JOBS = 1000
_LOGS_OF_MANY = ("spare", "fetches")  # of no job, so they never get old
_MOST_LOG_BYTES = 16 << 20


class Supervisor:
    """Works for the queue on this machine, with at most `settings.slots` jobs at a time."""

    def __init__(
        self, queue: Queue, store: Store, settings: Settings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue = queue
        self._store = store
        self._settings = settings
        self._clock = clock
        self._host = socket.gethostname()
        self._children: dict[str, tuple[subprocess.Popen[bytes], Claim]] = {}  # runners of this process, by job
        self._warm_runner = WarmRunner(settings, early=not _has_kernels(Recipe().rounding), clock=clock)
        self._watch = LeaseWatch(queue, self._lives, clock)
        self._yielding_since: dict[str, float] = {}  # when jobs were first seen to yield
        self._signalled_at: dict[tuple[str, int], float] = {}  # times of SIGTERM, by cancelled job and process
        self._forget_at = clock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="supervisor", daemon=True)
        self._locks = settings.work_folder / "locks"
        self._logs = settings.log_path("").parent
        for folder in (self._locks, self._logs):
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

    @property
    def runners(self) -> dict[str, subprocess.Popen[bytes]]:
        """The runners that this process started and did not reap, by job."""
        return {id: process for id, (process, _) in self._children.items()}

    def wait(self) -> None:
        """Wait until the runners that this process started have ended."""
        for process in self.runners.values():
            process.wait()

    def step(self) -> None:
        """Do one round."""
        self._reap()
        for job in self._watch.look():
            log.warning("lease.taken_back", job=job.id, state=job.state, reason=job.reason)
        here = [job for job in self._queue.find(ACTIVE, limit=_MAX_JOBS) if job.host == self._host]
        self._end_cancelled(here)
        self._end_excessive(here)
        self.unblock()
        self._begin(here)
        self._store.evict()
        self._clear()
        if self._clock() >= self._forget_at:
            self._forget(time.time() - 24 * 3600.0 * self._settings.retention_days)

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
            except Exception as error:  # one bad round must not end the service's work
                reason = f"{type(error).__name__}: {error}"
                if reason != failure and not isinstance(error, DatabaseUnavailableError):  # it logs that itself
                    log.error("round.failed", reason=reason)
                failure = reason
                self._stopping.wait(ROUND_SECONDS * 4)

    def _pause(self) -> bool:
        """Wait for the next round, or for news of a slot or a job; True if the thread must stop."""
        for _ in range(round(ROUND_SECONDS / LOOK_SECONDS)):
            if self._stopping.wait(LOOK_SECONDS):
                return True
            is_ended = any(process.poll() is not None for process, _ in self._children.values())
            if is_ended or (len(self._children) < self._settings.slots and self._queue.submitted.is_set()):
                break
        self._queue.submitted.clear()
        return False

    # runners

    def _begin(self, here: list[Job]) -> None:
        """Begin jobs in the free slots, or let a long job yield; one that takes long to do so shares its slot."""
        running = {*(job.id for job in here), *self._children}
        free = self._settings.slots - len(running)
        late = self._late(here)
        while not self._stopping.is_set() and free + late > 0:
            claim = self._queue.claim(self._host, only_short=free <= 0)
            if not claim:
                return
            self._spawn(claim)
            free -= 1
        if free <= 0 and (preempted := self._queue.preempt(self._host)):
            log.info("job.preempted", job=preempted.id, model=preempted.request.model)

    def _late(self, here: list[Job]) -> int:
        """The number of jobs whose unit at work goes on long after they should have yielded."""
        now, before = self._clock(), self._yielding_since
        self._yielding_since = {job.id: before.get(job.id, now) for job in here if job.yields_to == QUEUED}
        return sum(now - since >= YIELD_SECONDS for since in self._yielding_since.values())

    def _spawn(self, claim: Claim) -> None:
        id, library = claim.job.id, _library(claim.job)
        try:
            process = self._warm_runner.take(library)
            if not process:
                with self._settings.log_path(id).open("ab") as output:
                    process = start(self._settings, id, output.fileno(), library)
        except OSError as error:
            if is_full(error):
                self._queue.block(claim, f"{DISK}{error.strerror}, not even a log can be written")
            else:
                self._forfeit(claim, f"its process could not be started: {error.strerror}")
            return
        self._children[id] = process, claim
        send_order(process, self._settings, claim)
        log.info("runner.started", job=id, pid=process.pid, attempt=claim.job.attempts)

    def _reap(self) -> None:
        for id, (process, claim) in list(self._children.items()):
            code = process.poll()
            if code is not None:
                ending = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                if code == AWAY:
                    with suppress(LeaseLostError):
                        self._queue.release(claim, "the database did not answer its runner")
                else:
                    self._forfeit(claim, f"its process {ending}")
                del self._children[id]  # once the database knows
                self._log_end(id, code)

    def _forfeit(self, claim: Claim, reason: str) -> None:
        """Take a job back from a dead runner; one that finished its job has none."""
        try:
            job = self._queue.forfeit(claim, reason)
        except LeaseLostError:
            return
        log.warning("runner.lost", job=job.id, state=job.state, reason=job.reason)

    def _log_end(self, id: str, code: int) -> None:
        job = self._queue.get(id)
        report = log.warning if job.state in (FAILED, BLOCKED) else log.info
        report("runner.ended", job=id, code=code, state=job.state, model=job.request.model, reason=job.reason)

    def _lives(self, held: HeldLease) -> bool:
        """True if the runner of a lease is a living process of this machine, of this service or of one before."""
        child = self._children.get(held.job)
        if child and child[1].lease == held.lease:
            return child[0].poll() is None
        return held.host == self._host and bool(holder(self._locks / held.analysis_key))

    def _end_cancelled(self, here: list[Job]) -> None:
        now, before, self._signalled_at = self._clock(), self._signalled_at, {}
        for job in here:
            if job.cancel_wanted:
                child = self._children.get(job.id)
                pid = child[0].pid if child else holder(self._locks / job.request.analysis_key)
                if not pid:
                    continue  # not yet at work, or just over: it notices by itself
                signalled_at = self._signalled_at[job.id, pid] = before.get((job.id, pid), now)
                if (job.id, pid) not in before or now - signalled_at >= KILL_SECONDS:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, signal.SIGKILL if (job.id, pid) in before else signal.SIGTERM)

    def _end_excessive(self, here: list[Job]) -> None:
        """End jobs that are beyond one of their limits."""
        for job in here:
            if (child := self._children.get(job.id)) and not job.cancel_wanted:
                process, claim = child
                if reason := excess(job, process.pid, self._settings, time.time()):
                    with suppress(LeaseLostError, ProcessLookupError):
                        self._queue.advance(claim, FAILED, reason=reason)
                        os.killpg(process.pid, signal.SIGKILL)

    # room

    def unblock(self) -> None:
        """Requeue jobs that wait for room, once there is a little more than they need."""
        for job in self._queue.find([BLOCKED], sort="oldest", limit=_MAX_JOBS):
            if not job.reason.startswith(DISK):
                continue
            work = self._settings.work_folder / job.id
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
                status = path.stat()
                if status.st_mtime < before and self._is_over(path.stem):
                    path.unlink()
                elif status.st_size > _MOST_LOG_BYTES and path.stem in _LOGS_OF_MANY:
                    os.truncate(path, 0)  # its writers append

    def _clear(self) -> None:
        """Remove the work folders of finished jobs."""
        for folder in self._settings.work_folder.iterdir():
            if folder != self._locks and folder.name not in self._children and self._is_over(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def _is_over(self, id: str) -> bool:
        try:
            return self._queue.get(id).state in FINAL
        except NotFoundError:
            return True


def _library(job: Job) -> str:
    """The fast BLAS that the runner must preload, if the job runs the model on a CPU whose MLX has a slow one."""
    recipe = recipe_of(None, job.request.options)
    runs_model = recipe.probe or ROUNDINGS[recipe.rounding].needs_model
    return find_openblas() if runs_model and sys.platform == "linux" else ""


def _has_kernels(rounding: str) -> bool:
    """True where a job of this rounding compiles nothing."""
    return all(is_ready(kernels) for work in (MEASURE, WRITE) for kernels in kernel_sets(work, ROUNDINGS[rounding]))
