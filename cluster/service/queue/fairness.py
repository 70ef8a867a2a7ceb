"""Chooses the next job: highest priority, then the owner served least recently, then the oldest job.

Serving the least recently served owner is a round robin over the owners, whatever the number of their waiting jobs.
"""

from sqlalchemy import Connection, Row, exists, func, or_, select, update

from cluster.service.data.states import QUEUED
from cluster.service.data.tables import jobs, people


def next_queued(connection: Connection) -> Row[tuple[object, ...]] | None:
    """The row of the next job; None if no waiting job may start.

    A job waits while another works on the same analysis, which it then reuses, and while its owner has as many running
    jobs as the quota allows.
    """
    other, own = jobs.alias(), jobs.alias()
    is_analyzed = exists().where(other.c.lease.is_not(None), other.c.analysis_key == jobs.c.analysis_key)
    running = select(func.count()).where(own.c.lease.is_not(None), own.c.owner == jobs.c.owner).scalar_subquery()
    statement = (
        select(jobs)
        .join(people, people.c.name == jobs.c.owner)
        .where(jobs.c.state == QUEUED, ~is_analyzed)
        .where(or_(people.c.active_quota.is_(None), running < people.c.active_quota))
        .order_by(jobs.c.priority.desc(), people.c.served, jobs.c.number)
        .limit(1)
    )
    return connection.execute(statement).one_or_none()


def count_turn(connection: Connection, owner: str) -> None:
    """Note that an owner was served; all other owners come first now."""
    latest = connection.execute(select(func.max(people.c.served))).scalar_one()
    connection.execute(update(people).where(people.c.name == owner).values(served=latest + 1))
