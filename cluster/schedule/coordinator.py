"""Assigns items to workers: a state machine without threads, sockets or clocks. Events in, commands out.

Rules. Workers pull: a worker with fewer than `window` batches gets one, and batches shrink towards the end. A worker
without progress within its deadline is suspect and pinged. If it answers, it gets a new and longer deadline; otherwise
it is gone and its items are unassigned. The first result of an item counts, even from a worker that is gone. If a
worker goes during an item, or the item raises, the item is tried once more, alone and if possible on another worker.
If that fails too, the item is reported by name. An idle worker steals items that another worker has not begun, and
copies the current item of a suspect or slow worker.

Every event brings an item closer to its end or uses up something finite (attempts, silences, the time for a worker to
join). So every run ends. No item is done twice on purpose, except for copies at the tail.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any

from cluster.schedule.backlog import Backlog
from cluster.schedule.commands import Accept, Command, Dismiss, Finish, Ping, Send, Skip
from cluster.schedule.events import Answered, Arrived, Broken, Died, Ended, Event, Failed, Item, Joined, Overdue, Policy
from cluster.schedule.roster import Roster, Subset


class Phase(Enum):
    """The state of a worker, as far as the coordinator knows."""

    UNKNOWN = "unknown"
    READY = "ready"
    SUSPECT = "suspect"
    GONE = "gone"


@dataclass(slots=True)
class _Worker:
    name: str
    phase: Phase = Phase.UNKNOWN
    batches: dict[int, dict[str, None]] = field(default_factory=dict)  # open items of each, in order
    broken: set[int] = field(default_factory=set)
    deadline: float = inf
    silences: int = 0  # pings answered since the last progress
    began: float = 0.0  # the earliest time at which the current item can have begun
    nbytes: float = 0.0  # done in `seconds`
    seconds: float = 0.0

    @property
    def current(self) -> str | None:
        """The first open item."""
        return next((item for batch in self.batches.values() for item in batch), None)

    @property
    def rate(self) -> float:
        """Bytes per second so far; 0 if unknown."""
        return self.nbytes / self.seconds if self.seconds else 0.0


class Coordinator:
    """The state of one run over `items`."""

    def __init__(self, items: Iterable[Item], policy: Policy = Policy()) -> None:  # noqa: B008, it is frozen
        self.policy = policy
        self.items = Roster(items)
        self.finished: Finish | None = None
        self._backlog = Backlog(self.items)
        self._left = Subset(self.items, full=True)
        self._workers: dict[str, _Worker] = {}
        self._copies: dict[str, dict[int, _Worker]] = {}  # batches with the item and their workers, by item
        self._failures: dict[str, list[tuple[str, str]]] = {}  # worker and reason, by item
        self._bad_items: dict[str, tuple[str, ...]] = {}
        self._batches = 0
        self._now = 0.0
        self._stranded_at = inf
        self._out: list[Command] = []

    def step(self, now: float, event: Event | None = None) -> list[Command]:
        """Apply `event`, if any, and the time `now`; return the commands. Time never runs backwards."""
        self._now = max(self._now, now)
        self._out = []
        if self.finished is None:
            if event is not None:
                self._apply(event)
            for worker in list(self._workers.values()):
                if worker.deadline <= self._now:
                    self._apply(Overdue(worker.name, f"no answer for {self.policy.answer_seconds:.0f} s"))
            self._assign()
            self._finish()
        return self._out

    @property
    def wakes_at(self) -> float:
        """The time of the next `step`, unless an event comes first."""
        return min([self._stranded_at, *(worker.deadline for worker in self._workers.values())])

    def phase(self, name: str) -> Phase:
        """The state of a worker."""
        return self._workers[name].phase if name in self._workers else Phase.UNKNOWN

    def _apply(self, event: Event) -> None:
        worker = self._workers.setdefault(event.worker, _Worker(event.worker))
        rule = _RULES.get((worker.phase, type(event)))
        if rule is None:
            return
        worker.phase = rule[0]
        rule[1](self, worker, event)

    def _is_left(self, name: str) -> bool:
        """True for an item of this run that is neither done nor given up."""
        index = self.items.find(name)
        return index >= 0 and index in self._left

    # actions for events; the table at the end of the file assigns them

    def _joined(self, worker: _Worker, event: Joined) -> None:
        self._backlog.admit(worker.name, event.missing)

    def _arrived(self, worker: _Worker, event: Arrived) -> None:
        self._progress(worker, event.item)
        self._accept(worker, event)

    def _accept(self, worker: _Worker, event: Arrived) -> None:
        """Accept the first result of an item, also from a worker that is gone."""
        if self._is_left(event.item):
            self._out.append(Accept(event.item))
            self._close(event.item)

    def _failed(self, worker: _Worker, event: Failed) -> None:
        self._progress(worker, event.item)
        self._record_failure(event.item, worker.name, event.reason)

    def _ended(self, worker: _Worker, event: Ended) -> None:
        self._release(worker, event.batch)
        self._renew(worker)

    def _broken(self, worker: _Worker, event: Broken) -> None:
        if event.batch in worker.batches:
            worker.broken.add(event.batch)
            self._ping(worker)

    def _ping(self, worker: _Worker, _: Event | None = None) -> None:
        self._out.append(Ping(worker.name))
        worker.deadline = self._now + self.policy.answer_seconds

    def _answered(self, worker: _Worker, _: Answered) -> None:
        worker.silences += 1
        if worker.silences > self.policy.silences:
            self._retire(worker, Died(worker.name, "it answers, but makes no progress"))
            return
        for batch in sorted(worker.broken & worker.batches.keys()):
            self._out.append(Skip(worker.name, batch, tuple(worker.batches[batch])))
            self._release(worker, batch)
        worker.broken.clear()
        self._renew(worker)

    def _retire(self, worker: _Worker, event: Died | Overdue) -> None:
        worker.phase = Phase.GONE
        worker.deadline = inf
        self._backlog.forget(worker.name)
        self._out.append(Dismiss(worker.name, event.reason))
        if item := worker.current:
            self._record_failure(item, worker.name, event.reason)
        for batch in list(worker.batches):
            self._release(worker, batch)

    # items

    def _progress(self, worker: _Worker, item: str) -> None:
        """Note that a worker is done with an item."""
        worker.silences = 0
        if item not in self.items:
            return
        for batch in list(worker.batches):
            if item in worker.batches[batch]:
                self._drop(worker, batch, item)
                worker.nbytes += self.items.nbytes(item)
                worker.seconds += self._now - worker.began
        worker.began = self._now
        self._renew(worker)

    def _close(self, item: str) -> None:
        """Close an item, done or given up, and skip its other copies."""
        self._left.discard(self.items.index(item))
        self._backlog.remove(item)
        for batch, owner in sorted(self._copies.get(item, {}).items()):
            self._out.append(Skip(owner.name, batch, (item,)))
            self._drop(owner, batch, item)
        self._copies.pop(item, None)

    def _record_failure(self, item: str, worker: str, reason: str) -> None:
        if not self._is_left(item):
            return
        failures = self._failures.setdefault(item, [])
        failures.append((worker, reason))
        if len(failures) >= self.policy.attempts:
            self._bad_items[item] = tuple(f"{name}: {reason}" for name, reason in failures)
            self._close(item)
        elif not self._copies.get(item):
            self._backlog.put(item)

    def _drop(self, worker: _Worker, batch: int, item: str) -> None:
        """Stop expecting an item from this batch. An empty batch stays until its end."""
        worker.batches[batch].pop(item)
        self._copies[item].pop(batch, None)

    def _release(self, worker: _Worker, batch: int) -> None:
        """End a batch; its open items without another copy become unassigned."""
        for item in list(worker.batches.get(batch, ())):
            self._drop(worker, batch, item)
            if self._is_left(item) and not self._copies[item]:
                self._backlog.put(item)
        worker.batches.pop(batch, None)

    def _renew(self, worker: _Worker) -> None:
        """Set a worker's deadline for its current item."""
        item = worker.current
        if item is None and not worker.batches:
            worker.deadline = inf
            return
        nbytes = self.items.nbytes(item) if item else 0
        seconds = self.policy.patience_seconds + nbytes / self.policy.slowest
        worker.deadline = self._now + seconds * 2**worker.silences

    # assignment

    def _assign(self) -> None:
        has_sent = True
        while has_sent and self._left:  # one batch per turn, so that no worker gets two while another has none
            has_sent = False
            for worker in sorted(self._workers.values(), key=lambda worker: (len(worker.batches), -worker.rate)):
                if worker.phase is not Phase.READY or len(worker.batches) >= self.policy.window:
                    continue
                if items := self._next_batch(worker) or self._steal(worker):
                    self._send(worker, items)
                    has_sent = True

    def _next_batch(self, worker: _Worker) -> list[str]:
        """A share of the unassigned items. An item that failed before goes alone."""
        if not self._backlog:
            return []
        share_items, share_bytes = self._backlog.share(worker.name)
        most = min(self.policy.batch_items, share_items / (2 * self.policy.window))
        most_bytes = min(self.policy.batch_bytes, share_bytes / (2 * self.policy.window))
        refused = [item for item in self._failures if self._is_for_others(worker, item)]
        items: list[str] = []
        nbytes = 0
        while (item := self._backlog.first(worker.name, refused)) is not None:
            size = self.items.nbytes(item)
            if items and (len(items) >= most or nbytes + size > most_bytes or item in self._failures):
                break
            self._backlog.remove(item)
            items.append(item)
            nbytes += size
            if item in self._failures:
                break
        return items

    def _is_for_others(self, worker: _Worker, item: str) -> bool:
        """True if the item failed on this worker and another worker can try it."""
        failed = {name for name, _ in self._failures[item]}
        return worker.name in failed and any(name not in failed for name in self._backlog.takers(item))

    def _steal(self, worker: _Worker) -> list[str]:
        """For an idle worker: half of the items that the busiest other has not begun, else a copy of one item."""
        if worker.batches:
            return []
        others = [other for other in self._workers.values() if other.batches and other is not worker]
        queues = [(other, queue) for other in others if (queue := self._not_begun(other, worker))]
        if queues:
            other, queue = max(queues, key=lambda pair: sum(self.items.nbytes(item) for _, item in pair[1]))
            moved = queue[len(queue) // 2 :]
            for batch, item in moved:
                self._out.append(Skip(other.name, batch, (item,)))
                self._drop(other, batch, item)
            return [item for _, item in moved]
        late = [other.current for other in others if other.current and self._is_late(other, worker)]
        return [item for item in late if len(self._copies[item]) == 1 and self._may_share(worker, item)][:1]

    def _not_begun(self, other: _Worker, worker: _Worker) -> list[tuple[int, str]]:
        """The open items of `other` behind its current one that `worker` may take."""
        queue = [(batch, item) for batch, items in other.batches.items() for item in items]
        return [(batch, item) for batch, item in queue[1:] if self._may_share(worker, item)]

    def _is_late(self, other: _Worker, worker: _Worker) -> bool:
        """True if `other` is suspect, or takes twice as long for its current item as `worker` would."""
        if other.phase is Phase.SUSPECT:
            return True
        item = other.current
        return bool(item and worker.rate and self._now - other.began > 2 * self.items.nbytes(item) / worker.rate)

    def _may_share(self, worker: _Worker, item: str) -> bool:
        return item not in self._failures and self._backlog.may_take(worker.name, item)

    def _send(self, worker: _Worker, items: list[str]) -> None:
        self._batches += 1
        if not worker.batches:
            worker.began = self._now
        worker.batches[self._batches] = dict.fromkeys(items)
        for item in items:
            self._copies.setdefault(item, {})[self._batches] = worker
        self._out.append(Send(worker.name, self._batches, tuple(items)))
        if worker.deadline == inf:
            self._renew(worker)

    def _finish(self) -> None:
        """Finish when all items are closed, or when no worker can do or joins to do the rest."""
        if self._left:
            is_stuck = len(self._backlog) == len(self._left) and self._backlog.is_stuck()
            if not is_stuck:
                self._stranded_at = inf
                return
            self._stranded_at = min(self._stranded_at, self._now + self.policy.stranded_seconds)
            if self._now < self._stranded_at:
                return
        self.finished = Finish(dict(self._bad_items), tuple(self._left))
        self._out.append(self.finished)


_Action = Callable[[Coordinator, _Worker, Any], None]
_NEW, _READY, _SUSPECT, _GONE = Phase.UNKNOWN, Phase.READY, Phase.SUSPECT, Phase.GONE
# a worker's next phase and the action, by phase and event; other events change nothing
_RULES: Mapping[tuple[Phase, type], tuple[Phase, _Action]] = {
    (_NEW, Joined): (_READY, Coordinator._joined),
    (_NEW, Died): (_GONE, Coordinator._retire),
    (_READY, Arrived): (_READY, Coordinator._arrived),
    (_READY, Failed): (_READY, Coordinator._failed),
    (_READY, Ended): (_READY, Coordinator._ended),
    (_READY, Broken): (_SUSPECT, Coordinator._broken),
    (_READY, Died): (_GONE, Coordinator._retire),
    (_READY, Overdue): (_SUSPECT, Coordinator._ping),
    (_SUSPECT, Arrived): (_READY, Coordinator._arrived),
    (_SUSPECT, Failed): (_READY, Coordinator._failed),
    (_SUSPECT, Ended): (_READY, Coordinator._ended),
    (_SUSPECT, Broken): (_SUSPECT, Coordinator._broken),
    (_SUSPECT, Answered): (_READY, Coordinator._answered),
    (_SUSPECT, Died): (_GONE, Coordinator._retire),
    (_SUSPECT, Overdue): (_GONE, Coordinator._retire),
    (_GONE, Arrived): (_GONE, Coordinator._accept),
}
