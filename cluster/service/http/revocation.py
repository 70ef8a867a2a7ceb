"""Whether who began a stream of events or a download may go on with it: a revoked token ends what it opened."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.service.data.tokens import Tokens
from cluster.service.errors import DatabaseUnavailableError

_SECONDS = 1.0  # between questions to the database, however many streams are open


class TokenCache:
    """The tokens that are good now, for those who ask again and again. Lives in one event loop."""

    def __init__(self, tokens: Tokens, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._asked = -_SECONDS
        self._good: frozenset[str] | None = None  # nothing was heard yet
        self._is_open = False

    def is_good(self, grant: str) -> bool:
        """What the database says now, for those who only begin."""
        good, is_open = self._look()
        return grant in good if grant else is_open

    async def holds(self, grant: str) -> bool:
        """Whether a token of this digest is good, or, without one, everybody on this machine may all.

        A database that is away takes nothing from anybody.
        """
        if self._clock() - self._asked >= _SECONDS:
            self._asked = self._clock()
            with suppress(DatabaseUnavailableError):
                self._good, self._is_open = await asyncio.to_thread(self._look)
        if self._good is None:
            return True
        return grant in self._good if grant else self._is_open

    def _look(self) -> tuple[frozenset[str], bool]:
        return self._tokens.good(), not self._tokens.ever()
