"""The coordinator and one worker: broken batches, silence, speed, copies of items."""

import pytest

from cluster.schedule.commands import Accept, Command, Dismiss, Finish, Ping, Send, Skip
from cluster.schedule.coordinator import Coordinator, Phase
from cluster.schedule.events import Answered, Arrived, Broken, Died, Ended, Failed, Item, Joined, Policy

PATIENT = Policy(window=1, batch_items=1, patience_seconds=1000, slowest=1e9)
ALL = {"": 0}


def _items(*names: str, nbytes: int = 10) -> list[Item]:
    return [Item(name, nbytes) for name in names]


def _sent(commands: list[Command], worker: str) -> list[str]:
    return [name for command in commands if isinstance(command, Send) and command.worker == worker
            for name in command.items]  # fmt: skip


def test_the_rest_of_a_batch_that_broke_goes_out_again_once_its_worker_answers() -> None:
    coordinator = Coordinator(_items("a", "b"), Policy(window=1, batch_items=2, patience_seconds=50))
    (first,) = coordinator.step(0, Joined("w", ALL))
    assert isinstance(first, Send)
    assert coordinator.step(1, Broken("w", first.batch)) == [Ping("w")]
    assert coordinator.phase("w") is Phase.SUSPECT
    assert coordinator.wakes_at == 1 + coordinator.policy.answer_seconds
    skip, *again = coordinator.step(2, Answered("w"))
    assert skip == Skip("w", first.batch, first.items)
    assert set(first.items) <= {*_sent(again, "w"), "b"}
    assert coordinator.phase("w") is Phase.READY


def test_two_batches_that_broke_are_both_sent_again() -> None:
    coordinator = Coordinator(_items("a", "b"), Policy(window=2, batch_items=1))
    batches = [command.batch for command in coordinator.step(0, Joined("w", ALL)) if isinstance(command, Send)]
    assert len(batches) == 2
    for batch in batches:
        assert coordinator.step(1, Broken("w", batch)) == [Ping("w")]
    commands = coordinator.step(2, Answered("w"))
    assert [command.batch for command in commands if isinstance(command, Skip)] == batches
    assert _sent(commands, "w") == ["a", "b"]


def test_a_batch_that_is_over_cannot_break() -> None:
    coordinator = Coordinator(_items("a", "b"), PATIENT)
    (first,) = coordinator.step(0, Joined("w", ALL))
    assert isinstance(first, Send)
    coordinator.step(1, Arrived("w", "a"))
    coordinator.step(1, Ended("w", first.batch))
    assert coordinator.step(2, Broken("w", first.batch)) == []
    commands = coordinator.step(3, Broken("w", first.batch + 1))
    assert commands == [Ping("w")]
    commands = coordinator.step(4, Ended("w", first.batch + 1))
    assert _sent(commands, "w") == ["b"]
    assert coordinator.step(5, Arrived("w", "b")) == [Accept("b"), Finish({}, ())]


def test_a_worker_that_answers_without_progress_is_dismissed_after_its_silences() -> None:
    policy = Policy(patience_seconds=1, slowest=1e9, silences=3)
    coordinator = Coordinator(_items("a"), policy)
    coordinator.step(0, Joined("w", ALL))
    for number in range(1, policy.silences + 1):
        now = coordinator.wakes_at
        assert coordinator.step(now) == [Ping("w")]
        assert coordinator.step(now, Answered("w")) == []
        assert coordinator.wakes_at - now == (1 + 10 / 1e9) * 2**number
    assert coordinator.step(coordinator.wakes_at) == [Ping("w")]
    assert coordinator.step(coordinator.wakes_at, Answered("w")) == [Dismiss("w", "it answers, but makes no progress")]
    assert coordinator.phase("w") is Phase.GONE


@pytest.mark.parametrize("start", [0.0, 100.0])
def test_an_idle_worker_copies_an_item_that_takes_twice_as_long_as_it_would_itself(start: float) -> None:
    coordinator = Coordinator(_items("slow", "one", "two"), PATIENT)
    assert _sent(coordinator.step(start, Joined("a", ALL)), "a") == ["slow"]
    batches = {}
    for now, event in ((0.0, Joined("b", ALL)), (1.0, Arrived("b", "one")), (2.0, Arrived("b", "two"))):
        for command in coordinator.step(start + now, event):
            if isinstance(command, Send):
                batches[command.items[0]] = command.batch
        if isinstance(event, Arrived):
            for command in coordinator.step(start + now, Ended("b", batches[event.item])):
                if isinstance(command, Send):
                    batches[command.items[0]] = command.batch
    assert set(batches) == {"one", "two"}  # 20 bytes in 2 s: "slow" would take one
    assert coordinator.step(start + 2.0) == []
    assert _sent(coordinator.step(start + 2.01), "b") == ["slow"]


def test_a_worker_of_unknown_speed_copies_no_item_of_a_worker_that_is_not_suspect() -> None:
    coordinator = Coordinator(_items("slow"), PATIENT)
    coordinator.step(0, Joined("a", ALL))
    assert coordinator.step(100, Joined("b", ALL)) == []
    assert coordinator.step(500) == []


def _with_a_copy() -> tuple[Coordinator, int, int]:
    """An item whose first worker is suspect, so that a second has a copy; and both batches."""
    coordinator = Coordinator(_items("unit"), Policy(window=1, patience_seconds=5, slowest=1e9))
    (first,) = coordinator.step(0, Joined("a", ALL))
    coordinator.step(0, Joined("b", ALL))
    second = next(command for command in coordinator.step(6) if isinstance(command, Send))
    assert isinstance(first, Send)
    assert (second.worker, second.items) == ("b", ("unit",))
    return coordinator, first.batch, second.batch


def test_the_first_result_of_an_item_with_copies_skips_the_others() -> None:
    coordinator, first, second = _with_a_copy()
    assert coordinator.step(7, Arrived("b", "unit")) == [Accept("unit"), Skip("a", first, ("unit",)), Finish({}, ())]
    coordinator, first, second = _with_a_copy()
    assert coordinator.step(7, Arrived("a", "unit")) == [Accept("unit"), Skip("b", second, ("unit",)), Finish({}, ())]


def test_an_item_goes_out_again_only_if_its_last_copy_is_lost() -> None:
    coordinator, _, second = _with_a_copy()
    coordinator.step(7, Joined("c", ALL))
    assert coordinator.step(8, Ended("b", second)) != []
    coordinator, _, second = _with_a_copy()
    assert coordinator.step(8, Died("b", "killed")) == [Dismiss("b", "killed")]
    assert coordinator.step(9, Joined("c", ALL)) == []  # it broke one worker, and its first copy is alive
    commands = coordinator.step(10, Died("a", "killed"))
    assert commands[-1] == Finish({"unit": ("b: killed", "a: killed")}, ())


def test_a_late_result_of_an_item_that_waits_is_not_asked_for_again() -> None:
    coordinator = Coordinator(_items("a", "b"), Policy(window=1, batch_items=2))
    coordinator.step(0, Joined("w", ALL))
    coordinator.step(1, Died("w", "thought dead"))
    assert coordinator.step(2, Arrived("w", "a")) == [Accept("a")]
    commands = coordinator.step(3, Joined("v", ALL))
    assert _sent(commands, "v") == ["b"]


def test_a_batch_without_items_has_to_end_within_the_patience() -> None:
    policy = Policy(window=1, patience_seconds=7, slowest=1.0)
    coordinator = Coordinator(_items("a", "b"), policy)
    (send,) = coordinator.step(0, Joined("w", {"": 0}))
    assert isinstance(send, Send)
    assert coordinator.wakes_at == 7 + 10
    for name in send.items:
        coordinator.step(3, Arrived("w", name))
    assert coordinator.wakes_at == 3 + 7
    assert coordinator.step(10) == [Ping("w")]


def test_a_failed_item_is_counted_once_per_attempt_and_a_stranger_is_ignored() -> None:
    coordinator = Coordinator(_items("a", "b"), PATIENT)
    coordinator.step(0, Joined("w", ALL))
    assert coordinator.step(1, Failed("w", "no such item", "?")) == []
    assert coordinator.step(1, Arrived("w", "no such item")) == []
    assert coordinator.step(1, Failed("stranger", "a", "?")) == []
    assert coordinator.phase("stranger") is Phase.UNKNOWN
    coordinator.step(2, Arrived("w", "a"))
    assert coordinator.step(3, Failed("w", "a", "after its result")) == []
    assert coordinator.finished is None


def test_the_fastest_idle_worker_gets_the_next_item() -> None:
    coordinator = Coordinator(_items("a", "b", "c", "d"), PATIENT)
    batches = {}
    for worker in ("slow", "fast", "ill"):
        (send,) = coordinator.step(0, Joined(worker, ALL))
        assert isinstance(send, Send)
        batches[worker] = send.batch
    (send,) = coordinator.step(1, Joined("last", ALL))
    for now, worker, item in ((2, "fast", "b"), (4, "slow", "a")):
        coordinator.step(now, Arrived(worker, item))
        assert coordinator.step(now, Ended(worker, batches[worker])) == []
    commands = coordinator.step(4, Died("ill", "killed"))
    assert [(command.worker, command.items) for command in commands if isinstance(command, Send)] == [("fast", ("c",))]


def _batches(items: list[Item], policy: Policy) -> list[list[str]]:
    commands = Coordinator(items, policy).step(0, Joined("w", ALL))
    return [list(command.items) for command in commands if isinstance(command, Send)]


def test_a_batch_is_a_fourth_of_the_items_and_of_the_bytes_that_are_left() -> None:
    by_count = [Item(f"unit{n}", 0) for n in range(9)]
    assert _batches(by_count, Policy()) == [["unit0", "unit1", "unit2"], ["unit3", "unit4"]]  # of 9 and of 6
    by_bytes = [Item("big", 40), *(Item(f"unit{n}", 10) for n in range(11))]
    assert _batches(by_bytes, Policy()) == [["big"], ["unit0", "unit1"]]  # of 150 and of 110 bytes
    assert _batches(by_bytes, Policy(window=1)) == [["big", "unit0", "unit1", "unit2"]]  # half of 150 bytes


def test_an_item_that_failed_ends_a_batch_and_begins_one() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 0) for n in range(12)], Policy(window=1))
    (first,) = coordinator.step(0, Joined("a", ALL))
    assert isinstance(first, Send)
    assert len(first.items) == 6
    coordinator.step(1, Failed("a", "unit0", "no memory"))
    commands = coordinator.step(2, Joined("b", ALL))
    assert _sent(commands, "b") == ["unit0"]  # alone, and on another worker
    commands = coordinator.step(3, Ended("a", first.batch))
    assert "unit0" not in _sent(commands, "a")


def test_half_of_what_the_busiest_has_not_begun_is_stolen() -> None:
    policy = Policy(window=1, patience_seconds=1000, slowest=1e9)
    coordinator = Coordinator([Item(f"unit{n}", 1) for n in range(12)], policy)
    (first,) = coordinator.step(0, Joined("a", ALL))
    (last,) = coordinator.step(0, Joined("b", ALL))
    assert isinstance(first, Send)
    assert isinstance(last, Send)
    assert (first.items, last.items) == (tuple(f"unit{n}" for n in range(6)), ("unit6",))
    commands: list[Command] = []
    while not any(isinstance(command, Skip) for command in commands):  # b does all that waits
        commands = []
        for name in last.items:
            commands += coordinator.step(1, Arrived("b", name))
        commands += coordinator.step(1, Ended("b", last.batch))
        last = next(command for command in commands if isinstance(command, Send))
    stolen = ("unit3", "unit4", "unit5")  # unit0 has begun; of the other five the later half
    assert [command for command in commands if isinstance(command, Skip)] == [
        Skip("a", first.batch, (name,)) for name in stolen
    ]
    assert last.items == stolen
    coordinator.step(2, Died("b", "killed"))
    assert set(_sent(coordinator.step(3, Joined("c", ALL)), "c")) <= set(stolen)  # nobody else has them


def test_an_item_that_failed_waits_for_a_busy_worker_that_has_not_tried_it() -> None:
    coordinator = Coordinator(_items("a", "b"), PATIENT)
    (first,) = coordinator.step(0, Joined("v", ALL))
    (second,) = coordinator.step(0, Joined("w", ALL))
    assert isinstance(first, Send)
    assert isinstance(second, Send)
    assert coordinator.step(1, Failed("v", "a", "no memory")) == []
    assert coordinator.step(1, Ended("v", first.batch)) == []
    coordinator.step(2, Arrived("w", "b"))
    assert _sent(coordinator.step(2, Ended("w", second.batch)), "w") == ["a"]


def test_of_two_suspects_one_item_is_copied_at_a_time() -> None:
    coordinator = Coordinator(_items("a", "b"), Policy(window=1, patience_seconds=5, slowest=1e9))
    coordinator.step(0, Joined("v", ALL))
    coordinator.step(0, Joined("w", ALL))
    commands = coordinator.step(6)
    assert commands == [Ping("v"), Ping("w")]
    assert _sent(coordinator.step(6, Joined("x", ALL)), "x") == ["a"]


def test_workers_of_one_group_share_its_items() -> None:
    coordinator = Coordinator([Item(f"unit{n}", 0) for n in range(12)], Policy(window=1))
    assert len(_sent(coordinator.step(0, Joined("v", ALL)), "v")) == 6  # half of all
    assert len(_sent(coordinator.step(0, Joined("w", ALL)), "w")) == 2  # half of its half of six
