"""Compares probes around a base of 8 or fewer bits with probes at full precision.

    python -m tools.bench.base MODEL [--base 8 --base 4] [--text FILE ...] [--work FOLDER]

Probes the model at full precision and around every base, each in a process of its own, and reports its peak memory.
Compares the alphas, and the plans at the bytes of uniform 4/64: the number of units with another format, and the loss
of both plans under the alphas of full precision. With --text both models are made and measured. Probes stay in FOLDER.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import fsum
from pathlib import Path
from shutil import rmtree
from statistics import median
from typing import Any

from mint.analysis.analysis import read_analysis
from mint.analysis.probes.packed_base import BASES
from mint.analysis.probes.probe_file import FULL, Probed, probe_path, read_probes
from mint.assembly.assemble import assemble
from mint.formats.quality import ENVIRONMENT
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan
from mint.plan.recipe import Recipe
from mint.quality.evaluate import evaluate
from mint.run.blas import allow_restart, restart_with_fast_blas
from tools.bench.prediction import rank_correlation

_PROBE = """
import sys
from mint.cli.main import run_command
from mint.core.memory import peak_rss_bytes
code = run_command(sys.argv[1:])
print(peak_rss_bytes(), file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    """Probe, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a full-precision model")
    parser.add_argument("--base", action="append", default=[], choices=list(BASES), help="default: 8; may be repeated")
    parser.add_argument("--text", type=Path, action="append", default=[], help="measure both plans on it")
    parser.add_argument("--probes", type=int, help="probe only the N largest units")
    parser.add_argument("--length", type=int, default=64, help="tokens of a probed sequence")
    parser.add_argument("--work", type=Path, help="folder for analyses and probes; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    allow_restart()
    restart_with_fast_blas()
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        for row in rows(options, work):
            print(json.dumps(row) if options.json else ", ".join(f"{key} {value}" for key, value in row.items()))


def rows(options: argparse.Namespace, work: Path) -> Iterator[dict[str, Any]]:
    """A row for full precision and one for every base."""
    source = open_source(options.model)
    full, peak = _probed(FULL, options, work)
    analysis = read_analysis(work / f"{FULL}.mint")
    nbytes = allocate(analysis, "max", Recipe(veto_db=-100.0, lock=("*=4/64",))).planned_bytes
    best = allocate(analysis, nbytes, probed=full)
    measured = _measured(best, source, options.text, work)
    yield {"base": FULL, "peak_mb": round(peak / 1e6), "plan_bytes": nbytes, "loss": round(best.loss, 4), **measured}
    for base in options.base or ["8"]:
        probed, peak = _probed(base, options, work)
        plan = allocate(analysis, nbytes, probed=probed)
        measured = _measured(plan, source, options.text, work)
        yield {"base": base, "peak_mb": round(peak / 1e6), **compared(full, probed, best, plan), **measured}


def compared(full: Probed, probed: Probed, best: Plan, plan: Plan) -> dict[str, Any]:
    """Differences of alphas and plans of a base from those of full precision."""
    paths = [path for path, alpha in full.alphas.items() if alpha > 0]
    ratios = sorted(probed.alphas[path] / full.alphas[path] for path in paths)
    differing = [a for a, b in zip(best.choices, plan.choices, strict=True) if a.format != b.format]
    loss = loss_under(full, plan)
    return {
        "rank_correlation": round(
            rank_correlation([full.alphas[p] for p in paths], [probed.alphas[p] for p in paths]), 4
        ),
        "median_ratio": round(median(ratios), 3),
        "tenth": round(ratios[len(ratios) // 10], 3),
        "ninth_tenth": round(ratios[-1 - len(ratios) // 10], 3),
        "units_differing": f"{len(differing)} of {len(plan.choices)}",
        "weights_differing": round(sum(choice.weights for choice in differing) / plan.weights, 4),
        "loss": round(loss, 4),
        "more_loss": round(loss / loss_under(full, best) - 1, 4),
    }


def loss_under(full: Probed, plan: Plan) -> float:
    """Loss of a plan by the alphas of full precision, over the probed units."""
    return fsum(full.alphas[choice.path] * choice.error for choice in plan.choices if choice.path in full.alphas)


def _probed(base: str, options: argparse.Namespace, work: Path) -> tuple[Probed, int]:
    """The probes of a base, and the peak memory of the process that made them; 0 if they exist already."""
    analysis = work / f"{base}.mint"
    if probe_path(analysis).exists():
        return read_probes(probe_path(analysis)), 0
    command = [
        "probe",
        str(options.model),
        "--analysis",
        str(analysis),
        "--base",
        base,
        "--length",
        str(options.length),
    ]
    command += ["--probes", str(options.probes)] if options.probes else []
    process = subprocess.run(
        [sys.executable, "-c", _PROBE, *command, "--json"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, ENVIRONMENT: "fast"},  # plans round to nearest, so a difference comes from the base alone
    )
    return read_probes(probe_path(analysis)), int(process.stderr.split()[-1])


def _measured(plan: Plan, source: Source, text: list[Path], work: Path) -> dict[str, float]:
    if not text:
        return {}
    reference, folder = work / "reference", work / "model"
    if folder.exists():
        rmtree(folder)  # of a run that was killed
    assemble(plan, source, folder)
    if reference.exists():
        evaluation = evaluate(folder, reference)
    else:
        evaluation = evaluate(folder, source.folder, text=text, save_reference=reference)
    rmtree(folder)
    kl = evaluation.estimates["kl_mean"]
    return {"kl": round(kl.value, 4), "low": round(kl.low, 4), "high": round(kl.high, 4)}


if __name__ == "__main__":
    main()
