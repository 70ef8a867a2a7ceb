"""The coordinator in random worlds, under a virtual clock."""

import random

import pytest

from cluster.schedule.commands import Accept, Command, Dismiss, Finish, Ping, Send, Skip
from cluster.schedule.coordinator import Coordinator, Phase
from cluster.schedule.events import Answered, Arrived, Died, Ended, Failed, Item, Joined, Policy
from tests.worlds.coordinator_world import POLICY, Node, World


def _items(chance: random.Random, count: int, groups: list[str]) -> list[Item]:
    return [Item(f"unit{n}", chance.choice((1, 2, 5, 10, 40)), chance.choice(groups)) for n in range(count)]


def _random_world(seed: int) -> World:
    chance = random.Random(seed)
    groups = ["a", "b", "ab"][: chance.randint(1, 3)]
    items = _items(chance, chance.randint(1, 14), groups)
    nodes = []
    for n in range(chance.randint(1, 4)):
        own = {group for group in groups if n == 0 or chance.random() < 0.7}
        nodes.append(Node(f"node{n}", chance.choice((2.0, 8.0, 20.0)), dict.fromkeys(sorted(own), 0)))
    world = World(items, nodes, chance, calm=chance.random() < 0.2)
    world.disturb()
    for kind in (world.kills, world.raises, world.hangs):
        if chance.random() < 0.15:
            kind.add(chance.choice(items).name)
    return world


@pytest.mark.parametrize("block", range(20))
def test_in_random_worlds_every_item_ends_exactly_once_and_the_run_ends(block: int) -> None:
    for seed in range(block * 1000, block * 1000 + 1000):
        world = _random_world(seed)
        end = world.run()
        bad = world.kills | world.raises | world.hangs
        everything = [*world.accepted.elements(), *end.bad_items, *end.stranded]
        assert sorted(everything) == sorted(world.items), seed
        assert not end.stranded, seed  # every node comes back, and the first node can do all items
        assert bad <= set(end.bad_items), seed
        for item, troubles in end.bad_items.items():
            assert len(troubles) == POLICY.attempts, seed
            assert world.ends[item] >= POLICY.attempts, (seed, item)


@pytest.mark.parametrize("seed", range(50))
def test_in_a_calm_world_every_item_is_done_and_few_are_done_twice(seed: int) -> None:
    chance = random.Random(seed)
    items = _items(chance, 60, ["a"])
    nodes = [Node(f"node{n}", chance.choice((4.0, 8.0, 16.0)), {"a": 0}) for n in range(3)]
    world = World(items, nodes, chance)
    end = world.run()
    assert end == Finish({}, ())
    assert sum(world.begun.values()) <= len(items) + 2 * len(nodes)


def _nodes(*rates: float, missing: dict[str, int] | None = None) -> list[Node]:
    return [Node(f"node{n}", rate, missing or {"": 0}) for n, rate in enumerate(rates)]


def _sent(commands: list[Command], worker: str) -> list[str]:
    return [item for command in commands if isinstance(command, Send) and command.worker == worker
            for item in command.items]  # fmt: skip


def test_two_nodes_whose_speeds_differ_fourfold_are_within_a_tenth_of_the_ideal_time() -> None:
    chance = random.Random(1)
    items = [Item(f"unit{n}", chance.randint(5, 40)) for n in range(200)]
    world = World(items, _nodes(10.0, 40.0), chance, Policy(patience_seconds=1000))
    world.run()
    ideal = sum(item.nbytes for item in items) / 50.0
    assert world.now <= 1.1 * ideal + 2  # nodes join within 2 s


def test_the_biggest_item_is_sent_first_and_a_worker_gets_at_most_two_batches() -> None:
    items = [Item(f"unit{n}", n + 1) for n in range(100)]
    coordinator = Coordinator(items, Policy(batch_items=8))
    sent = [command for command in coordinator.step(0, Joined("w", {"": 0})) if isinstance(command, Send)]
    assert len(sent) == 2
    assert sent[0].items[0] == "unit99"
    assert [*sent[0].items, *sent[1].items] == [f"unit{n}" for n in range(99, 99 - sum(len(s.items) for s in sent), -1)]
    assert max(len(send.items) for send in sent) <= 8


def test_a_batch_keeps_its_byte_limit() -> None:
    items = [Item(f"unit{n}", 30) for n in range(100)] + [Item("huge", 1000)]
    coordinator = Coordinator(items, Policy(batch_bytes=100))
    sent = [command for command in coordinator.step(0, Joined("w", {"": 0})) if isinstance(command, Send)]
    assert [list(send.items) for send in sent] == [["huge"], ["unit0", "unit1", "unit2"]]


def test_a_node_first_does_items_that_no_other_node_can_do() -> None:
    items = [Item("common", 50, "a"), Item("rare", 1, "b")]
    coordinator = Coordinator(items)
    coordinator.step(0)
    assert _sent(coordinator.step(0, Joined("poor", {"a": 0})), "poor") == ["common"]
    coordinator = Coordinator([*items, Item("common2", 50, "a")])
    coordinator.step(0, Joined("other", {}))
    commands = coordinator.step(0, Joined("rich", {"a": 0, "b": 0}))
    assert set(_sent(commands, "rich")) <= {"common", "common2", "rare"}


def test_a_borrowed_group_goes_to_the_living_node_that_misses_the_fewest_bytes() -> None:
    coordinator = Coordinator([Item("spread", 10, "ab")])
    coordinator.step(0, Joined("far", {}))
    near = coordinator.step(0, Joined("near", {"ab": 3}))
    assert _sent(near, "near") == ["spread"]
    assert not _sent(coordinator.step(1, Joined("nearly", {"ab": 7})), "nearly")
    assert _sent(coordinator.step(2, Died("near", "cut")), "nearly") == ["spread"]


def test_a_silent_worker_is_pinged_before_it_is_given_up() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("w", {"": 0}))
    assert coordinator.wakes_at == 10.0  # 5 s, and 10 bytes at 2 bytes per second
    assert coordinator.step(10.0) == [Ping("w")]
    assert coordinator.phase("w") is Phase.SUSPECT
    assert coordinator.step(11.0, Answered("w")) == []
    assert coordinator.phase("w") is Phase.READY
    assert coordinator.wakes_at == 11.0 + 2 * 10.0  # patience doubles
    assert coordinator.step(31.0) == [Ping("w")]
    assert Dismiss("w", "no answer for 4 s") in coordinator.step(35.0)
    assert coordinator.phase("w") is Phase.GONE


def test_progress_renews_the_deadline() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 10) for n in range(8)], POLICY)
    coordinator.step(0, Joined("w", {"": 0}))
    for second in range(1, 3):
        coordinator.step(second * 9.0, Arrived("w", f"unit{second - 1}"))
        assert coordinator.phase("w") is Phase.READY
        assert coordinator.wakes_at == second * 9.0 + 10.0


def test_the_first_result_counts_even_from_a_worker_that_is_gone() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(10)
    coordinator.step(14)
    assert coordinator.phase("a") is Phase.GONE
    assert _sent(coordinator.step(15, Joined("b", {"": 0})), "b") == ["unit"]
    late = coordinator.step(16, Arrived("a", "unit"))
    assert late[0] == Accept("unit")
    assert late[-1] == Finish({}, ())
    assert coordinator.step(17, Arrived("b", "unit")) == []


def test_an_item_that_breaks_two_workers_is_reported_with_reasons_and_the_rest_is_done() -> None:
    chance = random.Random(3)
    world = World([Item(f"unit{n}", 10) for n in range(20)], _nodes(10.0, 10.0), chance)
    world.kills = {"unit7"}
    end = world.run()
    assert list(end.bad_items) == ["unit7"]
    assert len(end.bad_items["unit7"]) == 2
    assert len(world.accepted) == 19


def test_an_item_that_raises_is_tried_again_on_another_node() -> None:
    coordinator = Coordinator([Item("unit", 10), Item("other", 5)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(0, Joined("b", {"": 0}))
    commands = coordinator.step(1, Failed("a", "unit", "cannot read the disk"))
    assert "unit" not in _sent(commands, "a")
    commands += coordinator.step(2, Arrived("b", "other"))
    commands += coordinator.step(2, Ended("b", 2))
    assert _sent(commands, "b") == ["unit"]


def test_an_item_that_raises_on_the_only_node_is_tried_there_again_and_then_reported() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    assert _sent(coordinator.step(1, Failed("a", "unit", "no")), "a") == ["unit"]
    end = coordinator.step(2, Failed("a", "unit", "still no"))[-1]
    assert end == Finish({"unit": ("a: no", "a: still no")}, ())


def test_an_item_that_no_worker_can_do_is_reported_after_its_time_and_not_before() -> None:
    coordinator = Coordinator([Item("unit", 10, "a"), Item("lost", 10, "b")], POLICY)
    coordinator.step(0, Joined("w", {"a": 0}))
    coordinator.step(5, Arrived("w", "unit"))
    coordinator.step(5, Ended("w", 1))
    assert coordinator.wakes_at == 65.0
    assert not coordinator.step(64.9)
    assert coordinator.step(65.0) == [Finish({}, ("lost",))]


def test_a_node_that_joins_in_time_does_stranded_items() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0)
    commands = coordinator.step(59, Joined("late", {"": 0}))
    assert _sent(commands, "late") == ["unit"]
    assert coordinator.step(70, Arrived("late", "unit"))[-1] == Finish({}, ())


def test_an_idle_worker_steals_half_of_the_items_that_another_has_not_begun() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 10) for n in range(8)], Policy(batch_items=8, window=1))
    assigned = _sent(coordinator.step(0, Joined("a", {"": 0})), "a")
    assert len(assigned) == 4
    commands = coordinator.step(1, Joined("b", {"": 0}))
    for command in commands:  # grows while b does its items
        if isinstance(command, Send) and command.worker == "b":
            for item in command.items:
                commands += coordinator.step(2, Arrived("b", item))
            commands += coordinator.step(2, Ended("b", command.batch))
        if any(isinstance(command, Skip) for command in commands):
            break
    skipped = [item for command in commands if isinstance(command, Skip) for item in command.items]
    assert skipped == assigned[2:]  # the first has begun


def test_an_idle_worker_copies_the_current_item_of_a_suspect_one() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(0, Joined("b", {"": 0}))
    assert _sent(coordinator.step(10.0), "b") == ["unit"]


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
            commands = coordinator.step(steps * 1e-6, Arrived(send.worker, item))
            pending += [command for command in commands if isinstance(command, Send)]
        steps += 1
        commands = coordinator.step(steps * 1e-6, Ended(send.worker, send.batch))
        pending += [command for command in commands if isinstance(command, Send)]
    assert coordinator.finished == Finish({}, ())
    assert sends < len(items) / 64 + 200


def test_an_item_that_broke_a_worker_is_sent_alone() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 10) for n in range(40)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(1, Died("a", "killed"))
    commands = coordinator.step(2, Joined("b", {"": 0}))
    sent = [list(command.items) for command in commands if isinstance(command, Send)]
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


def test_a_late_result_closes_an_unassigned_item() -> None:
    coordinator = Coordinator([Item("unit", 10)], POLICY)
    coordinator.step(0, Joined("a", {"": 0}))
    coordinator.step(1, Died("a", "thought dead"))
    assert coordinator.step(2, Arrived("a", "unit")) == [Accept("unit"), Finish({}, ())]
