"""A short-lived cache of valid tokens, by which event streams and downloads end once their token is revoked."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.service.data.tokens import Tokens
from cluster.service.errors import DatabaseUnavailableError

SECONDS = 1.0


class TokenCache:
    """The valid tokens, by digest, as of at most `seconds` ago. Lives in one event loop."""

    def __init__(
        self, tokens: Tokens, *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tokens = tokens
        self._seconds = seconds
        self._clock = clock
        self._read_at = -seconds
        self._digests: frozenset[str] | None = None  # None: not read yet
        self._is_open = False  # no token was ever made: everybody on this machine may do everything

    def is_good(self, grant: str) -> bool:
        """True if the database lists the token of digest `grant` now, or, without one, if no token was ever made."""
        digests, is_open = self._read()
        return grant in digests if grant else is_open

    async def is_still_good(self, grant: str) -> bool:
        """The same from the cache; a database that is away revokes nothing."""
        if self._clock() - self._read_at >= self._seconds:
            self._read_at = self._clock()
            with suppress(DatabaseUnavailableError):
                self._digests, self._is_open = await asyncio.to_thread(self._read)
        if self._digests is None:
            return True
        return grant in self._digests if grant else self._is_open

    def _read(self) -> tuple[frozenset[str], bool]:
        return self._tokens.valid_digests(), not self._tokens.has_any()
