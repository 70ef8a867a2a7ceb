"""Which jobs a list shows, and in which order. Lists are long, so every order has pages."""

from collections.abc import Collection, Sequence
from functools import reduce
from operator import add

from sqlalchemy import ColumnElement, Connection, Select, and_, case, exists, func, or_, select

from cluster.service.data.records import Person
from cluster.service.data.states import ACTIVE, CANCELLED, FINAL
from cluster.service.data.tables import jobs, watchers
from cluster.service.data.visibility import visible_jobs
from cluster.service.errors import NotFoundError

NEWEST = "newest"
_Key = tuple[ColumnElement[object], bool]  # a value, and true for descending order
_NUMBER = jobs.c.number
_ENDED_AT = func.coalesce(jobs.c.finished_at, 0.0)
_GROUP = case((jobs.c.state.in_(ACTIVE), 0), (jobs.c.state.in_(FINAL), 2), else_=1)
_PRIORITY = case((jobs.c.state.in_(FINAL), 0), else_=jobs.c.priority)
# name: keys; the last one differs for all jobs
SORTS: dict[str, tuple[_Key, ...]] = {
    NEWEST: ((_NUMBER, True),),
    "oldest": ((_NUMBER, False),),
    "ended": ((_ENDED_AT, True), (_NUMBER, True)),
    # running jobs, then waiting ones in their order, then those that ended last
    "live": ((_GROUP, False), (_ENDED_AT, True), (_PRIORITY, True), (_NUMBER, False)),
}
_SEARCHED = (jobs.c.id, jobs.c.model, jobs.c.budget, jobs.c.owner, jobs.c.host, jobs.c.reason)
_SPACED: list[ColumnElement[str]] = [column + " " for column in _SEARCHED]
_TEXT = func.lower(reduce(add, _SPACED))


def conditions(
    states: Collection[str] = (),
    *,
    viewer: Person | None = None,
    watcher: str | None = None,
    model_identity: str | None = None,
    search: str = "",
) -> list[ColumnElement[bool]]:
    """The conditions of jobs in some states, seen by a viewer, of a watcher, of a model, with all words of a search.

    The jobs of a watcher are those that they want, and cancelled ones.
    """
    chosen = [visible_jobs(viewer)] if viewer else []
    if states:
        chosen.append(jobs.c.state.in_(states))
    if model_identity is not None:
        chosen.append(jobs.c.identity == model_identity)
    if watcher is not None:
        is_watched = exists().where(watchers.c.job == jobs.c.number, watchers.c.name == watcher)
        chosen.append(is_watched.where(or_(watchers.c.wants, jobs.c.cancel_wanted, jobs.c.state == CANCELLED)))
    return chosen + [_TEXT.contains(word.lower(), autoescape=True) for word in search.split()]


def page(
    connection: Connection, chosen: Sequence[ColumnElement[bool]], sort: str, before: str | None, limit: int
) -> Select[tuple[object, ...]]:
    """The query of a page; `before` is the last job of the page before. Raises `NotFoundError`."""
    keys = SORTS[sort]
    statement = select(jobs).where(*chosen).limit(limit)
    if before is not None:
        last = connection.execute(select(*(key for key, _ in keys)).where(jobs.c.id == before)).one_or_none()
        if last is None:
            raise NotFoundError(f"there is no job {before!r}; needed: the last id of the page before")
        statement = statement.where(or_(*_beyond(keys, tuple(last))))
    return statement.order_by(*(key.desc() if descends else key.asc() for key, descends in keys))


def _beyond(keys: Sequence[_Key], last: Sequence[object]) -> list[ColumnElement[bool]]:
    """The conditions of the jobs after one with some values: the first key that differs decides."""
    return [
        and_(*(keys[prior][0] == last[prior] for prior in range(index)), key < value if descends else key > value)
        for index, ((key, descends), value) in enumerate(zip(keys, last, strict=True))
    ]
