"""Grants: what a token opened, for as long as the token is valid. A grant is the digest of its token.

Event streams and downloads end once their token is revoked. A ticket opens one file once within a minute, so that it
may stand in a URL: a browser cannot send a header with a link. It lives in this process only: a restart drops it.
"""

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from cluster.service.data.tokens import Tokens
from cluster.service.errors import DatabaseUnavailableError

SIGNED_IN = "user:"  # begins the grant of a person who signed in at the proxy, before the name
TICKET_SECONDS = 60.0
_MAX_TICKETS = 10_000


@dataclass
class TokenCache:
    """The valid tokens, by digest, as of at most `seconds` ago. Lives in one event loop."""

    tokens: Tokens
    seconds: float
    clock: Callable[[], float] = time.monotonic
    _read_at: float = field(default=float("-inf"), init=False)
    _state: tuple[frozenset[str], frozenset[str], bool] | None = field(default=None, init=False)  # None: not read yet

    def is_good(self, grant: str) -> bool:
        """True if the database lists the token of a grant now, or, without one, if no token was ever made."""
        return _allows(grant, *self._read())

    async def is_still_good(self, grant: str) -> bool:
        """The same from the cache; a database that is away revokes nothing."""
        if self.clock() - self._read_at >= self.seconds:
            self._read_at = self.clock()
            with suppress(DatabaseUnavailableError):
                self._state = await asyncio.to_thread(self._read)
        return self._state is None or _allows(grant, *self._state)

    def _read(self) -> tuple[frozenset[str], frozenset[str], bool]:
        """The valid digests, the people whose token was revoked, and true if no token was ever made."""
        return self.tokens.valid_digests(), self.tokens.revoked(), not self.tokens.has_any()


def _allows(grant: str, digests: frozenset[str], revoked: frozenset[str], is_open: bool) -> bool:
    if grant.startswith(SIGNED_IN):
        return grant.removeprefix(SIGNED_IN) not in revoked
    return grant in digests if grant else is_open


@dataclass(frozen=True, slots=True)
class Ticket:
    """A person's right to one file until a time."""

    person: str
    grant: str
    artifact: str
    name: str
    until: float


@dataclass
class Tickets:
    """The tickets that were made and not used yet."""

    clock: Callable[[], float] = time.monotonic
    _tickets: OrderedDict[str, Ticket] = field(default_factory=OrderedDict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def give(self, person: str, artifact: str, name: str, grant: str = "") -> str:
        """Make a ticket for one file of an artifact, and return its text."""
        text, now = secrets.token_urlsafe(32), self.clock()
        with self._lock:
            while self._tickets and (
                len(self._tickets) >= _MAX_TICKETS or next(iter(self._tickets.values())).until <= now
            ):
                self._tickets.popitem(last=False)  # the oldest
            self._tickets[text] = Ticket(person, grant, artifact, name, now + TICKET_SECONDS)
        return text

    def use(self, text: str, artifact: str, name: str) -> Ticket | None:
        """The ticket, or None if it is not valid for this file; either way it is used up."""
        with self._lock:
            ticket = self._tickets.pop(text, None)
        if ticket is None or ticket.until <= self.clock() or (ticket.artifact, ticket.name) != (artifact, name):
            return None
        return ticket
