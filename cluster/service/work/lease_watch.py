"""Takes back the leases that nobody renews, as this process observed it.

Rules. A lease is silent since the process saw its stamp change, measured on a clock that stands still while the process
does. So no wall clock decides, and clocks of several machines need not agree. A runner that lives on this machine and
cannot renew (it starts, it is stopped, it gets no CPU) has its lease renewed here. Taking back compares the stamp once
more within the transaction: a runner that was late and renewed in time keeps its job.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.service.data.records import HeldLease, Job
from cluster.service.queue.queue import Queue
from cluster.service.work.awake_clock import AwakeClock

GRACE_SECONDS = 5.0  # a runner that lives renews its lease itself before that
_LONGEST_SECONDS = 2.0  # that one round of observation counts


@dataclass
class LeaseWatch:
    """The leases as one process sees them. `lives` says that the runner of a lease lives on this machine."""

    queue: Queue
    lives: Callable[[HeldLease], bool]
    clock: Callable[[], float] = time.monotonic
    _changed_at: dict[HeldLease, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._awake = AwakeClock(_LONGEST_SECONDS, self.clock)

    def look(self) -> list[Job]:
        """Observe all leases once, and return the jobs that were taken back."""
        now, before = self._awake(), self._changed_at
        self._changed_at = {held: before.get(held, now) for held in self.queue.leases()}
        lost = []
        for held, changed_at in self._changed_at.items():
            silence = now - changed_at
            if silence >= min(GRACE_SECONDS, self.queue.lease_seconds / 2) and self.lives(held):
                self.queue.renew_held(held.job, held.lease)
            elif silence >= self.queue.lease_seconds and (job := self.queue.take_back(held)):
                lost.append(job)
        return lost
