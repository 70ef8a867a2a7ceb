"""The promises of each stage of the knapsack search, against brute force."""

from itertools import pairwise, product
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mint.plan.knapsack.bundles import Bundles, SuffixBound
from mint.plan.knapsack.merge import ProofBudget, exchange, least_excess, merge
from mint.plan.knapsack.relaxation import Case, pareto, relax, relax_each, snap
from mint.plan.knapsack.search import PRECISION
from tests.mint.plan.test_knapsack import Instance, brute_force, instances, quickly

briefly = hypothesis_settings(max_examples=20, deadline=None)


def case_of(sizes: list[list[int]], losses: list[list[float]], capacity: int) -> Case:
    """The root case of a search, with sizes above the smallest options."""
    counts = np.array([len(row) for row in sizes], np.int64)
    options = pareto(counts, np.concatenate(sizes).astype(np.int64), np.concatenate(losses))
    return Case(-inf, np.empty(0, np.int64), 0.0, options, capacity - sum(map(min, sizes)))


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
        case = case_of(sizes, losses, max(sum(map(min, sizes)), close_to_a_total))
        relaxation = relax(case)
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
        assert kept == better
        snapped_cases += snapped.capacity < case.capacity
    assert snapped_cases > 50


@given(instances(), st.integers(0, 20))
@quickly
def test_an_exchange_fits_and_is_never_worse_than_the_base(instance: Instance, count: int) -> None:
    case = case_of(instance.sizes, instance.losses, instance.capacity)
    relaxation = relax(case)
    chosen = exchange(case, relaxation, inf, count)
    assert np.array_equal(case.options.row[chosen], np.arange(len(instance.sizes)))
    assert case.options.size[chosen].sum() <= case.capacity
    assert case.options.loss[chosen].sum() <= case.options.loss[relaxation.base].sum() * (1 + PRECISION)


@given(instances(classes=4))
@briefly
def test_an_exchange_among_four_classes_is_the_best_choice(instance: Instance) -> None:
    case = case_of(instance.sizes, instance.losses, instance.capacity)
    chosen = exchange(case, relax(case), inf, 100)
    assert case.options.loss[chosen].sum() == pytest.approx(brute_force(instance), rel=1e-9, abs=1e-9)


@given(instances(), st.integers(0, 20))
@briefly
def test_options_of_least_excess_are_alternatives_to_the_base(instance: Instance, count: int) -> None:
    case = case_of(instance.sizes, instance.losses, instance.capacity)
    options, relaxation = case.options, relax(case)
    candidates = least_excess(options, relaxation, inf, count)
    alternatives = np.setdiff1d(np.arange(len(options.size)), relaxation.base)
    assert np.isin(candidates, alternatives).all()
    for kind in set(options.common.tolist()):
        alike, chosen = (
            np.sort(relaxation.excess[part[options.common[options.row[part]] == kind]])
            for part in (alternatives, candidates)
        )
        assert np.array_equal(chosen, alike[:count])


@given(instances())
@quickly
def test_relaxations_with_a_class_fixed_are_between_the_relaxation_and_the_best(instance: Instance) -> None:
    case = case_of(instance.sizes, instance.losses, instance.capacity)
    best = brute_force(instance)
    for i in range(len(instance.sizes)):
        bounds = relax_each(case, i)
        assert relax(case).bound <= bounds.min() + 1e-9 * sum(map(max, instance.losses))
        assert bounds.min() <= best + 1e-9 * sum(map(max, instance.losses))


@given(instances())
@quickly
def test_a_complete_merge_has_the_best_choice(instance: Instance) -> None:
    case = case_of(instance.sizes, instance.losses, instance.capacity)
    limit = 2 * sum(map(max, instance.losses)) + 1
    merged = merge(case, limit, width=10**6, budget=ProofBudget(10**9, inf))
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
        case = case_of(sizes, losses, instance.capacity)
        merged = merge(case, limit=100.0, width=1, budget=ProofBudget(10**9, inf))
        best = float(case.options.loss[merged.chosen].sum()) == pytest.approx(brute_force(instance))
        assert best or not merged.complete
        worse += not best
    assert worse > 10


def alike(classes: int, kinds: int, rng: np.random.Generator) -> tuple[list[list[int]], list[list[float]]]:
    """Classes of a few shapes, with losses of their own."""
    shapes = [np.cumsum(rng.integers(0, 4, 3)) * 100 + rng.integers(0, 2) for _ in range(kinds)]
    sizes = [shapes[int(rng.integers(kinds))].tolist() for _ in range(classes)]
    return sizes, [np.sort(rng.random(3))[::-1].tolist() for _ in sizes]


@pytest.mark.parametrize("longest", [1, 2, 64])
def test_bundles_have_alternatives_for_every_choice_and_suffix_bounds_hold(longest: int) -> None:
    rng = np.random.default_rng(17)
    for _ in range(40):
        sizes, losses = alike(5, 2, rng)
        case = case_of(sizes, losses, int(rng.integers(sum(map(min, sizes)), sum(map(max, sizes)) + 1)))
        options, relaxation = case.options, relax(case)
        room = float(rng.random())
        own = rng.random(len(options.first)) < 0.4
        bundles = Bundles.of(options, relaxation, room, own, longest=longest)
        suffix = SuffixBound(bundles, relaxation.price, room)
        totals = {0: 0.0}  # of the bundles after a position: the least excess by step
        for position in reversed(range(len(bundles.kind))):
            for left in rng.integers(-600, 600, 4).tolist():
                ways = [lift + relaxation.price * (left - step) for step, lift in totals.items() if step <= left]
                least = min(ways, default=inf)
                assert least > room or float(suffix.lift(position, np.array([left]))[0]) <= least + 1e-12
            merged: dict[int, float] = {}
            for (step, lift), (more, lifted) in product(
                totals.items(), zip(*map(np.ndarray.tolist, bundles.alternatives(position)), strict=True)
            ):
                merged[step + more] = min(merged.get(step + more, inf), lift + lifted)
            totals = merged
        for chosen in product(*(range(begin, end) for begin, end in pairwise(options.start.tolist()))):
            excess, step = relaxation.excess[list(chosen)].sum(), int(relaxation.step[list(chosen)].sum())
            assert excess > room - 1e-12 or totals[step] <= excess + 1e-12


def test_an_alternative_takes_options_of_its_step_and_excess() -> None:
    rng = np.random.default_rng(19)
    for _ in range(40):
        sizes, losses = alike(12, 3, rng)
        case = case_of(sizes, losses, int(rng.integers(sum(map(min, sizes)), sum(map(max, sizes)) + 1)))
        relaxation = relax(case)
        bundles = Bundles.of(case.options, relaxation, 0.5, rng.random(len(case.options.first)) < 0.4)
        for bundle in range(len(bundles.kind)):
            for alternative, (step, excess) in enumerate(zip(*bundles.alternatives(bundle), strict=True)):
                taken = bundles.taken(bundle, alternative)
                assert len(set(case.options.row[taken])) == len(taken)
                assert relaxation.step[taken].sum() == step
                assert relaxation.excess[taken].sum() == pytest.approx(excess, abs=1e-12)


def test_common_classes_of_one_bundle_stay_below_what_they_reach_after_a_rare_class() -> None:
    sizes, losses = [[0, 70]] + [[0, 100]] * 4, [[0.5, 0.0]] + [[2.0, 1.0]] * 4
    case = case_of(sizes, losses, 430)
    relaxation = relax(case)
    bundles = Bundles.of(case.options, relaxation, 10.0, np.zeros(5, np.bool_))
    assert len(bundles.kind) == 2
    suffix = SuffixBound(bundles, relaxation.price, 10.0)
    steps, lifts = bundles.alternatives(1)
    assert np.all(suffix.lift(0, steps) <= lifts + 1e-12)


def test_bytes_beyond_all_bundles_lift_the_suffix_bound_by_their_price() -> None:
    rng = np.random.default_rng(29)
    for _ in range(20):
        sizes, losses = alike(6, 2, rng)
        case = case_of(sizes, losses, (sum(map(min, sizes)) + sum(map(max, sizes))) // 2)
        relaxation = relax(case)
        bundles = Bundles.of(case.options, relaxation, 10.0, np.zeros(len(case.options.first), np.bool_))
        suffix = SuffixBound(bundles, relaxation.price, 10.0)
        for position in range(len(bundles.kind)):
            reach = int(bundles.step[bundles.start[position + 1] :].clip(0).sum())
            left = reach + np.arange(0, 2000, 100)
            assert np.all(suffix.lift(position, left) >= relaxation.price * (left - reach) * (1 - PRECISION))


def test_thousands_of_near_equal_classes_are_few_bundles() -> None:
    sizes, losses = alike(3000, 2, np.random.default_rng(23))
    case = case_of(sizes, losses, sum(row[1] for row in sizes))
    relaxation = relax(case)
    room = float(np.sort(relaxation.excess[relaxation.step != 0])[500])  # as much as the 500th option lifts the bound
    bundles = Bundles.of(case.options, relaxation, room, np.zeros(len(case.options.first), np.bool_))
    assert 0 < len(bundles.kind) <= 12
    assert len(bundles.option) < 250


def test_classes_of_one_loss_are_merged_block_by_block() -> None:
    sizes, losses = [[0, 100]] * 500 + [[0, 7]], [[1.0, 0.0]] * 500 + [[0.01, 0.0]]
    case = case_of(sizes, losses, 20_055)
    merged = merge(case, limit=310.0, width=10**6, budget=ProofBudget(10**9, inf))
    assert merged.complete
    assert float(case.options.loss[merged.chosen].sum()) == pytest.approx(300.0)
