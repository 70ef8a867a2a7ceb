"""Tries every model family of the installed mlx_lm on a tiny checkpoint, step by step.

    python -m tools.lab.sweep [NAME ...] [--json] [--table FILE]

Each family is opened, quantized at two budgets (which verifies), compensated and probed, in another process: a
crash of MLX ends one row. A step is `ok`, or the sentence of its error. `kept` is the share of the bytes that stay at
full precision for want of a role. `--table` writes docs/architectures.md. The exit code is 1 if a row fails that
`EXPECTED` does not name.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mint import allocate, analyze, assemble, open_source, verify
from mint.analysis.probes.probe import probe
from mint.analysis.probes.prober import Probing
from mint.core.errors import MintError
from mint.model.roles import UNKNOWN
from mint.plan.recipe import Recipe
from mint.quality.sequences import TextSize
from tools.models.families import family_names, write_family

OK = "ok"
STEPS = ("inspect", "quantize", "quantize small", "compensate", "probe")
BUDGETS = {"quantize": "0.6x", "quantize small": "0.4x"}
LARGEST_SHARE = 0.01  # of the bytes, kept for want of a role
# found in the sentence of the first step that fails: what a CPU cannot compute, and packages that mlx_lm does not bring
EXPECTED = {
    "bitnet": "Metal",
    "muse_spark": "Metal",
    "olmo": "does not import",
    "phi3small": "code -11",
    "prism_hadamard_qwen35": "quantized in 2 bits already",
}


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one family: a sentence for each step, and the share of bytes that stay for want of a role."""

    family: str
    steps: dict[str, str]
    kept: float

    @property
    def fault(self) -> str:
        """The first sentence that is no success."""
        return next((sentence for sentence in self.steps.values() if sentence != OK), "")

    @property
    def is_expected(self) -> bool:
        """True for a row without a fault, or with the one that `EXPECTED` names."""
        expected = EXPECTED.get(self.family)
        return expected in self.fault if expected and self.fault else not self.fault and self.kept <= LARGEST_SHARE


def try_family(family: str, folder: Path, **settings: Any) -> Row:
    """Try one family in this process, in an empty folder; `settings` change its config."""
    steps: dict[str, str] = {}
    kept = 0.0
    try:
        source = open_source(write_family(family, folder / "model", **settings))
        steps["inspect"] = OK
    except Exception as error:  # it is the finding
        return Row(family, {"inspect": _sentence(error)}, 0.0)
    unknown = [unit.nbytes for unit in source.units if unit.role == UNKNOWN]
    kept = sum(unknown) / sum(unit.nbytes for unit in source.units)
    analysis = analyze(source, folder / "a.mint")
    searched = analyze(source, folder / "s.mint", rounding="compensate")

    def quantize(budget: str, recipe: Recipe, name: str) -> None:
        output = folder / name
        assemble(allocate(searched if recipe.rounding == "compensate" else analysis, budget, recipe), source, output,
                 text=TextSize(4, 48))  # fmt: skip
        verification = verify(output, source)
        if not verification.passed:
            raise MintError("; ".join(check.detail for check in verification.checks if not check.passed))

    tasks: dict[str, Callable[[], object]] = {
        name: partial(quantize, budget, Recipe(), name) for name, budget in BUDGETS.items()
    }
    tasks["compensate"] = partial(quantize, "0.4x", Recipe(rounding="compensate"), "compensated")
    tasks["probe"] = lambda: probe(
        source, analysis, folder / "a.probe", probing=Probing(sequences=2, length=48, most=8)
    )
    for name, task in tasks.items():
        steps[name] = _outcome(task)
    return Row(family, steps, kept)


def _outcome(task: Callable[[], object]) -> str:
    try:
        task()
    except Exception as error:  # the same
        return _sentence(error)
    return OK


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, MintError) else f"{type(error).__name__}: {text}"


def try_apart(families: Sequence[str]) -> Iterator[Row]:
    """The rows of families, made in another process; a new one goes on after a crash."""
    pending = list(families)
    while pending:
        command = [sys.executable, "-m", "tools.lab.sweep", "--here", *pending]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for line in process.stdout or ():
                yield Row(**json.loads(line))
                pending.pop(0)
        if pending:
            yield Row(pending.pop(0), {"inspect": f"the process died with code {process.returncode}"}, 0.0)


def _try_here(families: Sequence[str]) -> None:
    """Print the rows of families, one JSON a line."""
    for family in families:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            row = try_family(family, Path(folder))
        print(json.dumps(asdict(row)), flush=True)


def table(rows: Iterable[Row], version: str) -> str:
    """The rows as the Markdown of docs/architectures.md."""
    lines = [
        "# Architectures",
        "",
        f"Every model family of mlx_lm {version}, tried on a tiny random checkpoint on a CPU by",
        "`python -m tools.lab.sweep --table docs/architectures.md`. *Quantized* means verified with stock mlx_lm, at",
        "two budgets.",
        "",
        "| family | opened | quantized | compensated | probed |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        quantized = next(
            (row.steps[name] for name in BUDGETS if row.steps.get(name, OK) != OK), row.steps.get("quantize")
        )
        cells = [row.steps["inspect"], quantized, row.steps.get("compensate"), row.steps.get("probe")]
        lines.append(f"| {row.family} | {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(sentence: str | None) -> str:
    return "yes" if sentence == OK else (sentence or "").replace("|", "/")[:120]


def main() -> int:
    """Try the families and print their rows as they come."""
    parser = argparse.ArgumentParser(description="Try every model family of mlx_lm.")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        _try_here(options.names)
        return 0
    rows = []
    for row in try_apart(options.names or family_names()):
        rows.append(row)
        print(json.dumps(asdict(row)) if options.json else f"{row.family:24} {row.fault or OK}", flush=True)
    if options.table:
        from importlib.metadata import version

        options.table.write_text(table(rows, version("mlx-lm")))
    return 0 if all(row.is_expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
