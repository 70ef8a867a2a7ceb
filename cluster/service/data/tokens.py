"""Access tokens of 32 random bytes, shown once. The database stores only their SHA-256.

A token may expire. A rotation makes a new one, and the one before stays valid for a while, so that programs can change.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, literal, or_, select, update

from cluster.service.data import quotas
from cluster.service.data.database import Database
from cluster.service.data.records import SCOPES, Person, Quota
from cluster.service.data.tables import people, tokens
from cluster.service.errors import DatabaseUnavailableError, NotFoundError
from mint.core.errors import MintError

NOBODY = "local"  # name of everybody on this machine as long as there are no tokens
SIGNED_IN_SCOPES = ("read", "submit")  # of a person without a token whom a proxy vouches for
PREFIX = "mint_"  # recognized by scanners for leaked secrets
_TOKEN = re.compile(rf"{PREFIX}[\w-]{{43}}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def hidden(text: str) -> str:
    """The text without tokens, for a log: people put them into paths by mistake."""
    return _TOKEN.sub(f"{PREFIX}(a token)", text)


@dataclass(frozen=True, slots=True)
class Grant:
    """A token: its person, and the times (seconds since 1970) of its creation, its last use and its end, if any."""

    person: Person
    created_at: float
    used_at: float | None
    expires_at: float | None


@dataclass
class Tokens:
    """The tokens in a database."""

    database: Database
    clock: Callable[[], float] = time.time

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        quota: Quota = Quota(),  # noqa: B008 (it is frozen)
        *,
        groups: Sequence[str] = (),
        seconds: float | None = None,
    ) -> str:
        """Make a token for a person without one, valid for `seconds`, and return its only copy. Raises `MintError`."""
        if not _NAME.fullmatch(name) or name == NOBODY:
            raise MintError(
                f"{name!r} is no name; needed: 1 to 64 letters, digits, . _ @ -, not {NOBODY}, and no sign first"
            )
        if not scopes or not set(scopes) <= set(SCOPES):
            raise MintError(f"{','.join(scopes)!r} are no scopes; needed: one or more of {', '.join(SCOPES)}")
        text = PREFIX + secrets.token_urlsafe(32)
        with self.database.write() as connection:
            if connection.execute(select(tokens).where(tokens.c.name == name, self._valid())).one_or_none() is not None:
                raise MintError(f"{name} has a token; revoke it first: mint token revoke {name}")
            quotas.save(connection, name, quota)
            set_groups(connection, name, groups)
            ordered = ",".join(scope for scope in SCOPES if scope in scopes)
            connection.execute(delete(tokens).where(tokens.c.name == name))
            values = {"name": name, "digest": digest_of(text), "scopes": ordered, "created_at": self.clock()}
            connection.execute(insert(tokens).values(values | {"expires_at": self._after(seconds)}))
        return text

    def rotate(self, name: str, *, grace_seconds: float = 0.0, seconds: float | None = None) -> str:
        """Make a new token in place of a person's valid one, which stays valid for `grace_seconds`.

        Scopes and quota stay. Raises `NotFoundError`.
        """
        text = PREFIX + secrets.token_urlsafe(32)
        with self.database.write() as connection:
            row = connection.execute(select(tokens).where(tokens.c.name == name, self._valid())).one_or_none()
            if row is None:
                raise NotFoundError(f"{name} has no valid token; needed: a name from `mint token list`")
            until = min(self.clock() + grace_seconds, row.expires_at or float("inf"))
            values = {"digest": digest_of(text), "created_at": self.clock(), "expires_at": self._after(seconds)}
            values |= {"previous_digest": row.digest, "previous_until": until, "used_at": None}
            connection.execute(update(tokens).where(tokens.c.name == name).values(values))
        return text

    def verify(self, text: str) -> Person | None:
        """The person of a token; None for an invalid token.

        Compares all digests, each in constant time, so that the duration reveals nothing. Saves the time of the use.
        """
        digest = digest_of(text)
        rows = self.database.rows(_GRANTS)
        digests = [(stored, row) for row in rows for stored in self._digests(row)]
        matches = [row for stored, row in digests if hmac.compare_digest(stored, digest)]
        if not matches:
            return None
        self._note_use(matches[0])
        return _person(matches[0])

    def revoked(self) -> frozenset[str]:
        """The people whose token was revoked."""
        return frozenset(name for (name,) in self.database.rows(select(tokens.c.name).where(~_KEPT)))

    def signed_in(self, name: str) -> Person | None:
        """The person of a name that a proxy vouches for; None for no name, or if their token was revoked.

        Without a token they may read and submit.
        """
        if not _NAME.fullmatch(name) or name == NOBODY:
            return None
        if name in self.revoked():
            return None
        grants = self.database.rows(_GRANTS.where(tokens.c.name == name))
        others = select(people, literal(",".join(SIGNED_IN_SCOPES)).label("scopes")).where(people.c.name == name)
        rows = grants or self.database.rows(others)
        return _person(rows[0]) if rows else Person(name, SIGNED_IN_SCOPES)

    def list(self) -> list[Grant]:
        """All tokens that were not revoked, by name."""
        rows = self.database.rows(_GRANTS.order_by(tokens.c.name))
        return [Grant(_person(row), row.created_at, row.used_at, row.expires_at) for row in rows]

    def revoke(self, name: str) -> None:
        """Revoke the token of a person; raises `NotFoundError`."""
        with self.database.write() as connection:
            change = update(tokens).where(tokens.c.name == name, _KEPT)
            values = {"digest": _REVOKED + digest_of(name)[1:], "previous_until": 0.0}
            if connection.execute(change.values(values)).rowcount == 0:
                raise NotFoundError(f"{name} has no token; needed: a name from `mint token list`")

    def has_any(self) -> bool:
        """True if there is or was a token: without its token, a revoked person must not get in."""
        return bool(self.database.rows(select(tokens.c.name).limit(1)))

    def valid_digests(self) -> frozenset[str]:
        """The `digest_of` every valid token."""
        return frozenset(digest for row in self.database.rows(_GRANTS) for digest in self._digests(row))

    def _valid(self) -> ColumnElement[bool]:
        return _KEPT & or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > self.clock())

    def _digests(self, row: Row[Any]) -> Sequence[str]:
        """The valid digests of a row: of its token, and of the one before a rotation."""
        now = self.clock()
        current = [row.digest] if row.expires_at is None or row.expires_at > now else []
        return [*current, *([row.previous_digest] if row.previous_until > now else [])]

    def _after(self, seconds: float | None) -> float | None:
        return None if seconds is None else self.clock() + seconds

    def _note_use(self, row: Row[Any]) -> None:
        """Save the time of a use, to the minute; a database that cannot be written must not refuse readers."""
        now = self.clock()
        if row.used_at is None or now - row.used_at >= _USE_SECONDS:
            with suppress(DatabaseUnavailableError), self.database.write() as connection:
                connection.execute(update(tokens).where(tokens.c.name == row.name).values(used_at=now))


_USE_SECONDS = 60.0
_REVOKED = "-"  # first character of the placeholder for a revoked digest
_KEPT = ~tokens.c.digest.startswith(_REVOKED)
_GRANTS = select(tokens, people).join(people, people.c.name == tokens.c.name).where(_KEPT)


def digest_of(text: str) -> str:
    """The SHA-256 of a token."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _person(row: Row[Any]) -> Person:
    quota = Quota(row.active_quota, row.queued_quota, row.nbytes_quota)
    return Person(row.name, tuple(row.scopes.split(",")), quota, tuple(filter(None, row.groups.split(","))))


def set_groups(connection: Connection, name: str, groups: Iterable[str]) -> None:
    """Replace the groups of a person; raises `MintError` for what is no name of a group."""
    if wrong := [group for group in groups if not _NAME.fullmatch(group)]:
        raise MintError(
            f"{wrong[0]!r} is no name of a group; needed: 1 to 64 letters, digits, . _ @ -, and no sign first"
        )
    change = update(people).where(people.c.name == name).values(groups=",".join(sorted(set(groups))))
    connection.execute(change)
