"""Tickets for downloads by a browser, which cannot send a header with a link.

A ticket opens one file once within a minute, so that it may stand in a URL. It lives in this process only: a restart
drops it.
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 60.0
_MAX_TICKETS = 10_000


@dataclass(frozen=True, slots=True)
class Ticket:
    """A person's right to one file until a time; `grant` is the digest of the token that it was made with."""

    person: str
    grant: str
    artifact: str
    name: str
    until: float


class Tickets:
    """The tickets that were made and not used yet."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._lock = threading.Lock()

    def give(self, person: str, artifact: str, name: str, grant: str = "") -> str:
        """Make a ticket for one file of an artifact, and return its text."""
        text = secrets.token_urlsafe(32)
        with self._lock:
            self._drop_old()
            self._tickets[text] = Ticket(person, grant, artifact, name, self._clock() + SECONDS)
        return text

    def use(self, text: str, artifact: str, name: str) -> Ticket | None:
        """The ticket, or None if it is not valid for this file; either way it is used up."""
        with self._lock:
            ticket = self._tickets.pop(text, None)
        if ticket is None or ticket.until <= self._clock() or (ticket.artifact, ticket.name) != (artifact, name):
            return None
        return ticket

    def _drop_old(self) -> None:
        """Drop expired tickets, which come first, and the oldest ones if there are too many."""
        while self._tickets:
            oldest = next(iter(self._tickets.values()))
            if oldest.until > self._clock() and len(self._tickets) < _MAX_TICKETS:
                return
            self._tickets.popitem(last=False)
