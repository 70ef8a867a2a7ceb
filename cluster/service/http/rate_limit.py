"""How often one client may ask: a bucket that fills at a steady rate and is emptied by requests."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_CLIENTS = 10_000  # remembered; whoever was away longest is forgotten, and has a full bucket again


class TokenBucket:
    """One bucket a client: `per_second` requests, of which `burst` may come at once."""

    def __init__(self, per_second: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: what was left, and when
        self._lock = threading.Lock()

    def take(self, client: str, cost: float = 1.0) -> float:
        """Pay for a request: 0.0, or the seconds to wait where the bucket is empty and nothing was paid."""
        with self._lock:
            level = self._level(client)
            if level < min(cost, self._burst):
                self._keep(client, level)
                return (min(cost, self._burst) - level) / self._per_second
            self._keep(client, level - cost)
            return 0.0

    def fine(self, client: str, cost: float) -> None:
        """Take from the bucket in any case, down to nothing."""
        with self._lock:
            self._keep(client, max(0.0, self._level(client) - cost))

    def _level(self, client: str) -> float:
        level, at = self._levels.get(client, (self._burst, self._clock()))
        return min(self._burst, level + (self._clock() - at) * self._per_second)

    def _keep(self, client: str, level: float) -> None:
        self._levels[client] = (level, self._clock())
        self._levels.move_to_end(client)
        if len(self._levels) > _CLIENTS:
            self._levels.popitem(last=False)
