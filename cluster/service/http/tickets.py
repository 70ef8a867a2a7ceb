"""Tickets for downloads by a browser, which cannot send a header with a link.

A ticket opens one file once within a minute. It is worth nothing afterwards, so that it may stand in a URL; and it
lives in this process only, so that a restart forgets it.
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 60.0
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket opens, and for whom; `grant` is the token that they asked with, see `TokenCache`."""

    person: str
    grant: str
    artifact: str
    name: str
    until: float


class Tickets:
    """The tickets that were given out and not used yet."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._lock = threading.Lock()

    def give(self, person: str, artifact: str, name: str, grant: str = "") -> str:
        """A new ticket for one file of an artifact."""
        text = secrets.token_urlsafe(32)
        with self._lock:
            self._forget()
            self._tickets[text] = Ticket(person, grant, artifact, name, self._clock() + SECONDS)
        return text

    def use(self, text: str, artifact: str, name: str) -> Ticket | None:
        """The ticket, if it is good for this file; it is used up in any case."""
        with self._lock:
            ticket = self._tickets.pop(text, None)
        if ticket is None or ticket.until <= self._clock() or (ticket.artifact, ticket.name) != (artifact, name):
            return None
        return ticket

    def _forget(self) -> None:
        """Drop what ran out, which stands first, and the oldest of too many."""
        while self._tickets:
            oldest = next(iter(self._tickets.values()))
            if oldest.until > self._clock() and len(self._tickets) < _MOST:
                return
            self._tickets.popitem(last=False)
