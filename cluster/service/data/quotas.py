"""Quotas of persons, and the seconds until a refused submission may succeed.

Two limits apply to every watcher of a job when it is submitted: the number of unfinished jobs, and the bytes that are
stored or expected. So they still hold if a shared job passes to its next watcher. The third limit applies when a job
begins: the number of running jobs of its owner. A running job that passes to the next owner continues, and counts
against that owner's limit.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, select
from sqlalchemy.dialects.postgresql import insert as insert_postgresql
from sqlalchemy.dialects.sqlite import insert as insert_sqlite

from cluster.service.data.records import Person, Quota
from cluster.service.data.states import DONE
from cluster.service.data.tables import artifacts, jobs, people, watchers
from cluster.service.errors import QuotaExceededError
from mint.core.sizes import format_size

_RECENT = 20  # jobs that give the usual time of a job
_UNKNOWN_SECONDS = 60.0  # the usual time before the first job is done
_SHORTEST, _LONGEST = 5, 3600  # limits of `retry_after`, seconds


def save(connection: Connection, name: str, quota: Quota) -> None:
    """Save the current quota of a person."""
    statement = _insert(connection, name, quota)
    connection.execute(statement.on_conflict_do_update(index_elements=[people.c.name], set_=_columns(quota)))


def _insert(connection: Connection, name: str, quota: Quota) -> Any:
    insert = insert_sqlite if connection.dialect.name == "sqlite" else insert_postgresql
    return insert(people).values(name=name, served=0, **_columns(quota))


def _columns(quota: Quota) -> dict[str, int | None]:
    return {f"{name}_quota": limit for name, limit in asdict(quota).items()}


def enter(connection: Connection, by: Person) -> None:
    """Add a person who is not known yet, with their quota; a known one keeps the saved quota."""
    statement = _insert(connection, by.name, by.quota)
    connection.execute(statement.on_conflict_do_nothing(index_elements=[people.c.name]))


def check(connection: Connection, by: Person, more_bytes: int, now: float, *, unfinished: bool) -> None:
    """Raise `QuotaExceededError` if one more job of at most `more_bytes` exceeds a quota of `by`."""
    wanted = _of_wanted(by.name, func.count()).where(jobs.c.finished_at.is_(None))
    most = by.quota.queued if unfinished else None
    if most is not None and (count := connection.execute(wanted).scalar_one()) >= most:
        raise QuotaExceededError(
            f"{by.name} has {count} waiting or running jobs and may have {most}; needed: one of them done "
            "or cancelled first",
            retry_after=_seconds_until_done(connection, by.name, now),
        )
    if by.quota.nbytes is not None and (nbytes := used_bytes(connection, by.name)) + more_bytes > by.quota.nbytes:
        raise QuotaExceededError(
            f"{by.name} has {format_size(nbytes)} stored or expected and may have {format_size(by.quota.nbytes)}, "
            f"this job takes up to {format_size(more_bytes)}; cancel jobs whose models are no longer "
            "used, also finished ones",
            retry_after=_LONGEST,
        )


def _of_wanted(name: str, value: ColumnElement[Any]) -> Select[Any]:
    """A value of the jobs that a person wants."""
    wanted = jobs.join(watchers, watchers.c.job == jobs.c.number)
    return select(value).select_from(wanted).where(watchers.c.name == name, watchers.c.wants)


def used_bytes(connection: Connection, name: str) -> int:
    """Bytes of the artifacts of a person's jobs, counted once each, and an upper bound for unfinished jobs."""
    made = _of_wanted(name, jobs.c.artifact).where(jobs.c.state == DONE)
    stored = select(func.coalesce(func.sum(artifacts.c.nbytes), 0)).where(artifacts.c.digest.in_(made))
    most = case((jobs.c.expected_bytes > 0, jobs.c.expected_bytes), else_=jobs.c.needed_bytes)
    expected = _of_wanted(name, func.coalesce(func.sum(most), 0)).where(jobs.c.finished_at.is_(None))
    return sum(int(connection.execute(total).scalar_one()) for total in (stored, expected))


def _seconds_until_done(connection: Connection, name: str, now: float) -> int:
    """The estimated seconds until the first job of a person is done, from the time of recent jobs."""
    duration = jobs.c.finished_at - jobs.c.started_at
    recent = select(duration).where(jobs.c.state == DONE).order_by(jobs.c.finished_at.desc()).limit(_RECENT)
    seconds: Sequence[float] = connection.execute(recent).scalars().all()
    usual = sum(seconds) / len(seconds) if seconds else _UNKNOWN_SECONDS
    running = _of_wanted(name, func.min(jobs.c.started_at)).where(jobs.c.lease.is_not(None))
    since = connection.execute(running).scalar_one()
    return round(min(max(usual - (now - since if since is not None else 0.0), _SHORTEST), _LONGEST))
