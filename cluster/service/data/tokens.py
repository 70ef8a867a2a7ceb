"""Who may ask: tokens of 32 random bytes, shown once. The database keeps their SHA-256, from which none can be made."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Row, delete, insert, select, update

from cluster.service.data import quotas
from cluster.service.data.database import Database
from cluster.service.data.records import SCOPES, Person, Quota
from cluster.service.data.tables import people, tokens
from cluster.service.errors import NotFoundError
from mint.core.errors import MintError

NOBODY = "local"  # what everybody on this machine is called where nobody ever had a token
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
        if not _NAME.fullmatch(name) or name == NOBODY:
            raise MintError(
                f"{name!r} is no name; needed 1 to 64 of: letters, digits, . _ @ -, the first no sign, and not {NOBODY}"
            )
        if not scopes or not set(scopes) <= set(SCOPES):
            raise MintError(f"{','.join(scopes)!r} are no scopes; needed one or more of: {', '.join(SCOPES)}")
        text = PREFIX + secrets.token_urlsafe(32)
        with self._database.write() as connection:
            if connection.execute(select(tokens).where(tokens.c.name == name, _GOOD)).one_or_none() is not None:
                raise MintError(f"{name} has a token; revoke it first: mint token revoke {name}")
            quotas.remember(connection, name, quota)
            ordered = ",".join(scope for scope in SCOPES if scope in scopes)
            values = {"name": name, "digest": digest_of(text), "scopes": ordered, "created_at": self._clock()}
            connection.execute(delete(tokens).where(tokens.c.name == name))
            connection.execute(insert(tokens).values(values))
        return text

    def verify(self, text: str) -> Person | None:
        """Whose token this is; None if it is nobody's.

        Every digest is compared, each in constant time, so that how long it takes tells nothing about any.
        """
        digest = digest_of(text)
        with self._database.read() as connection:
            rows = connection.execute(select(tokens.c.name, tokens.c.digest).where(_GOOD)).all()
            mine = [row.name for row in rows if hmac.compare_digest(row.digest, digest)]
            if not mine:
                return None
            return _person(connection.execute(_GRANTS.where(tokens.c.name == mine[0])).one())

    def list(self) -> list[Grant]:
        """Every token that was given out, by name."""
        with self._database.read() as connection:
            rows = connection.execute(_GRANTS.where(_GOOD).order_by(tokens.c.name)).all()
        return [Grant(_person(row), row.created_at) for row in rows]

    def revoke(self, name: str) -> None:
        """Make someone's token worthless, at once; raises `NotFoundError`."""
        with self._database.write() as connection:
            change = update(tokens).where(tokens.c.name == name, _GOOD)
            if connection.execute(change.values(digest=_REVOKED + digest_of(name)[1:])).rowcount == 0:
                raise NotFoundError(f"{name} has no token; `mint token list` lists those who have")

    def any(self) -> bool:
        """Whether anybody has a token."""
        with self._database.read() as connection:
            return connection.execute(select(tokens.c.name).where(_GOOD).limit(1)).one_or_none() is not None

    def ever(self) -> bool:
        """Whether anybody has or had a token: whoever it was taken from must not get in by leaving it out."""
        with self._database.read() as connection:
            return connection.execute(select(tokens.c.name).limit(1)).one_or_none() is not None

    def good(self) -> frozenset[str]:
        """What `digest_of` makes of every token that is good now."""
        with self._database.read() as connection:
            return frozenset(connection.execute(select(tokens.c.digest).where(_GOOD)).scalars())


_REVOKED = "-"  # begins what stands in place of the digest of a token that was revoked
_GOOD = ~tokens.c.digest.startswith(_REVOKED)
_GRANTS = select(tokens.c.scopes, tokens.c.created_at, people).join(people, people.c.name == tokens.c.name)


def digest_of(text: str) -> str:
    """The SHA-256 that is kept of a token."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _person(row: Row[tuple[object, ...]]) -> Person:
    return Person(row.name, tuple(row.scopes.split(",")), quotas.quota_of(row))
