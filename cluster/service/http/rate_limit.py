"""Rate limits: a token bucket for each client, which fills at a steady rate and is emptied by requests."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_MAX_CLIENTS = 10_000  # in memory; the one that was away longest is dropped, and has a full bucket again


class TokenBucket:
    """One bucket a client: `per_second` requests, of which `burst` may come at once."""

    def __init__(self, per_second: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: its level, and at what time
        self._lock = threading.Lock()

    def take(self, client: str, cost: float = 1.0) -> float:
        """Pay for a request and return 0.0; where the level is too low, return the seconds to wait and pay nothing."""
        cost = min(cost, self._burst)
        with self._lock:
            level = self._level(client)
            is_enough = level >= cost
            self._set(client, level - cost if is_enough else level)
            return 0.0 if is_enough else (cost - level) / self._per_second

    def fine(self, client: str, cost: float) -> None:
        """Take from the bucket in any case, down to zero."""
        with self._lock:
            self._set(client, max(0.0, self._level(client) - cost))

    def _level(self, client: str) -> float:
        level, at = self._levels.get(client, (self._burst, self._clock()))
        return min(self._burst, level + (self._clock() - at) * self._per_second)

    def _set(self, client: str, level: float) -> None:
        self._levels[client] = (level, self._clock())
        self._levels.move_to_end(client)
        if len(self._levels) > _MAX_CLIENTS:
            self._levels.popitem(last=False)
