"""Rows of the table of jobs: insert one, find the one that equal requests share, read them as records."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, or_, select, update

from cluster.service.data.records import Forecast, Job, ModelRequest
from cluster.service.data.states import ACTIVE, DONE, QUEUED
from cluster.service.data.tables import artifacts, jobs
from cluster.service.errors import NotFoundError
from cluster.service.queue import history, subscriptions
from cluster.service.queue.fairness import positions

JobRow = Row[tuple[Any, ...]]
_COPIED = tuple(copied.name for copied in fields(Job) if copied.name in jobs.c)


def new_job(connection: Connection, request: ModelRequest, owner: str, forecast: Forecast, **values: Any) -> JobRow:
    """Insert a queued job of a person."""
    values |= {
        **asdict(request), "id": secrets.token_hex(8), "wish_key": request.key, "analysis_key": request.analysis_key,
        "state": QUEUED, "owner": owner, "queued_at": values["created_at"], "expected_bytes": forecast.most_bytes,
        "source_bytes": forecast.source_bytes, "expected_seconds": forecast.seconds,
        "expected_stages": dict(forecast.stages),
    }  # fmt: skip
    row = connection.execute(insert(jobs).values(values).returning(*jobs.c)).one()
    history.append_state(connection, row, values["created_at"])
    return row


def repeated_job(connection: Connection, row: JobRow, now: float) -> JobRow:
    """Insert a queued job for the request of an ended one, its watchers and, without them, its owner."""
    forecast = Forecast(row.expected_bytes, row.source_bytes, row.expected_stages or {})
    request = ModelRequest(row.model, row.identity, row.budget, row.options, row.group)
    values = {"priority": row.priority, "created_at": now, "deadline_seconds": row.deadline_seconds}
    names = subscriptions.names(connection, [row.number]).get(row.number) or (row.owner,)
    repeated = new_job(connection, request, names[0], forecast, **values)
    for name in names:
        subscriptions.add(connection, repeated.number, name, row.priority)
    return repeated


def shared_job(connection: Connection, key: str) -> JobRow | None:
    """The existing job for a request: unfinished and not being cancelled, or done and still stored."""
    is_stored = exists().where(artifacts.c.digest == jobs.c.artifact)
    is_live = jobs.c.finished_at.is_(None) & ~jobs.c.cancel_wanted
    statement = select(jobs).where(jobs.c.wish_key == key, or_(is_live, (jobs.c.state == DONE) & is_stored))
    return connection.execute(statement.order_by(jobs.c.number.desc()).limit(1)).one_or_none()


def rank(state: str, kind: str = "", body: Mapping[str, Any] = MappingProxyType({})) -> float:
    """The position of a job on its way: the number of its stage, and the share of it that is done."""
    total = body.get("total", 0) if kind == history.PROGRESS else 0
    return ACTIVE.index(state) + (min(1.0, body.get("done", 0) / total) if total > 0 else 0.0)


def progress_values(row: JobRow, rank: float) -> dict[str, Any]:
    """The changes of a job that comes to a rank: progress is what no attempt before reached."""
    return {"reached": rank, "has_progressed": True} if rank > row.reached else {}


def reserved_bytes(connection: Connection) -> int:
    """Bytes of the store that are reserved for running jobs."""
    total = select(func.coalesce(func.sum(jobs.c.reserved_bytes), 0)).where(jobs.c.state.in_(ACTIVE))
    return int(connection.execute(total).scalar_one())


def job_row(connection: Connection, id: str) -> JobRow:
    """The row of a job; raises `NotFoundError`."""
    row = connection.execute(select(jobs).where(jobs.c.id == id)).one_or_none()
    if row is None:
        raise no_job(id)
    return row


def no_job(id: str) -> NotFoundError:
    """The error for an id without a job."""
    return NotFoundError(f"there is no job {id!r}; needed: an id from `mint jobs`")


def change_row(connection: Connection, row: JobRow, **values: Any) -> JobRow:
    """Change columns of the row of a job, and return it."""
    change = update(jobs).where(jobs.c.number == row.number).values(values)
    return connection.execute(change.returning(*jobs.c)).one()


def read_job(connection: Connection, now: float, number: int) -> Job:
    """The job of a number."""
    return read_jobs(connection, now, [connection.execute(select(jobs).where(jobs.c.number == number)).one()])[0]


def read_jobs(connection: Connection, now: float, rows: Sequence[JobRow]) -> list[Job]:
    """The jobs of rows, with their watchers and their positions in the queue."""
    names = subscriptions.names(connection, [row.number for row in rows])
    order = positions(connection, now) if any(row.state == QUEUED for row in rows) else {}
    return [
        Job(
            request=ModelRequest(row.model, row.identity, row.budget, row.options, row.group),
            watchers=names.get(row.number, ()),
            position=order.get(row.number, 0),
            **{name: getattr(row, name) for name in _COPIED} | {"expected_stages": row.expected_stages or {}},
        )
        for row in rows
    ]
