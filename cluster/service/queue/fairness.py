"""Whose turn it is: the highest priority, then the owner who has waited longest for a turn, then the oldest job.

Taking turns by who was served least recently is a round robin over the owners, however many jobs each has waiting.
"""

from sqlalchemy import Connection, Row, exists, func, or_, select, update

from cluster.service.data.states import QUEUED
from cluster.service.data.tables import jobs, people


def next_queued(connection: Connection) -> Row[tuple[object, ...]] | None:
    """The row of the job that is to begin; None if all that wait must: nobody has a turn.

    A job must wait while another works on its analysis, since it then finds that made, and while its owner has as many
    jobs that run as their quota allows.
    """
    other, mine = jobs.alias(), jobs.alias()
    analyzed = exists().where(other.c.lease.is_not(None), other.c.analysis_key == jobs.c.analysis_key)
    running = select(func.count()).where(mine.c.lease.is_not(None), mine.c.owner == jobs.c.owner).scalar_subquery()
    statement = (
        select(jobs)
        .join(people, people.c.name == jobs.c.owner)
        .where(jobs.c.state == QUEUED, ~analyzed)
        .where(or_(people.c.active_quota.is_(None), running < people.c.active_quota))
        .order_by(jobs.c.priority.desc(), people.c.served, jobs.c.number)
        .limit(1)
    )
    return connection.execute(statement).one_or_none()


def count_turn(connection: Connection, owner: str) -> None:
    """Someone was served: all others come before them."""
    latest = connection.execute(select(func.max(people.c.served))).scalar_one()
    connection.execute(update(people).where(people.c.name == owner).values(served=latest + 1))
