"""Times `mint allocate` as a whole process, and measures how well its plans fill their budgets.

    python -m tools.bench.allocate                     seconds for made-up analyses of 400 and of 18,867 units
    python -m tools.bench.allocate ANALYSIS ...        30 budgets from the smallest to the largest plan of each

Made-up analyses have the shapes of Qwen3-30B-A3B's tensors, one unit each, and errors like those of real weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from mint.analysis.analysis import SCHEMA, Measurement, read_analysis, write_analysis
from mint.formats.format import KEEP
from mint.formats.units import Unit, to_fields
from mint.plan.curve import curve
from mint.plan.problem import Problem

_SIZES = (400, 18_867)
_BUDGETS = 30
_BITS = (3.5, 4, 4.5, 5, 6, 8)  # per weight
_HIDDEN, _EXPERT, _VOCABULARY, _EXPERTS = 2048, 768, 151_936, 128


def main() -> None:
    """Run the selected benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("analyses", nargs="*", type=Path, metavar="ANALYSIS")
    parser.add_argument("--runs", type=int, default=3, help="runs per figure (default 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.analyses:
        record = {str(path): filling(path) for path in options.analyses}
    else:
        record = {f"{size:,} units": whole(size, options.runs) for size in _SIZES}
    print(json.dumps(record, indent=2) if options.json else _table(record))


def whole(size: int, runs: int) -> dict[str, Any]:
    """Seconds of `mint allocate` at several budgets, imports included."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "made.mint"
        write_made(path, size)
        command = [sys.executable, "-m", "mint", "allocate", str(path), "--json"]
        seconds, gaps = [], []
        for _, budget in product(range(runs), _BITS):
            started = time.perf_counter()
            answer = subprocess.run([*command, "--budget", f"{budget}bpw"], check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
            gaps.append(json.loads(answer.stdout)["gap"])
    return {"median_seconds": statistics.median(seconds), "slowest_seconds": max(seconds), "largest_gap": max(gaps)}


def filling(path: Path) -> dict[str, Any]:
    """Used share and gap of 30 budgets, and a check that the curve falls."""
    problem = Problem(read_analysis(path))
    started = time.perf_counter()
    points = curve(problem, points=_BUDGETS).points
    seconds = time.perf_counter() - started
    used = [point.planned_bytes / point.budget_bytes for point in points]
    losses = [point.loss for point in points]
    return {
        "units": len(problem.analysis.units),
        "least_used": min(used),
        "most_used": max(used),
        "largest_gap": max(point.gap for point in points),
        "falls": losses == sorted(losses, reverse=True),
        "seconds": seconds,
    }


def write_made(path: Path, size: int) -> None:
    """Write an analysis of `size` units with the shapes of Qwen3-30B-A3B and errors like those of real weights."""
    random = np.random.default_rng(0)
    units = list(islice(_units(_EXPERTS if size > 1000 else 1), size))
    measurements = {}
    for unit in units:
        measurements[unit.path] = made_measurement(unit, random)
    header = {
        "schema": SCHEMA, "model_type": "made", "model": "0" * 64, "dtype": "", "device": "none", "versions": {},
        "loader": "mlx_lm", "source_nbytes": sum(unit.nbytes for unit in units),
        "units": [to_fields(unit) for unit in units],
        "parameters": [], "parameter_checksums": {}, "dropped_towers": [], "rounding": "nearest",
        "context": [[[256, 0, 1, 2], [512, 0, 2, 4]], ""], "active": {},
        "features": {},
    }  # fmt: skip
    write_analysis(path, header, measurements)


def made_measurement(unit: Unit, random: np.random.Generator) -> Measurement:
    """Errors like those of Gaussian weights: a quarter for every bit, more in larger groups."""
    formats = tuple(format for format in unit.formats if format != KEEP)
    noise = random.uniform(0.8, 1.3) * random.uniform(0.98, 1.02, len(formats))
    law = [2.2 * 4.0**-format.bits * (1 + 0.12 * np.log2(format.group_size / 32)) for format in formats]
    errors = tuple((noise * law).tolist())
    return Measurement(unit.path, formats, errors, errors, 1.0)


def _units(experts: int) -> Iterator[Unit]:
    for path, role in (("model.embed_tokens", "embedding"), ("lm_head", "head")):
        yield Unit(path, (_VOCABULARY, _HIDDEN), "BF16", role, -1, ())
    layer = 0
    while True:
        prefix = f"model.layers.{layer}"
        for role, shape in {
            "q": (4096, _HIDDEN),
            "k": (512, _HIDDEN),
            "v": (512, _HIDDEN),
            "o": (_HIDDEN, 4096),
        }.items():
            yield Unit(f"{prefix}.self_attn.{role}_proj", shape, "BF16", role, layer, ())
        yield Unit(f"{prefix}.mlp.gate", (_EXPERTS, _HIDDEN), "BF16", "router", layer, (), 8)
        for expert in range(experts):
            for role, shape in {
                "gate": (_EXPERT, _HIDDEN),
                "up": (_EXPERT, _HIDDEN),
                "down": (_HIDDEN, _EXPERT),
            }.items():
                path = f"{prefix}.mlp.experts.{expert}.{role}_proj"
                yield Unit(path, shape, "BF16", f"expert_{role}", layer, ())
        layer += 1


def _table(record: dict[str, dict[str, Any]]) -> str:
    lines = []
    for title, figures in record.items():
        lines.append(title)
        lines += [f"  {name:<18} {value:.6g}" for name, value in figures.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
