"""The knapsack's laws, against brute force, an independent solver and itself."""

from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp

from mint.plan.knapsack.search import PRECISION, Tuning
from mint.plan.knapsack.solve import InfeasibleError, Knapsack, LossRows, SizeRows, Solution

quickly = hypothesis_settings(max_examples=80, deadline=None)


def solve(sizes: SizeRows, losses: LossRows, capacity: int, *, seconds: float = 60.0) -> Solution:
    return Knapsack(sizes, losses).solve(capacity, seconds=seconds)


@dataclass(frozen=True)
class Instance:
    sizes: list[list[int]]
    losses: list[list[float]]
    capacity: int

    @property
    def smallest(self) -> int:
        return sum(map(min, self.sizes))

    @property
    def largest(self) -> int:
        return sum(map(max, self.sizes))

    def solve(self, tuning: Tuning = Tuning()) -> Solution:  # noqa: B008, frozen
        return Knapsack(self.sizes, self.losses, tuning=tuning).solve(self.capacity)

    def nbytes(self, choice: tuple[int, ...]) -> int:
        return sum(row[j] for row, j in zip(self.sizes, choice, strict=True))

    def loss(self, choice: tuple[int, ...]) -> float:
        return sum(row[j] for row, j in zip(self.losses, choice, strict=True))


def size_of_any_kind() -> st.SearchStrategy[int]:
    """Small sizes that collide, multiples of a stride with a header, and anything up to 2^53."""
    nearly = st.builds(lambda k, header: 4096 * k + header, st.integers(0, 40), st.integers(0, 9))
    return st.one_of(st.integers(0, 12), nearly, st.integers(0, 2**53))


def loss_of_any_kind() -> st.SearchStrategy[float]:
    return st.one_of(st.integers(0, 5).map(float), st.floats(0, 1, allow_subnormal=False), st.floats(0, 1e6))


@st.composite
def instances(draw: st.DrawFn, classes: int = 5, options: int = 5) -> Instance:
    counts = draw(st.lists(st.integers(1, options), min_size=1, max_size=classes))
    size, loss = draw(st.sampled_from([size_of_any_kind(), st.integers(0, 12)])), loss_of_any_kind()
    sizes = [draw(st.lists(size, min_size=count, max_size=count)) for count in counts]
    losses = [draw(st.lists(loss, min_size=count, max_size=count)) for count in counts]
    capacity = draw(st.integers(sum(map(min, sizes)), sum(map(max, sizes)) + 1))
    return Instance(sizes, losses, capacity)


def curves(classes: int, seed: int, shapes: tuple[int, ...] = (1024, 4096, 14336), share: float = 0.1) -> Instance:
    """Curves like a model's: few shapes, bits and groups, individual headers, losses that fall with bits."""
    rng = np.random.default_rng(seed)
    sizes: list[list[int]] = []
    losses: list[list[float]] = []
    for _ in range(classes):
        weights = int(rng.choice(shapes)) * 4096
        header, alpha = int(rng.integers(60, 90)), float(np.exp(rng.normal(0, 1.6)))
        affine = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
        sizes.append([weights * bits // 8 + weights // group * 4 + 3 * header for bits, group in affine])
        losses.append([alpha * 4.0**-bits * group**0.3 * float(np.exp(rng.normal(0, 0.1))) for bits, group in affine])
        sizes[-1].append(weights * 2 + header)
        losses[-1].append(0.0)
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    return Instance(sizes, losses, least + int((most - least) * share))


def brute_force(instance: Instance) -> float:
    choices = product(*(range(len(row)) for row in instance.sizes))
    return min(instance.loss(choice) for choice in choices if instance.nbytes(choice) <= instance.capacity)


def same(loss: float) -> object:
    return pytest.approx(loss, rel=2 * PRECISION, abs=1e-300)


@given(instances())
@quickly
def test_the_choice_fits_and_its_loss_and_bytes_are_exact(instance: Instance) -> None:
    solution = instance.solve()
    assert solution.nbytes == instance.nbytes(solution.choice) <= instance.capacity
    assert solution.loss == same(instance.loss(solution.choice))


@given(instances())
@quickly
def test_no_choice_is_better_by_brute_force(instance: Instance) -> None:
    solution = instance.solve()
    assert solution.loss == same(brute_force(instance))
    assert solution.bound == solution.loss
    assert solution.gap == 0.0


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("split", [0.0, 2.0])  # always, never
@pytest.mark.parametrize("wide", [50_000, 2, 1])
def test_no_choice_is_better_when_every_search_stage_is_exercised(wide: int, split: float, depth: int) -> None:
    tuning = Tuning(
        exchange_options=0, few=0, many=0, dive_depth=depth, split=split, probe_options=1, probe_width=2,
        wide=wide, crowd=1,
    )  # fmt: skip
    rng = np.random.default_rng(7)
    for _ in range(150):
        counts = rng.integers(1, 5, rng.integers(2, 6)).tolist()
        step = int(rng.choice([1, 1000]))
        sizes = [(rng.integers(0, 30, count) * step + rng.integers(0, 2, count)).tolist() for count in counts]
        losses = [rng.random(count).tolist() for count in counts]
        least, most = sum(map(min, sizes)), sum(map(max, sizes))
        instance = Instance(sizes, losses, int(rng.integers(least, most + 1)))
        solution = instance.solve(tuning)
        assert solution.loss == same(brute_force(instance))
        assert solution.gap == 0.0


CHARACTERS = (
    "ties",
    "lattice",
    "off the lattice",
    "below the lattice",
    "huge class",
    "equal classes",
    "near-equal classes",
    "linear",
)


def of_character(character: str, rng: np.random.Generator) -> tuple[list[list[int]], list[list[float]]]:
    """Sizes and losses that break one assumption of the solver."""
    alike = rng.integers(0, 50, 5) * 4096, rng.random(5)
    sizes, losses = [], []
    for i in range(int(rng.integers(2, 11))):
        count = int(rng.integers(1, 7))
        strides, loss = rng.integers(1, 60, count), rng.random(count)
        size = {
            "ties": strides // 10,
            "lattice": strides * 8192 + rng.integers(0, 40),
            "off the lattice": strides * 1024 + rng.integers(0, 200, count),
            "below the lattice": strides * 4096 - rng.integers(0, 60, count),
            "huge class": strides * (10**7 if i == 0 else 1000) + rng.integers(0, 9, count),
            "equal classes": alike[0] + rng.integers(0, 3),
            "near-equal classes": alike[0],
            "linear": strides * 4096,
        }[character]
        loss = {
            "ties": np.rint(5 * loss),
            "huge class": loss * (100 if i == 0 else 1),
            "equal classes": alike[1],
            "near-equal classes": alike[1] + 0.1 * rng.random(5),
            "linear": (60 - strides) * (1 + 1e-3 * loss),
        }.get(character, loss)
        sizes.append(size.tolist())
        losses.append(loss.tolist())
    return sizes, losses


def front(sizes: list[list[int]], losses: list[list[float]]) -> list[tuple[int, float]]:
    """Every total size with less loss than all smaller ones: the answers at all capacities."""
    totals = [(0, 0.0)]
    for size, loss in zip(sizes, losses, strict=True):
        merged = sorted((a + x, b + y) for a, b in totals for x, y in zip(size, loss, strict=True))
        least = [inf, *accumulate((loss for _, loss in merged), min)]
        totals = [total for total, before in zip(merged, least, strict=False) if total[1] < before]
    return totals


@pytest.mark.parametrize("character", CHARACTERS)
def test_no_choice_is_better_by_the_front_of_all_totals(character: str) -> None:
    rng = np.random.default_rng(11)
    for _ in range(25):
        sizes, losses = of_character(character, rng)
        totals, knapsack = front(sizes, losses), Knapsack(sizes, losses)
        for capacity in rng.integers(totals[0][0], totals[-1][0] + 2, 6).tolist():
            solution = knapsack.solve(capacity)
            assert solution.loss == same(max(total for total in totals if total[0] <= capacity)[1])
            assert solution.gap == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_is_better_by_highs(seed: int) -> None:
    instance = curves(40, seed, share=(0.02, 0.1, 0.3, 0.6)[seed % 4])
    size, loss = np.concatenate(instance.sizes), np.concatenate(instance.losses)
    one_each = np.kron(np.eye(40), np.ones(19))
    answer = milp(
        loss / loss.min(where=loss > 0, initial=1),
        integrality=np.ones(len(loss)),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(size[None] / 2**20, ub=instance.capacity / 2**20),
        ],
        options={"mip_rel_gap": 1e-7, "time_limit": 10},
    )
    choice = tuple(answer.x.reshape(40, 19).argmax(axis=1).tolist())
    solution = instance.solve()
    assert solution.gap == 0.0
    assert instance.nbytes(choice) <= instance.capacity + 2  # HiGHS's own tolerance
    assert solution.loss == pytest.approx(instance.loss(choice), rel=2e-6)
    assert solution.loss <= instance.loss(choice) * (1 + 1e-9) or instance.nbytes(choice) > instance.capacity


@pytest.mark.parametrize("share", np.linspace(0, 1, 12).tolist())
def test_one_huge_class_is_proved_without_a_long_search(share: float) -> None:
    instance = curves(200, 2, (576, 192, 1536), share)
    huge = curves(1, 4, (49152 * 8,))
    sizes, losses = [*instance.sizes, *huge.sizes], [*instance.losses, *huge.losses]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    assert solve(sizes, losses, least + int((most - least) * share), seconds=2.0).gap == 0.0


def test_the_order_of_budgets_does_not_change_the_choices() -> None:
    instance = curves(80, 6)
    capacities = np.linspace(instance.smallest, instance.largest, 40).astype(int).tolist()
    rising, falling = (Knapsack(instance.sizes, instance.losses) for _ in range(2))
    assert [rising.solve(n) for n in capacities] == [falling.solve(n) for n in reversed(capacities)][::-1]


@pytest.mark.parametrize("share", [0.001, 0.05, 0.2, 0.7])
@pytest.mark.parametrize("shapes", [(1024, 4096, 14336), (1536, 192, 576), (4096,)])
def test_model_like_instances_are_proved_and_filled(shapes: tuple[int, ...], share: float) -> None:
    instance = curves(300, 1, shapes, share)
    solution = instance.solve()
    assert solution.gap == 0.0
    assert solution.nbytes <= instance.capacity
    assert instance.capacity - solution.nbytes < 14336 * 4096 // 32


@given(instances(), st.randoms(use_true_random=False))
@quickly
def test_the_order_of_classes_does_not_change_the_loss(instance: Instance, random: np.random.Generator) -> None:
    order = list(range(len(instance.sizes)))
    random.shuffle(order)
    shuffled = Instance([instance.sizes[i] for i in order], [instance.losses[i] for i in order], instance.capacity)
    assert shuffled.solve().loss == same(instance.solve().loss)


@given(instances(), st.randoms(use_true_random=False))
@quickly
def test_the_order_of_options_does_not_change_the_bytes_and_the_loss(
    instance: Instance, random: np.random.Generator
) -> None:
    sizes, losses = [], []
    for size, loss in zip(instance.sizes, instance.losses, strict=True):
        order = list(range(len(size)))
        random.shuffle(order)
        sizes.append([size[j] for j in order])
        losses.append([loss[j] for j in order])
    shuffled, solution = solve(sizes, losses, instance.capacity), instance.solve()
    assert (shuffled.nbytes, shuffled.loss) == (solution.nbytes, solution.loss)


@given(instances(), st.integers(0, 2**53))
@quickly
def test_more_capacity_never_means_more_loss(instance: Instance, more: int) -> None:
    roomy = solve(instance.sizes, instance.losses, instance.capacity + more)
    assert roomy.loss <= instance.solve().loss * (1 + 2 * PRECISION)


def test_the_curve_of_a_model_falls_at_every_budget() -> None:
    instance = curves(60, 3)
    knapsack = Knapsack(instance.sizes, instance.losses)
    losses = [knapsack.solve(int(capacity)).loss for capacity in np.linspace(instance.smallest, instance.largest, 200)]
    assert all(after <= before * (1 + 2 * PRECISION) for before, after in pairwise(losses))


@given(instances(), st.integers(1, 100))
@quickly
def test_scaling_bytes_does_not_change_the_loss(instance: Instance, factor: int) -> None:
    scaled = solve([[n * factor for n in row] for row in instance.sizes], instance.losses, instance.capacity * factor)
    assert scaled.loss == same(instance.solve().loss)


@given(instances(), st.integers(-30, 30))
@quickly
def test_scaling_losses_scales_the_loss(instance: Instance, power: int) -> None:
    scaled = solve(instance.sizes, [[x * 2.0**power for x in row] for row in instance.losses], instance.capacity)
    assert scaled.loss == same(instance.solve().loss * 2.0**power)


@given(instances())
@quickly
def test_the_same_instance_gives_the_same_choice(instance: Instance) -> None:
    prepared = Knapsack(instance.sizes, instance.losses)
    prepared.solve(instance.largest)
    assert instance.solve().choice == instance.solve().choice == prepared.solve(instance.capacity).choice


def test_of_equal_options_the_smallest_then_the_first_is_chosen() -> None:
    assert solve([[7, 5, 5, 9]], [[1.0, 1.0, 1.0, 1.0]], 100).choice == (1,)
    assert solve([[3, 3]] * 3, [[0.5, 0.5]] * 3, 9).choice == (0, 0, 0)


def test_a_point_above_the_hull_is_used_where_it_fills_the_budget() -> None:
    # the hull goes from 0 to 10 bytes in one step; the middle option lies above it
    solution = solve([[0, 5, 10]], [[10.0, 9.0, 0.0]], 7)
    assert solution.choice == (1,)


def test_lists_and_arrays_are_the_same() -> None:
    sizes, losses = [[1, 2], [3, 5, 8]], [[2.0, 1.0], [3.0, 2.0, 0.0]]
    arrays = solve([np.array(row) for row in sizes], [np.array(row) for row in losses], 9)
    assert arrays == solve(sizes, losses, 9)
    assert all(type(j) is int for j in arrays.choice)


@pytest.mark.parametrize("instance", [curves(50, 5), Instance([[1, 4], [2, 2]], [[1, 0], [3, 2]], 0)])
def test_the_smallest_and_the_largest_capacity_leave_one_choice(instance: Instance) -> None:
    smallest = solve(instance.sizes, instance.losses, instance.smallest)
    largest = solve(instance.sizes, instance.losses, instance.largest)
    assert (smallest.nbytes, smallest.gap) == (instance.smallest, 0.0)
    assert largest.loss == pytest.approx(sum(map(min, instance.losses)), rel=1e-12)
    assert largest.gap == 0.0


def test_classes_of_one_option_leave_nothing_to_choose() -> None:
    assert solve([[5]] * 4, [[0.25]] * 4, 20) == Solution((0, 0, 0, 0), 20, 1.0, 1.0)


def test_any_capacity_above_the_largest_is_enough() -> None:
    assert solve([[5, 7], [1, 2]], [[1.0, 0.0], [3.0, 1.0]], 10**30) == Solution((1, 1), 9, 1.0, 1.0)


def test_no_classes_cost_nothing() -> None:
    assert solve([], [], 0) == Solution((), 0, 0.0, 0.0)


def test_a_loss_of_zero_is_proved() -> None:
    assert solve([[1, 2], [1, 3]], [[0.0, 0.0], [4.0, 0.0]], 4) == Solution((0, 1), 4, 0.0, 0.0)


@pytest.mark.parametrize("size", [2**53 - 1, 2**53 + 1, 2**60 - 1])
def test_a_single_byte_counts_in_the_largest_integers(size: int) -> None:
    sizes, losses = [[0, size], [0, 1, 2]], [[4.0, 0.0], [2.0, 1.5, 0.0]]
    assert solve(sizes, losses, size + 1).choice == (1, 1)
    assert solve(sizes, losses, size + 2).choice == (1, 2)


def test_a_capacity_below_the_smallest_is_an_error_that_names_it() -> None:
    with pytest.raises(InfeasibleError, match=r"7 bytes was given.*needs 8") as caught:
        solve([[5, 6], [3, 9]], [[1.0, 0.0], [1.0, 0.0]], 7)
    assert caught.value.smallest == 8
    assert solve([[5, 6], [3, 9]], [[1.0, 0.0], [1.0, 0.0]], caught.value.smallest).nbytes == 8


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.1])
def test_a_time_limit_gives_a_good_choice_with_an_honest_gap(seconds: float) -> None:
    rng = np.random.default_rng(0)  # subset sums of large numbers: nothing else is as hard
    weights = rng.integers(2**39, 2**40, 60)
    sizes, losses = [[0, int(w)] for w in weights], [[float(w), 0.0] for w in weights]
    capacity = int(weights.sum()) // 2
    solution = solve(sizes, losses, capacity, seconds=seconds)
    assert solution.nbytes <= capacity
    assert float(weights.sum()) - capacity <= solution.loss
    assert solution.bound <= solution.loss
    assert 0 <= solution.gap < 0.1
    assert solution.gap == pytest.approx((solution.loss - solution.bound) / solution.loss)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_an_answer_without_time_is_bounded_by_the_proved_one(share: float) -> None:
    instance = curves(300, 9, share=share)
    hasty, proved = solve(instance.sizes, instance.losses, instance.capacity, seconds=0.0), instance.solve()
    assert proved.gap == 0.0
    assert hasty.bound <= proved.loss * (1 + PRECISION)
    assert proved.loss <= hasty.loss * (1 + PRECISION)
    assert hasty.gap == (hasty.loss - hasty.bound) / hasty.loss


@given(instances())
@quickly
def test_the_bound_without_time_is_below_every_choice(instance: Instance) -> None:
    solution = solve(instance.sizes, instance.losses, instance.capacity, seconds=0.0)
    best = brute_force(instance)
    assert solution.bound <= best * (1 + 2 * PRECISION)
    assert best <= solution.loss * (1 + 2 * PRECISION)


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        ([[1, 2]], [[1.0, float("nan")]], "class 0 has nan"),
        ([[1], [1, 2]], [[1.0], [float("inf"), 1.0]], "class 1 has inf"),
        ([[1]], [[-1.0]], "class 0 has -1.0"),
        ([[1, -2]], [[1.0, 2.0]], "-2"),
        ([[1.5]], [[1.0]], "whole bytes"),
        ([[2**63]], [[1.0]], "2\\^62"),
        ([[2**70]], [[1.0]], "2\\^62"),
        ([[0, 2**61]] * 2, [[1.0, 0.0]] * 2, "larger unit"),
        ([[1], []], [[1.0], []], "class 1 has 0 sizes"),
        ([[1, 2]], [[1.0]], "2 sizes and 1 losses"),
        ([[1]], [], "1 classes of sizes but 0 of losses"),
    ],
)
def test_bad_input_is_named(sizes: list[list[int]], losses: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(sizes, losses, 10)
