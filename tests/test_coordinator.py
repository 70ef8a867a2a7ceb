"""The coordinator in worlds made up by chance, under a clock that is a number."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.coordinator import Coordinator, Phase
from cluster.events import (
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
    Ping,
    Policy,
    Send,
    Skip,
)

POLICY = Policy(
    batch_items=4, batch_bytes=40, patience_seconds=5, slowest=2.0, answer_seconds=4, stranded_seconds=60, silences=3
)


@dataclass
class Node:
    """A machine: its speed in bytes per second, what it can do, and how it behaves. `worker` is its incarnation."""

    name: str
    rate: float
    missing: dict[str, int]
    alive: bool = False
    cut_until: float = 0.0  # no message passes before
    stuck: bool = False
    lives: int = 0
    queue: list[tuple[int, list[str]]] = field(default_factory=list)
    skipped: set[tuple[int, str]] = field(default_factory=set)
    running: bool = False

    @property
    def worker(self) -> str:
        return f"{self.name}/{self.lives}"


class World:
    """Carries out commands and brings events, late, twice or never, until the coordinator has finished."""

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
        self.ends: Counter[str] = Counter()  # times an item was in hand at a death, or raised
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
            assert self.steps < most, "it does not end"
            due = self._agenda[0][0] if self._agenda else float("inf")
            if self.coordinator.wakes_at < due:
                self.now = max(self.now, self.coordinator.wakes_at)
                self._carry_out(self.coordinator.step(self.now))
                continue
            assert self._agenda, "nothing will ever happen again"
            self.now, _, do = heapq.heappop(self._agenda)
            do()
        return self.coordinator.finished

    def tell(self, node: Node, event: Event) -> None:
        """An event from a node, held up while its cable is out."""
        if self.now < node.cut_until:
            self.at(node.cut_until, lambda: self.tell(node, event))
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
                    if node and node.alive:  # the driver ends the actor, and asks the node for a new one
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
            self.tell(node, Joined(node.worker, node.missing))

        return join

    def _answer(self, node: Node, worker: str) -> None:
        if node.alive and node.worker == worker:
            self.tell(node, Answered(worker))

    def _go_on(self, node: Node) -> None:
        if node.running or not node.alive or node.stuck or not node.queue:
            return
        batch, names = node.queue[0]
        while names and (batch, names[0]) in node.skipped:
            names.pop(0)
        worker = node.worker
        if not names:
            node.queue.pop(0)
            self.tell(node, Ended(worker, batch))
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
            self.die(node, in_hand=item)
            return
        if item in self.hangs:
            self.ends[item] += 1
            node.stuck = True
            return
        if item in self.raises:
            self.ends[item] += 1
            self.tell(node, Failed(worker, item, "raised"))
        else:
            self._deliver(node, worker, batch, item)
        self._go_on(node)

    def _deliver(self, node: Node, worker: str, batch: int, item: str) -> None:
        fate = 1.0 if self.calm else self.chance.random()
        if fate < 0.03:  # the stream breaks: this result and the batch's later ones are lost, the worker lives
            node.skipped.update((batch, name) for name in self.items)
            self.tell(node, Broken(worker, batch))
            return
        if fate < 0.08:  # late, maybe after the worker was given up
            self.at(self.now + self.chance.uniform(1, 30), lambda: self._hear(Arrived(worker, item)))
            return
        self.tell(node, Arrived(worker, item))
        if fate < 0.15:
            self.tell(node, Arrived(worker, item))

    def die(self, node: Node, *, in_hand: str | None = None, silent: bool | None = None) -> None:
        """A node's death; noticed at once or never."""
        if not node.alive:
            return
        worker = node.worker
        self._blame(node)
        if in_hand:
            self.ends[in_hand] += 1
        node.alive = node.running = False
        if silent is None:
            silent = self.chance.random() < 0.4
        if not silent:
            self.at(self.now + self.chance.uniform(0, 2), lambda: self._hear(Died(worker, "killed")))
        if self.comes_back is not None:
            self.at(self.now + self.comes_back + self.chance.uniform(0, 20), self._joins(node))

    def _blame(self, node: Node) -> None:
        for name in self.items:  # whatever was not accepted may have been its item in hand
            if not self.accepted[name]:
                self.ends[name] += 1

    def disturb(self) -> None:
        """Deaths and cut cables by chance."""
        for node in self.nodes.values():
            for _ in range(self.chance.choice((0, 0, 1, 1, 2))):
                moment = self.chance.uniform(0, 30)
                if self.chance.random() < 0.5:
                    self.at(moment, lambda node=node: self.die(node))  # type: ignore[misc]
                else:
                    self.at(moment, lambda node=node, until=moment: self._cut(node, until))  # type: ignore[misc]

    def _cut(self, node: Node, moment: float) -> None:
        node.cut_until = moment + self.chance.uniform(1, 25)
        self._blame(node)  # out for too long, it is given up as if it had died


def _items(chance: random.Random, count: int, groups: list[str]) -> list[Item]:
    return [Item(f"unit{n}", chance.choice((1, 2, 5, 10, 40)), chance.choice(groups)) for n in range(count)]


def _random_world(seed: int) -> World:
    chance = random.Random(seed)
    groups = ["a", "b", "ab"][: chance.randint(1, 3)]
    items = _items(chance, chance.randint(1, 14), groups)
    nodes = []
    for n in range(chance.randint(1, 4)):
        held = {group for group in groups if n == 0 or chance.random() < 0.7}
        nodes.append(Node(f"node{n}", chance.choice((2.0, 8.0, 20.0)), dict.fromkeys(sorted(held), 0)))
    world = World(items, nodes, chance, calm=chance.random() < 0.2)
    world.disturb()
    for kind in (world.kills, world.raises, world.hangs):
        if chance.random() < 0.15:
            kind.add(chance.choice(items).name)
    return world


@pytest.mark.parametrize("block", range(20))
def test_in_a_thousand_random_worlds_nothing_is_lost_and_nothing_doubled_and_it_ends(block: int) -> None:
    for seed in range(block * 1000, block * 1000 + 1000):
        world = _random_world(seed)
        end = world.run()
        bad = world.kills | world.raises | world.hangs
        everything = [*world.accepted.elements(), *end.poisoned, *end.stranded]
        assert sorted(everything) == sorted(world.items), seed
        assert not end.stranded, seed  # everybody comes back, and the first node can do all
        assert bad <= set(end.poisoned), seed
        for item, troubles in end.poisoned.items():
            assert len(troubles) == POLICY.attempts, seed
            assert world.ends[item] >= POLICY.attempts, (seed, item)


@pytest.mark.parametrize("seed", range(50))
def test_in_a_calm_world_everything_is_done_and_hardly_anything_twice(seed: int) -> None:
    chance = random.Random(seed)
    items = _items(chance, 60, ["a"])
    nodes = [Node(f"node{n}", chance.choice((4.0, 8.0, 16.0)), {"a": 0}) for n in range(3)]
    world = World(items, nodes, chance)
    end = world.run()
    assert end == Finish({}, ())
    assert sum(world.begun.values()) <= len(items) + 2 * len(nodes)


def _nodes(*rates: float, missing: dict[str, int] | None = None) -> list[Node]:
    return [Node(f"node{n}", rate, missing or {"": 0}) for n, rate in enumerate(rates)]


def _step(coordinator: Coordinator, now: float, event: Event | None = None) -> list[Any]:
    return coordinator.step(now, event)


def _sent(commands: list[Any], worker: str) -> list[str]:
    return [item for command in commands if isinstance(command, Send) and command.worker == worker
            for item in command.items]  # fmt: skip


def test_two_nodes_four_times_apart_take_within_a_tenth_of_the_ideal_time() -> None:
    chance = random.Random(1)
    items = [Item(f"unit{n}", chance.randint(5, 40)) for n in range(200)]
    world = World(items, _nodes(10.0, 40.0), chance, Policy(patience_seconds=1000))
    world.run()
    ideal = sum(item.nbytes for item in items) / 50.0
    assert world.now <= 1.1 * ideal + 2  # nodes join within 2 s


def test_the_biggest_item_is_sent_first_and_never_more_than_two_batches() -> None:
    items = [Item(f"unit{n}", n + 1) for n in range(100)]
    coordinator = Coordinator(items, Policy(batch_items=8))
    sent = [command for command in _step(coordinator, 0, Joined("w", {"": 0})) if isinstance(command, Send)]
    assert len(sent) == 2
    assert sent[0].items[0] == "unit99"
    assert [*sent[0].items, *sent[1].items] == [f"unit{n}" for n in range(99, 99 - sum(len(s.items) for s in sent), -1)]
    assert max(len(each.items) for each in sent) <= 8


def test_a_batch_holds_no_more_bytes_than_it_may() -> None:
    items = [Item(f"unit{n}", 30) for n in range(100)] + [Item("huge", 1000)]
    coordinator = Coordinator(items, Policy(batch_bytes=100))
    sent = [command for command in _step(coordinator, 0, Joined("w", {"": 0})) if isinstance(command, Send)]
    assert [list(each.items) for each in sent] == [["huge"], ["unit0", "unit1", "unit2"]]


def test_what_only_one_node_can_do_it_does_first() -> None:
    items = [Item("common", 50, "a"), Item("rare", 1, "b")]
    coordinator = Coordinator(items)
    _step(coordinator, 0)
    assert _sent(_step(coordinator, 0, Joined("poor", {"a": 0})), "poor") == ["common"]
    coordinator = Coordinator([*items, Item("common2", 50, "a")])
    coordinator.step(0, Joined("other", {}))
    commands = _step(coordinator, 0, Joined("rich", {"a": 0, "b": 0}))
    assert set(_sent(commands, "rich")) <= {"common", "common2", "rare"}


def test_a_borrowed_group_goes_to_the_node_that_misses_the_least_until_it_dies() -> None:
    coordinator = Coordinator([Item("spread", 10, "ab")])
    coordinator.step(0, Joined("far", {}))
    near = _step(coordinator, 0, Joined("near", {"ab": 3}))
    assert _sent(near, "near") == ["spread"]
    assert not _sent(_step(coordinator, 1, Joined("nearly", {"ab": 7})), "nearly")
    assert _sent(_step(coordinator, 2, Died("near", "cut")), "nearly") == ["spread"]


def test_silence_is_first_asked_about_then_believed() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("w", {"": 0}))
    assert coordinator.wakes_at == 10.0  # 5 s, and 10 bytes at 2 bytes per second
    assert _step(coordinator, 10.0) == [Ping("w")]
    assert coordinator.phase("w") is Phase.SUSPECT
    assert _step(coordinator, 11.0, Answered("w")) == []
    assert coordinator.phase("w") is Phase.READY
    assert coordinator.wakes_at == 11.0 + 2 * 10.0  # patience doubles
    assert _step(coordinator, 31.0) == [Ping("w")]
    assert Dismiss("w", "no answer for 4 s") in _step(coordinator, 35.0)
    assert coordinator.phase("w") is Phase.GONE


def test_progress_renews_the_deadline() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 10) for n in range(8)], POLICY)
    coordinator.step(0, Joined("w", {"": 0}))
    for second in range(1, 3):
        coordinator.step(second * 9.0, Arrived("w", f"unit{second - 1}"))
        assert coordinator.phase("w") is Phase.READY
        assert coordinator.wakes_at == second * 9.0 + 10.0


def test_the_first_result_counts_even_from_a_worker_that_was_given_up() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(10)
    coordinator.step(14)
    assert coordinator.phase("a") is Phase.GONE
    assert _sent(_step(coordinator, 15, Joined("b", {"": 0})), "b") == ["unit"]
    late = _step(coordinator, 16, Arrived("a", "unit"))
    assert late[0] == Accept("unit")
    assert late[-1] == Finish({}, ())
    assert _step(coordinator, 17, Arrived("b", "unit")) == []


def test_an_item_that_breaks_two_workers_is_named_with_what_happened_and_the_rest_is_done() -> None:
    chance = random.Random(3)
    world = World([Item(f"unit{n}", 10) for n in range(20)], _nodes(10.0, 10.0), chance)
    world.kills = {"unit7"}
    end = world.run()
    assert list(end.poisoned) == ["unit7"]
    assert len(end.poisoned["unit7"]) == 2
    assert len(world.accepted) == 19


def test_an_item_that_raises_is_tried_again_on_another_node() -> None:
    coordinator = Coordinator([Item("unit", 10), Item("other", 5)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(0, Joined("b", {"": 0}))
    commands = _step(coordinator, 1, Failed("a", "unit", "cannot read the disk"))
    assert "unit" not in _sent(commands, "a")
    commands += _step(coordinator, 2, Arrived("b", "other"))
    commands += _step(coordinator, 2, Ended("b", 2))
    assert _sent(commands, "b") == ["unit"]


def test_an_item_that_raises_on_the_only_node_is_tried_there_again_then_named() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    assert _sent(_step(coordinator, 1, Failed("a", "unit", "no")), "a") == ["unit"]
    end = _step(coordinator, 2, Failed("a", "unit", "still no"))[-1]
    assert end == Finish({"unit": ("a: no", "a: still no")}, ())


def test_work_that_nobody_can_do_is_given_up_by_name_after_its_time_and_not_before() -> None:
    coordinator = Coordinator([Item("unit", 10, "a"), Item("lost", 10, "b")], POLICY)
    coordinator.step(0, Joined("w", {"a": 0}))
    coordinator.step(5, Arrived("w", "unit"))
    coordinator.step(5, Ended("w", 1))
    assert coordinator.wakes_at == 65.0
    assert not _step(coordinator, 64.9)
    assert _step(coordinator, 65.0) == [Finish({}, ("lost",))]


def test_a_node_that_comes_in_time_saves_what_was_stranded() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0)
    commands = _step(coordinator, 59, Joined("late", {"": 0}))
    assert _sent(commands, "late") == ["unit"]
    assert coordinator.step(70, Arrived("late", "unit"))[-1] == Finish({}, ())


def test_an_idle_worker_takes_over_half_of_what_another_has_not_begun() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 10) for n in range(8)], Policy(batch_items=8, window=1))
    had = _sent(_step(coordinator, 0, Joined("a", {"": 0})), "a")
    assert len(had) == 4
    said = _step(coordinator, 1, Joined("b", {"": 0}))
    for command in said:  # grows while b does whatever it is sent
        if isinstance(command, Send) and command.worker == "b":
            for item in command.items:
                said += coordinator.step(2, Arrived("b", item))
            said += coordinator.step(2, Ended("b", command.batch))
        if any(isinstance(each, Skip) for each in said):
            break
    skipped = [item for command in said if isinstance(command, Skip) for item in command.items]
    assert skipped == had[2:]  # the first is in hand


def test_what_a_suspect_worker_has_in_hand_is_copied_by_an_idle_one() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(0, Joined("b", {"": 0}))
    assert _sent(_step(coordinator, 10.0), "b") == ["unit"]


def test_twenty_thousand_items_go_out_in_batches_that_are_full_until_the_end() -> None:
    items = [Item(f"unit{n}", 100 + n % 7) for n in range(20_000)]
    coordinator = Coordinator(items)
    commands = [command for n in range(4) for command in coordinator.step(0, Joined(f"w{n}", {"": 0}))]
    steps = sends = 0
    pending = [command for command in commands if isinstance(command, Send)]
    while pending:
        send = pending.pop(0)
        sends += 1
        for item in send.items:
            steps += 1
            pending += [
                each for each in coordinator.step(steps * 1e-6, Arrived(send.worker, item)) if isinstance(each, Send)
            ]
        steps += 1
        pending += [
            each for each in coordinator.step(steps * 1e-6, Ended(send.worker, send.batch)) if isinstance(each, Send)
        ]
    assert coordinator.finished == Finish({}, ())
    assert sends < len(items) / 64 + 200


def test_an_item_that_broke_a_worker_goes_alone_so_that_no_other_is_blamed() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 10) for n in range(40)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(1, Died("a", "killed"))
    sent = [list(each.items) for each in coordinator.step(2, Joined("b", {"": 0})) if isinstance(each, Send)]
    assert ["unit0"] in sent


def test_a_result_clears_a_suspect_and_its_silences() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 10) for n in range(4)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(10)
    coordinator.step(11, Answered("a"))
    coordinator.step(31)
    assert coordinator.phase("a") is Phase.SUSPECT
    coordinator.step(32, Arrived("a", "unit0"))
    assert coordinator.phase("a") is Phase.READY
    assert coordinator.wakes_at == 32 + 10  # not doubled any more


def test_a_late_result_of_an_item_that_waits_again_takes_it_off_the_list() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(1, Died("a", "thought dead"))
    assert coordinator.step(2, Arrived("a", "unit")) == [Accept("unit"), Finish({}, ())]
