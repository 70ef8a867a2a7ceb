"""Who may ask: tokens of 32 random bytes, shown once. The database keeps their SHA-256, from which none can be made."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, delete, insert, select

from cluster.service import quotas
from cluster.service.database import Database
from cluster.service.errors import NotFound
from cluster.service.records import SCOPES, Person, Quota
from cluster.service.tables import people, tokens
from mint.errors import MintError

PREFIX = "mint_"  # by which scanners for leaked secrets find one
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Grant:
    """A token that was given out: to whom, and when (seconds since 1970)."""

    person: Person
    created_at: float


class Tokens:
    """The tokens in a database."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create(self, name: str, scopes: Sequence[str], quota: Quota = Quota()) -> str:  # noqa: B008 (it is frozen)
        """A new token for someone who has none; the only time that it is shown. Raises `MintError`."""
        if not _NAME.fullmatch(name):
            raise MintError(f"{name!r} is no name; needed 1 to 64 of: letters, digits, . _ @ -, the first no sign")
        if not scopes or not set(scopes) <= set(SCOPES):
            raise MintError(f"{','.join(scopes)!r} are no scopes; needed one or more of: {', '.join(SCOPES)}")
        text = PREFIX + secrets.token_urlsafe(32)
        with self._database.write() as connection:
            if connection.execute(select(tokens).where(tokens.c.name == name)).one_or_none() is not None:
                raise MintError(f"{name} has a token; revoke it first: mint token revoke {name}")
            quotas.remember(connection, name, quota)
            ordered = ",".join(scope for scope in SCOPES if scope in scopes)
            values = {"name": name, "digest": _digest(text), "scopes": ordered, "created_at": self._clock()}
            connection.execute(insert(tokens).values(values))
        return text

    def verify(self, text: str) -> Person | None:
        """Whose token this is; None if it is nobody's.

        Every digest is compared, each in constant time, so that how long it takes tells nothing about any.
        """
        digest = _digest(text)
        with self._database.read() as connection:
            rows = connection.execute(select(tokens.c.name, tokens.c.digest)).all()
            mine = [row.name for row in rows if hmac.compare_digest(row.digest, digest)]
            if not mine:
                return None
            return _person(connection.execute(_GRANTS.where(tokens.c.name == mine[0])).one())

    def list(self) -> list[Grant]:
        """Every token that was given out, by name."""
        with self._database.read() as connection:
            rows = connection.execute(_GRANTS.order_by(tokens.c.name)).all()
        return [Grant(_person(row), row.created_at) for row in rows]

    def revoke(self, name: str) -> None:
        """Make someone's token worthless, at once; raises `NotFound`."""
        with self._database.write() as connection:
            if connection.execute(delete(tokens).where(tokens.c.name == name)).rowcount == 0:
                raise NotFound(f"{name} has no token; `mint token list` lists those who have")

    def any(self) -> bool:
        """Whether anybody has a token."""
        with self._database.read() as connection:
            return connection.execute(select(tokens.c.name).limit(1)).one_or_none() is not None


_GRANTS = select(tokens.c.scopes, tokens.c.created_at, people).join(people, people.c.name == tokens.c.name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _person(row: Row[tuple[object, ...]]) -> Person:
    return Person(row.name, tuple(row.scopes.split(",")), quotas.quota_of(row))
