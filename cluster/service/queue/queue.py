"""The queue: submits, claims, advances and finishes jobs. Every method is one transaction.

A runner holds the lease of its job: a secret with a stamp, which it renews. Every write checks the lease. Observers
take back a lease whose stamp did not change for `lease_seconds` (see `lease_watch`). Its runner can no longer write,
and the job goes to another runner. A late runner whose lease nobody took back keeps it.

An attempt that brought its job farther than all attempts before does not count against `ATTEMPTS`. Only finitely many
attempts can do that, since a job has finitely many units.
"""

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from cluster.service.data import quotas
from cluster.service.data.records import Claim, Event, Forecast, HeldLease, Job, Lease, ModelRequest, Person
from cluster.service.data.states import (
    ACTIVE,
    BLOCKED,
    CANCELLED,
    DONE,
    FAILED,
    FINAL,
    INVENTORY,
    PAUSED,
    QUEUED,
    can_become,
)
from cluster.service.data.tables import artifacts, jobs
from cluster.service.errors import LeaseLostError, NotWatchingError
from cluster.service.queue import history, subscriptions
from cluster.service.queue.fairness import LONG_SECONDS, count_turn, is_drained, is_long, next_queued, to_preempt
from cluster.service.queue.queries import Queries
from cluster.service.queue.rows import (
    JobRow,
    change_row,
    job_row,
    new_job,
    progress_values,
    rank,
    read_job,
    repeated_job,
    reserved_bytes,
    shared_job,
)

LEASE_SECONDS = 20.0
ATTEMPTS = 3  # without progress
NOTICE_SECONDS = 24 * 3600.0
NOTICE_PAUSE_SECONDS = 15.0  # to the second report of an end; longer than an answer takes


@dataclass
class Queue(Queries):
    """The jobs in a database."""

    lease_seconds: float = LEASE_SECONDS
    # set by every submission to this object; a waiting thread clears it
    submitted: threading.Event = field(default_factory=threading.Event, init=False)

    # for clients

    def submit(
        self,
        requests: Sequence[tuple[ModelRequest, Forecast]],
        by: Person,
        priority: int = 0,
        deadline_seconds: float | None = None,
    ) -> list[tuple[Job, bool]]:
        """The job for each request, and true if it is new; an older one waits, runs, or is done and still stored.

        A paused job continues. All requests are accepted, or none: raises `QuotaExceededError`.
        """
        with self.database.write() as connection:
            quotas.enter(connection, by)
            answers = [
                self._submit(connection, request, forecast, by, priority, deadline_seconds)
                for request, forecast in requests
            ]
        self.submitted.set()
        return answers

    def _submit(
        self,
        connection: Connection,
        request: ModelRequest,
        forecast: Forecast,
        by: Person,
        priority: int,
        deadline_seconds: float | None,
    ) -> tuple[Job, bool]:
        now = self.clock()
        row = shared_job(connection, request.key)
        is_new, is_done = row is None, row is not None and row.state == DONE
        if row is None or by.name not in subscriptions.names(connection, [row.number]).get(row.number, ()):
            size = select(artifacts.c.nbytes).where(artifacts.c.digest == row.artifact) if row and is_done else None
            nbytes = forecast.most_bytes if size is None else connection.execute(size).scalar_one()
            quotas.check(connection, by, nbytes, now, unfinished=not is_done)
        if row is None:
            values = {"priority": priority, "created_at": now, "deadline_seconds": deadline_seconds}
            row = new_job(connection, request, by.name, forecast, **values)
        else:
            self._resume(connection, row)
        subscriptions.add(connection, row.number, by.name, priority)
        if is_done:
            connection.execute(update(artifacts).where(artifacts.c.digest == row.artifact).values(used_at=now))
        return read_job(connection, self.clock(), row.number), is_new

    def cancel(self, id: str, by: Person, *, everybody: bool = False) -> Job:
        """Remove a watcher; without watchers the job ends, at once or, if it runs, through `cancel_wanted`.

        An admin may remove everybody, and does so if they never were a watcher; others get `NotWatchingError`. The
        artifact of a finished job no longer counts against the quota of a removed watcher.
        """
        with self.database.write() as connection:
            row = job_row(connection, id)
            is_unwanted = subscriptions.leave(connection, row.number, by, everybody=everybody)
            if is_unwanted and row.finished_at is None and not row.cancel_wanted:
                reason = f"cancelled by {by.name}"
                if row.state in ACTIVE:
                    change_row(connection, row, cancel_wanted=True, reason=reason)
                else:
                    self._move(connection, row, CANCELLED, reason=reason)
            return read_job(connection, self.clock(), row.number)

    def pause(self, id: str, by: Person) -> Job:
        """Pause an unfinished job, a running one after the unit at work; raises `NotWatchingError`."""
        with self.database.write() as connection:
            row = job_row(connection, id)
            _need_alone(connection, row, by, "pause")
            reason = f"paused by {by.name}"
            if row.state in ACTIVE:
                change_row(connection, row, yields_to=PAUSED, reason=reason)
            elif row.finished_at is None and row.state != PAUSED:
                self._move(connection, row, PAUSED, reason=reason)
            return read_job(connection, self.clock(), row.number)

    def resume(self, id: str, by: Person) -> Job:
        """Return a paused job to the queue; raises `NotWatchingError`."""
        with self.database.write() as connection:
            row = job_row(connection, id)
            _need_alone(connection, row, by, "resume")
            self._resume(connection, row)
        self.submitted.set()
        return self.get(id)

    def requeue(self, id: str, by: Person) -> Job:
        """Return a job to the queue, a running one after the unit at work; an ended one as a new job for its watchers.

        The new job counts against no quota: an admin decides.
        """
        with self.database.write() as connection:
            row = job_row(connection, id)
            if row.finished_at is not None:
                row = shared_job(connection, row.wish_key) or repeated_job(connection, row, self.clock())
            elif row.state in ACTIVE:
                change_row(connection, row, yields_to=QUEUED, reason=f"requeued by {by.name}")
            elif row.state != QUEUED:
                self._move(connection, row, QUEUED, reason="")
        self.submitted.set()
        return self.get(row.id)

    def _resume(self, connection: Connection, row: JobRow) -> None:
        if row.state == PAUSED:
            self._move(connection, row, QUEUED, reason="")
        elif row.yields_to == PAUSED:
            change_row(connection, row, yields_to="", reason="")

    # for runners and the supervisor

    def claim(self, host: str, *, only_short: bool = False) -> Claim | None:
        """Begin the next job by `fairness`; None if there is none, or the host is drained."""
        if not self._any((jobs.c.state == QUEUED) & ~is_drained(host)):
            return None
        with self.database.write() as connection:
            row = next_queued(connection, self.clock(), host=host, only_short=only_short)
            if row is None:
                return None
            count_turn(connection, row.owner)
            lease, now = secrets.token_hex(16), self.clock()
            self._move(
                connection, row, INVENTORY, lease=lease, lease_until=now + self.lease_seconds, started_at=now,
                attempts=row.attempts + 1, has_progressed=False, host=host,
            )  # fmt: skip
            return Claim(read_job(connection, self.clock(), row.number), lease)

    def renew(self, claim: Claim) -> Lease:
        """Renew a lease that nobody took back, and return its state."""
        return self.renew_held(claim.job.id, claim.lease)

    def renew_held(self, id: str, lease: str) -> Lease:
        """The same for the lease of a job by its id."""
        is_held = (jobs.c.id == id, jobs.c.lease == lease)
        change = update(jobs).where(*is_held).values(lease_until=self.clock() + self.lease_seconds)
        with self.database.write() as connection:
            row = connection.execute(change.returning(jobs.c.cancel_wanted, jobs.c.yields_to)).one_or_none()
        if row is None:
            return Lease.LOST
        if row.cancel_wanted:
            return Lease.CANCEL_WANTED
        return Lease.YIELD_WANTED if row.yields_to else Lease.HELD

    def emit(self, claim: Claim, kind: str, body: Mapping[str, Any]) -> Event:
        """Save an event of a job; progress replaces progress, see `history`. Raises `LeaseLostError`."""
        with self.database.write() as connection:
            row = self._leased(connection, claim)
            values = progress_values(row, rank(row.state, kind, body))
            row = change_row(connection, row, last_seq=row.last_seq + 1, **values)
            return history.append(connection, row, self.clock(), kind, body)

    def advance(
        self,
        claim: Claim,
        state: str,
        *,
        reason: str = "",
        needed_bytes: int = 0,
        artifact: str = "",
        result: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Move a job to its next stage, or to its end, which ends the lease; raises `LeaseLostError`.

        Empty values change nothing. Use `release` and `block` to stop before the end.
        """
        if state not in (*ACTIVE, *FINAL):
            raise ValueError(f"a job is not advanced to {state!r}")
        values = {"reason": reason, "needed_bytes": needed_bytes, "artifact": artifact, "result": dict(result)}
        with self.database.write() as connection:
            row = self._leased(connection, claim)
            self._move(connection, row, state, **{name: value for name, value in values.items() if value})

    def reserve(self, claim: Claim, nbytes: int, shortage: Callable[[int], str]) -> str:
        """Reserve space in the store for a job until its end, unless there is a `shortage`; return the shortage.

        `shortage` gets the bytes that all other jobs have reserved; no job reserves meanwhile. Raises `LeaseLostError`.
        """
        with self.database.write() as connection:
            row = self._leased(connection, claim)
            if reason := shortage(reserved_bytes(connection) - row.reserved_bytes):
                return reason
            change_row(connection, row, reserved_bytes=nbytes)
            return ""

    def preempt(self, host: str) -> Job | None:
        """Let a long job of a host yield to a waiting short one; it stops after the unit at work, and resumes later."""
        now = self.clock()
        if not self._any(is_long(now) & (jobs.c.host == host)) or not self._any(jobs.c.state == QUEUED):
            return None
        with self.database.write() as connection:
            row = to_preempt(connection, host, now)
            if row is None:
                return None
            reason, seconds = "it made way for a shorter job, and resumes", max(row.expected_seconds, LONG_SECONDS)
            change_row(connection, row, yields_to=QUEUED, expected_seconds=seconds, reason=reason)
            return read_job(connection, self.clock(), row.number)

    def release(self, claim: Claim, reason: str, *, state: str = QUEUED) -> None:
        """Return a job to the queue, or where it must yield to, without counting this attempt.

        Raises `LeaseLostError`.
        """
        with self.database.write() as connection:
            row = self._leased(connection, claim)
            if row.cancel_wanted:
                self._move(connection, row, CANCELLED)
            else:
                target, why = (row.yields_to, row.reason) if row.yields_to else (state, reason)
                self._move(connection, row, target, reason=why, attempts=row.attempts - 1)

    def block(self, claim: Claim, reason: str) -> None:
        """Block a job until `unblock`, without counting this attempt; raises `LeaseLostError`."""
        self.release(claim, reason, state=BLOCKED)

    def unblock(self, id: str) -> Job:
        """Return a blocked job to the queue; other jobs stay unchanged."""
        with self.database.write() as connection:
            row = job_row(connection, id)
            if row.state == BLOCKED:
                self._move(connection, row, QUEUED, reason="")
            return read_job(connection, self.clock(), row.number)

    def forfeit(self, claim: Claim, reason: str) -> Job:
        """Take back a claim whose runner is dead: the job returns to the queue, or fails after its last attempt.

        Raises `LeaseLostError`.
        """
        with self.database.write() as connection:
            row = self._leased(connection, claim)
            self._lose(connection, row, reason)
            return read_job(connection, self.clock(), row.number)

    def take_back(self, held: HeldLease) -> Job | None:
        """Take back a silent lease as `forfeit` does; None if it was renewed or ended meanwhile."""
        with self.database.write() as connection:
            is_silent = (jobs.c.lease == held.lease, jobs.c.lease_until == held.until)
            row = connection.execute(select(jobs).where(*is_silent)).one_or_none()
            if row is None:
                return None
            self._lose(connection, row, f"it did not report for {self.lease_seconds:.0f} seconds")
            return read_job(connection, self.clock(), row.number)

    def take_notice(self) -> Job | None:
        """A job whose end is to be reported now; until `end_notice` it is due again, after pauses that double.

        An end is reported for a day.
        """
        now = self.clock()
        if not self._any(jobs.c.notice_at <= now):
            return None
        with self.database.write() as connection:
            is_old = (jobs.c.notice_at <= now) & (jobs.c.finished_at < now - NOTICE_SECONDS)
            connection.execute(update(jobs).where(is_old).values(notice_at=None))
            due = select(jobs).where(jobs.c.notice_at <= now).order_by(jobs.c.notice_at, jobs.c.number).limit(1)
            row = connection.execute(due).one_or_none()
            if row is None:
                return None
            pause = NOTICE_PAUSE_SECONDS * 2.0**row.notice_tries
            change_row(connection, row, notice_at=now + pause, notice_tries=row.notice_tries + 1)
            return read_job(connection, now, row.number)

    def end_notice(self, id: str) -> None:
        """Note that the end of a job is reported."""
        with self.database.write() as connection:
            connection.execute(update(jobs).where(jobs.c.id == id).values(notice_at=None))

    def trim(self, before: float) -> int:
        """Remove all but the last event of some jobs that ended before a time; return the number of events."""
        with self.database.write() as connection:
            return history.trim(connection, before)

    def _any(self, condition: ColumnElement[bool]) -> bool:
        """True if there is such a job. A cheap read that saves frequent callers a write transaction."""
        return bool(self.database.rows(select(jobs.c.number).where(condition).limit(1)))

    def _leased(self, connection: Connection, claim: Claim) -> JobRow:
        statement = select(jobs).where(jobs.c.id == claim.job.id, jobs.c.lease == claim.lease)
        row = connection.execute(statement).one_or_none()
        if row is None:
            raise LeaseLostError(f"the lease of job {claim.job.id} was taken back; its runner must stop")
        return row

    def _lose(self, connection: Connection, row: JobRow, cause: str) -> None:
        if row.cancel_wanted:
            self._move(connection, row, CANCELLED)
            return
        count = "it made progress and resumes" if row.has_progressed else f"attempt {row.attempts} of {ATTEMPTS}"
        reason = f"the runner on {row.host} was lost while {row.state}: {cause} ({count})"
        attempts = row.attempts - row.has_progressed
        target = (row.yields_to or QUEUED) if attempts < ATTEMPTS else FAILED
        self._move(connection, row, target, reason=reason, attempts=attempts)

    def _move(self, connection: Connection, row: JobRow, state: str, **values: Any) -> None:
        """Change the state of a job and save the event; the only method that does."""
        if not can_become(row.state, state):
            raise ValueError(f"job {row.id} is {row.state}: it cannot become {state}")
        now = self.clock()
        if state not in ACTIVE:
            values |= {"lease": None, "lease_until": None, "reserved_bytes": 0, "yields_to": ""}
        elif row.state in ACTIVE:  # the reason of the attempt before is over, that of a request to stop is not
            is_stopping = row.cancel_wanted or row.yields_to
            values = {"reason": row.reason if is_stopping else "", **progress_values(row, rank(state)), **values}
        if row.state in ACTIVE and state not in ACTIVE:
            values["worked_seconds"] = row.worked_seconds + max(0.0, now - row.started_at)
        if state == QUEUED:
            values["queued_at"] = now
        if state in FINAL:
            values |= {"finished_at": now, "notice_at": now}
        if state == DONE:
            values["reason"] = ""
        if reason := values.get("reason"):
            # databases reject NUL and lone surrogates, which file names may contain
            values["reason"] = reason.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
        values |= {"state": state, "last_seq": row.last_seq + 1}
        history.append_state(connection, change_row(connection, row, **values), now)


def _need_alone(connection: Connection, row: JobRow, by: Person, verb: str) -> None:
    if not by.may("admin") and subscriptions.names(connection, [row.number]).get(row.number, ()) != (by.name,):
        raise NotWatchingError(
            f"{by.name} cannot {verb} this job for others; needed: a job that only you want, or an admin's token"
        )
