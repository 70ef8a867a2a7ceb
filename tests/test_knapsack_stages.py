"""What each stage of the knapsack's search promises, against brute force."""

from itertools import pairwise, product
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint.knapsack_merge import Patience, exchange, merge
from mint.knapsack_relaxation import Case, Hull, lower_hulls, pareto, relax, relax_each, snap
from mint.knapsack_search import PRECISION
from tests.test_knapsack import Instance, brute_force, instances, quickly, same


def case_of(sizes: list[list[int]], losses: list[list[float]], capacity: int) -> tuple[Case, Hull]:
    """What a search begins with, without the sizes of the smallest options."""
    counts = np.array([len(row) for row in sizes], np.int64)
    options = pareto(counts, np.concatenate(sizes).astype(np.int64), np.concatenate(losses))
    case = Case(-inf, np.empty(0, np.int64), 0.0, options, capacity - sum(map(min, sizes)))
    return case, lower_hulls(options)


def totals_of(case: Case) -> list[tuple[tuple[int, ...], int, float]]:
    """Names, size and loss of every choice of a case, in one order of names."""
    options, fixed = case.options, tuple(case.fixed.tolist())
    rows = [range(begin, end) for begin, end in pairwise(options.start.tolist())]
    return [
        (
            tuple(sorted((*fixed, *options.name[list(choice)].tolist()))),
            int(options.size[list(choice)].sum()),
            case.lost + float(options.loss[list(choice)].sum()),
        )
        for choice in product(*rows)
    ]


def test_a_snapped_case_has_the_same_choices_below_the_best_known() -> None:
    rng = np.random.default_rng(5)
    snapped_cases = 0
    for _ in range(400):
        counts = rng.integers(2, 5, rng.integers(2, 6)).tolist()
        sizes = [(rng.integers(0, 9, count) * 4096 + rng.integers(0, 120, count)).tolist() for count in counts]
        losses = [rng.random(count).tolist() for count in counts]
        close_to_a_total = sum(int(rng.choice(row)) for row in sizes) + int(rng.integers(-1, 2))
        case, hull = case_of(sizes, losses, max(sum(map(min, sizes)), close_to_a_total))
        relaxation = relax(case, hull)
        known = float(case.options.loss[relaxation.base].sum())
        snapped = snap(case, relaxation, known - relaxation.bound)
        better, kept = (
            {
                names: loss
                for names, size, loss in totals_of(part)
                if size <= part.capacity and loss < known * (1 - PRECISION)
            }
            for part in (case, snapped)
        )
        # of options that become equal one is dropped, so there can be fewer, but none is new and the best is there
        assert set(kept) <= set(better)
        assert min(kept.values(), default=known) == same(min(better.values(), default=known))
        snapped_cases += bool(np.gcd.reduce(snapped.options.size, initial=0) > 16)
    assert snapped_cases > 50


@given(instances(), st.integers(0, 20))
@quickly
def test_an_exchange_fits_and_is_never_worse_than_the_base(instance: Instance, each: int) -> None:
    case, hull = case_of(instance.sizes, instance.losses, instance.capacity)
    relaxation = relax(case, hull)
    chosen = exchange(case, relaxation, inf, each)
    assert np.array_equal(case.options.row[chosen], np.arange(len(instance.sizes)))
    assert case.options.size[chosen].sum() <= case.capacity
    assert case.options.loss[chosen].sum() <= case.options.loss[relaxation.base].sum() * (1 + PRECISION)


@given(instances())
@quickly
def test_relaxations_with_a_class_fixed_are_between_the_relaxation_and_the_best(instance: Instance) -> None:
    case, hull = case_of(instance.sizes, instance.losses, instance.capacity)
    best = brute_force(instance)
    for i in range(len(instance.sizes)):
        bounds = relax_each(case, hull, i)
        assert relax(case, hull).bound <= bounds.min() + 1e-9 * sum(map(max, instance.losses))
        assert bounds.min() <= best + 1e-9 * sum(map(max, instance.losses))


@given(instances())
@quickly
def test_a_complete_merge_has_the_best_choice(instance: Instance) -> None:
    case, _ = case_of(instance.sizes, instance.losses, instance.capacity)
    limit = 2 * sum(map(max, instance.losses)) + 1
    merged = merge(case, limit, width=10**6, patience=Patience(10**9, inf))
    assert merged.complete
    assert case.options.size[merged.chosen].sum() <= case.capacity
    assert float(case.options.loss[merged.chosen].sum()) == pytest.approx(brute_force(instance), rel=1e-9, abs=1e-9)


def test_a_merge_too_narrow_for_the_best_choice_is_not_complete() -> None:
    rng = np.random.default_rng(3)
    worse = 0
    for _ in range(200):
        sizes, losses = rng.integers(0, 1000, (6, 3)).tolist(), rng.random((6, 3)).tolist()
        instance = Instance(sizes, losses, int(rng.integers(1000, 4000)))
        if instance.capacity < instance.smallest:
            continue
        case, _ = case_of(sizes, losses, instance.capacity)
        merged = merge(case, limit=100.0, width=2, patience=Patience(10**9, inf))
        best = float(case.options.loss[merged.chosen].sum()) == pytest.approx(brute_force(instance))
        assert best or not merged.complete
        worse += not best
    assert worse > 10
