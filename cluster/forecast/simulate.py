"""Simulates the real coordinator with modelled machines and a virtual clock.

The model. A machine does its batches in turn, as workers do with `mint.run.executor`: it builds the lazy tree
(`batch_seconds`), reads the first unit, and reads the next while it computes one. A source tensor is read once a batch.
Files come through pipes: a disk, or the link of a server. Concurrent readers share a pipe's bandwidth equally. If units
are skipped, a machine opens the rest of the batch again, as workers do. Results travel in parcels, and a message takes
`message_seconds` of the machine's time. No machine fails: the tests of the coordinator cover that.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf

from cluster.schedule.coordinator import Coordinator
from cluster.schedule.events import (
    Answered,
    Arrived,
    Command,
    Dismiss,
    Ended,
    Event,
    Item,
    Joined,
    Ping,
    Policy,
    Send,
    Skip,
)
from cluster.transport.messages import Parcel
from mint.core.errors import MintError

Reads = Mapping[str, Mapping[str, int]]  # bytes of each source tensor of an item, by the item's name
Act = Callable[[], None]
_RECORD_BYTES = 600  # of one measurement in a message


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine: bytes of weights per second that it computes, and the pipe of its files."""

    name: str
    rate: float
    pipe: str


@dataclass(frozen=True, slots=True)
class Costs:
    """The overhead of a cluster. Seconds of a start and of a message as measured with Ray 2.60."""

    start_seconds: float = 8.0  # connection of the driver and start of the workers
    batch_seconds: float = 0.001  # includes the lazy tree of every batch
    message_seconds: float = 0.00028


@dataclass(frozen=True, slots=True)
class Run:
    """The result of a simulated run."""

    seconds: float
    messages: int
    done: Mapping[str, int]  # bytes computed by each machine, copies included
    read: Mapping[str, int]  # bytes through each pipe


def simulate(
    items: Sequence[Item],
    machines: Sequence[Machine],
    pipes: Mapping[str, float],
    *,
    reads: Reads | None = None,
    reach: Mapping[str, Mapping[str, int]] | None = None,
    costs: Costs = Costs(),
    policy: Policy = Policy(),  # noqa: B008, it is frozen
    listen: Callable[[float, Event | None], None] = lambda now, event: None,
) -> Run:
    """Let the coordinator give `items` to `machines` until all are done. `pipes` are bandwidths in bytes per second.

    `reach` has the groups of each machine, as `Placement.missing`; without it every machine can do all. `listen` gets
    every event, for replays. Raises `MintError` if the coordinator gives items up, as it does with machines that are
    far slower than the policy allows.
    """
    clock = _Clock(pipes)
    coordinator = Coordinator(items, policy)
    everything = dict.fromkeys((item.group for item in items), 0)

    def apply(event: Event | None) -> None:
        listen(clock.now, event)
        for command in coordinator.step(clock.now, event):
            execute(command)

    def execute(command: Command) -> None:
        match command:
            case Send(worker, batch, names):
                nodes[worker].take(batch, names)
            case Skip(worker, batch, names):
                nodes[worker].skip(batch, names)
            case Ping(worker):
                clock.after(0.0, lambda: apply(Answered(worker)))
            case Dismiss(worker, _):
                nodes[worker].stop()

    sizes = {item.name: item.nbytes for item in items}
    nodes = {machine.name: _Node(machine, clock, sizes, reads, costs, apply) for machine in machines}
    for name in nodes:
        joined = Joined(name, reach[name] if reach else everything)
        clock.after(costs.start_seconds, lambda joined=joined: apply(joined))  # type: ignore[misc]
    apply(None)
    while coordinator.finished is None:
        if coordinator.wakes_at < clock.due:
            clock.now = coordinator.wakes_at
            apply(None)
        else:
            clock.tick()
    if lost := [*coordinator.finished.bad_items, *coordinator.finished.stranded]:
        raise MintError(
            f"{len(lost)} of {len(items)} units would be given up, the first is {lost[0]} ({sizes[lost[0]]} bytes); "
            f"needed: machines that do more than {policy.slowest:.0f} bytes per second and can do all units"
        )
    messages = sum(node.messages for node in nodes.values())
    return Run(clock.now, messages, {name: node.done for name, node in nodes.items()}, clock.read_nbytes)


def simulate_alone(
    items: Iterable[Item], machine: Machine, pipes: Mapping[str, float], *, reads: Reads | None = None
) -> Run:  # fmt: skip
    """The same work in the process of one machine, without a cluster: one batch of all items, in order."""
    sizes = {item.name: item.nbytes for item in items}
    clock = _Clock(pipes)
    node = _Node(machine, clock, sizes, reads, Costs(0.0, 0.0, 0.0), lambda event: None)
    node.take(0, tuple(sizes))
    while clock.due < inf:
        clock.tick()
    return Run(clock.now, node.messages, {machine.name: node.done}, clock.read_nbytes)


class _Pipe:
    """A bandwidth that all readers share equally: since a reader came, each got the same number of bytes."""

    def __init__(self, bandwidth: float) -> None:
        assert bandwidth > 0
        self._bandwidth = bandwidth
        self._readers: list[tuple[float, int, Act]] = []  # total served at the end of each
        self._served = 0.0
        self._updated = 0.0

    def add(self, now: float, nbytes: int, number: int, then: Act) -> None:
        self._advance(now)
        heapq.heappush(self._readers, (self._served + nbytes, number, then))

    @property
    def due(self) -> float:
        """The time at which the next reader is done."""
        if not self._readers:
            return inf
        left = max(self._readers[0][0] - self._served, 0.0)
        return self._updated + left * len(self._readers) / self._bandwidth

    def finish(self, now: float) -> Act:
        """Remove the reader that is done."""
        self._advance(now)
        return heapq.heappop(self._readers)[2]

    def _advance(self, now: float) -> None:
        if self._readers:
            self._served += (now - self._updated) * self._bandwidth / len(self._readers)
        self._updated = now


class _Clock:
    """A virtual clock with an agenda of actions and the pipes."""

    def __init__(self, pipes: Mapping[str, float]) -> None:
        self.now = 0.0
        self.read_nbytes = dict.fromkeys(pipes, 0)
        self._pipes = {name: _Pipe(bandwidth) for name, bandwidth in pipes.items()}
        self._agenda: list[tuple[float, int, Act]] = []
        self._numbers = count()

    def after(self, seconds: float, do: Act) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._numbers), do))

    def read(self, pipe: str, nbytes: int, then: Act) -> None:
        self.read_nbytes[pipe] += nbytes
        self._pipes[pipe].add(self.now, nbytes, next(self._numbers), then)

    @property
    def due(self) -> float:
        """The time of the next action."""
        first = self._agenda[0][0] if self._agenda else inf
        return min(first, *(pipe.due for pipe in self._pipes.values()))

    def tick(self) -> None:
        """Advance to the next action and do it."""
        pipe = min(self._pipes.values(), key=lambda pipe: pipe.due)
        if self._agenda and self._agenda[0][0] <= pipe.due:
            self.now, _, do = heapq.heappop(self._agenda)
        else:
            self.now = max(self.now, pipe.due)
            do = pipe.finish(self.now)
        do()


@dataclass(slots=True, eq=False)
class _Node:
    """The state of one machine."""

    machine: Machine
    clock: _Clock
    sizes: Mapping[str, int]
    reads: Reads | None
    costs: Costs
    report: Callable[[Event], None]
    done: int = 0
    messages: int = 0
    parcel: Parcel[str] = field(init=False)
    owed: float = 0.0  # seconds for sent messages, not yet added to the work
    batches: deque[tuple[int, deque[str]]] = field(default_factory=deque)
    skipped: set[tuple[int, str]] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)  # source tensors read since the batch was opened
    opened: int = 0  # number of opens; actions of an earlier open are void
    is_busy: bool = False
    is_alive: bool = True

    def __post_init__(self) -> None:
        assert self.machine.rate > 0
        self.parcel = Parcel(lambda: self.clock.now)

    def take(self, batch: int, names: Iterable[str]) -> None:
        self.batches.append((batch, deque(names)))
        if not self.is_busy:
            self.is_busy = True
            self._open()

    def skip(self, batch: int, names: Iterable[str]) -> None:
        self.skipped.update((batch, name) for name in names)

    def stop(self) -> None:
        self.is_alive = False
        self.opened += 1

    def _open(self) -> None:
        """Open the first batch: build its tree, then read its first item."""
        self.opened += 1
        self.loaded = set()
        batch, names = self.batches[0]
        left = deque(name for name in names if (batch, name) not in self.skipped)
        self.batches[0] = batch, left
        if left:
            self.clock.after(self.costs.batch_seconds, self._unless_void(self._read_first))
        else:
            self.clock.after(0.0, self._unless_void(self._close))

    def _close(self) -> None:
        batch, _ = self.batches.popleft()
        self.report(Ended(self.machine.name, batch))
        if self.batches:
            self._open()
        else:
            self.is_busy = False

    def _read_first(self) -> None:
        self.clock.read(self.machine.pipe, self._to_read(self.batches[0][1][0]), self._unless_void(self._compute))

    def _compute(self) -> None:
        """Compute the first item while the next is read; continue when both are done."""
        names = self.batches[0][1]
        pending = 1 + (len(names) > 1)

        def finished() -> None:
            nonlocal pending
            pending -= 1
            if not pending:
                self._compute()

        def computed() -> None:
            batch, left = self.batches[0]
            name = left.popleft()
            has_skips = any((batch, other) in self.skipped for other in left)
            self._deliver(name, left[0] if left and not has_skips else None)
            if not left or has_skips:
                self._open()
            else:
                finished()

        if len(names) > 1:
            self.clock.read(self.machine.pipe, self._to_read(names[1]), self._unless_void(finished))
        seconds = self.sizes[names[0]] / self.machine.rate + self.owed
        self.owed = 0.0
        self.clock.after(seconds, self._unless_void(computed))

    def _deliver(self, name: str, following: str | None) -> None:
        self.done += self.sizes[name]
        is_full = self.parcel.add(name, _RECORD_BYTES)
        if self.parcel.is_due(self.sizes[name], self.sizes[following] if following else None) or is_full:
            self.messages += 1
            self.owed += self.costs.message_seconds
            for done in self.parcel.take():
                self.report(Arrived(self.machine.name, done))

    def _to_read(self, name: str) -> int:
        tensors = self.reads[name] if self.reads is not None else {name: self.sizes[name]}
        missing = tensors.keys() - self.loaded
        self.loaded.update(missing)
        return sum(tensors[tensor] for tensor in missing)

    def _unless_void(self, do: Act) -> Act:
        opened = self.opened

        def act() -> None:
            if self.is_alive and opened == self.opened:
                do()

        return act
