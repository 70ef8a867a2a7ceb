"""How much one may ask for, and when to ask again.

Two of the limits hold when a job is submitted, for whoever watches it, shared or not: the jobs that wait or run, and
the bytes of what is stored or still to come. So they hold as well when a shared job passes to its next watcher. The
third holds when a job begins: its owner has fewer that run than the quota says. A running job that passes to a next
owner goes on, and counts against what they may begin.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, Row, case, func, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from cluster.service.data.records import Person, Quota, Wish
from cluster.service.data.states import DONE
from cluster.service.data.tables import artifacts, jobs, people, watchers
from cluster.service.errors import QuotaExceededError
from mint.core.sizes import format_size, parse_budget

_RECENT = 20  # jobs whose time says how long one takes
_UNKNOWN_SECONDS = 60.0  # a job takes, before any was done
_SHORTEST, _LONGEST = 5, 3600  # seconds to wait before one asks again


def expected_bytes(wish: Wish) -> int:
    """Bytes that the answer takes at most, as far as the budget alone says; 0 where it depends on the model."""
    budget = parse_budget(wish.budget) if wish.budget else None
    return int(budget.amount) if budget and budget.unit == "B" else 0


def remember(connection: Connection, name: str, quota: Quota) -> None:
    """Keep the quota that someone has now, from their first job on."""
    insert = insert_sqlite if connection.dialect.name == "sqlite" else insert_postgresql
    values = {"active_quota": quota.active, "queued_quota": quota.queued, "nbytes_quota": quota.nbytes}
    statement = insert(people).values(name=name, served=0, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=[people.c.name], set_=values))


def quota_of(row: Row[tuple[object, ...]]) -> Quota:
    """The quota in a row of `people`."""
    return Quota(row.active_quota, row.queued_quota, row.nbytes_quota)


def check(connection: Connection, by: Person, more_bytes: int, now: float, *, unfinished: bool) -> None:
    """Raise `QuotaExceededError` if one more job, which takes `more_bytes` at most, were too much for someone."""
    if unfinished and by.quota.queued is not None and (have := _unfinished(connection, by.name)) >= by.quota.queued:
        raise QuotaExceededError(
            f"{by.name} has {have} jobs that wait or run and may have {by.quota.queued}; needed one of them done or "
            "cancelled first",
            retry_after=_soonest(connection, by.name, now),
        )
    if by.quota.nbytes is not None and (have := _nbytes(connection, by.name)) + more_bytes > by.quota.nbytes:
        raise QuotaExceededError(
            f"{by.name} has {format_size(have)} stored or still to come and may have {format_size(by.quota.nbytes)}, "
            f"this job takes up to {format_size(more_bytes)}; cancel jobs, finished ones too, whose models are no "
            "longer needed",
            retry_after=_LONGEST,
        )


def _unfinished(connection: Connection, name: str) -> int:
    statement = select(func.count()).select_from(jobs.join(watchers, watchers.c.job == jobs.c.number))
    wanted = statement.where(watchers.c.name == name, watchers.c.wants, jobs.c.finished_at.is_(None))
    return connection.execute(wanted).scalar_one()


def _nbytes(connection: Connection, name: str) -> int:
    """Bytes of the artifacts that someone's jobs made, each once, and of what their jobs will make at most."""
    wanted = select(jobs).join(watchers, watchers.c.job == jobs.c.number)
    wanted = wanted.where(watchers.c.name == name, watchers.c.wants)
    made = select(wanted.where(jobs.c.state == DONE).subquery().c.artifact)
    stored = select(func.coalesce(func.sum(artifacts.c.nbytes), 0)).where(artifacts.c.digest.in_(made))
    coming = wanted.where(jobs.c.finished_at.is_(None)).subquery()
    most = case((coming.c.expected_bytes > 0, coming.c.expected_bytes), else_=coming.c.needed_bytes)
    unmade = select(func.coalesce(func.sum(most), 0))
    return int(connection.execute(stored).scalar_one()) + int(connection.execute(unmade).scalar_one())


def _soonest(connection: Connection, name: str, now: float) -> int:
    """Seconds until the first of someone's jobs should be over, by what the last ones took."""
    took = jobs.c.finished_at - jobs.c.started_at
    recent = select(took).where(jobs.c.state == DONE).order_by(jobs.c.finished_at.desc()).limit(_RECENT)
    seconds: Sequence[float] = connection.execute(recent).scalars().all()
    usual = sum(seconds) / len(seconds) if seconds else _UNKNOWN_SECONDS
    running = select(func.min(jobs.c.started_at)).join(watchers, watchers.c.job == jobs.c.number)
    since = connection.execute(
        running.where(watchers.c.name == name, watchers.c.wants, jobs.c.lease.is_not(None))
    ).scalar_one()
    return round(min(max(usual - (now - since if since is not None else 0.0), _SHORTEST), _LONGEST))
