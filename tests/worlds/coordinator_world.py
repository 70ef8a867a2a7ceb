"""Simulated worlds for the coordinator: nodes die, fall silent and come back, under a virtual clock."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.schedule.commands import Accept, Command, Dismiss, Finish, Ping, Send, Skip
from cluster.schedule.coordinator import Coordinator, Phase
from cluster.schedule.events import Answered, Arrived, Broken, Died, Ended, Event, Failed, Item, Joined, Policy

POLICY = Policy(
    batch_items=4, batch_bytes=40, patience_seconds=5, slowest=2.0, answer_seconds=4, stranded_seconds=60, silences=3
)


@dataclass
class Node:
    """A machine: its bytes per second, its groups and its state. `worker` is its current incarnation."""

    name: str
    rate: float
    missing: dict[str, int]
    alive: bool = False
    cut_until: float = 0.0  # no message arrives before
    stuck: bool = False
    lives: int = 0
    queue: list[tuple[int, list[str]]] = field(default_factory=list)
    skipped: set[tuple[int, str]] = field(default_factory=set)
    running: bool = False

    @property
    def worker(self) -> str:
        return f"{self.name}/{self.lives}"


class World:
    """Executes commands and delivers events, late, twice or never, until the coordinator has finished."""

    def __init__(
        self, items: list[Item], nodes: list[Node], chance: random.Random, policy: Policy = POLICY, *, calm: bool = True
    ) -> None:
        self.coordinator = Coordinator(items, policy)
        self.items = {item.name: item for item in items}
        self.nodes = {node.name: node for node in nodes}
        self.chance = chance
        self.calm = calm
        self.now = 0.0
        self.accepted: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()  # deaths during an item, and raises
        self.kills: set[str] = set()
        self.raises: set[str] = set()
        self.hangs: set[str] = set()
        self.comes_back: float | None = 3.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.steps = 0
        for node in nodes:
            self.at(chance.uniform(0, 2), self._joins(node))

    def at(self, time: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (time, self._count, do))

    def run(self, *, most: int = 20_000) -> Finish:
        self._carry_out(self.coordinator.step(0.0))
        while self.coordinator.finished is None:
            self.steps += 1
            assert self.steps < most, "the run does not end"
            due = self._agenda[0][0] if self._agenda else float("inf")
            if self.coordinator.wakes_at < due:
                self.now = max(self.now, self.coordinator.wakes_at)
                self._carry_out(self.coordinator.step(self.now))
                continue
            assert self._agenda, "no event is left"
            self.now, _, do = heapq.heappop(self._agenda)
            do()
        return self.coordinator.finished

    def deliver(self, node: Node, event: Event) -> None:
        """Deliver an event of a node, later if its cable is out."""
        if self.now < node.cut_until:
            self.at(node.cut_until, lambda: self.deliver(node, event))
        else:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        commands = self.coordinator.step(self.now, event)
        for command in commands:
            if isinstance(command, Accept):
                assert isinstance(event, Arrived)
                assert event.item == command.item
        self._carry_out(commands)

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Accept(item):
                    self.accepted[item] += 1
                case Send(worker, batch, names):
                    assert self.coordinator.phase(worker) is Phase.READY
                    node = self._node(worker)
                    if node:
                        node.queue.append((batch, list(names)))
                        self._go_on(node)
                case Skip(worker, batch, names):
                    node = self._node(worker)
                    if node:
                        node.skipped.update((batch, name) for name in names)
                case Ping(worker):
                    node = self._node(worker)
                    if node:
                        self.at(self.now + 0.1, lambda node=node, worker=worker: self._answer(node, worker))  # type: ignore[misc]
                case Dismiss(worker, _):
                    node = self._node(worker)
                    if node and node.alive:  # the driver ends the actor and asks the node for a new one
                        node.alive = False
                        self.at(self.now + 1.0, self._joins(node))
                case Finish():
                    pass

    def _node(self, worker: str) -> Node | None:
        node = self.nodes[worker.split("/")[0]]
        return node if node.worker == worker and node.alive else None

    def _joins(self, node: Node) -> Callable[[], None]:
        def join() -> None:
            if node.alive:
                return
            node.lives += 1
            node.alive, node.stuck, node.running = True, False, False
            node.queue, node.skipped = [], set()
            self.deliver(node, Joined(node.worker, node.missing))

        return join

    def _answer(self, node: Node, worker: str) -> None:
        if node.alive and node.worker == worker:
            self.deliver(node, Answered(worker))

    def _go_on(self, node: Node) -> None:
        if node.running or not node.alive or node.stuck or not node.queue:
            return
        batch, names = node.queue[0]
        while names and (batch, names[0]) in node.skipped:
            names.pop(0)
        worker = node.worker
        if not names:
            node.queue.pop(0)
            self.deliver(node, Ended(worker, batch))
            self._go_on(node)
            return
        item = names.pop(0)
        self.begun[item] += 1
        node.running = True
        seconds = self.items[item].nbytes / node.rate
        self.at(self.now + seconds, lambda: self._done(node, worker, batch, item))

    def _done(self, node: Node, worker: str, batch: int, item: str) -> None:
        if not node.alive or node.worker != worker:
            return
        node.running = False
        if item in self.kills:
            self.die(node, current=item)
            return
        if item in self.hangs:
            self.ends[item] += 1
            node.stuck = True
            return
        if item in self.raises:
            self.ends[item] += 1
            self.deliver(node, Failed(worker, item, "raised"))
        else:
            self._deliver(node, worker, batch, item)
        self._go_on(node)

    def _deliver(self, node: Node, worker: str, batch: int, item: str) -> None:
        fate = 1.0 if self.calm else self.chance.random()
        if fate < 0.03:  # the stream breaks: this result and later ones of the batch are lost, the worker lives
            node.skipped.update((batch, name) for name in self.items)
            self.deliver(node, Broken(worker, batch))
            return
        if fate < 0.08:  # late, maybe after the worker is gone
            self.at(self.now + self.chance.uniform(1, 30), lambda: self._hear(Arrived(worker, item)))
            return
        self.deliver(node, Arrived(worker, item))
        if fate < 0.15:
            self.deliver(node, Arrived(worker, item))

    def die(self, node: Node, *, current: str | None = None, silent: bool | None = None) -> None:
        """End a node; the death is noticed soon or never."""
        if not node.alive:
            return
        worker = node.worker
        self._blame(node)
        if current:
            self.ends[current] += 1
        node.alive = node.running = False
        if silent is None:
            silent = self.chance.random() < 0.4
        if not silent:
            self.at(self.now + self.chance.uniform(0, 2), lambda: self._hear(Died(worker, "killed")))
        if self.comes_back is not None:
            self.at(self.now + self.comes_back + self.chance.uniform(0, 20), self._joins(node))

    def _blame(self, node: Node) -> None:
        for name in self.items:  # any open item may have been its current one
            if not self.accepted[name]:
                self.ends[name] += 1

    def disturb(self) -> None:
        """Schedule random deaths and network outages."""
        for node in self.nodes.values():
            for _ in range(self.chance.choice((0, 0, 1, 1, 2))):
                moment = self.chance.uniform(0, 30)
                if self.chance.random() < 0.5:
                    self.at(moment, lambda node=node: self.die(node))  # type: ignore[misc]
                else:
                    self.at(moment, lambda node=node, until=moment: self._cut(node, until))  # type: ignore[misc]

    def _cut(self, node: Node, moment: float) -> None:
        node.cut_until = moment + self.chance.uniform(1, 25)
        self._blame(node)  # after a long outage it is given up like a dead node
