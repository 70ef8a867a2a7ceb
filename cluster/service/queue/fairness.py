"""Chooses the next job: highest priority, then its lane, then the owner served least recently, then the oldest job.

Serving the least recently served owner is a round robin over the owners, whatever the number of their waiting jobs.

Lanes. A job that is expected to take long waits behind all short ones of its priority, but at most `PATIENCE_SECONDS`:
then it takes its turn among them. A long job that has worked for `TURN_SECONDS` yields to a short one if no slot is
free, after the unit at work. If that takes long, the short job runs beside it. So a short job waits for about one turn,
and a long job always comes to its end.
"""

from collections import defaultdict, deque
from heapq import heapify, heappop, heappush
from itertools import count, groupby
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, case, exists, func, or_, select, update

from cluster.service.data.states import QUEUED
from cluster.service.data.tables import drains, jobs, people

LONG_SECONDS = 300.0
TURN_SECONDS = 60.0
PATIENCE_SECONDS = 600.0


def next_queued(
    connection: Connection, now: float, *, host: str, only_short: bool = False
) -> Row[tuple[Any, ...]] | None:
    """The row of the next job of a host; None if no waiting job may start.

    A job waits while another works on the same analysis, which it then reuses, and while its owner has as many running
    jobs as the quota allows.
    """
    other, own = jobs.alias(), jobs.alias()
    is_analyzed = exists().where(other.c.lease.is_not(None), other.c.analysis_key == jobs.c.analysis_key)
    running = select(func.count()).where(own.c.lease.is_not(None), own.c.owner == jobs.c.owner).scalar_subquery()
    has_turn = or_(people.c.active_quota.is_(None), running < people.c.active_quota)
    statement = _queued(now, jobs).where(~is_analyzed, has_turn, ~is_drained(host))
    if only_short:
        statement = statement.where(jobs.c.expected_seconds < LONG_SECONDS)
    return connection.execute(statement.limit(1)).one_or_none()


def is_drained(host: str) -> ColumnElement[bool]:
    """True if an admin wants no job to begin on a host."""
    return exists().where(drains.c.host == host)


def is_long(now: float) -> ColumnElement[bool]:
    """True for a running job that is expected to take long, or has done so, and whose turn is over."""
    ran = now - jobs.c.started_at
    takes_long = or_(jobs.c.expected_seconds >= LONG_SECONDS, ran >= LONG_SECONDS)
    is_free = (jobs.c.yields_to == "") & ~jobs.c.cancel_wanted
    return jobs.c.lease.is_not(None) & is_free & takes_long & (ran >= TURN_SECONDS)


def to_preempt(connection: Connection, host: str, now: float) -> Row[tuple[Any, ...]] | None:
    """The running job of a host that must yield: a long one, if a short one of no lower priority waits.

    One yields at a time.
    """
    is_yielding = exists().where(jobs.c.host == host, jobs.c.lease.is_not(None), jobs.c.yields_to == QUEUED)
    if connection.execute(select(is_yielding)).scalar_one():
        return None
    waiting = next_queued(connection, now, host=host, only_short=True)
    if waiting is None:
        return None
    long = select(jobs).where(is_long(now), jobs.c.host == host, jobs.c.priority <= waiting.priority)
    return connection.execute(long.order_by(jobs.c.priority, jobs.c.started_at).limit(1)).one_or_none()


def positions(connection: Connection, now: float) -> dict[int, int]:
    """The positions of all queued jobs by number, from 1, if nothing else is submitted."""
    lane = _lane(now).label("lane")
    rows = connection.execute(_queued(now, jobs.c.number, jobs.c.owner, people.c.served, jobs.c.priority, lane)).all()
    served = {row.owner: row.served for row in rows}
    turn = count(max(served.values(), default=0) + 1)
    numbers: list[int] = []
    for _, group in groupby(rows, key=lambda row: (row.priority, row.lane)):
        waiting: dict[str, deque[int]] = defaultdict(deque)
        for row in group:
            waiting[row.owner].append(row.number)
        heads = [(served[owner], own.popleft(), owner) for owner, own in waiting.items()]
        heapify(heads)
        while heads:
            _, number, owner = heappop(heads)
            numbers.append(number)
            served[owner] = next(turn)
            if waiting[owner]:
                heappush(heads, (served[owner], waiting[owner].popleft(), owner))
    return {number: position for position, number in enumerate(numbers, 1)}


def count_turn(connection: Connection, owner: str) -> None:
    """Note that an owner was served; all other owners come first now."""
    latest = connection.execute(select(func.max(people.c.served))).scalar_one()
    connection.execute(update(people).where(people.c.name == owner).values(served=latest + 1))


def _queued(now: float, *columns: Any) -> Select[Any]:
    """The queued jobs in their order."""
    statement = select(*columns).join(people, people.c.name == jobs.c.owner).where(jobs.c.state == QUEUED)
    return statement.order_by(jobs.c.priority.desc(), _lane(now), people.c.served, jobs.c.number)


def _lane(now: float) -> ColumnElement[int]:
    is_behind = (jobs.c.expected_seconds >= LONG_SECONDS) & (jobs.c.queued_at > now - PATIENCE_SECONDS)
    return case((is_behind, 1), else_=0)
