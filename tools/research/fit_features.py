"""Ablation of features as corrections of the prior sensitivities, judged on probes.

    python -m tools.research.fit_features MODEL=ANALYSIS=PROBES ... [--only NAME] [--text FILE --work FOLDER]

Each model needs an analysis with features (`mint analyze --features --quality fast`) and its probes (`mint probe`). The
target is y = log(probed alpha / prior alpha), centred in each model, since a common factor of all units changes no
plan. A feature enters as its logarithm (unchanged if it may be 0), centred in each model, or in each role of each
model: then it adds only information that the role does not have. One slope (ridge regression for all features) is
fitted on all models but one and judged on that one. With --text, plans of the best form at the bytes of uniform 4/64
are compared with the prior's.
"""

# U units, P features

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mint.analysis.analysis import Analysis, read_analysis
from mint.analysis.features.features import NAMES
from mint.analysis.probes.probe_file import FULL, Probe, Probed, read_probes
from mint.analysis.probes.sensitivity import prior_alphas
from mint.assembly.assemble import assemble
from mint.core.errors import MintError
from mint.formats.units import Unit
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.recipe import Recipe
from mint.quality.evaluate import evaluate
from mint.run.blas import allow_restart, restart_with_fast_blas

Doubles = NDArray[np.float64]
UNCHANGED = ("outlier_groups", "log_spread")
RIDGE = 10.0  # strength for standardized features, in observations
CENTRES: dict[str, Callable[[Unit], str]] = {"model": lambda unit: "", "role": lambda unit: unit.role}


@dataclass(frozen=True, slots=True)
class Case:
    """A model whose probes are compared with its priors."""

    name: str
    folder: Path
    analysis: Analysis
    units: tuple[Unit, ...]
    target: Doubles  # (U,) log(probed / prior), centred
    probed: Doubles  # (U,) log alpha
    features: Doubles  # (U, P), logarithms


def read_case(text: str) -> Case:
    """The case of `MODEL=ANALYSIS=PROBES`."""
    folder, analysis_path, probes_path = map(Path, text.split("="))
    analysis, probed = read_analysis(analysis_path), read_probes(probes_path)
    if analysis.rounding != "nearest":
        remedy = "needed: one of mint analyze --quality fast"
        raise MintError(f"{analysis_path}: an analysis of --rounding {analysis.rounding}; {remedy}")
    priors = prior_alphas(analysis.units)
    alphas = {path: alpha for path, alpha in probed.alphas.items() if alpha > 0 and path in priors}
    units = tuple(u for u in analysis.units if u.path in alphas and analysis.measurements[u.path].features)
    target = np.array([log(alphas[unit.path] / priors[unit.path]) for unit in units])
    return Case(
        name=folder.name,
        folder=folder,
        analysis=analysis,
        units=units,
        target=target - target.mean(),
        probed=np.array([log(alphas[unit.path]) for unit in units]),
        features=np.array([_numbers(analysis, unit) for unit in units]),
    )


def _numbers(analysis: Analysis, unit: Unit) -> list[float]:
    features = analysis.measurements[unit.path].features
    assert features
    return [v if name in UNCHANGED else log(max(v, 1e-6)) for name, v in asdict(features).items()]


def centred(case: Case, columns: Sequence[int], key: Callable[[Unit], str]) -> Doubles:
    """The chosen features (U, P) less their means over the units of equal key."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, unit in enumerate(case.units):
        rows[key(unit)].append(row)
    values = case.features[:, columns].copy()
    for indices in rows.values():
        values[indices] -= values[indices].mean(axis=0)
    return values


def slopes(cases: Sequence[Case], columns: Sequence[int], key: Callable[[Unit], str]) -> Doubles:
    """The slopes (P,) of a ridge regression over all cases, every feature of unit spread."""
    inputs = np.concatenate([centred(case, columns, key) for case in cases])
    target = np.concatenate([case.target for case in cases])
    spread = np.maximum(inputs.std(axis=0), 1e-12)
    inputs = inputs / spread
    gram = inputs.T @ inputs + RIDGE * np.eye(len(columns))
    coefficients: Doubles = np.linalg.solve(gram, inputs.T @ target) / spread
    return coefficients


def rows(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The table: for each held-out case, the share of y that each form explains."""
    forms = [(name, [index]) for index, name in enumerate(NAMES)] + [("all", list(range(len(NAMES))))]
    table = []
    for held in cases:
        others = [case for case in cases if case is not held]
        prior = held.probed - held.target
        table.append(_row(held, "none", "", np.zeros(len(held.units)), prior, 0.0))
        for name, columns in forms:
            for centre, key in CENTRES.items():
                slope = slopes(others, columns, key)
                table.append(_row(held, name, centre, centred(held, columns, key) @ slope, prior, slope[0]))
    return table


def _row(held: Case, name: str, centre: str, correction: Doubles, prior: Doubles, slope: float) -> dict[str, Any]:
    rest = held.target - correction
    return {
        "held_out": held.name,
        "feature": name,
        "centred_in": centre,
        "slope": round(float(slope), 3),
        "r2": round(1 - float(rest @ rest) / float(held.target @ held.target), 4),
        "rms_log_error": round(float(np.sqrt(np.mean(rest * rest))), 4),
        "rank_correlation": round(float(spearmanr(prior + correction, held.probed)[0]), 4),
    }


def compare(cases: Sequence[Case], form: str, only: str, text: list[Path], tokens: int, work: Path) -> None:
    """Print the KL of plans for each case at the bytes of uniform 4/64: prior, with the form fitted on the others."""
    name, _, centre = form.partition("/")
    columns = list(range(len(NAMES))) if name == "all" else [NAMES.index(name)]
    for held in (case for case in cases if only in case.name):
        slope = slopes([case for case in cases if case is not held], columns, CENTRES[centre])
        correction = centred(held, columns, CENTRES[centre]) @ slope
        priors = prior_alphas(held.analysis.units)
        made = {
            unit.path: Probe(unit.path, (priors[unit.path] * exp(shift),), 1.0)
            for unit, shift in zip(held.units, correction, strict=True)
        }
        corrected = Probed(held.analysis.model, "prior, corrected by features", FULL, made)
        uniform = Recipe(veto_db=-100.0, lock=("*=4/64",))
        nbytes = allocate(held.analysis, "max", uniform).planned_bytes
        source = open_source(held.folder)
        for title, probed in (("prior", None), (f"{name} in {centre}", corrected)):
            folder = work / f"{held.name}-{title.replace(' ', '-')}"
            if not folder.exists():
                assemble(allocate(held.analysis, nbytes, probed=probed), source, folder)
            reference = work / f"{held.name}.reference"
            known = reference.exists()
            kl = evaluate(
                folder,
                reference if known else held.folder,
                text=() if known else text,
                tokens=None if known else tokens,
                save_reference=None if known else reference,
            ).estimates["kl_mean"]
            print(f"{held.name:<36} {title:<28} KL {kl.value:.4f} ({kl.low:.4f}-{kl.high:.4f})", flush=True)


def main() -> None:
    """Fit, judge and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="MODEL=ANALYSIS=PROBES")
    parser.add_argument("--form", default="", metavar="NAME/CENTRE", help="compare plans of this form: noise/role")
    parser.add_argument("--only", default="", help="compare plans only of models whose name contains this")
    parser.add_argument("--text", type=Path, action="append", default=[])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--work", type=Path, help="folder for models")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    if options.form:
        if not (options.text and options.work):
            parser.error("--form needs --text and --work")
        allow_restart()
        restart_with_fast_blas()
    cases = [read_case(text) for text in options.cases]
    for row in rows(cases):
        print(json.dumps(row) if options.json else "  ".join(f"{value:<16}" for value in map(str, row.values())))
    if options.form:
        options.work.mkdir(parents=True, exist_ok=True)
        compare(cases, options.form, options.only, options.text, options.tokens, options.work)


if __name__ == "__main__":
    main()
