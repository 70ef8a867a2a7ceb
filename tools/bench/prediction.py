"""Compares predicted with measured KL for ten plans of one model, from near the smallest to near the largest.

    python -m tools.bench.prediction MODEL --text FILE [--text FILE ...] [--alphas probe] [--work FOLDER]

KL in nats per token: predicted with its interval, measured with that of `mint evaluate`, their ratio, and the rank
correlation over all plans. Measurements stay in FOLDER, so a second run resumes; models do not. Models are compared
with a reference file, so that the original is computed once.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from statistics import median
from typing import Any

import numpy as np

from mint.analysis.analyze import analyze
from mint.analysis.probes.probe import probe
from mint.assembly.assemble import assemble
from mint.model.source import Source, open_source
from mint.plan.plan import Plan
from mint.plan.recipe import Recipe
from mint.quality.evaluate import evaluate
from mint.run.blas import allow_restart, restart_with_fast_blas

BUDGETS = 10
_NEAR_SMALLEST, _NEAR_LARGEST = 1.02, 0.9
ALPHAS = ("prior", "probe")


@dataclass(frozen=True, slots=True)
class Row:
    """Predicted and measured KL of one plan."""

    nbytes: int
    predicted: float
    low: float
    high: float
    measured: float
    measured_low: float
    measured_high: float

    @property
    def factor(self) -> float:
        return self.measured / self.predicted

    @property
    def inside(self) -> bool:
        return self.low <= self.measured <= self.high


def main() -> None:
    """Plan, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a full-precision model")
    parser.add_argument("--text", type=Path, action="append", default=[], help="text to compare the models on")
    parser.add_argument("--tokens", type=int, help="tokens of the text, or of own text without --text")
    parser.add_argument("--window", type=int, help="tokens of a sequence")
    parser.add_argument("--alphas", choices=ALPHAS, default="probe", help="source of the sensitivities")
    parser.add_argument("--rounding", default="nearest", help="nearest or search")
    parser.add_argument(
        "--veto",
        type=float,
        default=Recipe().veto_db,
        help="minimum SQNR in dB; -100 plans beyond the range of predictions",
    )
    parser.add_argument("--budgets", type=int, default=BUDGETS, help=f"number of budgets (default {BUDGETS})")
    parser.add_argument("--work", type=Path, help="folder for analyses and measurements; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    allow_restart()
    restart_with_fast_blas()
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        source = open_source(options.model)
        results = []
        for row in rows(source, options, work):
            results.append(row)
            print(json.dumps(asdict(row)) if options.json else _line(row), flush=True)
        print(json.dumps(summary(results)) if options.json else _summary_line(results))


def rows(source: Source, options: argparse.Namespace, work: Path) -> Iterator[Row]:
    """A row for every budget, smallest first."""
    nearest = analyze(source, work / "analysis.mint", rounding="nearest")
    analysis = nearest
    if options.rounding != "nearest":
        analysis = analyze(source, work / f"{options.rounding}.mint", rounding=options.rounding)
    probed = probe(source, nearest, work / "analysis.mint.probe") if options.alphas == "probe" else None
    problem = Recipe(veto_db=options.veto).problem(analysis, probed)
    for budget in budgets(problem.smallest_bytes, problem.largest_bytes, options.budgets):
        plan = problem.plan(budget)
        predicted = plan.predicted_kl
        assert predicted
        measured = _measured(plan, source, options, work)
        yield Row(plan.planned_bytes, predicted.value, predicted.low, predicted.high, *measured)


def budgets(smallest: int, largest: int, count: int) -> list[int]:
    """Budgets from near the smallest to near the largest, at even ratios."""
    return [int(nbytes) for nbytes in np.geomspace(smallest * _NEAR_SMALLEST, largest * _NEAR_LARGEST, count)]


def summary(results: Sequence[Row]) -> dict[str, float]:
    """Rank correlation, factors measured / predicted, and the number of intervals that contain the measured KL."""
    factors = sorted(row.factor for row in results)
    return {
        "rank_correlation": rank_correlation([row.predicted for row in results], [row.measured for row in results]),
        "least_factor": factors[0],
        "median_factor": median(factors),
        "most_factor": factors[-1],
        "inside": sum(row.inside for row in results),
        "plans": len(results),
    }


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's rank correlation of values without ties."""
    count = len(left)
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    squares = float(np.square(ranks[0] - ranks[1]).sum())
    return 1 - 6 * squares / (count * (count**2 - 1))


def _measured(plan: Plan, source: Source, options: argparse.Namespace, work: Path) -> tuple[float, float, float]:
    """KL of the plan and the ends of its interval, from an earlier run if there was one."""
    key = json.dumps([plan.digest, _sample(options)])
    path = work / "measured.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if key not in known:
        known[key] = _measure(plan, source, options, work)
        path.write_text(json.dumps(known, indent=0))
    value, low, high = known[key]
    return value, low, high


def _measure(plan: Plan, source: Source, options: argparse.Namespace, work: Path) -> tuple[float, float, float]:
    sample = hashlib.sha256(json.dumps(_sample(options)).encode()).hexdigest()
    reference, folder = work / f"reference-{sample[:16]}", work / "model"
    if folder.exists():
        rmtree(folder)  # of a run that was killed
    assemble(plan, source, folder)
    if reference.exists():
        evaluation = evaluate(folder, reference)
    else:
        evaluation = evaluate(
            folder, source.folder,
            text=options.text, tokens=options.tokens, window=options.window, save_reference=reference,
        )  # fmt: skip
    rmtree(folder)
    kl = evaluation.estimates["kl_mean"]
    return kl.value, kl.low, kl.high


def _sample(options: argparse.Namespace) -> list[Any]:
    """Identity of the tokens that models are compared on."""
    return [*map(str, options.text), options.tokens, options.window]


def _line(row: Row) -> str:
    return (
        f"{row.nbytes / 1e6:8.2f} MB   predicted {row.predicted:.3g} ({row.low:.3g} to {row.high:.3g})   "
        f"measured {row.measured:.3g} ({row.measured_low:.3g} to {row.measured_high:.3g})   "
        f"factor {row.factor:.2f}   {'inside' if row.inside else 'OUTSIDE'}"
    )


def _summary_line(results: Sequence[Row]) -> str:
    figures = summary(results)
    return (
        f"rank correlation {figures['rank_correlation']:.3f}, factor {figures['median_factor']:.2f} "
        f"({figures['least_factor']:.2f} to {figures['most_factor']:.2f}), "
        f"{figures['inside']} of {figures['plans']} inside their interval"
    )


if __name__ == "__main__":
    main()
