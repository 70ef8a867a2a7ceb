"""The watchers of a job. Equal requests share one job; its first watcher is its owner, whose turn it takes."""

from collections.abc import Sequence

from sqlalchemy import Connection, func, insert, select, update

from cluster.service.data.records import Person
from cluster.service.data.tables import jobs, watchers
from cluster.service.errors import NotWatchingError


def names(connection: Connection, numbers: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """The watchers that want each of some jobs, by number, in order of arrival."""
    statement = select(watchers.c.job, watchers.c.name).where(watchers.c.job.in_(numbers), watchers.c.wants)
    by_job: dict[int, tuple[str, ...]] = {}
    for row in connection.execute(statement.order_by(watchers.c.job, watchers.c.position)):
        by_job[row.job] = (*by_job.get(row.job, ()), row.name)
    return by_job


def add(connection: Connection, job: int, name: str, priority: int) -> None:
    """Add a person to the watchers of a job, which gets the highest priority of all watchers."""
    own = (watchers.c.job == job, watchers.c.name == name)
    row = connection.execute(select(watchers).where(*own)).one_or_none()
    last = connection.execute(select(func.max(watchers.c.position)).where(watchers.c.job == job)).scalar_one()
    change = update(watchers).where(*own) if row else insert(watchers).values(job=job, name=name)
    if row and row.wants:
        connection.execute(change.values(priority=max(priority, row.priority)))
    else:
        connection.execute(change.values(position=(last or 0) + 1, priority=priority, wants=True))
    _update_owner(connection, job)


def leave(connection: Connection, job: int, by: Person, *, everybody: bool) -> bool:
    """Remove a person, or everybody, from the watchers of a job; true if none is left. Raises `NotWatchingError`.

    An admin who never was a watcher removes everybody. A former watcher may leave again.
    """
    own = select(watchers.c.name).where(watchers.c.job == job, watchers.c.name == by.name)
    change = update(watchers).where(watchers.c.job == job).values(wants=False)
    is_watcher = connection.execute(own).one_or_none() is not None
    if by.may("admin") and (everybody or not is_watcher):
        connection.execute(change)
    elif is_watcher and not everybody:
        connection.execute(change.where(watchers.c.name == by.name))
    else:
        raise NotWatchingError(
            f"{by.name} cannot cancel this job for others; needed: one of your own jobs, or an admin's token"
        )
    return not _update_owner(connection, job)


def _update_owner(connection: Connection, job: int) -> bool:
    """Set the owner and the priority of a job from its watchers; true if there are any.

    The last watcher to leave stays the owner, while the job runs and for the record.
    """
    statement = select(watchers).where(watchers.c.job == job, watchers.c.wants).order_by(watchers.c.position)
    rows = connection.execute(statement).all()
    if rows:
        values = {"owner": rows[0].name, "priority": max(row.priority for row in rows)}
        connection.execute(update(jobs).where(jobs.c.number == job).values(values))
    return bool(rows)
