"""The events of jobs. Their numbers only grow, and the last event of a job always stays.

A progress event replaces the event before it if that is progress too. So a job has few rows, however long it takes, and
a reader who resumes from a replaced event misses nothing current. Old jobs keep only their last event.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, insert, select

from cluster.service.data.records import Event
from cluster.service.data.tables import events, jobs

PROGRESS = "progress"
_BATCH = 100  # jobs per transaction of `trim`


def append(connection: Connection, job: Row[Any], now: float, kind: str, body: Mapping[str, Any]) -> Event:
    """Save event number `job.last_seq` of a job."""
    if kind == PROGRESS:
        previous = (events.c.job == job.number, events.c.seq == job.last_seq - 1, events.c.kind == PROGRESS)
        connection.execute(delete(events).where(*previous))
    connection.execute(insert(events).values(job=job.number, seq=job.last_seq, at=now, kind=kind, body=dict(body)))
    return Event(job.id, job.last_seq, now, kind, dict(body))


def append_state(connection: Connection, job: Row[Any], now: float) -> None:
    """Save the state of a job as an event."""
    append(
        connection, job, now, "state", {name: getattr(job, name) for name in ("state", "reason", "host", "attempts")}
    )


def read(connection: Connection, job: Row[Any], after: int, limit: int) -> list[Event]:
    """The events of a job after number `after`, in order."""
    statement = select(events).where(events.c.job == job.number, events.c.seq > after)
    rows = connection.execute(statement.order_by(events.c.seq).limit(limit))
    return [Event(job.id, row.seq, row.at, row.kind, row.body) for row in rows]


def trim(connection: Connection, before: float) -> int:
    """Remove all but the last event of some jobs that ended before a time; return the number of removed events."""
    has_more = exists().where(events.c.job == jobs.c.number, events.c.seq < jobs.c.last_seq)
    some = select(jobs.c.number).where(jobs.c.finished_at < before, has_more).limit(_BATCH)
    numbers = connection.execute(some).scalars().all()
    last = select(jobs.c.last_seq).where(jobs.c.number == events.c.job).scalar_subquery()
    return connection.execute(delete(events).where(events.c.job.in_(numbers), events.c.seq < last)).rowcount
