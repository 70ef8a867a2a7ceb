"""Plans, curves and explanations as plain values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint.core.records import pick
from mint.core.sizes import format_size
from mint.formats.format import KEEP

if TYPE_CHECKING:
    from mint.formats.format import Format
    from mint.pipeline import Quantized
    from mint.plan.curve import Curve, Point
    from mint.plan.device_fit import Placed
    from mint.plan.explain import Change, Explanation, Step
    from mint.plan.plan import Plan
    from mint.plan.problem import Problem
    from mint.quality.estimates import Estimate

Record = dict[str, Any]
_BRIEF_POINTS = 12
_GB = 10**9


def plan_record(plan: Plan, path: Path | None, seconds: float) -> Record:
    """The record of `mint allocate`."""
    return {
        "formats": _formats(plan),
        "plan": str(path) if path else "not written (no --output)",
        **pick(plan, "digest budget_bytes planned_bytes"),
        **_solution(plan),
        "objective": plan.objective.name,
        "dropped_towers": list(plan.dropped_towers),
        "alphas": dict(Counter(choice.alpha_from for choice in plan.choices if choice.alpha_from)),
        **_reading(plan),
        "seconds": round(seconds, 3),
    }


def quantized_record(result: Quantized) -> Record:
    """The record of `mint quantize`."""
    return {
        "formats": _formats(result.plan),
        "output": str(result.output),
        "analysis": str(result.analysis),
        **pick(result.plan, "budget_bytes planned_bytes"),
        "weight_bytes": result.manifest.weight_bytes,
        **_solution(result.plan),
        **pick(result.manifest, "closeness uniform"),
        **_reading(result.plan),
        "reused_bytes": result.reused_bytes,
        "dropped_towers": list(result.plan.dropped_towers),
        "notices": list(result.notices),
        "verified": result.verification.passed,
        **pick(result, "seconds peak_rss_bytes"),
    }


def _predicted(kl: Estimate | None) -> Record:
    """The predicted KL divergence and the ends of its interval; nothing where the objective predicts none."""
    return {"predicted_kl": kl.value, "predicted_low": kl.low, "predicted_high": kl.high} if kl else {}


def _solution(plan: Plan) -> Record:
    """The quality of a plan, and for an objective that predicts a KL divergence, that and its basis."""
    from mint.plan.prediction import describe

    kl = plan.predicted_kl
    return {
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "loss": plan.loss,
        **_predicted(kl),
        **({"predicted_from": describe(kl, plan.evidence)} if kl else {}),
        **pick(plan, "bound gap"),
    }


def _reading(plan: Plan) -> Record:
    """The bytes that a token reads, and the matrices that stay as they are with bytes and reason."""
    from mint.plan.size_range import Kept, kept_matrices
    from mint.render.models import kept_rows

    kept = {choice.path: choice.reason for choice in plan.choices if choice.reason.startswith("kept")}
    units = [Kept(c.path, KEEP.nbytes(c.shape, c.dtype), c.reason) for c in plan.choices if c.path in kept]
    return {
        "kept": kept_rows([*units, *kept_matrices((), plan.parameters)]),
        "bytes_per_token": round(plan.bytes_per_token),
        "kept_units": kept,
    }


def _formats(plan: Plan) -> list[Record]:
    """The units and the weights of each format, most bits first."""
    weights: dict[Format, list[int]] = defaultdict(list)
    for choice in plan.choices:
        weights[choice.format].append(choice.weights)
    total = sum(map(sum, weights.values()))
    order = sorted(weights, key=lambda format: (format.bits == 0, format.bits, -format.group_size), reverse=True)
    counts = [(format, len(weights[format]), sum(weights[format])) for format in order]
    return [{"format": str(f), "units": units, "weights": n, "share": f"{n / total:.1%}"} for f, units, n in counts]


def curve_record(
    curve: Curve, devices: Sequence[Placed], csv: Path | None, plot: Path | None, *, brief: bool
) -> Record:
    """The record of `mint curve`; for people, every tenth point and the devices that matter."""
    points = curve.points[:: max(1, len(curve.points) // _BRIEF_POINTS)] if brief else curve.points
    smallest, largest = curve.points[0].budget_bytes, curve.points[-1].budget_bytes
    step = int(10 ** max(0, len(str((largest - smallest) // 10)) - 1))  # a round number, about a tenth of the curve
    saving = f"next_{format_size(step).replace(' ', '_')}_saves"
    rows = []
    for point in sorted({*points, *curve.knees}, key=lambda point: point.budget_bytes):
        here, there = curve.loss_at(point.budget_bytes), curve.loss_at(point.budget_bytes + step)
        is_knee = point in curve.knees
        saved = f"{1 - there / here:.1%}" if here > 0 else "0.0%"
        if brief:
            kl = {"kl": point.predicted_kl.value} if point.predicted_kl else {"loss": point.loss}
            rows.append(
                {"budget_bytes": point.budget_bytes, "bits": round(point.bits_per_weight, 3), **kl}
                | {saving: saved, "": "knee" if is_knee else ""}
            )
            continue
        rows.append(
            pick(point, "budget_bytes planned_bytes bits_per_weight loss")
            | {"bits_per_weight": round(point.bits_per_weight, 3), **_predicted(point.predicted_kl), "gap": point.gap}
            | {saving: saved, "knee": is_knee}
        )
    verdicts = Counter(placed.verdict for placed in devices)
    return {
        "points": rows,
        "devices": [
            {"device": placed.device.name, "budget_bytes": placed.budget_bytes}
            | {"loss": None if placed.budget_bytes is None else curve.loss_at(placed.budget_bytes)}
            | {"verdict": placed.verdict}
            for placed in devices
            if not brief or placed.verdict == "fits"
        ],
        "devices_too_small": verdicts["too small"],
        "devices_with_room_for_all": verdicts["holds the largest plan"],
        "knees": [format_size(p.budget_bytes) if brief else p.budget_bytes for p in curve.knees],
        "smallest_bytes": smallest,
        "largest_bytes": largest,
        **({"predicted_from": curve.predicted_from} if curve.predicted_from else {}),
        "csv": str(csv) if csv else "not written (no --csv)",
        "plot": str(plot) if plot else "not drawn (no --plot)",
    }


def explanation_record(plan: Plan, explanations: Sequence[Explanation], *, brief: bool) -> Record:
    """The record of `mint explain`: all options of one unit; for several a row each, for people without features."""
    if len(explanations) > 1:
        rows = [_unit_row(plan, e) if brief else _unit_record(plan, e, featured=True) for e in explanations]
        return {"units": rows, "price_per_mb": plan.price * 1e6}
    (explanation,) = explanations
    options = [
        pick(option, "format nbytes sqnr_db loss verdict")
        | {
            "format": str(option.format),
            "sqnr_db": "exact" if option.sqnr_db == inf else round(option.sqnr_db, 2),
        }
        for option in explanation.options
    ]
    return {"options": options, **_unit_record(plan, explanation, featured=True), "price_per_mb": plan.price * 1e6}


def _unit_record(plan: Plan, explanation: Explanation, *, featured: bool) -> Record:
    choice = explanation.choice
    return {
        **pick(choice, "path format reason alpha alpha_from"),
        "format": str(choice.format),
        "loss": plan.loss_of(choice),
        "larger": _step_text(explanation.larger, plan.price, "saves"),
        "smaller": _step_text(explanation.smaller, plan.price, "costs"),
        **({"features": asdict(choice.features)} if choice.features and featured else {}),
    }


def _unit_row(plan: Plan, explanation: Explanation) -> Record:
    """A unit in one row: its format, the next ones, and the loss per MB that they save or cost."""
    choice, larger, smaller = explanation.choice, explanation.larger, explanation.smaller
    return {
        **pick(choice, "path format"),
        "format": str(choice.format),
        "loss": plan.loss_of(choice),
        "larger": str(larger.format) if larger else "-",
        "saves/MB": larger.loss_per_mb if larger else "",
        "smaller": str(smaller.format) if smaller else "-",
        "costs/MB": smaller.loss_per_mb if smaller else "",
    }


def _step_text(step: Step | None, price: float, verb: str) -> str:
    if step is None:
        return "none"
    return (
        f"{step.format}: {step.nbytes / 1e6:+.4g} MB {verb} {abs(step.loss):.3g}, {step.loss_per_mb:.3g} per MB "
        f"(the budget's price: {price * 1e6:.3g})"
    )


def diff_record(before: Plan, after: Plan, changes: Sequence[Change]) -> Record:
    """The record of `mint diff`."""
    rows = [
        {"unit": change.before.path, "before": str(change.before.format), "after": str(change.after.format)}
        | pick(change, "nbytes loss")
        for change in changes
    ]
    return {
        "changes": rows,
        "changed_units": len(changes),
        "units": len(before.choices),
        "before_bytes": before.planned_bytes,
        "after_bytes": after.planned_bytes,
        "before_loss": before.loss,
        "after_loss": after.loss,
    }


def figures(plan: Plan | Point) -> Record:
    """The size and the quality of a plan or of a point of a curve; `predicted` is the KL divergence in words."""
    from mint.quality.verdict import is_vague, predicted_text

    kl = plan.predicted_kl
    record = pick(plan, "budget_bytes planned_bytes bits_per_weight loss gap")
    return (
        record
        | {"predicted_kl": asdict(kl) if kl else None, "predicted": predicted_text(kl) if kl else ""}
        | {"is_vague": bool(kl and is_vague(kl))}
    )


def unit_rows(plan: Plan) -> list[Record]:
    """Every unit of a plan in the order of the model."""
    rows = []
    for choice in plan.choices:
        nbytes = plan.nbytes_of(choice)
        bits = round(8 * nbytes / max(choice.weights, 1), 3)
        rows.append(
            {**pick(choice, "path role layer"), "format": str(choice.format), "bits": bits, "nbytes": nbytes}
            | {"reason": choice.reason}
        )
    return rows


def next_record(problem: Problem, plan: Plan) -> Record | None:
    """The gain of the next GB, or for a small model of a tenth of the span of its sizes; None where nothing is left."""
    step = min(_GB, max(1, (problem.largest_bytes - problem.smallest_bytes) // 10))
    if plan.planned_bytes >= problem.largest_bytes or plan.loss <= 0:
        return None
    more = problem.plan(plan.budget_bytes + step)
    return {
        "step_bytes": step,
        "says": f"{format_size(step)} more: {1 - more.loss / plan.loss:.1%} less loss",
        **figures(more),
    }
