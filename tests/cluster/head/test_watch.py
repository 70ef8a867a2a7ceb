"""A head that is gone is noticed in time and not too early, and no call to it delays the work."""

import socket
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from cluster.head.watch import (
    EVERY_SECONDS,
    REFUSED_SECONDS,
    SAY_SECONDS,
    SILENT_SECONDS,
    Beside,
    HeadWatch,
    Patience,
)
from cluster.settings import Address
from mint.core.errors import MintError

HEAD = Address("10.0.0.1", 6379)
REFUSED = ConnectionRefusedError(111, "Connection refused")
SILENT = TimeoutError("timed out")
LIMIT_SECONDS = 30.0


def _moments(until: float) -> list[float]:
    return [EVERY_SECONDS * n for n in range(int(until / EVERY_SECONDS) + 1)]


@pytest.mark.parametrize(("trouble", "seconds"), [(REFUSED, REFUSED_SECONDS), (SILENT, SILENT_SECONDS)])
def test_the_head_is_gone_after_a_while_and_not_before(trouble: OSError, seconds: float) -> None:
    patience = Patience(HEAD)
    for now in _moments(seconds + 2 * EVERY_SECONDS):
        patience.tried(1000 + now, trouble)
        assert bool(patience.verdict) is (now >= seconds), now
    assert "the head of the cluster at 10.0.0.1:6379 is gone" in patience.verdict
    assert "run the same command again" in patience.verdict


def test_a_cable_that_is_out_for_a_while_is_mentioned_once_and_then_that_the_head_is_back() -> None:
    patience = Patience(HEAD)
    notes = [patience.tried(now, SILENT) for now in _moments(SILENT_SECONDS - EVERY_SECONDS)]
    first, *more = filter(None, notes)
    assert (first, more) == ("the head at 10.0.0.1:6379 does not answer (timed out); waiting for it", [])
    assert notes.index(first) == SAY_SECONDS / EVERY_SECONDS
    assert patience.tried(SILENT_SECONDS, None) == "the head at 10.0.0.1:6379 is back"
    assert [patience.tried(SILENT_SECONDS + now, None) for now in _moments(10)] == [""] * len(_moments(10))
    assert not patience.verdict


def test_every_answer_begins_the_wait_anew() -> None:
    patience = Patience(HEAD)
    for now in _moments(10 * REFUSED_SECONDS):
        patience.tried(now, None if now % (REFUSED_SECONDS - EVERY_SECONDS) == 0 else REFUSED)
    assert not patience.verdict


class Observed(Patience):
    """A patience that sets `tried` when the head is gone, or is not, as expected."""

    expect_trouble = False
    tried_as_expected = threading.Event()

    def tried(self, now: float, trouble: OSError | None) -> str:
        note = super().tried(now, trouble)
        if bool(trouble) is self.expect_trouble and bool(self.verdict) is self.expect_trouble:
            self.tried_as_expected.set()
        return note


def test_a_head_that_listens_is_there_and_one_that_stopped_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        patience = Observed(Address("127.0.0.1", head.getsockname()[1]), refused_seconds=0.05)
        tried = patience.tried_as_expected
        watch = HeadWatch(patience, lambda text: None, every_seconds=0.01)
        assert tried.wait(LIMIT_SECONDS)
        watch.insist()
        assert not watch.is_gone
        patience.expect_trouble = True
        tried.clear()
    with closing(watch):
        assert tried.wait(LIMIT_SECONDS)
        with pytest.raises(MintError, match=r"is gone \(.*refused"):
            watch.insist()


def test_a_question_without_an_answer_is_open_once_and_its_answer_comes_once() -> None:
    asked, answered = [], threading.Event()

    def ask() -> int:
        asked.append(1)
        answered.wait(LIMIT_SECONDS)
        return len(asked)

    beside = Beside(ask)
    for _ in range(3):
        beside.begin()
    assert beside.take() is None
    answered.set()
    assert _until(beside.take) == 1
    assert beside.take() is None
    assert len(asked) == 1
    beside.begin()
    assert _until(beside.take) == 2


def _until(look: Callable[[], int | None]) -> int | None:
    waiting = threading.Event()
    for _ in range(1000):
        if answer := look():
            return answer
        waiting.wait(0.01)
    return None
