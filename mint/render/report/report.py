"""A report: one HTML page that holds its data, its charts and the library that draws them.

The page asks no network, which its security policy enforces. Names of others are text: in the markup they are escaped,
in the data they are JSON.
"""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from mint.analysis.analysis import sqnr_db
from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.core.version import __version__, install_command
from mint.plan.plan import Plan
from mint.plan.recipe import Recipe
from mint.quality.estimates import Estimate
from mint.quality.verdict import interval_in_words, kl_text, predicted_in_words
from mint.render.report import charts
from mint.render.report.subjects import AnalyzedModel, PlannedModel, read_subjects
from mint.render.summary import quality_lines

_COLUMNS = (
    "unit", "role", "layer", "format", "bits per weight", "bytes", "SQNR, dB", "sensitivity", "loss", "reason",
)  # fmt: skip


def report(paths: Sequence[Path], recipe: Recipe) -> str:
    """The HTML of a report on analyses, plans and written folders; `recipe` has the rules of the curves.

    Raises `MintError` for a path that is none of them, and without the package that holds Vega-Lite.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise MintError(f"a report needs Vega-Lite; needed: {install_command('report')}") from error
    analyzed, planned = read_subjects(paths, recipe)
    page = _Page()
    for subject in planned:
        lines = quality_lines(subject.plan, subject.closeness, subject.uniform)
        page.summary(subject.name, [(line.label, line.text) for line in lines])
    for model in analyzed:
        _show_analysis(page, model, [p for p in planned if p.plan.model == model.analysis.model])
    if planned:
        _compare(page, planned)
    shown = {model.analysis.digest for model in analyzed}
    for subject in planned:
        _show_plan(page, subject, is_measured=subject.plan.analysis not in shown)
    names = ", ".join([*(model.name for model in analyzed), *(model.name for model in planned)])
    return Template(_asset("page.html")).substitute(
        title=escape(f"MINT report: {names}"),
        version=__version__,
        style=_asset("report.css"),
        body="\n".join(page.parts),
        data=json.dumps({"charts": page.charts, "tables": page.tables}).replace("<", "\\u003c"),
        library=vl_convert.javascript_bundle().replace("</script", "<\\/script"),  # type: ignore[call-arg]  # the stub is wrong
        script=_asset("report.js"),
    )


def _asset(name: str) -> str:
    return (files("mint.render.report") / name).read_text(encoding="utf-8")


class _Page:
    """The parts of a page, and the data of its charts and tables by the id of their place."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.charts: dict[str, Any] = {}
        self.tables: dict[str, Any] = {}

    def title(self, text: str, note: str = "") -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>" + (f"<p>{escape(note)}</p>" if note else ""))

    def summary(self, name: str, lines: Sequence[tuple[str, str]]) -> None:
        """Labels and their texts, for a reader of nothing else."""
        rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in lines)
        self.parts.append(f"<h2>{escape(name)} in short</h2><dl>{rows}</dl>")

    def chart(self, caption: str, spec: dict[str, Any]) -> None:
        id = f"chart-{len(self.charts)}"
        self.charts[id] = spec
        self.parts.append(f'<figure><figcaption>{escape(caption)}</figcaption><div id="{id}"></div></figure>')

    def table(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
        id = f"table-{len(self.tables)}"
        self.tables[id] = {"columns": list(columns), "rows": [[row[name] for name in columns] for row in rows]}
        self.parts.append(f'<div id="{id}" class="table"></div>')


def _show_analysis(page: _Page, model: AnalyzedModel, planned: Sequence[PlannedModel]) -> None:
    analysis = model.analysis
    page.title(
        model.name,
        f"Analysis of {len(analysis.units)} units of a {analysis.model_type} model, "
        f"{format_size(analysis.source_nbytes)}; rounding {analysis.rounding}, measured on {analysis.device}.",
    )
    page.chart("The best plan of every size, beside uniform formats and devices", charts.curve_chart(model, planned))
    _show_measurements(page, model.best)


def _show_measurements(page: _Page, plan: Plan) -> None:
    page.chart("Rate and distortion: median of a role, groups of 64", charts.rate_chart(charts.rates_of(plan)))
    page.chart("Sensitivity of the output to each unit", charts.alpha_chart(plan))


def _compare(page: _Page, planned: Sequence[PlannedModel]) -> None:
    page.title(
        "Plans" if len(planned) > 1 else "Plan",
        "The gap is how much less predicted loss a plan of that budget can have at most; 0: none is better, proved.",
    )
    rows = [_plan_row(model) for model in planned]
    page.table(rows, [name for name in rows[0] if any(row[name] is not None for row in rows)])
    if sum(model.closeness is not None for model in planned) > 1:  # a single one is in the summary
        page.chart("Measured distance from the original, with 95 % intervals", charts.closeness_chart(planned))


def _plan_row(model: PlannedModel) -> dict[str, Any]:
    plan, measured = model.plan, model.closeness
    kl = Estimate(**measured["kl"]) if measured else plan.predicted_kl
    return {
        "plan": model.name,
        "size": format_size(plan.planned_bytes),
        "bits": round(plan.bits_per_weight, 3),
        "rounding": plan.rounding,
        "KL": _printed(kl.value if kl else None),
        "from": _printed(kl.low if kl else None),
        "to": _printed(kl.high if kl else None),
        "KL is": kl and ("measured" if measured else "predicted"),
        "same first word": f"{measured['top1']['value']:.1%}" if measured else None,
        "in words": kl and (interval_in_words(kl) if measured else predicted_in_words(kl)),
        "gap": _rounded(plan.gap),
    }


def _show_plan(page: _Page, model: PlannedModel, *, is_measured: bool) -> None:
    """Add a plan; with `is_measured` also its measurements, which no analysis on the page shows."""
    plan = model.plan
    page.title(model.name, f"{format_size(plan.planned_bytes)}, {plan.bits_per_weight:.3f} bits per weight.")
    page.chart("Bits by layer and role", charts.bits_chart(model))
    if is_measured:
        _show_measurements(page, plan)
    page.table(_unit_rows(plan), _COLUMNS)


def _unit_rows(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "unit": choice.path,
            "role": choice.role,
            "layer": choice.layer,
            "format": str(choice.format),
            "bits per weight": round(8 * plan.nbytes_of(choice) / max(choice.weights, 1), 3),
            "bytes": plan.nbytes_of(choice),
            "SQNR, dB": round(sqnr_db(choice.error), 2) if choice.error > 0 else None,
            "sensitivity": _rounded(choice.alpha),
            "loss": _rounded(plan.loss_of(choice)),
            "reason": choice.reason,
        }
        for choice in plan.choices
    ]


def _printed(kl: float | None) -> float | None:
    """A KL divergence in the figures of the command line, which decide its words."""
    return None if kl is None else float(kl_text(kl))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
