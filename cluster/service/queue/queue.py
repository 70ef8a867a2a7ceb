"""The queue: submits, claims, advances and finishes jobs. Every method is one transaction.

A runner holds the lease of its job: a secret with a stamp, which it renews. Every write checks the lease. Observers
take back a lease whose stamp did not change for `lease_seconds` (see `lease_watch`). Its runner can no longer write,
and the job goes to another runner. A late runner whose lease nobody took back keeps it.

An attempt that brought its job farther than all attempts before does not count against `ATTEMPTS`. Only finitely many
attempts can do that, since a job has finitely many units.
"""

import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, exists, func, insert, or_, select, update

from cluster.service.data import quotas
from cluster.service.data.database import Database
from cluster.service.data.records import Claim, Event, HeldLease, Job, Lease, ModelRequest, Person, Times
from cluster.service.data.states import ACTIVE, BLOCKED, CANCELLED, DONE, FAILED, FINAL, INVENTORY, QUEUED, can_become
from cluster.service.data.tables import artifacts, jobs
from cluster.service.errors import LeaseLostError, NotFoundError
from cluster.service.queue import history, subscriptions
from cluster.service.queue.fairness import count_turn, next_queued
from cluster.service.queue.listing import NEWEST, conditions, page

LEASE_SECONDS = 20.0
ATTEMPTS = 3  # without progress
_COPIED = tuple(copied.name for copied in fields(Job) if copied.name in jobs.c)
_Row = Row[tuple[Any, ...]]


@dataclass
class Queue:
    """The jobs in a database."""

    database: Database
    clock: Callable[[], float] = time.time
    lease_seconds: float = LEASE_SECONDS
    # set by every submission to this object; a waiting thread clears it
    submitted: threading.Event = field(default_factory=threading.Event, init=False)

    # for clients

    def submit(
        self, requests: Sequence[tuple[ModelRequest, int]], by: Person, priority: int = 0
    ) -> list[tuple[Job, bool]]:
        """The job for each request, and true if it is new; an older one waits, runs, or is done and still stored.

        A request comes with an upper bound of its result's bytes. All requests are accepted, or none: raises
        `QuotaExceededError`.
        """
        with self.database.write() as connection:
            quotas.save(connection, by.name, by.quota)
            answers = [self._submit(connection, request, most_bytes, by, priority) for request, most_bytes in requests]
        self.submitted.set()
        return answers

    def _submit(
        self, connection: Connection, request: ModelRequest, most: int, by: Person, priority: int
    ) -> tuple[Job, bool]:
        now = self.clock()
        row = _shared(connection, request.key)
        is_new, is_done = row is None, row is not None and row.state == DONE
        if row is None or by.name not in subscriptions.names(connection, [row.number]).get(row.number, ()):
            size = select(artifacts.c.nbytes).where(artifacts.c.digest == row.artifact) if row and is_done else None
            nbytes = most if size is None else connection.execute(size).scalar_one()
            quotas.check(connection, by, nbytes, now, unfinished=not is_done)
        if row is None:
            row = _insert(connection, request, by, priority, most, now)
        subscriptions.add(connection, row.number, by.name, priority)
        if is_done:
            connection.execute(update(artifacts).where(artifacts.c.digest == row.artifact).values(used_at=now))
        return _read(connection, row.number), is_new

    def cancel(self, id: str, by: Person, *, everybody: bool = False) -> Job:
        """Remove a watcher; without watchers the job ends, at once or, if it runs, through `cancel_wanted`.

        An admin may remove everybody, and does so if they never were a watcher; others get `NotWatchingError`. The
        artifact of a finished job no longer counts against the quota of a removed watcher.
        """
        with self.database.write() as connection:
            row = _row(connection, id)
            is_unwanted = subscriptions.leave(connection, row.number, by, everybody=everybody)
            if is_unwanted and row.finished_at is None and not row.cancel_wanted:
                reason = f"cancelled by {by.name}"
                if row.state in ACTIVE:
                    change = update(jobs).where(jobs.c.number == row.number)
                    connection.execute(change.values(cancel_wanted=True, reason=reason))
                else:
                    self._move(connection, row, CANCELLED, reason=reason)
            return _read(connection, row.number)

    # queries

    def get(self, id: str) -> Job:
        """One job; raises `NotFoundError`."""
        with self.database.read() as connection:
            return _jobs(connection, [_row(connection, id)])[0]

    def find(
        self,
        states: Collection[str] = (),
        *,
        watcher: str | None = None,
        model_identity: str | None = None,
        search: str = "",
        sort: str = NEWEST,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """A page of the jobs that `listing.conditions` describes; `before` is the last id of the page before."""
        chosen = conditions(states, watcher=watcher, model_identity=model_identity, search=search)
        with self.database.read() as connection:
            return _jobs(connection, connection.execute(page(connection, chosen, sort, before, limit)).all())

    def events(self, id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """The events of a job after number `after`, in order; raises `NotFoundError`."""
        with self.database.read() as connection:
            return history.read(connection, _row(connection, id), after, limit)

    def last_seqs(self, ids: Sequence[str]) -> dict[str, int]:
        """The number of the last event of each job, without missing jobs."""
        statement = select(jobs.c.id, jobs.c.last_seq).where(jobs.c.id.in_(ids))
        return {row.id: row.last_seq for row in self.database.rows(statement)}

    def counts(
        self, *, watcher: str | None = None, model_identity: str | None = None, search: str = ""
    ) -> dict[str, int]:
        """The number of jobs in each state, of those that `listing.conditions` describes."""
        chosen = conditions(watcher=watcher, model_identity=model_identity, search=search)
        statement = select(jobs.c.state, func.count().label("many")).where(*chosen).group_by(jobs.c.state)
        counts = {row.state: row.many for row in self.database.rows(statement)}
        return {state: counts.get(state, 0) for state in (QUEUED, *ACTIVE, BLOCKED, *FINAL)}

    def times(self) -> list[Times]:
        """The seconds that jobs of each state waited and ran, and the time since which the first one waits."""
        columns = {
            "begun": func.count(jobs.c.started_at),
            "waited": func.coalesce(func.sum(jobs.c.started_at - jobs.c.created_at), 0.0),
            "ran": func.coalesce(func.sum(jobs.c.finished_at - jobs.c.started_at), 0.0),
            "first_created_at": func.min(jobs.c.created_at),
        }
        statement = select(jobs.c.state, *(column.label(name) for name, column in columns.items()))
        return [Times(**row._mapping) for row in self.database.rows(statement.group_by(jobs.c.state))]

    # for runners and the supervisor

    def claim(self, host: str) -> Claim | None:
        """Begin the next job by `fairness`; None if there is none."""
        if not self._any(jobs.c.state == QUEUED):
            return None
        with self.database.write() as connection:
            row = next_queued(connection)
            if row is None:
                return None
            count_turn(connection, row.owner)
            lease, now = secrets.token_hex(16), self.clock()
            self._move(
                connection, row, INVENTORY, lease=lease, lease_until=now + self.lease_seconds, started_at=now,
                attempts=row.attempts + 1, has_progressed=False, host=host,
            )  # fmt: skip
            return Claim(_read(connection, row.number), lease)

    def renew(self, claim: Claim) -> Lease:
        """Renew a lease that nobody took back, and return its state."""
        return self.renew_held(claim.job.id, claim.lease)

    def renew_held(self, id: str, lease: str) -> Lease:
        """The same for the lease of a job by its id."""
        is_held = (jobs.c.id == id, jobs.c.lease == lease)
        change = update(jobs).where(*is_held).values(lease_until=self.clock() + self.lease_seconds)
        with self.database.write() as connection:
            row = connection.execute(change.returning(jobs.c.cancel_wanted)).one_or_none()
        if row is None:
            return Lease.LOST
        return Lease.CANCEL_WANTED if row.cancel_wanted else Lease.HELD

    def emit(self, claim: Claim, kind: str, body: Mapping[str, Any]) -> Event:
        """Save an event of a job; progress replaces progress, see `history`. Raises `LeaseLostError`."""
        with self.database.write() as connection:
            row = self._leased(connection, claim)
            values = {"last_seq": row.last_seq + 1, **_progress(row, _rank(row.state, kind, body))}
            change = update(jobs).where(jobs.c.number == row.number).values(values)
            row = connection.execute(change.returning(*jobs.c)).one()
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
            if reason := shortage(_reserved(connection) - row.reserved_bytes):
                return reason
            connection.execute(update(jobs).where(jobs.c.number == row.number).values(reserved_bytes=nbytes))
            return ""

    def reserved_bytes(self) -> int:
        """Bytes of the store that are reserved for running jobs."""
        with self.database.read() as connection:
            return _reserved(connection)

    def expected_bytes(self) -> int:
        """Bytes that unfinished jobs still store, without blocked jobs and jobs that do not know it yet."""
        total = select(func.coalesce(func.sum(jobs.c.needed_bytes), 0))
        is_open = jobs.c.finished_at.is_(None) & (jobs.c.state != BLOCKED)
        return int(self.database.rows(total.where(is_open))[0][0])

    def release(self, claim: Claim, reason: str, *, state: str = QUEUED) -> None:
        """Return a job to the queue without counting this attempt; raises `LeaseLostError`."""
        with self.database.write() as connection:
            row = self._leased(connection, claim)
            if row.cancel_wanted:
                self._move(connection, row, CANCELLED)
            else:
                self._move(connection, row, state, reason=reason, attempts=row.attempts - 1)

    def block(self, claim: Claim, reason: str) -> None:
        """Block a job until `unblock`, without counting this attempt; raises `LeaseLostError`."""
        self.release(claim, reason, state=BLOCKED)

    def unblock(self, id: str) -> Job:
        """Return a blocked job to the queue; other jobs stay unchanged."""
        with self.database.write() as connection:
            row = _row(connection, id)
            if row.state == BLOCKED:
                self._move(connection, row, QUEUED, reason="")
            return _read(connection, row.number)

    def forfeit(self, claim: Claim, reason: str) -> Job:
        """Take back a claim whose runner is dead: the job returns to the queue, or fails after its last attempt.

        Raises `LeaseLostError`.
        """
        with self.database.write() as connection:
            row = self._leased(connection, claim)
            self._lose(connection, row, reason)
            return _read(connection, row.number)

    def leases(self) -> list[HeldLease]:
        """All leases that runners hold."""
        columns = (
            jobs.c.id.label("job"),
            jobs.c.host,
            jobs.c.analysis_key,
            jobs.c.lease,
            jobs.c.lease_until.label("until"),
        )
        statement = select(*columns).where(jobs.c.lease.is_not(None)).order_by(jobs.c.number)
        return [HeldLease(**row._mapping) for row in self.database.rows(statement)]

    def take_back(self, held: HeldLease) -> Job | None:
        """Take back a silent lease as `forfeit` does; None if it was renewed or ended meanwhile."""
        with self.database.write() as connection:
            is_silent = (jobs.c.lease == held.lease, jobs.c.lease_until == held.until)
            row = connection.execute(select(jobs).where(*is_silent)).one_or_none()
            if row is None:
                return None
            self._lose(connection, row, f"it did not report for {self.lease_seconds:.0f} seconds")
            return _read(connection, row.number)

    def trim(self, before: float) -> int:
        """Remove all but the last event of some jobs that ended before a time; return the number of events."""
        with self.database.write() as connection:
            return history.trim(connection, before)

    def _any(self, condition: ColumnElement[bool]) -> bool:
        """True if there is such a job. A cheap read that saves frequent callers a write transaction."""
        return bool(self.database.rows(select(jobs.c.number).where(condition).limit(1)))

    def _leased(self, connection: Connection, claim: Claim) -> _Row:
        statement = select(jobs).where(jobs.c.id == claim.job.id, jobs.c.lease == claim.lease)
        row = connection.execute(statement).one_or_none()
        if row is None:
            raise LeaseLostError(f"the lease of job {claim.job.id} was taken back; its runner must stop")
        return row

    def _lose(self, connection: Connection, row: _Row, cause: str) -> None:
        if row.cancel_wanted:
            self._move(connection, row, CANCELLED)
            return
        count = "it made progress and resumes" if row.has_progressed else f"attempt {row.attempts} of {ATTEMPTS}"
        reason = f"the runner on {row.host} was lost while {row.state}: {cause} ({count})"
        attempts = row.attempts - row.has_progressed
        self._move(connection, row, QUEUED if attempts < ATTEMPTS else FAILED, reason=reason, attempts=attempts)

    def _move(self, connection: Connection, row: _Row, state: str, **values: Any) -> None:
        """Change the state of a job and save the event; the only method that does."""
        if not can_become(row.state, state):
            raise ValueError(f"job {row.id} is {row.state}: it cannot become {state}")
        if state not in ACTIVE:
            values |= {"lease": None, "lease_until": None, "reserved_bytes": 0}
        elif row.state in ACTIVE:  # the reason of the attempt before is over, that of a cancellation is not
            values = {"reason": row.reason if row.cancel_wanted else "", **_progress(row, _rank(state)), **values}
        if state in FINAL:
            values["finished_at"] = self.clock()
        if state == DONE:
            values["reason"] = ""
        if reason := values.get("reason"):
            # databases reject NUL and lone surrogates, which file names may contain
            values["reason"] = reason.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
        values |= {"state": state, "last_seq": row.last_seq + 1}
        change = update(jobs).where(jobs.c.number == row.number).values(values)
        row = connection.execute(change.returning(*jobs.c)).one()
        history.append_state(connection, row, self.clock())


def _insert(connection: Connection, request: ModelRequest, by: Person, priority: int, most: int, now: float) -> _Row:
    values = {
        **asdict(request), "id": secrets.token_hex(8), "wish_key": request.key, "analysis_key": request.analysis_key,
        "state": QUEUED, "owner": by.name, "priority": priority, "created_at": now, "expected_bytes": most,
    }  # fmt: skip
    row = connection.execute(insert(jobs).values(values).returning(*jobs.c)).one()
    history.append_state(connection, row, now)
    return row


def _shared(connection: Connection, key: str) -> _Row | None:
    """The existing job for a request: unfinished and not being cancelled, or done and still stored."""
    is_stored = exists().where(artifacts.c.digest == jobs.c.artifact)
    is_live = jobs.c.finished_at.is_(None) & ~jobs.c.cancel_wanted
    statement = select(jobs).where(jobs.c.wish_key == key, or_(is_live, (jobs.c.state == DONE) & is_stored))
    return connection.execute(statement.order_by(jobs.c.number.desc()).limit(1)).one_or_none()


def _rank(state: str, kind: str = "", body: Mapping[str, Any] = MappingProxyType({})) -> float:
    """The position of a job on its way: the number of its stage, and the share of it that is done."""
    total = body.get("total", 0) if kind == history.PROGRESS else 0
    return ACTIVE.index(state) + (min(1.0, body.get("done", 0) / total) if total > 0 else 0.0)


def _progress(row: _Row, rank: float) -> dict[str, Any]:
    """The changes of a job that comes to a rank: progress is what no attempt before reached."""
    return {"reached": rank, "has_progressed": True} if rank > row.reached else {}


def _reserved(connection: Connection) -> int:
    total = select(func.coalesce(func.sum(jobs.c.reserved_bytes), 0)).where(jobs.c.state.in_(ACTIVE))
    return int(connection.execute(total).scalar_one())


def _row(connection: Connection, id: str) -> _Row:
    row = connection.execute(select(jobs).where(jobs.c.id == id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no job {id!r}; needed: an id from `mint jobs`")
    return row


def _read(connection: Connection, number: int) -> Job:
    return _jobs(connection, [connection.execute(select(jobs).where(jobs.c.number == number)).one()])[0]


def _jobs(connection: Connection, rows: Sequence[_Row]) -> list[Job]:
    names = subscriptions.names(connection, [row.number for row in rows])
    return [
        Job(
            request=ModelRequest(row.model, row.identity, row.budget, row.options),
            watchers=names.get(row.number, ()),
            **{name: getattr(row, name) for name in _COPIED},
        )
        for row in rows
    ]
