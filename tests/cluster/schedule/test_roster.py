"""A roster has the same facts as the list of its items, in fewer bytes."""

import random
import tracemalloc

import pytest

from cluster.schedule.backlog import Backlog
from cluster.schedule.coordinator import Coordinator
from cluster.schedule.events import Item
from cluster.schedule.roster import Roster, Subset


def make_items(count: int, seed: int = 0) -> list[Item]:
    chance = random.Random(seed)
    return [
        Item(f"unit {i}", chance.choice((10, 20, 20, 3 << 40)), f"group {chance.randrange(5)}") for i in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_a_roster_has_the_facts_of_every_item_and_of_no_other(count: int) -> None:
    items = make_items(count)
    roster = Roster(iter(items))
    assert len(roster) == count
    for rank, item in enumerate(items):
        index = roster.index(item.name)
        assert item.name in roster
        assert roster.names[index] == item.name
        assert roster.ranks[index] == rank
        assert roster.nbytes(item.name) == roster.sizes[index] == item.nbytes
        group = roster.group_at(index)
        assert roster.groups[group] == item.group
        start, end = roster.slice_of(group)
        assert start <= index < end
    for stranger in ("", "unit", "unit -1", f"unit {count}", "zzz"):
        assert stranger not in roster
        with pytest.raises(KeyError):
            roster.index(stranger)


def test_within_a_group_the_biggest_come_first_and_equal_ones_in_input_order() -> None:
    items = make_items(300)
    roster = Roster(items)
    for number, group in enumerate(roster.groups):
        expected = sorted((item for item in items if item.group == group), key=lambda item: -item.nbytes)
        assert [roster.names[index] for index in range(*roster.slice_of(number))] == [item.name for item in expected]


@pytest.mark.parametrize("seed", range(5))
def test_a_subset_is_a_set_in_input_order(seed: int) -> None:
    chance = random.Random(seed)
    items = make_items(60, seed)
    roster = Roster(items)
    subset, expected = Subset(roster, full=bool(seed % 2)), set(range(60)) if seed % 2 else set()
    for _ in range(400):
        index = chance.randrange(60)
        if chance.random() < 0.5:
            assert subset.add(index) == (index not in expected)
            expected.add(index)
        else:
            assert subset.discard(index) == (index in expected)
            expected.discard(index)
        assert len(subset) == len(expected)
        assert (index in subset) == (index in expected)
        start, end = sorted(chance.choices(range(61), k=2))
        assert subset.first(start, end) == min((other for other in expected if start <= other < end), default=-1)
    names = {roster.names[index] for index in expected}
    assert list(subset) == [item.name for item in items if item.name in names]


@pytest.mark.parametrize("seed", range(20))
def test_the_next_item_is_the_scarcest_then_the_biggest_then_the_first(seed: int) -> None:
    chance = random.Random(seed)
    items = make_items(40, seed)
    backlog = Backlog(Roster(items))
    groups = sorted({item.group for item in items})
    reach = {f"w{n}": {group: chance.choice((0, 0, 7)) for group in groups if chance.random() < 0.8} for n in range(4)}
    for worker, missing in reach.items():
        backlog.admit(worker, missing)
    waiting = {item.name for item in items}

    def takers(item: Item) -> list[str]:
        least = min((missing[item.group] for missing in reach.values() if item.group in missing), default=None)
        return [worker for worker, missing in reach.items() if missing.get(item.group, -1) == least]

    for _ in range(200):
        worker, refused = chance.choice(list(reach)), set(chance.choices([item.name for item in items], k=3))
        mine = [item for item in items if item.name in waiting - refused and worker in takers(item)]
        expected = min(mine, key=lambda item: (len(takers(item)), -item.nbytes), default=None)
        assert backlog.first(worker, refused) == (expected.name if expected else None)
        changed = chance.choice(items).name
        if chance.random() < 0.6:
            backlog.remove(expected.name if expected else changed)
            waiting.discard(expected.name if expected else changed)
        else:
            backlog.put(changed)
            waiting.add(changed)
        assert len(backlog) == len(waiting)
        assert list(backlog) == [item.name for item in items if item.name in waiting]
        assert backlog.is_stuck() == (not any(takers(item) for item in items if item.name in waiting))


def test_the_coordinator_takes_fewer_than_fifty_bytes_per_item_beside_its_name() -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(20_000)]
    tracemalloc.start()
    coordinator = Coordinator(Item(name, 1 << 20, name[13:15]) for name in names)
    nbytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert nbytes < 50 * len(names)
    assert len(coordinator.items) == len(names)
