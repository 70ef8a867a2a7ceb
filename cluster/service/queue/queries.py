"""Reads the jobs of a database: one, pages of them, their events, counts, times and leases."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import case, func, select

from cluster.service.data.database import Database
from cluster.service.data.records import TIME_BOUNDS, Event, HeldLease, Job, Person, Times
from cluster.service.data.states import ACTIVE, BLOCKED, FINAL, PAUSED, QUEUED
from cluster.service.data.tables import jobs
from cluster.service.data.visibility import visible_jobs
from cluster.service.queue import history
from cluster.service.queue.listing import NEWEST, conditions, page
from cluster.service.queue.rows import job_row, no_job, read_jobs, reserved_bytes


@dataclass
class Queries:
    """The jobs in a database, to be read."""

    database: Database
    clock: Callable[[], float] = time.time

    def get(self, id: str, viewer: Person | None = None) -> Job:
        """One job; raises `NotFoundError`, also for a job that the viewer does not see."""
        with self.database.read() as connection:
            is_visible = select(jobs.c.number).where(jobs.c.id == id, visible_jobs(viewer))
            if connection.execute(is_visible).one_or_none() is None:
                raise no_job(id)
            return read_jobs(connection, self.clock(), [job_row(connection, id)])[0]

    def find(
        self,
        states: Collection[str] = (),
        *,
        viewer: Person | None = None,
        watcher: str | None = None,
        model_identity: str | None = None,
        search: str = "",
        sort: str = NEWEST,
        before: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """A page of the jobs that `listing.conditions` describes; `before` is the last id of the page before."""
        chosen = conditions(states, viewer=viewer, watcher=watcher, model_identity=model_identity, search=search)
        with self.database.read() as connection:
            return read_jobs(
                connection, self.clock(), connection.execute(page(connection, chosen, sort, before, limit)).all()
            )

    def events(self, id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """The events of a job after number `after`, in order; raises `NotFoundError`."""
        with self.database.read() as connection:
            return history.read(connection, job_row(connection, id), after, limit)

    def last_seqs(self, ids: Sequence[str]) -> dict[str, int]:
        """The number of the last event of each job, without missing jobs."""
        statement = select(jobs.c.id, jobs.c.last_seq).where(jobs.c.id.in_(ids))
        return {row.id: row.last_seq for row in self.database.rows(statement)}

    def counts(
        self,
        *,
        viewer: Person | None = None,
        watcher: str | None = None,
        model_identity: str | None = None,
        search: str = "",
    ) -> dict[str, int]:
        """The number of jobs in each state, of those that `listing.conditions` describes."""
        chosen = conditions(viewer=viewer, watcher=watcher, model_identity=model_identity, search=search)
        statement = select(jobs.c.state, func.count().label("many")).where(*chosen).group_by(jobs.c.state)
        counts = {row.state: row.many for row in self.database.rows(statement)}
        return {state: counts.get(state, 0) for state in (QUEUED, *ACTIVE, BLOCKED, PAUSED, *FINAL)}

    def times(self) -> list[Times]:
        """The times of all jobs, by state and owner; those of an ended job never change."""
        waited = jobs.c.finished_at - jobs.c.created_at - jobs.c.worked_seconds
        has_begun = jobs.c.started_at.is_not(None)
        columns = {
            "number": func.count(),
            "begun": func.count(jobs.c.started_at),
            "waited": func.coalesce(func.sum(case((has_begun, waited))), 0.0),
            "worked": func.sum(jobs.c.worked_seconds),
            "first_queued_at": func.min(jobs.c.queued_at),
        }
        counts = [
            func.count(case((has_begun & (seconds <= bound), 1)))
            for seconds in (waited, jobs.c.worked_seconds)
            for bound in TIME_BOUNDS
        ]
        named = [column.label(name) for name, column in columns.items()]
        statement = select(jobs.c.state, jobs.c.owner, *named, *counts).group_by(jobs.c.state, jobs.c.owner)
        times = []
        for row in self.database.rows(statement):
            plain = {name: row._mapping[name] for name in ("state", "owner", *columns)}
            of_waits, of_work = row[-2 * len(TIME_BOUNDS) : -len(TIME_BOUNDS)], row[-len(TIME_BOUNDS) :]
            times.append(Times(**plain, waited_counts=tuple(of_waits), worked_counts=tuple(of_work)))
        return times

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

    def reserved_bytes(self) -> int:
        """Bytes of the store that are reserved for running jobs."""
        with self.database.read() as connection:
            return reserved_bytes(connection)

    def expected_bytes(self) -> int:
        """Bytes that unfinished jobs still store, without blocked jobs and jobs that do not know it yet."""
        total = select(func.coalesce(func.sum(jobs.c.needed_bytes), 0))
        is_open = jobs.c.finished_at.is_(None) & (jobs.c.state != BLOCKED)
        return int(self.database.rows(total.where(is_open))[0][0])
