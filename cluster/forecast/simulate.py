"""Simulates the real coordinator with modelled machines and a virtual clock.

The model. A machine does its batches in turn, as workers do with `mint.run.executor`: it builds the lazy tree
(`batch_seconds`), reads the first unit, and reads the next while it computes one. A source tensor is read once a batch.
Files come through pipes: a disk, or the link of a server. Concurrent reads share a pipe's bandwidth equally. If units
are skipped, a machine opens the rest of the batch again, as workers do. Results travel in parcels, and a message takes
`message_seconds` of the machine's time. No machine fails: the tests of the coordinator cover that.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, repeat
from math import inf

from cluster.schedule.commands import Dismiss, Ping, Send, Skip
from cluster.schedule.coordinator import Coordinator
from cluster.schedule.events import Answered, Arrived, Ended, Event, Item, Joined
from cluster.transport.messages import Parcel
from mint.core.errors import MintError

Reads = Mapping[str, Mapping[str, int]]  # bytes of each source tensor of an item, by the item's name
_RECORD_BYTES = 600  # of one measurement in a message


@dataclass(frozen=True, slots=True)
class Pipe:
    """A disk or link by its name, in bytes per second; machines with equal pipes share one."""

    name: str
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine: bytes of weights per second that it computes, and the pipe of its files."""

    name: str
    rate: float
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Costs:
    """The overhead of a cluster. Seconds of a start and of a message as measured with Ray 2.60."""

    start_seconds: float = 8.0  # connection of the driver and start of the workers
    batch_seconds: float = 0.001  # includes the lazy tree of every batch
    message_seconds: float = 0.00028


@dataclass(slots=True)
class Run:
    """The state of a simulated run and, at its end, the result."""

    seconds: float = 0.0
    messages: int = 0
    done: Counter[str] = field(default_factory=Counter)  # bytes computed by each machine, copies included
    read: Counter[str] = field(default_factory=Counter)  # bytes through each pipe


def simulate(
    items: Sequence[Item],
    machines: Sequence[Machine],
    *,
    reads: Reads | None = None,
    reach: Mapping[str, Mapping[str, int]] | None = None,
    costs: Costs = Costs(),
    listen: Callable[[float, Event | None], None] = lambda now, event: None,
) -> Run:
    """Let the coordinator give `items` to `machines` until all are done.

    `reach` has the groups of each machine, as `Placement.missing`; without it every machine can do all. `listen` gets
    every event, for replays. Raises `MintError` if the coordinator gives items up, as it does with machines that are
    far slower than the policy allows.
    """
    coordinator = Coordinator(items)

    def apply(event: Event | None) -> None:
        events = deque([event])
        while events:
            listen(run.seconds, event := events.popleft())
            for command in coordinator.step(run.seconds, event):
                match command:
                    case Send(worker, batch, names):
                        nodes[worker].take(batch, names)
                    case Skip(worker, batch, names):
                        nodes[worker].skipped.update((batch, name) for name in names)
                    case Ping(worker):
                        events.append(Answered(worker))
                    case Dismiss(worker, _):
                        nodes[worker].actions = repeat(inf)

    run = Run()
    sizes = {item.name: item.nbytes for item in items}
    pipes = {machine.pipe: _Reads(machine.pipe, run) for machine in machines}
    nodes = {node.name: _Node(node, pipes[node.pipe], sizes, reads or {}, costs, run, apply) for node in machines}
    everything = dict.fromkeys((item.group for item in items), 0)
    apply(None)
    run.seconds = costs.start_seconds
    for name in nodes:
        apply(Joined(name, reach[name] if reach else everything))
    while coordinator.finished is None:
        actor = _first(*nodes.values(), *pipes.values())
        run.seconds = min(actor.wakes_at, coordinator.wakes_at)
        if coordinator.wakes_at < actor.wakes_at:
            apply(None)
        else:
            actor.act()
    if lost := [*coordinator.finished.bad_items, *coordinator.finished.stranded]:
        raise MintError(
            f"{len(lost)} of {len(items)} units would be given up, the first is {lost[0]} ({sizes[lost[0]]} bytes); "
            f"needed: machines that do more than {coordinator.policy.slowest:.0f} bytes per second and can do all units"
        )
    return run


def simulate_alone(items: Sequence[Item], machine: Machine, *, reads: Reads | None = None) -> Run:
    """The same work in the process of one machine, without a cluster: one batch of all items, in order."""
    sizes = {item.name: item.nbytes for item in items}
    run = Run()
    pipe = _Reads(machine.pipe, run)
    node = _Node(machine, pipe, sizes, reads or {}, Costs(0.0, 0.0, 0.0), run, lambda event: None)
    node.take(0, tuple(sizes))
    while (actor := _first(node, pipe)).wakes_at < inf:
        run.seconds = actor.wakes_at
        actor.act()
    return run


def _first(*actors: "_Node | _Reads") -> "_Node | _Reads":
    return min(actors, key=lambda actor: actor.wakes_at)


@dataclass(slots=True, eq=False)
class _Reads:
    """The reads from a pipe. All share it equally: since a read began, each other got the same number of bytes."""

    pipe: Pipe
    run: Run
    waiting: list[tuple[float, int, "_Node"]] = field(default_factory=list)  # with `served` at the end of each
    served: float = 0.0  # bytes to every read so far
    updated: float = 0.0
    numbers: Iterator[int] = field(default_factory=count)

    def add(self, nbytes: int, node: "_Node") -> tuple[float, int, "_Node"]:
        self._update()
        self.run.read[self.pipe.name] += nbytes
        read = self.served + nbytes, next(self.numbers), node
        heappush(self.waiting, read)
        return read

    @property
    def wakes_at(self) -> float:
        """The time at which the next read ends."""
        if not self.waiting:
            return inf
        left = max(self.waiting[0][0] - self.served, 0.0)
        return self.updated + left * len(self.waiting) / self.pipe.bandwidth

    def act(self) -> None:
        self._update()
        heappop(self.waiting)[-1].wake()

    def _update(self) -> None:
        if self.waiting:
            self.served += (self.run.seconds - self.updated) * self.pipe.bandwidth / len(self.waiting)
        self.updated = self.run.seconds


@dataclass(slots=True, eq=False)
class _Node:
    """The state of one machine, and its work as a generator of the times of its actions."""

    machine: Machine
    pipe: _Reads
    sizes: Mapping[str, int]
    reads: Reads
    costs: Costs
    run: Run
    report: Callable[[Event], None]
    wakes_at: float = inf
    batches: deque[tuple[int, tuple[str, ...]]] = field(default_factory=deque)
    skipped: set[tuple[int, str]] = field(default_factory=set)
    owed: float = 0.0  # seconds for sent messages, not yet added to the work
    parcel: Parcel[str] = field(init=False)
    actions: Iterator[float] = field(init=False)

    def __post_init__(self) -> None:
        self.parcel = Parcel(lambda: self.run.seconds)
        self.actions = self._work()

    def take(self, batch: int, names: tuple[str, ...]) -> None:
        self.batches.append((batch, names))
        self.wake()

    def wake(self) -> None:
        """Continue now, unless the node waits for a time."""
        if self.wakes_at == inf:
            self.wakes_at = self.run.seconds

    def act(self) -> None:
        self.wakes_at = next(self.actions)

    def _work(self) -> Iterator[float]:
        while True:
            while self.batches:
                batch, names = self.batches.popleft()
                while left := deque(name for name in names if (batch, name) not in self.skipped):
                    yield self.run.seconds + self.costs.batch_seconds
                    yield from self._open(batch, left)
                    names = tuple(left)
                self.report(Ended(self.machine.name, batch))
            yield inf

    def _open(self, batch: int, left: deque[str]) -> Iterator[float]:
        """Do the items that are `left` of a batch, until some are skipped; read the next one while one is computed."""
        loaded: set[str] = set()
        read = self._read(left[0], loaded)
        while left:
            name, following = left[0], left[1] if len(left) > 1 else None
            while read in self.pipe.waiting:
                yield inf
            if following:
                read = self._read(following, loaded)
            seconds, self.owed = self.sizes[name] / self.machine.rate + self.owed, 0.0
            yield self.run.seconds + seconds
            left.popleft()
            has_skips = bool(self.skipped) and any((batch, other) in self.skipped for other in left)
            self._deliver(name, None if has_skips else following)
            if has_skips:
                return

    def _read(self, name: str, loaded: set[str]) -> tuple[float, int, "_Node"]:
        """Begin to read the source tensors of an item that are not yet `loaded`."""
        tensors = self.reads.get(name) or {name: self.sizes[name]}
        nbytes = sum(tensors[tensor] for tensor in tensors.keys() - loaded)
        loaded.update(tensors)
        return self.pipe.add(nbytes, self)

    def _deliver(self, name: str, following: str | None) -> None:
        self.run.done[self.machine.name] += self.sizes[name]
        is_full = self.parcel.add(name, _RECORD_BYTES)
        if self.parcel.is_due(self.sizes[name], self.sizes[following] if following else None) or is_full:
            self.run.messages += 1
            self.owed += self.costs.message_seconds
            for done in self.parcel.take():
                self.report(Arrived(self.machine.name, done))
