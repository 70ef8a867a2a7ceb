"""The decision between packing on one node and on all workers, by measured rates."""

from collections.abc import Sequence
from itertools import product

import pytest

from cluster.schedule.solo import WORTHWHILE, LinkSpeed, Timed, combined_rate, reason_to_pack_alone

RATES = (0.05e9, 0.5e9, 5e9)
LINKS = {"1GbE": 0.11e9, "10GbE": 0.8e9, "Thunderbolt": 2.5e9}
CROSSINGS = (0.15, 0.28, 0.55, 1.3)  # 2 to 8 bits of 16; borrowed weights on top
STORE = 1e9  # bytes per second of a worker on the same machine


def _links(others: int, link: float, crossing: float, *, local: bool = True) -> list[LinkSpeed]:
    return [LinkSpeed(STORE, crossing, is_local=True)] * local + [LinkSpeed(link, crossing)] * others


@pytest.mark.parametrize(("rate", "link", "crossing"), list(product(RATES, LINKS.values(), CROSSINGS)))
def test_workers_pack_no_faster_than_their_rate_and_their_link(rate: float, link: float, crossing: float) -> None:
    for others in range(9):
        total = combined_rate(rate, _links(others, link, crossing))
        own = min(rate, STORE / crossing)
        assert total == pytest.approx(own + min(others * rate, link / crossing if others else 0.0))
        assert combined_rate(rate, _links(others, link, crossing, local=False)) == pytest.approx(total - own)


@pytest.mark.parametrize(("rate", "crossing"), list(product(RATES, CROSSINGS)))
def test_more_workers_and_faster_links_are_never_slower(rate: float, crossing: float) -> None:
    for link in LINKS.values():
        rates = [combined_rate(rate, _links(others, link, crossing)) for others in range(9)]
        assert rates == sorted(rates)
    for others in range(9):
        rates = [combined_rate(rate, _links(others, link, crossing)) for link in sorted(LINKS.values())]
        assert rates == sorted(rates)


def test_the_network_is_as_fast_as_its_fastest_link_and_the_smallest_crossing_comes_first() -> None:
    lender, borrower = LinkSpeed(1e8, 0.25), LinkSpeed(1e8, 1.25)
    assert combined_rate(1e9, [lender, borrower]) == pytest.approx(4e8)  # the lender's bytes fill it
    assert combined_rate(2e8, [borrower, lender]) == pytest.approx(2e8 + 0.5e8 / 1.25)
    assert combined_rate(1e9, [LinkSpeed(0.0, 0.25), lender]) == pytest.approx(4e8)  # a silent worker adds nothing


def test_without_other_nodes_this_machine_packs_alone() -> None:
    assert "there are no others, and all workers together would be 1.00 times" in reason_to_pack_alone(
        1e9, _links(0, 0.0, 0.28)
    )
    assert "0.00 times" in reason_to_pack_alone(1e9, [])


@pytest.mark.parametrize(
    ("rate", "link", "alone"),
    [
        (4e9, "1GbE", True),  # nearest on a chip that is faster than the network
        (0.4e9, "1GbE", False),  # searched: the chip has to work
        (4e9, "Thunderbolt", False),
    ],
)
def test_a_fast_machine_on_a_slow_network_packs_alone_and_reports_its_measurements(
    rate: float, link: str, *, alone: bool
) -> None:
    reason = reason_to_pack_alone(rate, _links(1, LINKS[link], 0.28))
    assert bool(reason) is alone
    if alone:
        assert "it packs 4 GB of weights per second, bytes of other nodes arrive at 110 MB/s" in reason


def test_the_decision_changes_at_the_worthwhile_gain() -> None:
    rate, crossing = 1e9, 0.25
    just = (WORTHWHILE - 1) * rate * crossing
    own = LinkSpeed(1e12, crossing, is_local=True)
    assert not reason_to_pack_alone(rate, [own, LinkSpeed(just * 1.001, crossing)])
    assert reason_to_pack_alone(rate, [own, LinkSpeed(just * 0.999, crossing)])


@pytest.mark.parametrize(
    ("moments", "sizes", "rate"),
    [
        ([0, 9, 9, 10, 20, 22], [100, 10, 30], 40 / 3),  # the first made things ready, the consumer took 10 s
        ([0, 4], [100], 25.0),
    ],
)
def test_a_rate_counts_only_the_seconds_of_making_items(
    moments: Sequence[float], sizes: Sequence[int], rate: float
) -> None:
    clock = iter(moments)
    timed = Timed(iter(sizes), lambda: float(next(clock)))
    assert [next(timed) for _ in sizes] == list(sizes)
    assert timed.rate(sizes) == pytest.approx(rate)
