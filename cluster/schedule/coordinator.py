"""Who does what next: a state machine without threads, sockets or clocks. Events in, commands out, the time a value.

Rules. Workers pull: whoever has fewer than `window` batches gets one, and batches shrink towards the end. A worker
that shows no progress in its time is suspect and pinged; one that answers is given its time again, longer each time;
one that does not is gone, and its items wait again. The first result of an item counts, whoever it comes from, gone
or not. An item in hand when a worker goes, or that raises, is tried once more, alone and if possible elsewhere; if
that ends the same way it is reported by name. A worker with nothing left to take relieves another of what that has
not begun, and copies what a suspect or slow one has in hand.

Every event either brings an item closer to its end or uses up something finite (attempts, silences, the time for a
worker to come), so a run ends whatever happens; nothing is done twice on purpose but copies at the tail.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any

from cluster.schedule.backlog import Backlog
from cluster.schedule.events import (
    Accept,
    Answered,
    Arrived,
    Broken,
    Command,
    Died,
    Dismiss,
    Ended,
    Event,
    Failed,
    Finish,
    Item,
    Joined,
    Overdue,
    Ping,
    Policy,
    Send,
    Skip,
)
from cluster.schedule.roster import Roster, Subset


class Phase(Enum):
    """What is believed of a worker."""

    UNKNOWN = "unknown"
    READY = "ready"
    SUSPECT = "suspect"
    GONE = "gone"


@dataclass(slots=True)
class _Worker:
    name: str
    phase: Phase = Phase.UNKNOWN
    batches: dict[int, dict[str, None]] = field(default_factory=dict)  # what has not arrived of each, in order
    broken: set[int] = field(default_factory=set)
    deadline: float = inf
    silences: int = 0
    began: float = 0.0  # when the item in hand can have been begun at the earliest
    nbytes: float = 0.0  # done in `seconds`
    seconds: float = 0.0

    @property
    def in_hand(self) -> str | None:
        """The first item that has not arrived."""
        return next((item for batch in self.batches.values() for item in batch), None)

    @property
    def rate(self) -> float:
        """Bytes per second so far; 0 when unknown."""
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
        self._copies: dict[str, set[int]] = {}  # batches that hold an item
        self._owner: dict[int, _Worker] = {}
        self._troubles: dict[str, list[tuple[str, str]]] = {}  # worker and what happened, by item
        self._poisoned: dict[str, tuple[str, ...]] = {}
        self._batches = 0
        self._now = 0.0
        self._stranded_at = inf
        self._out: list[Command] = []

    def step(self, now: float, event: Event | None = None) -> list[Command]:
        """What to do after `event`, or because so much time has passed. Time never runs backwards."""
        self._now = max(self._now, now)
        self._out = []
        if self.finished is None:
            if event is not None:
                self._hear(event)
            for worker in list(self._workers.values()):
                if worker.deadline <= self._now:
                    self._hear(Overdue(worker.name))
            self._fill()
            self._end()
        return self._out

    @property
    def wakes_at(self) -> float:
        """When to call `step` although nothing was heard."""
        return min([self._stranded_at, *(worker.deadline for worker in self._workers.values())])

    def phase(self, name: str) -> Phase:
        """What is believed of a worker."""
        return self._workers[name].phase if name in self._workers else Phase.UNKNOWN

    def _hear(self, event: Event) -> None:
        worker = self._workers.setdefault(event.worker, _Worker(event.worker))
        rule = _RULES.get((worker.phase, type(event)))
        if rule is None:
            return
        worker.phase = rule[0]
        rule[1](self, worker, event)

    def _is_left(self, name: str) -> bool:
        """Whether an item is one of this run and not out of the way yet."""
        place = self.items.find(name)
        return place >= 0 and place in self._left

    # what each event means; the table below says when

    def _welcome(self, worker: _Worker, event: Joined) -> None:
        self._backlog.admit(worker.name, event.missing)

    def _arrived(self, worker: _Worker, event: Arrived) -> None:
        self._progress(worker, event.item)
        self._accept(worker, event)

    def _accept(self, worker: _Worker, event: Arrived) -> None:
        """The first result counts, also that of a worker that was given up."""
        if self._is_left(event.item):
            self._out.append(Accept(event.item))
            self._settle(event.item)

    def _failed(self, worker: _Worker, event: Failed) -> None:
        self._progress(worker, event.item)
        self._trouble(event.item, worker.name, event.reason)

    def _ended(self, worker: _Worker, event: Ended) -> None:
        worker.broken.discard(event.batch)
        self._release(worker, event.batch)
        self._renew(worker)

    def _broken(self, worker: _Worker, event: Broken) -> None:
        if event.batch in worker.batches:
            worker.broken.add(event.batch)
            self._ask(worker)

    def _ask(self, worker: _Worker, _: Event | None = None) -> None:
        self._out.append(Ping(worker.name))
        worker.deadline = self._now + self.policy.answer_seconds

    def _reassured(self, worker: _Worker, _: Answered) -> None:
        worker.silences += 1
        if worker.silences > self.policy.silences:
            self._bury(worker, "it answers, but makes no progress")
            return
        for batch in sorted(worker.broken & worker.batches.keys()):
            self._out.append(Skip(worker.name, batch, tuple(worker.batches[batch])))
            self._release(worker, batch)
        worker.broken.clear()
        self._renew(worker)

    def _given_up(self, worker: _Worker, _: Overdue) -> None:
        self._bury(worker, f"no answer for {self.policy.answer_seconds:.0f} s")

    def _died(self, worker: _Worker, event: Died) -> None:
        self._bury(worker, event.reason)

    def _bury(self, worker: _Worker, reason: str) -> None:
        worker.phase = Phase.GONE
        worker.deadline = inf
        self._backlog.forget(worker.name)
        blamed = worker.in_hand
        self._out.append(Dismiss(worker.name, reason))
        if blamed:
            self._trouble(blamed, worker.name, reason)
        for batch in list(worker.batches):
            self._release(worker, batch)

    # the life of an item

    def _progress(self, worker: _Worker, item: str) -> None:
        """A worker is done with an item."""
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

    def _settle(self, item: str) -> None:
        """An item is out of the way, done or given up."""
        self._left.discard(self.items.place(item))
        self._backlog.remove(item)
        for batch in sorted(self._copies.get(item, ())):
            owner = self._owner[batch]
            self._out.append(Skip(owner.name, batch, (item,)))
            self._drop(owner, batch, item)
        self._copies.pop(item, None)

    def _trouble(self, item: str, worker: str, reason: str) -> None:
        if not self._is_left(item):
            return
        troubles = self._troubles.setdefault(item, [])
        troubles.append((worker, reason))
        if len(troubles) >= self.policy.attempts:
            self._poisoned[item] = tuple(f"{where}: {what}" for where, what in troubles)
            self._settle(item)
        elif not self._copies.get(item):
            self._backlog.put(item)

    def _drop(self, worker: _Worker, batch: int, item: str) -> None:
        """Expect an item no longer from this batch. An emptied batch stays until it has ended."""
        worker.batches[batch].pop(item)
        self._copies[item].discard(batch)

    def _release(self, worker: _Worker, batch: int) -> None:
        """A batch is over: what did not arrive, and nobody else has, waits again."""
        for item in list(worker.batches.get(batch, ())):
            self._drop(worker, batch, item)
            if self._is_left(item) and not self._copies[item]:
                self._backlog.put(item)
        worker.batches.pop(batch, None)
        self._owner.pop(batch, None)

    def _renew(self, worker: _Worker) -> None:
        """Give a worker its time for the item in hand."""
        item = worker.in_hand
        if item is None and not worker.batches:
            worker.deadline = inf
            return
        nbytes = self.items.nbytes(item) if item else 0
        seconds = self.policy.patience_seconds + nbytes / self.policy.slowest
        worker.deadline = self._now + seconds * 2**worker.silences

    # giving out work

    def _fill(self) -> None:
        given = True
        while given and self._left:  # one batch each in turn, so that nobody takes two while another has none
            given = False
            hungry = [worker for worker in self._workers.values() if self._is_hungry(worker)]
            for worker in sorted(hungry, key=lambda worker: (len(worker.batches), -worker.rate)):
                if items := self._take(worker) or self._relieve(worker):
                    self._send(worker, items)
                    given = True

    def _is_hungry(self, worker: _Worker) -> bool:
        return worker.phase is Phase.READY and len(worker.batches) < self.policy.window

    def _take(self, worker: _Worker) -> list[str]:
        """The next batch: a share of what waits. An item that broke a worker goes alone."""
        if not self._backlog:
            return []
        share_items, share_bytes = self._backlog.room(worker.name)
        most = min(self.policy.batch_items, share_items / (2 * self.policy.window))
        most_bytes = min(self.policy.batch_bytes, share_bytes / (2 * self.policy.window))
        refused = [item for item in self._troubles if self._is_for_others(worker, item)] if self._troubles else []
        items: list[str] = []
        nbytes = 0
        while (item := self._backlog.first(worker.name, refused)) is not None:
            size = self.items.nbytes(item)
            if items and (len(items) >= most or nbytes + size > most_bytes or item in self._troubles):
                break
            self._backlog.remove(item)
            items.append(item)
            nbytes += size
            if item in self._troubles:
                break
        return items

    def _is_for_others(self, worker: _Worker, item: str) -> bool:
        """Whether an item failed here while somebody else can try."""
        failed = {name for name, _ in self._troubles[item]}
        return worker.name in failed and any(name not in failed for name in self._backlog.takers(item))

    def _relieve(self, worker: _Worker) -> list[str]:
        """For a worker with nothing at all to do: half of what the busiest other has not begun, else a copy."""
        if worker.batches:
            return []
        others = [other for other in self._workers.values() if other.batches and other is not worker]
        queues = [(other, self._not_begun(other, worker)) for other in others]
        queues = [(other, waiting) for other, waiting in queues if waiting]
        if queues:
            other, waiting = max(queues, key=lambda queue: sum(self.items.nbytes(item) for _, item in queue[1]))
            moved = waiting[len(waiting) // 2 :]
            for batch, item in moved:
                self._out.append(Skip(other.name, batch, (item,)))
                self._drop(other, batch, item)
            return [item for _, item in moved]
        copied = [other.in_hand for other in others if other.in_hand and self._is_late(other, worker)]
        single = [item for item in copied if len(self._copies[item]) == 1 and self._may_copy(worker, item)]
        return single[:1]

    def _not_begun(self, other: _Worker, worker: _Worker) -> list[tuple[int, str]]:
        """What `other` has, behind its item in hand, that `worker` can do too."""
        behind = [(batch, item) for batch, items in other.batches.items() for item in items][1:]
        return [
            (batch, item)
            for batch, item in behind
            if item not in self._troubles and self._backlog.may_take(worker.name, item)
        ]

    def _is_late(self, other: _Worker, worker: _Worker) -> bool:
        """Whether `worker` could have done by now what `other` has in hand."""
        if other.phase is Phase.SUSPECT:
            return True
        item = other.in_hand
        return bool(item and worker.rate and self._now - other.began > 2 * self.items.nbytes(item) / worker.rate)

    def _may_copy(self, worker: _Worker, item: str) -> bool:
        return item not in self._troubles and self._backlog.may_take(worker.name, item)

    def _send(self, worker: _Worker, items: list[str]) -> None:
        self._batches += 1
        if not worker.batches:
            worker.began = self._now
        worker.batches[self._batches] = dict.fromkeys(items)
        self._owner[self._batches] = worker
        for item in items:
            self._copies.setdefault(item, set()).add(self._batches)
        self._out.append(Send(worker.name, self._batches, tuple(items)))
        if worker.deadline == inf:
            self._renew(worker)

    def _end(self) -> None:
        """Finish when all is settled, or when nobody can do, or comes to do, what is left."""
        if self._left:
            waiting = len(self._backlog) == len(self._left)
            if not (waiting and self._backlog.is_stuck()):
                self._stranded_at = inf
                return
            self._stranded_at = min(self._stranded_at, self._now + self.policy.stranded_seconds)
            if self._now < self._stranded_at:
                return
        self.finished = Finish(dict(self._poisoned), tuple(self._left))
        self._out.append(self.finished)


_Action = Callable[[Coordinator, _Worker, Any], None]
_NEW, _READY, _SUSPECT, _GONE = Phase.UNKNOWN, Phase.READY, Phase.SUSPECT, Phase.GONE
# what a worker is after an event, and what is done about it; what is not listed changes nothing
_RULES: Mapping[tuple[Phase, type], tuple[Phase, _Action]] = {
    (_NEW, Joined): (_READY, Coordinator._welcome),
    (_NEW, Died): (_GONE, Coordinator._died),
    (_READY, Arrived): (_READY, Coordinator._arrived),
    (_READY, Failed): (_READY, Coordinator._failed),
    (_READY, Ended): (_READY, Coordinator._ended),
    (_READY, Broken): (_SUSPECT, Coordinator._broken),
    (_READY, Died): (_GONE, Coordinator._died),
    (_READY, Overdue): (_SUSPECT, Coordinator._ask),
    (_SUSPECT, Arrived): (_READY, Coordinator._arrived),
    (_SUSPECT, Failed): (_READY, Coordinator._failed),
    (_SUSPECT, Ended): (_READY, Coordinator._ended),
    (_SUSPECT, Broken): (_SUSPECT, Coordinator._broken),
    (_SUSPECT, Answered): (_READY, Coordinator._reassured),
    (_SUSPECT, Died): (_GONE, Coordinator._died),
    (_SUSPECT, Overdue): (_GONE, Coordinator._given_up),
    (_GONE, Arrived): (_GONE, Coordinator._accept),
}
