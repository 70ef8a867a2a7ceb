"""The queue: jobs as they are submitted, claimed, worked on and finished. Every method is one transaction.

Who works on a job holds its lease: a secret that is valid until a time, and that they renew. Every write of theirs asks
for it, so whoever lost it (their machine slept, the network broke) can no longer write, and the job may be given to the
next. All times come from the clock of whoever asks; clocks of machines that share a database must agree to well within
`LEASE_SECONDS`.
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, or_, select, update

from cluster.service.data import quotas
from cluster.service.data.database import Database
from cluster.service.data.records import Claim, Event, Job, Lease, Person, Wish
from cluster.service.data.states import ACTIVE, BLOCKED, CANCELLED, DONE, FAILED, FINAL, INVENTORY, QUEUED, can_become
from cluster.service.data.tables import artifacts, jobs, watchers
from cluster.service.errors import LeaseLostError, NotFoundError
from cluster.service.queue import history, subscriptions
from cluster.service.queue.fairness import count_turn, next_queued

LEASE_SECONDS = 20.0
ATTEMPTS = 3
_Row = Row[tuple[Any, ...]]


class Queue:
    """The jobs in a database."""

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.time, *, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._database = database
        self._clock = clock
        self._lease_seconds = lease_seconds
        self.submitted = threading.Event()  # set by every submission to this very object; who waits for it clears it

    # by those who want jobs

    def submit(
        self, wish: Wish, by: Person, priority: int = 0, *, expected_bytes: int | None = None
    ) -> tuple[Job, bool]:
        """The job for a wish, and whether it is new: else one that waits, runs, or is done and still stored.

        `expected_bytes` is what the answer takes at most, where that is known better than from the budget. Raises
        `QuotaExceededError` if it is too much for `by`.
        """
        expected = quotas.expected_bytes(wish) if expected_bytes is None else expected_bytes
        return self.submit_all([(wish, expected)], by, priority)[0]

    def submit_all(self, wishes: Sequence[tuple[Wish, int]], by: Person, priority: int = 0) -> list[tuple[Job, bool]]:
        """What `submit` does for each of some wishes, with what its answer takes at most: for all of them or none."""
        with self._database.write() as connection:
            quotas.remember(connection, by.name, by.quota)
            found = [self._submit(connection, wish, expected, by, priority) for wish, expected in wishes]
        self.submitted.set()
        return found

    def _submit(self, connection: Connection, wish: Wish, expected: int, by: Person, priority: int) -> tuple[Job, bool]:
        now = self._clock()
        row = _shared(connection, wish.key)
        if row is None:
            quotas.check(connection, by, expected, now, unfinished=True)
            row = _insert(connection, wish, by, priority, expected, now)
            subscriptions.add(connection, row.number, by.name, priority)
            return _read(connection, row.number), True
        if not subscriptions.wants(connection, row.number, by.name):
            more = _stored_bytes(connection, row.artifact) if row.state == DONE else expected
            quotas.check(connection, by, more, now, unfinished=row.state != DONE)
        subscriptions.add(connection, row.number, by.name, priority)
        if row.state == DONE:
            _touch(connection, row.artifact, now)
        return _read(connection, row.number), False

    def cancel(self, id: str, by: Person, *, everybody: bool = False) -> Job:
        """Take someone off a job; the last to go ends it, at once or, where it runs, by `cancel_wanted`.

        An admin can do so for everybody, and does if they never asked for it; others get `NotWatchingError`. Who is
        taken off a finished job has its artifact no longer counted against their quota.
        """
        with self._database.write() as connection:
            row = _row(connection, id)
            if (
                subscriptions.leave(connection, row.number, by, everybody=everybody)
                and row.finished_at is None
                and not row.cancel_wanted
            ):
                reason = f"cancelled by {by.name}"
                if row.state in ACTIVE:
                    change = update(jobs).where(jobs.c.number == row.number)
                    connection.execute(change.values(cancel_wanted=True, reason=reason))
                else:
                    self._move(connection, row, CANCELLED, reason=reason)
            return _read(connection, row.number)

    # by those who look

    def get(self, id: str) -> Job:
        """One job; raises `NotFoundError`."""
        with self._database.read() as connection:
            return _records(connection, [_row(connection, id)])[0]

    def find(
        self,
        state: str | None = None,
        watcher: str | None = None,
        model_identity: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """The newest jobs first, of a state, a watcher, a model; `before` is the id that the page before ended with.

        A watcher's jobs are those that they wait for or got, and those that were cancelled.
        """
        statement = select(jobs).order_by(jobs.c.number.desc()).limit(limit)
        if state is not None:
            statement = statement.where(jobs.c.state == state)
        if watcher is not None:
            asked = exists().where(watchers.c.job == jobs.c.number, watchers.c.name == watcher)
            statement = statement.where(
                asked.where(or_(watchers.c.wants, jobs.c.cancel_wanted, jobs.c.state == CANCELLED))
            )
        if model_identity is not None:
            statement = statement.where(jobs.c.identity == model_identity)
        with self._database.read() as connection:
            if before is not None:
                statement = statement.where(jobs.c.number < _row(connection, before).number)
            return _records(connection, connection.execute(statement).all())

    def events(self, id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """What happened to a job after an event, in order; raises `NotFoundError`."""
        with self._database.read() as connection:
            return history.read(connection, _row(connection, id), after, limit)

    def last_seqs(self, ids: Sequence[str]) -> dict[str, int]:
        """The number of the last event of each job; jobs that are not there are left out."""
        statement = select(jobs.c.id, jobs.c.last_seq).where(jobs.c.id.in_(ids))
        with self._database.read() as connection:
            return {row.id: row.last_seq for row in connection.execute(statement)}

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        statement = select(jobs.c.state, func.count().label("many")).group_by(jobs.c.state)
        with self._database.read() as connection:
            found = {row.state: row.many for row in connection.execute(statement)}
        return {state: found.get(state, 0) for state in (QUEUED, *ACTIVE, BLOCKED, *FINAL)}

    # by those who work

    def claim(self, host: str) -> Claim | None:
        """Begin the job whose turn it is, see `fairness`; None if there is none."""
        if not self._any(jobs.c.state == QUEUED):
            return None
        with self._database.write() as connection:
            row = next_queued(connection)
            if row is None:
                return None
            count_turn(connection, row.owner)
            lease, now = secrets.token_hex(16), self._clock()
            self._move(
                connection, row, INVENTORY, lease=lease, lease_until=now + self._lease_seconds, started_at=now,
                attempts=row.attempts + 1, host=host,
            )  # fmt: skip
            return Claim(_read(connection, row.number), lease)

    def renew(self, claim: Claim) -> Lease:
        """Hold the lease for `lease_seconds` more; says whether it was lost, or the job is to be cancelled."""
        now = self._clock()
        mine = (jobs.c.id == claim.job.id, jobs.c.lease == claim.lease, jobs.c.lease_until > now)
        change = update(jobs).where(*mine).values(lease_until=now + self._lease_seconds)
        with self._database.write() as connection:
            row = connection.execute(change.returning(jobs.c.cancel_wanted)).one_or_none()
        if row is None:
            return Lease.LOST
        return Lease.CANCEL_WANTED if row.cancel_wanted else Lease.HELD

    def emit(self, claim: Claim, kind: str, body: Mapping[str, Any]) -> Event:
        """Tell something about a job; raises `LeaseLostError`. What `history` says of progress holds."""
        with self._database.write() as connection:
            row = self._held(connection, claim)
            change = update(jobs).where(jobs.c.number == row.number).values(last_seq=row.last_seq + 1)
            told = connection.execute(change.returning(*jobs.c)).one()
            return history.tell(connection, told, self._clock(), kind, body)

    def advance(
        self,
        claim: Claim,
        state: str,
        *,
        reason: str = "",
        needed_bytes: int | None = None,
        artifact: str = "",
        result: Mapping[str, Any] | None = None,
    ) -> Event:
        """The next stage of a job, or its end, which gives the lease back; raises `LeaseLostError`.

        To stop before the end there are `release` and `block`.
        """
        if state not in (*ACTIVE, *FINAL):
            raise ValueError(f"a job is not advanced to {state!r}")
        values: dict[str, Any] = {"reason": reason} if reason else {}
        if needed_bytes is not None:
            values["needed_bytes"] = needed_bytes
        if artifact:
            values["artifact"] = artifact
        if result is not None:
            values["result"] = dict(result)
        with self._database.write() as connection:
            return self._move(connection, self._held(connection, claim), state, **values)

    def reserve(self, claim: Claim, nbytes: int, lacks: Callable[[int], str]) -> str:
        """Keep room for what a job stores until it ends, unless `lacks` says why there is none; that, or nothing.

        `lacks` is told what all others have reserved: nobody reserves meanwhile. Raises `LeaseLostError`.
        """
        with self._database.write() as connection:
            row = self._held(connection, claim)
            if why := lacks(_reserved(connection) - row.reserved_bytes):
                return why
            connection.execute(update(jobs).where(jobs.c.number == row.number).values(reserved_bytes=nbytes))
            return ""

    def reserved(self) -> int:
        """Bytes of the store that are kept free for jobs at work."""
        with self._database.read() as connection:
            return _reserved(connection)

    def promised(self) -> int:
        """Bytes that are still to be stored by jobs which know how many they need, and wait for nothing but a turn."""
        going_on = jobs.c.finished_at.is_(None) & (jobs.c.state != BLOCKED)
        with self._database.read() as connection:
            total = select(func.coalesce(func.sum(jobs.c.needed_bytes), 0)).where(going_on)
            return int(connection.execute(total).scalar_one())

    def release(self, claim: Claim, reason: str) -> None:
        """Give a job back to the queue, as if this attempt had not been; raises `LeaseLostError`."""
        self._give_back(claim, QUEUED, reason)

    def block(self, claim: Claim, reason: str) -> None:
        """Let a job wait for what it lacks, as if this attempt had not been; raises `LeaseLostError`."""
        self._give_back(claim, BLOCKED, reason)

    def unblock(self, id: str) -> Job:
        """Put a job that was blocked back into the queue; others stay as they are."""
        with self._database.write() as connection:
            row = _row(connection, id)
            if row.state == BLOCKED:
                self._move(connection, row, QUEUED, reason="")
            return _read(connection, row.number)

    def forfeit(self, claim: Claim, reason: str) -> Job:
        """What `expire` does, at once: for who knows that the runner of a claim died; raises `LeaseLostError`."""
        with self._database.write() as connection:
            row = self._held(connection, claim)
            self._lose(connection, row, reason)
            return _read(connection, row.number)

    def expire(self) -> list[Job]:
        """Take back every lease that ran out: the job waits again, or has failed after the last of its attempts."""
        over = jobs.c.lease_until <= self._clock()
        if not self._any(over):
            return []
        with self._database.write() as connection:
            rows = connection.execute(select(jobs).where(over).order_by(jobs.c.number)).all()
            for row in rows:
                self._lose(connection, row, "its lease ran out")
            return [_read(connection, row.number) for row in rows]

    def forget(self, before: float) -> int:
        """Remove what is told of some jobs that ended before a time, but for their end; 0: there is no more."""
        with self._database.read() as connection:
            numbers = history.outlived(connection, before)
        if not numbers:
            return 0
        with self._database.write() as connection:
            return history.forget(connection, numbers)

    def _any(self, condition: Any) -> bool:
        """Whether there is such a job: asked first by those who ask often, so that they need not write."""
        with self._database.read() as connection:
            return connection.execute(select(jobs.c.number).where(condition).limit(1)).one_or_none() is not None

    def _held(self, connection: Connection, claim: Claim) -> _Row:
        statement = select(jobs).where(jobs.c.id == claim.job.id, jobs.c.lease == claim.lease)
        row = connection.execute(statement.where(jobs.c.lease_until > self._clock())).one_or_none()
        if row is None:
            raise LeaseLostError(f"the lease of job {claim.job.id} ran out or was taken back; its runner must stop")
        return row

    def _give_back(self, claim: Claim, state: str, reason: str) -> None:
        with self._database.write() as connection:
            row = self._held(connection, claim)
            if row.cancel_wanted:
                self._move(connection, row, CANCELLED)
            else:
                self._move(connection, row, state, reason=reason, attempts=row.attempts - 1)

    def _lose(self, connection: Connection, row: _Row, why: str) -> None:
        if row.cancel_wanted:
            self._move(connection, row, CANCELLED)
            return
        reason = f"the runner on {row.host} was lost while {row.state}: {why} (attempt {row.attempts} of {ATTEMPTS})"
        self._move(connection, row, QUEUED if row.attempts < ATTEMPTS else FAILED, reason=reason)

    def _move(self, connection: Connection, row: _Row, state: str, **values: Any) -> Event:
        """Change a job's state, and tell so; the only place that does."""
        if not can_become(row.state, state):
            raise ValueError(f"job {row.id} is {row.state}: it cannot become {state}")
        if state not in ACTIVE:
            values |= {"lease": None, "lease_until": None, "reserved_bytes": 0}
        if state in FINAL:
            values["finished_at"] = self._clock()
        if state == DONE:
            values["reason"] = ""
        if "reason" in values:
            values["reason"] = _storable(values["reason"])
        change = update(jobs).where(jobs.c.number == row.number)
        row = connection.execute(
            change.values(state=state, last_seq=row.last_seq + 1, **values).returning(*jobs.c)
        ).one()
        return history.tell_state(connection, row, self._clock())


def _storable(text: str) -> str:
    """Text that a database takes: without NUL and halves of characters, which names of files may bring."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _insert(connection: Connection, wish: Wish, by: Person, priority: int, expected: int, now: float) -> _Row:
    values = {
        "id": secrets.token_hex(8), "model": wish.model, "identity": wish.identity, "budget": wish.budget,
        "options": dict(wish.options), "wish_key": wish.key, "analysis_key": wish.analysis_key, "state": QUEUED,
        "reason": "", "owner": by.name, "priority": priority, "attempts": 0, "created_at": now, "host": "",
        "last_seq": 1, "expected_bytes": expected, "needed_bytes": 0, "artifact": "", "result": {},
        "cancel_wanted": False,
    }  # fmt: skip
    row = connection.execute(insert(jobs).values(values).returning(*jobs.c)).one()
    history.tell_state(connection, row, now)
    return row


def _shared(connection: Connection, key: str) -> _Row | None:
    """The job that already is there for a wish: unfinished and not being cancelled, or done and still stored."""
    stored = exists().where(artifacts.c.digest == jobs.c.artifact)
    live = jobs.c.finished_at.is_(None) & ~jobs.c.cancel_wanted
    statement = select(jobs).where(jobs.c.wish_key == key, or_(live, (jobs.c.state == DONE) & stored))
    return connection.execute(statement.order_by(jobs.c.number.desc()).limit(1)).one_or_none()


def _reserved(connection: Connection) -> int:
    total = select(func.coalesce(func.sum(jobs.c.reserved_bytes), 0)).where(jobs.c.state.in_(ACTIVE))
    return int(connection.execute(total).scalar_one())


def _stored_bytes(connection: Connection, digest: str) -> int:
    return int(connection.execute(select(artifacts.c.nbytes).where(artifacts.c.digest == digest)).scalar_one())


def _touch(connection: Connection, digest: str, now: float) -> None:
    connection.execute(update(artifacts).where(artifacts.c.digest == digest).values(used_at=now))


def _row(connection: Connection, id: str) -> _Row:
    row = connection.execute(select(jobs).where(jobs.c.id == id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no job {id!r}; `mint jobs` lists those that there are")
    return row


def _read(connection: Connection, number: int) -> Job:
    return _records(connection, [connection.execute(select(jobs).where(jobs.c.number == number)).one()])[0]


def _records(connection: Connection, rows: Sequence[_Row]) -> list[Job]:
    names = subscriptions.names(connection, [row.number for row in rows])
    return [_job(row, names.get(row.number, ())) for row in rows]


def _job(row: _Row, names: tuple[str, ...]) -> Job:
    wish = Wish(row.model, row.identity, row.budget, row.options)
    return Job(
        row.id, wish, row.state, row.reason, row.owner, names, row.priority, row.attempts, row.created_at,
        row.started_at, row.finished_at, row.host, row.last_seq, row.needed_bytes, row.artifact, row.result,
        row.cancel_wanted,
    )  # fmt: skip
