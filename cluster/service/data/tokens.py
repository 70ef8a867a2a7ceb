"""Access tokens of 32 random bytes, shown once. The database stores only their SHA-256."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, insert, select, update

from cluster.service.data import quotas
from cluster.service.data.database import Database
from cluster.service.data.records import SCOPES, Person, Quota
from cluster.service.data.tables import people, tokens
from cluster.service.errors import NotFoundError
from mint.core.errors import MintError

NOBODY = "local"  # name of everybody on this machine as long as there are no tokens
PREFIX = "mint_"  # recognized by scanners for leaked secrets
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Grant:
    """A valid token: its person and its creation time (seconds since 1970)."""

    person: Person
    created_at: float


@dataclass
class Tokens:
    """The tokens in a database."""

    database: Database
    clock: Callable[[], float] = time.time

    def create(self, name: str, scopes: Sequence[str], quota: Quota = Quota()) -> str:  # noqa: B008 (it is frozen)
        """Make a token for a person without one, and return its only copy. Raises `MintError`."""
        if not _NAME.fullmatch(name) or name == NOBODY:
            raise MintError(
                f"{name!r} is no name; needed: 1 to 64 letters, digits, . _ @ -, not {NOBODY}, and no sign first"
            )
        if not scopes or not set(scopes) <= set(SCOPES):
            raise MintError(f"{','.join(scopes)!r} are no scopes; needed: one or more of {', '.join(SCOPES)}")
        text = PREFIX + secrets.token_urlsafe(32)
        with self.database.write() as connection:
            if connection.execute(select(tokens).where(tokens.c.name == name, _VALID)).one_or_none() is not None:
                raise MintError(f"{name} has a token; revoke it first: mint token revoke {name}")
            quotas.save(connection, name, quota)
            ordered = ",".join(scope for scope in SCOPES if scope in scopes)
            connection.execute(delete(tokens).where(tokens.c.name == name))
            values = {"name": name, "digest": digest_of(text), "scopes": ordered, "created_at": self.clock()}
            connection.execute(insert(tokens).values(values))
        return text

    def verify(self, text: str) -> Person | None:
        """The person of a token; None for an invalid token.

        Compares all digests, each in constant time, so that the duration reveals nothing.
        """
        digest = digest_of(text)
        matches = [row for row in self.database.rows(_GRANTS) if hmac.compare_digest(row.digest, digest)]
        return _person(matches[0]) if matches else None

    def list(self) -> list[Grant]:
        """All valid tokens, by name."""
        rows = self.database.rows(_GRANTS.order_by(tokens.c.name))
        return [Grant(_person(row), row.created_at) for row in rows]

    def revoke(self, name: str) -> None:
        """Revoke the token of a person; raises `NotFoundError`."""
        with self.database.write() as connection:
            change = update(tokens).where(tokens.c.name == name, _VALID)
            if connection.execute(change.values(digest=_REVOKED + digest_of(name)[1:])).rowcount == 0:
                raise NotFoundError(f"{name} has no token; needed: a name from `mint token list`")

    def has_any(self) -> bool:
        """True if there is or was a token: without its token, a revoked person must not get in."""
        return bool(self.database.rows(select(tokens.c.name).limit(1)))

    def valid_digests(self) -> frozenset[str]:
        """The `digest_of` every valid token."""
        return frozenset(digest for (digest,) in self.database.rows(select(tokens.c.digest).where(_VALID)))


_REVOKED = "-"  # first character of the placeholder for a revoked digest
_VALID = ~tokens.c.digest.startswith(_REVOKED)
_GRANTS = select(tokens, people).join(people, people.c.name == tokens.c.name).where(_VALID)


def digest_of(text: str) -> str:
    """The SHA-256 of a token."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _person(row: Row[Any]) -> Person:
    quota = Quota(row.active_quota, row.queued_quota, row.nbytes_quota)
    return Person(row.name, tuple(row.scopes.split(",")), quota)
