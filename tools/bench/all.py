"""Runs the benchmarks of speed, and compares their ratios with those of the committed baseline.

    python -m tools.bench.all [MODEL ...] [--runs 5] [--output FILE]
    python -m tools.bench.all --accept      the result becomes the baseline, and docs/speed.md shows it

A ratio compares two pieces of work that took turns on one machine, so it holds on others; less is better. The exit code
is 1 where one exceeds its baseline by more than `NOISE`. A model of 1.2 GB with random weights is always measured;
each MODEL, a folder, is measured too. About ten minutes.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mint.formats.format import AFFINE, parse_format
from mint.run.device_kind import device_kind, versions
from tools.bench import allocate, analyze, convert, rounding
from tools.house import ROOT
from tools.models.make_shape import write_shape
from tools.models.shapes import SHAPES

BASELINE = Path(__file__).parent / "baseline.json"
PAGE = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
NOISE = 1.3  # times its baseline is what a ratio may become
MADE = "qwen3-0.6b"  # the shape of the model that is always measured
CONVERT, IMPORT = "mlx_lm.convert -q --q-bits 4", "import mlx_lm"

Ratios = dict[str, "Ratio"]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A piece of work over another one: their amounts on the machine that measured them, and the ratio to reach."""

    value: float
    amount: str
    over: str
    goal: float | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and compare with the baseline or replace it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="folders of full-precision models")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs per ratio (default %(default)s)")
    parser.add_argument("--output", type=Path, help="write the result here, as JSON")
    parser.add_argument("--accept", action="store_true", help="replace the baseline and the table of the docs")
    options = parser.parse_args(arguments)
    convert.adopt_orphans()
    record = {"machine": machine(), "versions": versions(), "ratios": measured(options.models, options.runs)}
    text = json.dumps(record, indent=2) + "\n"
    print(table(record))
    if options.output:
        options.output.write_text(text)
    if options.accept:
        BASELINE.write_text(text)
        PAGE.write_text(shown(record, PAGE.read_text()))
        return 0
    faults = regressions(record, json.loads(BASELINE.read_text()))
    print("\n".join(faults) or "no ratio exceeds its baseline", file=sys.stderr)
    return 1 if faults else 0


def measured(models: Sequence[Path], runs: int) -> dict[str, dict[str, Any]]:
    """All ratios by the work that they are of."""
    ratios: Ratios = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape in (MADE, "qwen3-30b-a3b", "llama4-scout"):
            (folder / shape).mkdir()
            write_shape(folder / shape, SHAPES[shape], random=shape == MADE)
        stages: list[Callable[[], Ratios]] = [
            *(partial(conversions, model, runs) for model in (folder / MADE, *models)),
            partial(first_runs, (models or [folder / MADE])[0], min(runs, 2)),
            partial(kernels, runs),
            partial(openings, folder, runs),
        ]
        for stage in stages:
            for work, ratio in stage().items():
                print(f"{work}: {ratio.value:.2f}", file=sys.stderr, flush=True)
                ratios[work] = ratio
    return {work: asdict(ratio) for work, ratio in ratios.items()}


def conversions(model: Path, runs: int) -> Ratios:
    """`mint quantize` beside `mlx_lm.convert`."""
    seconds = convert.pairs(model, "nearest", runs)["cpu_seconds"]
    return {f"mint quantize {model.name}": Ratio(seconds["ratio"], f"{seconds['mint']:.3g} CPU s", CONVERT, 1.0)}


def first_runs(model: Path, runs: int) -> Ratios:
    """The first run on a machine beside a later one."""
    seconds = convert.first_use(model, "nearest", runs)["cpu_seconds"]
    return {f"first mint quantize {model.name}": Ratio(seconds["ratio"], f"{seconds['first']:.3g} CPU s", "later", 1.5)}


def kernels(runs: int) -> Ratios:
    """The fused kernel beside MLX operations, and the search beside rounding to nearest; one core."""
    fused = analyze.measuring(2048, runs)
    weight = rounding.made(2048, "BF16", students=False)
    search = rounding.measuring(weight, "BF16", runs)
    pack = rounding.packing(weight, "BF16", parse_format("4/64"), runs)
    return {
        f"measure {len(AFFINE)} formats": Ratio(
            1 / fused["operations_over_fused_one_core"], f"{fused['fused_one_core_seconds']:.3g} s", "MLX operations"
        ),
        f"measure {len(AFFINE)} formats by search": Ratio(
            search["search_over_nearest"], f"{search['search_ns_per_weight']:.3g} ns a weight", "nearest", 5.0
        ),
        "pack 4/64 by search": Ratio(
            pack["search_over_nearest"], f"{pack['search_ns_per_weight']:.3g} ns a weight", "nearest"
        ),
    }


def openings(folder: Path, runs: int) -> Ratios:
    """CPU seconds of commands that read no weights, beside those of a process that imports mlx_lm.

    Goals are in seconds of this machine.
    """
    analyses = {units: folder / f"{units}.mint" for units in (400, 18_867)}
    for units, path in analyses.items():
        allocate.write_made(path, units)
    commands = {
        "mint --help": (["--help"], 0.25),
        "mint inspect, 18,867 tensors": (["inspect", str(folder / "qwen3-30b-a3b")], 3.0),
        "mint inspect, 217 GB": (["inspect", str(folder / "llama4-scout"), "--text-only"], 2.0),
        "mint allocate, 400 units": (["allocate", str(analyses[400]), "--budget", "4.5bpw"], 0.4),
        "mint allocate, 18,867 units": (["allocate", str(analyses[18_867]), "--budget", "4.5bpw"], None),
    }
    environment = {**os.environ, "MINT_CACHE": str(folder / "cache")}
    ratios = {}
    for work, (arguments, goal) in commands.items():
        pairs = list(islice(_pairs([sys.executable, "-m", "mint", *arguments], environment), runs))
        seconds, reference = (statistics.median(values) for values in zip(*pairs, strict=True))
        value = statistics.median(one / other for one, other in pairs)
        ratios[work] = Ratio(value, f"{seconds:.2f} CPU s", IMPORT, round(goal / reference, 2) if goal else None)
    return ratios


def _pairs(command: Sequence[str], environment: dict[str, str]) -> Iterator[tuple[float, float]]:
    """CPU seconds of a command and of the reference, in turns."""
    reference = [sys.executable, "-c", IMPORT]
    while True:
        yield convert.run(command, environment).cpu_seconds, convert.run(reference, environment).cpu_seconds


def machine() -> dict[str, Any]:
    """The machine and its Python."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": device_kind(),
        "python": platform.python_version(),
    }


def regressions(record: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """A sentence for each ratio that exceeds the one of the baseline by more than the noise."""
    return [
        f"{work}: {ratio['value']:.2f} times {ratio['over']}, baseline {before['value']:.2f}"
        for work, ratio in record["ratios"].items()
        if (before := baseline["ratios"].get(work)) and ratio["value"] > NOISE * before["value"]
    ]


def table(record: Mapping[str, Any]) -> str:
    """The ratios as a table in Markdown, below the machine and the versions."""
    facts = [f"{name} {value}" for name, value in (record["machine"] | record["versions"]).items()]
    rows = [
        f"| {work} | {ratio['amount']} | {ratio['value']:.3g} | {ratio['over']} | {ratio['goal'] or ''} |"
        for work, ratio in record["ratios"].items()
    ]
    head = ["| work | measured | times | of | goal |", "|---|---|---|---|---|"]
    return "\n".join([f"Measured with {', '.join(facts)}.", "", *head, *rows])


def shown(record: Mapping[str, Any], page: str) -> str:
    """The page with the table of this record."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table(record)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    sys.exit(main())
