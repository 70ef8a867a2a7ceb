"""Tries every model family of the installed mlx_lm, and many of mlx_vlm, on a tiny checkpoint, step by step.

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
from pathlib import Path
from typing import Any

from mint import allocate, analyze, assemble, open_source, verify
from mint.analysis.analysis import Analysis
from mint.analysis.probes.probe import probe
from mint.analysis.probes.prober import Probing
from mint.core.errors import MintError
from mint.model.roles import UNKNOWN
from mint.model.source import Source
from mint.plan.recipe import Recipe
from mint.quality.sequences import TextSize
from tools.models.families import family_names, write_family
from tools.models.vision_families import FAMILIES, write_vision_family

OK = "ok"
ANY = Recipe()
VISION_NAMES = tuple(f"mlx_vlm/{family}" for family in FAMILIES)
STEPS = ("inspect", "quantize", "quantize small", "compensate", "probe")
QUANTIZED = ("quantize", "quantize small")  # half way from the smallest to the largest plan, and the smallest
HEADERS = 4096  # bytes that a plan of other formats may need more
LARGEST_SHARE = 0.01  # of the bytes, kept for want of a role
# found in the sentence of the first step that fails: what a CPU cannot compute, and packages that mlx_lm does not bring
EXPECTED = {
    "bitnet": "Metal",
    "muse_spark": "Metal",
    "olmo": "does not import",
    "phi3small": "code -",
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
    def is_whole(self) -> bool:
        """True after the last step, or after one that no other step can follow."""
        return len(self.steps) == len(STEPS) or self.steps.get("inspect", OK) != OK

    @property
    def is_expected(self) -> bool:
        """True for a row without a fault, or with the one that `EXPECTED` names."""
        expected = EXPECTED.get(self.family)
        return expected in self.fault if expected and self.fault else not self.fault and self.kept <= LARGEST_SHARE


def try_family(family: str, folder: Path, on_step: Callable[[Row], None] = lambda row: None, **settings: Any) -> Row:
    """Try one family in this process, in an empty folder; `settings` change its config.

    `on_step` gets the row so far after each step but the last.
    """
    try:
        package, _, name = family.rpartition("/")
        write = write_vision_family if package else write_family
        source = open_source(write(name, folder / "model", **settings))
    except Exception as error:  # it is the finding
        return Row(family, {"inspect": _sentence(error)}, 0.0)
    analysis = analyze(source, folder / "a.mint", rounding="nearest")
    searched = analyze(source, folder / "s.mint", rounding="compensate")
    smallest, largest = (allocate(analysis, budget).planned_bytes for budget in ("min", "max"))
    between = _quantize(source, folder / "between", analysis, (smallest + largest) // 2 + HEADERS)
    probing = Probing(sequences=2, length=48, most=8)
    tasks: dict[str, Callable[[], object]] = {
        "inspect": lambda: source,
        "quantize": between,
        "quantize small": _quantize(source, folder / "small", analysis, "min"),
        "compensate": _quantize(source, folder / "compensated", searched, "min", Recipe(rounding="compensate")),
        "probe": lambda: probe(source, analysis, folder / "a.probe", probing=probing),
    }
    unknown = [unit.nbytes for unit in source.units if unit.role == UNKNOWN]
    share = sum(unknown) / sum(unit.nbytes for unit in source.units) if unknown else 0.0
    row = Row(family, {}, share)
    for name, task in tasks.items():
        if row.steps:
            on_step(row)
        row.steps[name] = _outcome(task)
    return row


def _quantize(
    source: Source, output: Path, analysis: Analysis, budget: str | int, recipe: Recipe = ANY
) -> Callable[[], None]:
    """A task that writes and verifies one model."""

    def task() -> None:
        assemble(allocate(analysis, budget, recipe), source, output, text=TextSize(4, 48))
        verification = verify(output, source)
        if not verification.passed:
            raise MintError("; ".join(check.detail for check in verification.checks if not check.passed))

    return task


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
        row = Row(pending[0], {}, 0.0)
        command = [sys.executable, "-m", "tools.lab.sweep", "--here", *pending]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            for line in process.stdout or ():
                row = Row(**json.loads(line))
                if row.is_whole:
                    yield row
                    pending.pop(0)
                    row = Row(pending[0] if pending else "", {}, 0.0)
        if pending:
            row.steps[STEPS[len(row.steps)]] = f"the process died with code {process.returncode}"
            yield row
            pending.pop(0)


def _try_here(families: Sequence[str]) -> None:
    """Print the rows of families, one JSON a line, after every step."""

    def say(row: Row) -> None:
        print(json.dumps(asdict(row)), file=out, flush=True)

    out = sys.stdout
    for family in families:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            say(try_family(family, Path(folder), say))


def table(rows: Iterable[Row], version: str) -> str:
    """The rows as the Markdown of docs/architectures.md."""
    lines = [
        "# Architectures",
        "",
        f"Every model family of mlx_lm {version}, and many of mlx_vlm with their towers, tried on a tiny random",
        "checkpoint on a CPU by `python -m tools.lab.sweep --table docs/architectures.md`. *Quantized* means verified",
        "with the stock package, at two budgets.",
        "",
        "| family | opened | quantized | compensated | probed |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        attempts = [row.steps.get(name, "") for name in QUANTIZED]
        quantized = next((sentence for sentence in attempts if sentence != OK), OK)
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
    for row in try_apart(options.names or [*family_names(), *VISION_NAMES]):
        rows.append(row)
        print(json.dumps(asdict(row)) if options.json else f"{row.family:24} {row.fault or OK}", flush=True)
    if options.table:
        from importlib.metadata import version

        options.table.write_text(table(rows, version("mlx-lm")))
    return 0 if all(row.is_expected for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
