"""The people of a service: their token, their quota, and what they use."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, case, func, select

from cluster.service.data import quotas
from cluster.service.data.database import Database
from cluster.service.data.records import Quota
from cluster.service.data.states import ACTIVE, FINAL, WAITING
from cluster.service.data.tables import jobs, people
from cluster.service.data.tokens import Grant, Tokens, set_groups
from cluster.service.errors import NotFoundError

_GROUPS = (WAITING, ACTIVE, FINAL)


@dataclass(frozen=True, slots=True)
class Usage:
    """A person, the numbers of their jobs, their work in seconds, and the bytes that count against their quota."""

    name: str
    grant: Grant | None  # none: the token was revoked, or never made
    quota: Quota
    groups: tuple[str, ...]
    waiting: int
    running: int
    ended: int
    worked_seconds: float
    used_bytes: int


@dataclass
class People:
    """The people in a database."""

    database: Database
    clock: Callable[[], float] = time.time
    _tokens: Tokens = field(init=False)

    def __post_init__(self) -> None:
        self._tokens = Tokens(self.database, self.clock)

    def usage(self) -> list[Usage]:
        """Everybody who ever had a token or a job, by name."""
        grants = {grant.person.name: grant for grant in self._tokens.list()}
        with self.database.read() as connection:
            counts = _counts(connection)
            return [
                Usage(
                    row.name,
                    grants.get(row.name),
                    Quota(row.active_quota, row.queued_quota, row.nbytes_quota),
                    tuple(filter(None, row.groups.split(","))),
                    *counts.get(row.name, (0, 0, 0, 0.0)),
                    quotas.used_bytes(connection, row.name),
                )
                for row in connection.execute(select(people).order_by(people.c.name))
            ]

    def change(self, name: str, quota: Quota | None = None, groups: Sequence[str] | None = None) -> None:
        """Replace the quota or the groups of a person; raises `NotFoundError`."""
        with self.database.write() as connection:
            if connection.execute(select(people).where(people.c.name == name)).one_or_none() is None:
                raise NotFoundError(f"there is no person {name!r}; needed: a name from GET /v1/people")
            if quota is not None:
                quotas.save(connection, name, quota)
            if groups is not None:
                set_groups(connection, name, groups)


def _counts(connection: Connection) -> dict[str, tuple[int, int, int, float]]:
    """Of the jobs of each owner: those that wait, run and ended, and the seconds of work."""
    numbers = [func.count(case((jobs.c.state.in_(states), 1))) for states in _GROUPS]
    worked = func.coalesce(func.sum(jobs.c.worked_seconds), 0.0)
    rows = connection.execute(select(jobs.c.owner, *numbers, worked).group_by(jobs.c.owner))
    return {owner: (waiting, running, ended, seconds) for owner, waiting, running, ended, seconds in rows}
