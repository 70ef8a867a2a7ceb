"""Who wants a job. Several who ask for the same thing share it; the first of them is its owner, whose turn it takes."""

from collections.abc import Sequence

from sqlalchemy import Connection, func, insert, select, update

from cluster.service.data.records import Person
from cluster.service.data.tables import jobs, watchers
from cluster.service.errors import NotWatchingError


def names(connection: Connection, numbers: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Who still wants each of some jobs, the first to come first."""
    statement = select(watchers.c.job, watchers.c.name).where(watchers.c.job.in_(numbers), watchers.c.wants)
    found: dict[int, tuple[str, ...]] = {}
    for row in connection.execute(statement.order_by(watchers.c.job, watchers.c.position)):
        found[row.job] = (*found.get(row.job, ()), row.name)
    return found


def wants(connection: Connection, job: int, name: str) -> bool:
    """Whether someone wants a job."""
    return name in names(connection, [job]).get(job, ())


def add(connection: Connection, job: int, name: str, priority: int) -> None:
    """Note that someone wants a job, from now on if they did not; the highest priority of all counts."""
    mine = (watchers.c.job == job, watchers.c.name == name)
    row = connection.execute(select(watchers).where(*mine)).one_or_none()
    last = connection.execute(select(func.max(watchers.c.position)).where(watchers.c.job == job)).scalar_one()
    values = {"position": (last or 0) + 1, "priority": priority, "wants": True}
    if row is None:
        connection.execute(insert(watchers).values(job=job, name=name, **values))
    elif row.wants:
        connection.execute(update(watchers).where(*mine).values(priority=max(priority, row.priority)))
    else:
        connection.execute(update(watchers).where(*mine).values(values))
    _settle(connection, job)


def leave(connection: Connection, job: int, by: Person, *, everybody: bool) -> bool:
    """Note that someone, or everybody, no longer wants a job; whether nobody does now. Raises `NotWatchingError`.

    An admin who never asked for it takes it from everybody. Who has left already may leave again.
    """
    asked = select(watchers.c.name).where(watchers.c.job == job, watchers.c.name == by.name)
    change = update(watchers).where(watchers.c.job == job).values(wants=False)
    watches = connection.execute(asked).one_or_none() is not None
    if by.may("admin") and (everybody or not watches):
        connection.execute(change)
    elif watches and not everybody:
        connection.execute(change.where(watchers.c.name == by.name))
    else:
        raise NotWatchingError(
            f"{by.name} cannot cancel this job for others; needed one of one's own, or to be an admin"
        )
    return not _settle(connection, job)


def _settle(connection: Connection, job: int) -> bool:
    """Let the job have the owner and the priority of those who want it; whether anybody does.

    The last to go stays its owner, for as long as it still runs and for the record.
    """
    wanting = select(watchers).where(watchers.c.job == job, watchers.c.wants).order_by(watchers.c.position)
    rows = connection.execute(wanting).all()
    if rows:
        values = {"owner": rows[0].name, "priority": max(row.priority for row in rows)}
        connection.execute(update(jobs).where(jobs.c.number == job).values(values))
    return bool(rows)
