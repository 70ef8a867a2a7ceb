"""Small results travel together, and nothing waits for long: a clock that is a number, no Ray."""

from math import inf, log

import pytest

from cluster.transport.messages import HOLD_SECONDS, HOLD_SHARE, PARCEL_BYTES, Gathering, Parcel, pack
from mint.core.errors import MintError


class Sending:
    """A worker whose units take their bytes in seconds at `rate`; when each result was there and when it was sent."""

    def __init__(self, sizes: list[int], rate: float, result_bytes: int = 300) -> None:
        self.now = 0.0
        self.there: list[float] = []
        self.sent: list[float] = []
        self.messages = 0
        parcel: Parcel[int] = Parcel(lambda: self.now)
        for number, size in enumerate(sizes):
            self.now += size / rate
            self.there.append(self.now)
            full = parcel.add(number, result_bytes)
            following = sizes[number + 1] if number + 1 < len(sizes) else None
            if full or parcel.is_due(size, following):
                taken = parcel.take()
                assert taken == list(range(len(self.sent), number + 1)), "all, once, in their order"
                self.sent += [self.now] * len(taken)
                self.messages += 1
        assert len(self.sent) == len(sizes), "the last sends what is left"

    @property
    def longest_wait(self) -> float:
        return max(sent - there for there, sent in zip(self.there, self.sent, strict=True))


@pytest.mark.parametrize("seconds", [0.0001, 0.003, 0.01, 0.04, 0.1])
def test_units_of_one_size_wait_no_longer_than_agreed_and_share_as_few_messages_as_that_allows(seconds: float) -> None:
    sending = Sending([1000] * 2000, 1000 / seconds)
    assert sending.longest_wait <= HOLD_SECONDS + 1e-9
    together = min(HOLD_SECONDS / seconds, PARCEL_BYTES / 300)
    ramp = log(HOLD_SECONDS / HOLD_SHARE / seconds) / log(1 + HOLD_SHARE)  # messages until it may hold so long
    assert sending.messages <= 2000 / (together - 1) + ramp + 1 / HOLD_SHARE + 3


@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 1e-2])
def test_nothing_waits_longer_than_a_share_of_the_time_worked(seconds: float) -> None:
    sending = Sending([1000] * 300, 1000 / seconds)
    for there, sent in zip(sending.there, sending.sent, strict=True):
        assert sent - there <= HOLD_SHARE * sent + 1e-9


@pytest.mark.parametrize("seconds", [0.3, 5.0, 600.0])
def test_a_unit_that_takes_longer_is_sent_by_itself_at_once(seconds: float) -> None:
    sending = Sending([1000] * 10, 1000 / seconds)
    assert sending.longest_wait == 0.0
    assert sending.messages == 10


def test_a_large_unit_never_holds_back_the_small_ones_before_it() -> None:
    sending = Sending([1, 1, 1, 10**6, 1, 1, 10**6, 1] * 50, rate=100.0)
    assert sending.longest_wait <= HOLD_SECONDS


def test_large_results_travel_as_they_come() -> None:
    assert Sending([1] * 20, 1e9, PARCEL_BYTES).messages == 20


def test_nothing_to_send_is_never_due() -> None:
    parcel: Parcel[int] = Parcel(lambda: 0.0)
    assert not parcel.is_due(1, None)
    assert not parcel.is_due(1, 10**30)
    parcel.add(1, 0)
    assert parcel.is_due(1, None)
    assert inf > HOLD_SECONDS > 0


def test_a_piece_that_is_a_number_takes_no_memory() -> None:
    with pytest.raises(MintError, match="a message with results cannot be read"):
        list(Gathering("node").add(pack([["up", "", 2**53, True]])))
