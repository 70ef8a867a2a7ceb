"""What people and machines get to see: progress and tables on a terminal, or one JSON object.

Each method turns a result into the record of --json; `answer` prints that record, or the table made of it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from mint.budget import format_size

if TYPE_CHECKING:
    from mint.analysis import Analysis
    from mint.execute import Progress as Step
    from mint.manifest import Manifest
    from mint.plan import Plan
    from mint.quantize import Quantized
    from mint.source import Source
    from mint.verify import Verification

Record = dict[str, Any]
_ROWS_SHOWN = 20


class Screen:
    """Progress bars on stderr while work goes on, and the answer on stdout when it is done."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._stderr = Console(stderr=True)
        self._stdout = Console()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[item]}", style="dim"),
            console=self._stderr,
            disable=not self._stderr.is_terminal,
        )
        self._stages: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def on_progress(self, step: Step) -> None:
        """Show how far a stage has come."""
        is_bytes = step.stage != "verify"
        count = f"{format_size(step.done)} of {format_size(step.total)}" if is_bytes else f"{step.done} of {step.total}"
        if step.stage not in self._stages:
            self._stages[step.stage] = self._bars.add_task(step.stage, total=step.total, count=count, item="")
        self._bars.update(self._stages[step.stage], completed=step.done, total=step.total, count=count, item=step.item)

    def note(self, text: str) -> None:
        """A line for people, on stderr."""
        self._stderr.print(text, highlight=False)

    def answer(self, record: Record) -> None:
        """Print a record: as JSON, or as a table of its plain fields followed by one table per list."""
        if self._as_json:
            print(json.dumps(record, indent=2))
            return
        for name, value in record.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                self._table(name, value)
        width = max(len(name) for name in record)
        for name, value in record.items():
            if not (isinstance(value, list) and value and isinstance(value[0], dict)):
                self._stdout.print(f"{name:<{width}}  {_text(name, value)}", highlight=False, soft_wrap=True)

    def _table(self, name: str, rows: list[Record]) -> None:
        table = Table(title=name, title_justify="left", header_style="bold")
        for column in rows[0]:
            numeric = isinstance(rows[0][column], int | float) and not isinstance(rows[0][column], bool)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(_text(column, value) for column, value in row.items()))
        self._stdout.print(table)

    def source(self, source: Source) -> Record:
        """The record of `mint inspect`."""
        from mint.possible import possible_bytes

        smallest, largest = possible_bytes(source.units, source.parameters)
        roles: dict[str, list[Any]] = defaultdict(list)
        for unit in source.units:
            roles[unit.role].append(unit)
        return {
            "roles": [
                {
                    "role": role,
                    "units": len(units),
                    "matrices": sum(unit.slices for unit in units),
                    "weights": sum(unit.size for unit in units),
                    "nbytes": sum(unit.nbytes for unit in units),
                    "shapes": ", ".join(
                        "x".join(map(str, shape)) for shape in sorted({unit.shape for unit in units})[:3]
                    ),
                }
                for role, units in sorted(roles.items(), key=lambda pair: -sum(unit.size for unit in pair[1]))
            ],
            "model": str(source.folder),
            "model_type": source.config["model_type"],
            "identity": source.identity,
            "layers": source.layers,
            "shards": len(source.shards),
            "source_bytes": source.nbytes,
            "units": len(source.units),
            "parameters": len(source.parameters),
            "dropped_tensors": list(source.dropped),
            "kept_units": {unit.path: unit.keep_reason for unit in source.units if unit.keep_reason},
            "smallest_bytes": smallest,
            "largest_bytes": largest,
        }

    def analysis(self, analysis: Analysis, path: Path) -> Record:
        """The record of `mint analyze`."""
        by_role: dict[str, list[Any]] = defaultdict(list)
        for unit in analysis.units:
            by_role[unit.role].append(analysis.measurements[unit.path])
        from mint.analysis import sqnr_db

        rows = []
        for role, measured in by_role.items():
            row: Record = {"role": role, "units": len(measured)}
            for format in measured[0].formats:
                if format.mode == "affine" and format.group_size == 64:
                    errors = sorted(m.error(format) for m in measured if format in m.formats)
                    row[f"{format} dB"] = round(sqnr_db(errors[len(errors) // 2]), 1)
            rows.append(row)
        return {
            "sqnr": rows,
            "analysis": str(path),
            "digest": analysis.digest,
            "model_type": analysis.model_type,
            "model": analysis.model,
            "device": analysis.device,
            "units": len(analysis.units),
            "nonfinite_units": [path for path, m in analysis.measurements.items() if m.nonfinite],
        }

    def plan(self, plan: Plan, path: Path | None, seconds: float) -> Record:
        """The record of `mint allocate`."""
        return {
            "formats": _formats(plan),
            "plan": str(path) if path else "not written (no --output)",
            "digest": plan.digest,
            "budget_bytes": plan.budget_bytes,
            "planned_bytes": plan.planned_bytes,
            "bits_per_weight": round(plan.bits_per_weight, 4),
            "loss": plan.loss,
            "bound": plan.bound,
            "gap": plan.gap,
            "kept_units": {c.path: c.reason for c in plan.choices if c.reason.startswith("kept")},
            "seconds": round(seconds, 3),
        }

    def manifest(self, manifest: Manifest, output: Path) -> Record:
        """The record of `mint assemble`."""
        return {
            "output": str(output),
            "plan": manifest.plan,
            "budget_bytes": manifest.budget_bytes,
            "weight_bytes": manifest.weight_bytes,
            "files": len(manifest.files),
        }

    def verification(self, verification: Verification) -> Record:
        """The record of `mint verify`."""
        return {
            "checks": [
                {"check": check.name, "passed": check.passed, "detail": check.detail} for check in verification.checks
            ],
            "output": str(verification.folder),
            "passed": verification.passed,
        }

    def quantized(self, done: Quantized) -> Record:
        """The record of `mint quantize`."""
        return {
            "formats": _formats(done.plan),
            "output": str(done.output),
            "analysis": str(done.analysis),
            "budget_bytes": done.plan.budget_bytes,
            "planned_bytes": done.plan.planned_bytes,
            "weight_bytes": done.manifest.weight_bytes,
            "bits_per_weight": round(done.plan.bits_per_weight, 4),
            "loss": done.plan.loss,
            "bound": done.plan.bound,
            "gap": done.plan.gap,
            "kept_units": {c.path: c.reason for c in done.plan.choices if c.reason.startswith("kept")},
            "verified": done.verification.passed,
            "seconds": done.seconds,
            "peak_rss_bytes": done.peak_rss_bytes,
        }


def _formats(plan: Plan) -> list[Record]:
    """How many units and weights each format got, most bits first."""
    units: Counter[Any] = Counter()
    weights: Counter[Any] = Counter()
    for choice in plan.choices:
        units[choice.format] += 1
        weights[choice.format] += prod(choice.shape)
    total = sum(weights.values())
    order = sorted(units, key=lambda format: (format.bits == 0, format.bits, -format.group_size), reverse=True)
    return [
        {"format": str(f), "units": units[f], "weights": weights[f], "share": f"{weights[f] / total:.1%}"}
        for f in order
    ]


def _text(name: str, value: Any) -> str:
    """A field as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, int) and (name.endswith("bytes") or name == "nbytes"):
        return f"{value:,} ({format_size(value)})"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        if not value:
            return "none"
        shown = [f"{key} {_text(key, item)}" for key, item in list(value.items())[:_ROWS_SHOWN]]
        more = [f"and {len(value) - _ROWS_SHOWN} more (--json lists all)"] if len(value) > _ROWS_SHOWN else []
        return ", ".join(shown + more)
    if isinstance(value, list):
        return f"{len(value)}" + (
            f" ({', '.join(map(str, value[:3]))}{', ...' if len(value) > 3 else ''})" if value else ""
        )
    return str(value)
