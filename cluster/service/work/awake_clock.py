"""A clock of the time in which this process ran: a pause of any length counts as a moment.

A machine sleeps, a process is stopped, or it gets no CPU. The wall clock then jumps, and so does the monotonic clock of
some systems. Nobody was observed meanwhile, so no deadline of an observation may pass.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class AwakeClock:
    """Seconds since the first reading; at most `longest` of them pass between two readings."""

    longest: float
    clock: Callable[[], float] = time.monotonic
    _seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._read_at = self.clock()

    def __call__(self) -> float:
        now = self.clock()
        self._seconds += min(max(0.0, now - self._read_at), self.longest)
        self._read_at = now
        return self._seconds
