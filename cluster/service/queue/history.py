"""What happened to jobs, as their events tell it. Numbers of events only grow, and the last one of a job is kept.

Progress is of use while it is news: an event of progress takes the place of the one before it, unless something else
came in between. So a job leaves a few rows behind, however long it took; and who reads on from an event that is no
longer there misses nothing that still holds. Of jobs that ended long ago only the end is kept.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, insert, select

from cluster.service.data.records import Event
from cluster.service.data.tables import events, jobs

KEPT_SECONDS = 30 * 24 * 3600.0  # after the end of a job, for its events and its log
PROGRESS = "progress"
_AT_ONCE = 100  # jobs whose events are forgotten in one transaction


def tell(connection: Connection, job: Row[Any], now: float, kind: str, body: Mapping[str, Any]) -> Event:
    """Write down event number `job.last_seq` of a job."""
    if kind == PROGRESS:
        before = (events.c.job == job.number, events.c.seq == job.last_seq - 1, events.c.kind == PROGRESS)
        connection.execute(delete(events).where(*before))
    connection.execute(insert(events).values(job=job.number, seq=job.last_seq, at=now, kind=kind, body=dict(body)))
    return Event(job.id, job.last_seq, now, kind, dict(body))


def tell_state(connection: Connection, job: Row[Any], now: float) -> Event:
    """Write down the state of a job."""
    body = {"state": job.state, "reason": job.reason, "host": job.host, "attempts": job.attempts}
    return tell(connection, job, now, "state", body)


def read(connection: Connection, job: Row[Any], after: int, limit: int) -> list[Event]:
    """What happened to a job after an event, in order."""
    statement = select(events).where(events.c.job == job.number, events.c.seq > after)
    rows = connection.execute(statement.order_by(events.c.seq).limit(limit))
    return [Event(job.id, row.seq, row.at, row.kind, row.body) for row in rows]


def outlived(connection: Connection, before: float) -> list[int]:
    """The numbers of some jobs that ended before a time and of which more than the end is still told."""
    told = exists().where(events.c.job == jobs.c.number, events.c.seq < jobs.c.last_seq)
    return list(
        connection.execute(select(jobs.c.number).where(jobs.c.finished_at < before, told).limit(_AT_ONCE)).scalars()
    )


def forget(connection: Connection, numbers: list[int]) -> int:
    """Remove all events of some jobs but the last; how many went."""
    last = select(jobs.c.last_seq).where(jobs.c.number == events.c.job).scalar_subquery()
    return connection.execute(delete(events).where(events.c.job.in_(numbers), events.c.seq < last)).rowcount
