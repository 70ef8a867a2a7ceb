"""Rate limits: a token bucket for each client, which fills at a steady rate and is emptied by requests."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.service.http.error_answers import ApiError

_MAX_CLIENTS = 10_000  # in memory; the one that was away longest is dropped, and has a full bucket again


@dataclass
class TokenBucket:
    """One bucket a client: `per_second` requests, of which `burst` may come at once."""

    per_second: float
    burst: float
    clock: Callable[[], float] = time.monotonic
    _levels: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict, init=False)  # level, and when
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def take(self, client: str) -> float:
        """Pay for a request and return 0.0; where the level is too low, return the seconds to wait and pay nothing."""
        with self._lock:
            level = self._level(client)
            wait = max(0.0, 1.0 - level) / self.per_second
            self._set(client, level if wait else level - 1.0)
            return wait

    def need(self, client: str) -> None:
        """Pay for a request; raises `ApiError` where the level is too low."""
        if wait := self.take(client):
            raise ApiError(429, f"too many requests; come back in {wait:.1f} seconds", retry_after=wait)

    def _level(self, client: str) -> float:
        level, at = self._levels.get(client, (self.burst, self.clock()))
        return min(self.burst, level + (self.clock() - at) * self.per_second)

    def _set(self, client: str, level: float) -> None:
        self._levels[client] = (level, self.clock())
        self._levels.move_to_end(client)
        if len(self._levels) > _MAX_CLIENTS:
            self._levels.popitem(last=False)
