"""KL against the original at equal bytes: uniform and mixed recipes, the published objective, and MINT's plans.

    python -m tools.bench.quality MODEL --text FILE [--text FILE ...] [--work FOLDER]

Makes every model in FOLDER and compares it with MODEL on the text. Each plan of MINT is within the bytes of the recipe
beside it. Models stay in FOLDER, so a second run resumes. KL is in nats per token, with its 95 % interval. Variants
with probes take minutes more.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from mint.analysis.analysis import Analysis
from mint.analysis.analyze import analyze
from mint.analysis.probes.probe import probe
from mint.analysis.probes.probe_file import Probed
from mint.assembly.assemble import assemble
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate
from mint.plan.plan import Plan
from mint.plan.recipe import Recipe
from mint.quality.evaluate import evaluate
from mint.run.blas import allow_restart, restart_with_fast_blas

UNIFORM = ("4/64", "4/32", "3/64")
MIXED = ("mixed_4_6", "mixed_3_6", "mixed_3_4")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to make, and the recipe whose bytes are its budget; `within` is empty for a recipe itself."""

    name: str
    within: str
    make: Callable[[Path, int], None]


def main() -> None:
    """Make, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a full-precision model")
    parser.add_argument("--text", type=Path, action="append", default=[], help="text to compare the models on")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the text (default 4096)")
    parser.add_argument("--work", type=Path, help="folder for models; default: a temporary one")
    parser.add_argument("--only", default="", help="recipes whose name contains this, and the plans within their bytes")
    parser.add_argument("--without", action="append", default=[], help="variants to leave out, such as 'prior, search'")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    options = parser.parse_args()
    allow_restart()
    restart_with_fast_blas()
    with tempfile.TemporaryDirectory() as name:
        work = options.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        for row in rows(options.model, options.text, options.tokens, work, options.only, options.without):
            print(json.dumps(row) if options.json else _line(row), flush=True)


def rows(
    model: Path, text: list[Path], tokens: int, work: Path, only: str, without: list[str]
) -> Iterator[dict[str, Any]]:
    """Make every candidate, compare it, and yield its row."""
    source = open_source(model)
    bench = Bench(source, work)
    reference = work / f"reference-{tokens}"
    sizes: dict[str, int] = {}
    base = 0.0
    for candidate in _candidates(bench):
        recipe = candidate.within or candidate.name
        if only not in recipe or candidate.name.partition(", bytes of")[0] in without:
            continue
        folder = work / candidate.name.replace(" ", "-").replace("/", "-")
        if not folder.exists():
            candidate.make(folder, sizes.get(candidate.within, 0))
        nbytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        sizes.setdefault(candidate.name, nbytes)
        if reference.exists():
            evaluation = evaluate(folder, reference)
        else:
            evaluation = evaluate(folder, model, text=text, tokens=tokens, save_reference=reference)
        kl, perplexity, agreement = (evaluation.estimates[name] for name in ("kl_mean", "perplexity", "top1_agreement"))
        base = base if candidate.within else kl.value
        yield {
            "model": candidate.name, "nbytes": nbytes, "kl": kl.value, "low": kl.low, "high": kl.high,
            "against_recipe": kl.value / base - 1, "perplexity": perplexity.value,
            "agreement": agreement.value,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Bench:
    """A model with its analyses and probes, each made when a candidate first needs it."""

    source: Source
    work: Path

    @cache  # noqa: B019  one bench a run
    def analysis(self, rounding: str) -> Analysis:
        return analyze(self.source, self.work / f"{rounding}.mint", rounding=rounding)

    @cached_property
    def probed(self) -> Probed:
        return probe(self.source, self.analysis("nearest"), self.work / "analysis.mint.probe")


def _candidates(bench: Bench) -> Iterator[Candidate]:
    def ours(plan_of: Callable[[int], Plan]) -> Callable[[Path, int], None]:
        return lambda folder, nbytes: (assemble(plan_of(nbytes), bench.source, folder), None)[1]

    def uniform(format: str, rounding: str, _: int) -> Plan:
        recipe = Recipe(rounding=rounding, veto_db=-100.0, lock=(f"*={format}",))
        return allocate(bench.analysis(rounding), "max", recipe)

    def allocated(rounding: str, nbytes: int, *, probe: bool = False, objective: str = "output") -> Plan:
        probed = bench.probed if probe else None
        return _allocated(bench.analysis(rounding), nbytes, Recipe(rounding=rounding, objective=objective), probed)

    recipes = [(f"uniform {format}", ours(partial(uniform, format, "nearest"))) for format in UNIFORM]
    recipes += [(recipe, partial(_convert, bench.source.folder, recipe)) for recipe in MIXED]
    for name, make in recipes:
        yield Candidate(name, "", make)
        variants = {
            "published objective": ours(partial(allocated, "nearest", objective="mint")),
            "prior": ours(partial(allocated, "nearest")),
            "probe": ours(partial(allocated, "nearest", probe=True)),
            "prior, search": ours(partial(allocated, "search")),
            "probe, search": ours(partial(allocated, "search", probe=True)),
            "prior, compensate": ours(partial(allocated, "compensate")),
            "probe, compensate": ours(partial(allocated, "compensate", probe=True)),
        }
        if name.startswith("uniform "):
            variants["itself, compensate"] = ours(partial(uniform, name.removeprefix("uniform "), "compensate"))
        for variant, make_ours in variants.items():
            yield Candidate(f"{variant}, bytes of {name}", name, make_ours)


def _allocated(measured: Analysis, nbytes: int, recipe: Recipe, probed: Probed | None) -> Plan:
    """The plan for these bytes; planned without the veto, with a message, if the veto allows none so small."""
    problem = recipe.problem(measured, probed)
    if problem.smallest_bytes > nbytes:
        message = f"the veto allows no plan below {problem.smallest_bytes} bytes; planning without it"
        print(message, file=sys.stderr, flush=True)
        problem = replace(recipe, veto_db=-100.0).problem(measured, probed)
    return problem.plan(nbytes)


def _convert(model: Path, recipe: str, folder: Path, _: int) -> None:
    command = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(model), "--mlx-path", str(folder)]
    subprocess.run([*command, "-q", "--quant-predicate", recipe], check=True, capture_output=True)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:<44} {row['nbytes'] / 1e6:8.2f} MB   KL {row['kl']:.4f} ({row['low']:.4f}-{row['high']:.4f})  "
        f"{row['against_recipe']:+7.1%}   perplexity {row['perplexity']:8.2f}   agreement {row['agreement']:.1%}"
    )


if __name__ == "__main__":
    main()
