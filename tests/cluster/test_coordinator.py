"""The coordinator in worlds made up by chance, under a clock that is a number."""

import random
from typing import Any

import pytest

from cluster.schedule.coordinator import Coordinator, Phase
from cluster.schedule.events import (
    Accept,
    Answered,
    Arrived,
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
from tests.worlds.coordinator_world import POLICY, Node, World


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
