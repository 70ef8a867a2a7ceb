"""Times the knapsack on model-like instances, beside the MILP solver HiGHS.

python -m tools.bench.knapsack [--json] [--highs SECONDS] [--budgets N] [--only NAME] [--sweep N]
"""

import argparse
import json
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from mint.plan.knapsack.solve import Knapsack, Solution

HIGHS_CLASSES = 5_000  # with 18,867 HiGHS overran a limit of 10 s by more than two minutes
NO_LIMIT = 10**12  # of states: the clock alone decides here
BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Instance:
    """Sizes and losses of every class's options, as a model of these shapes would have them."""

    name: str
    sizes: list[list[int]]
    losses: list[list[float]]

    def capacity(self, share: float) -> int:
        """Bytes so far, 0 to 1, from the smallest choice to the largest."""
        least, most = sum(map(min, self.sizes)), sum(map(max, self.sizes))
        return least + int((most - least) * share)


def curve(weights: int, header: int, alpha: float, rng: np.random.Generator) -> tuple[list[int], list[float]]:
    """Bytes and loss of one matrix in every format: 18 affine, mxfp4, nvfp4, kept at 16 bits."""
    noise = np.exp(rng.normal(0, 0.05, 20))
    sizes: list[int] = []
    losses: list[float] = []
    for bits in BITS:
        for group in GROUPS:
            sizes.append(weights * bits // 8 + weights // group * 4 + 3 * header)
            losses.append(alpha * 4.0**-bits * (group / 64) ** 0.35 * float(noise[len(losses)]))
    sizes += [weights * 17 // 32 + 2 * header, weights * 9 // 16 + 2 * header, 2 * weights + header]
    losses += [alpha * 4.0**-4 * 1.6 * float(noise[18]), alpha * 4.0**-4 * 1.2 * float(noise[19]), 0.0]
    return sizes, losses


def model(name: str, shapes: list[int], *, vetoed: bool = False) -> Instance:
    """Matrices of so many weights with sensitivities over three orders of magnitude; 2 bits `vetoed` or not."""
    rng = np.random.default_rng(0)
    instance = Instance(name, [], [])
    for index, weights in enumerate(shapes):
        header = 62 + len(str(index)) + int(rng.integers(0, 12))
        sizes, losses = curve(weights, header, float(np.exp(rng.normal(0, 1.6))), rng)
        allowed = range(int(rng.integers(3, 6)) if vetoed else 0, len(sizes))
        instance.sizes.append([sizes[k] for k in allowed])
        instance.losses.append([losses[k] for k in allowed])
    return instance


def transformer(hidden: int, wide: int, layers: int, vocabulary: int, kv: int) -> list[int]:
    """Weights of every matrix: embedding, q k v o gate up down of each layer, head."""
    layer = [hidden * hidden, hidden * kv, hidden * kv, hidden * hidden, *[hidden * wide] * 3]
    return [vocabulary * hidden, *layer * layers, vocabulary * hidden]


def experts(classes: int, hidden: int, wide: int, count: int, vocabulary: int) -> list[int]:
    """Weights of so many matrices of a mixture of experts, each expert's matrices apart; the last layer is cut off."""
    layer = [hidden * 4096, hidden * 512, hidden * 512, hidden * 4096, hidden * count, *[hidden * wide] * 3 * count]
    layers = layer * -(-classes // len(layer))
    return [vocabulary * hidden, *layers[: classes - 2], vocabulary * hidden]


def instances() -> list[Instance]:
    return [
        model("SmolLM2-like", transformer(576, 1536, 30, 49152, 192)[:-1]),
        model("SmolLM2-like, head", transformer(576, 1536, 30, 49152, 192)),
        model("8B-like", transformer(4096, 14336, 36, 151936, 1024)),
        model("400 classes", transformer(4096, 14336, 57, 151936, 1024)[:400]),
        model("400 classes, veto", transformer(4096, 14336, 57, 151936, 1024)[:400], vetoed=True),
        model("2,000 classes", transformer(4096, 14336, 286, 151936, 1024)[:2000]),
        model("2,000 classes, veto", transformer(4096, 14336, 286, 151936, 1024)[:2000], vetoed=True),
        model("18,867 classes", experts(18_867, 2048, 768, 128, 151936)),
    ]


@dataclass(frozen=True, slots=True)
class Timing:
    """One instance: all budgets together for us, the middle one for HiGHS."""

    name: str
    classes: int
    prepare_seconds: float
    solve_seconds: float  # median
    slowest_seconds: float
    proved: int
    budgets: int
    largest_gap: float
    highs_seconds: float | None
    highs_gap: float | None


def highs(instance: Instance, capacity: int, seconds: float) -> tuple[float, float]:
    """Seconds that HiGHS took and the relative gap that it left, infinite without any choice."""
    counts = [len(row) for row in instance.sizes]
    size, loss = np.concatenate(instance.sizes).astype(float), np.concatenate(instance.losses)
    row = np.repeat(np.arange(len(counts)), counts)
    one_each = csr_array((np.ones(len(row)), (row, np.arange(len(row)))))
    scale = float(size.max())  # HiGHS's tolerances are absolute
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(size[None] / scale, ub=capacity / scale)]
    begin = perf_counter()
    answer = milp(
        loss,
        integrality=np.ones(len(loss)),
        bounds=(0, 1),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": 0},
    )
    gap = float("inf") if answer.x is None else float(answer.mip_gap)
    return perf_counter() - begin, gap


def measure(instance: Instance, budgets: int, seconds: float, highs_seconds: float) -> Timing:
    """Time the preparation and every budget, which lie evenly in the logarithm of the share."""
    begin = perf_counter()
    knapsack = Knapsack(instance.sizes, instance.losses)
    prepare_seconds = perf_counter() - begin
    times: list[float] = []
    answers: list[Solution] = []
    for share in np.geomspace(0.01, 0.9, budgets):
        begin = perf_counter()
        answers.append(knapsack.solve(instance.capacity(share), states=NO_LIMIT, seconds=seconds))
        times.append(perf_counter() - begin)
    highs_took, highs_left = None, None
    if highs_seconds and len(instance.sizes) <= HIGHS_CLASSES:
        highs_took, highs_left = highs(instance, instance.capacity(0.1), highs_seconds)
    return Timing(
        name=instance.name,
        classes=len(instance.sizes),
        prepare_seconds=prepare_seconds,
        solve_seconds=median(times),
        slowest_seconds=max(times),
        proved=sum(answer.gap == 0 for answer in answers),
        budgets=budgets,
        largest_gap=max(answer.gap for answer in answers),
        highs_seconds=highs_took,
        highs_gap=highs_left,
    )


def sweep(instance: Instance, budgets: int) -> tuple[float, int]:
    """Seconds for so many budgets of one instance, its preparation included, and how many were proved."""
    capacities = [instance.capacity(share) for share in np.linspace(0.001, 0.999, budgets)]
    begin = perf_counter()
    knapsack = Knapsack(instance.sizes, instance.losses)
    answers = [knapsack.solve(capacity) for capacity in capacities]
    return perf_counter() - begin, sum(answer.gap == 0 for answer in answers)


HEADER = (
    f"{'instance':<22}{'classes':>8}{'prepare':>9}{'median':>9}{'slowest':>9}{'proved':>8}{'gap':>9}"
    f"{'HiGHS':>9}{'its gap':>9}"
)


def line(timing: Timing) -> str:
    beside = "        -        -"
    if timing.highs_seconds is not None:
        beside = f"{timing.highs_seconds:>8.2f}s{timing.highs_gap:>9.1e}"
    return (
        f"{timing.name:<22}{timing.classes:>8}{timing.prepare_seconds:>8.3f}s{timing.solve_seconds:>8.4f}s"
        f"{timing.slowest_seconds:>8.3f}s{timing.proved:>4}/{timing.budgets:<3}{timing.largest_gap:>9.1e}{beside}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="instances whose name contains this")
    parser.add_argument("--budgets", type=int, default=15, help="budgets per instance")
    parser.add_argument("--seconds", type=float, default=1.0, help="time limit per budget")
    parser.add_argument("--highs", type=float, default=10.0, help="time limit of HiGHS in seconds; 0 leaves it out")
    parser.add_argument("--sweep", type=int, default=1000, help="budgets of the sweep; 0 leaves it out")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of the table")
    options = parser.parse_args()
    chosen = [instance for instance in instances() if options.only in instance.name]
    if not options.json:
        print(HEADER)
    for instance in chosen:
        timing = measure(instance, options.budgets, options.seconds, options.highs)
        print(json.dumps(asdict(timing)) if options.json else line(timing), flush=True)
    for instance in chosen if options.sweep else ():
        if len(instance.sizes) > 400:
            continue
        seconds, proved = sweep(instance, options.sweep)
        row = {"name": instance.name, "sweep_budgets": options.sweep, "sweep_seconds": seconds, "sweep_proved": proved}
        text = f"{instance.name:<22}{options.sweep:>8} budgets in {seconds:.2f} s, {proved} proved"
        print(json.dumps(row) if options.json else text, flush=True)


if __name__ == "__main__":
    main()
