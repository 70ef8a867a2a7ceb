"""What --json prints: each verb's result as one record of plain values, lists of rows first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint.core.errors import MintError
from mint.core.sizes import format_size

if TYPE_CHECKING:
    from mint.analysis.analysis import Analysis, Measurement
    from mint.assembly.reuse import Reuse
    from mint.assembly.verify import Verification
    from mint.model.checkpoint.manifest import Manifest
    from mint.model.source import Source
    from mint.pipeline import Quantized
    from mint.plan.curve import Curve
    from mint.plan.device_fit import Placed
    from mint.plan.explain import Change, Explanation, Step
    from mint.plan.plan import Plan
    from mint.quality.estimates import Estimate

Record = dict[str, Any]
_BRIEF_POINTS = 12


def source_record(source: Source) -> Record:
    """The record of `mint inspect`."""
    from mint.plan.size_range import possible_bytes

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
                "shapes": ", ".join("x".join(map(str, shape)) for shape in sorted({unit.shape for unit in units})[:3]),
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


def analysis_record(analysis: Analysis, path: Path) -> Record:
    """The record of `mint analyze`."""
    by_role: dict[str, list[Any]] = defaultdict(list)
    for unit in analysis.units:
        by_role[unit.role].append(analysis.measurements[unit.path])
    from mint.analysis.analysis import sqnr_db

    rows = []
    for role, measured in by_role.items():
        row: Record = {"role": role, "units": len(measured)}
        for format in measured[0].formats:
            if format.scheme.is_default and format.group_size == 64:
                errors = sorted(m.error(format) for m in measured if format in m.formats)
                row[f"{format} dB"] = round(sqnr_db(errors[len(errors) // 2]), 1)
        rows.append(row)
    return {
        "sqnr": rows,
        **({"features": _feature_rows(by_role)} if analysis.features else {}),
        "analysis": str(path),
        "digest": analysis.digest,
        "model_type": analysis.model_type,
        "model": analysis.model,
        "rounding": analysis.rounding,
        "device": analysis.device,
        "units": len(analysis.units),
        "nonfinite_units": [path for path, m in analysis.measurements.items() if m.nonfinite],
    }


def _feature_rows(by_role: Mapping[str, Sequence[Measurement]]) -> list[Record]:
    """The median of every feature for each role."""
    from statistics import median

    found = {role: [asdict(m.features) for m in measured if m.features] for role, measured in by_role.items()}
    return [
        {"role": role} | {name: float(f"{median(each[name] for each in features):.4g}") for name in features[0]}
        for role, features in found.items()
        if features
    ]


def plan_record(plan: Plan, path: Path | None, seconds: float) -> Record:
    """The record of `mint allocate`."""
    return {
        "formats": _formats(plan),
        "plan": str(path) if path else "not written (no --output)",
        "digest": plan.digest,
        "budget_bytes": plan.budget_bytes,
        "planned_bytes": plan.planned_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "loss": plan.loss,
        **_prediction(plan),
        "bound": plan.bound,
        "gap": plan.gap,
        "objective": plan.objective.name,
        "alphas": dict(Counter(c.alpha_from for c in plan.choices if c.alpha_from)),
        "bytes_per_token": round(plan.bytes_per_token),
        "kept_units": {c.path: c.reason for c in plan.choices if c.reason.startswith("kept")},
        "seconds": round(seconds, 3),
    }


def manifest_record(manifest: Manifest, output: Path, reuse: Reuse) -> Record:
    """The record of `mint assemble`."""
    return {
        "output": str(output),
        "plan": manifest.plan,
        "budget_bytes": manifest.budget_bytes,
        "weight_bytes": manifest.weight_bytes,
        "reused_bytes": reuse.nbytes,
        "reused_units": reuse.units,
        "files": len(manifest.files),
    }


def verification_record(verification: Verification) -> Record:
    """The record of `mint verify`."""
    return {
        "checks": [
            {"check": check.name, "passed": check.passed, "detail": check.detail} for check in verification.checks
        ],
        "output": str(verification.folder),
        "passed": verification.passed,
    }


def quantized_record(done: Quantized) -> Record:
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
        **_prediction(done.plan),
        "bound": done.plan.bound,
        "gap": done.plan.gap,
        "bytes_per_token": round(done.plan.bytes_per_token),
        "kept_units": {c.path: c.reason for c in done.plan.choices if c.reason.startswith("kept")},
        "reused_bytes": done.reused_bytes,
        "verified": done.verification.passed,
        "seconds": done.seconds,
        "peak_rss_bytes": done.peak_rss_bytes,
    }


def _predicted(kl: Estimate | None) -> Record:
    """The KL divergence to expect and the ends of its interval; nothing where the objective predicts none."""
    return {"predicted_kl": kl.value, "predicted_low": kl.low, "predicted_high": kl.high} if kl else {}


def _prediction(plan: Plan) -> Record:
    """The same of a plan, with what it rests on."""
    from mint.plan.prediction import describe

    kl = plan.predicted_kl
    return {**_predicted(kl), "predicted_from": describe(kl, plan.evidence)} if kl else {}


def _formats(plan: Plan) -> list[Record]:
    """How many units and weights each format got, most bits first."""
    units: Counter[Any] = Counter()
    weights: Counter[Any] = Counter()
    for choice in plan.choices:
        units[choice.format] += 1
        weights[choice.format] += choice.weights
    total = sum(weights.values())
    order = sorted(units, key=lambda format: (format.bits == 0, format.bits, -format.group_size), reverse=True)
    return [
        {"format": str(f), "units": units[f], "weights": weights[f], "share": f"{weights[f] / total:.1%}"}
        for f in order
    ]


def curve_record(
    curve: Curve, devices: Sequence[Placed], csv: Path | None, plot: Path | None, *, brief: bool
) -> Record:
    """The record of `mint curve`; for people, every tenth point and the devices that matter."""
    unit = _step(curve)
    points = curve.points[:: max(1, len(curve.points) // _BRIEF_POINTS)] if brief else curve.points
    knees = {point.budget_bytes for point in curve.knees}
    rows = [
        {
            "budget_bytes": point.budget_bytes,
            "planned_bytes": point.planned_bytes,
            "bits_per_weight": round(point.bits_per_weight, 3),
            "loss": point.loss,
            **_predicted(point.predicted_kl),
            "gap": point.gap,
            f"next_{format_size(unit).replace(' ', '_')}_saves": _saving(curve, point.budget_bytes, unit),
            "knee": ("knee" if point.budget_bytes in knees else "") if brief else point.budget_bytes in knees,
        }
        for point in sorted({*points, *curve.knees}, key=lambda point: point.budget_bytes)
    ]
    placed = [
        {
            "device": each.device.name,
            "budget_bytes": each.budget_bytes,
            "loss": None if each.budget_bytes is None else curve.loss_at(each.budget_bytes),
            "verdict": each.verdict,
        }
        for each in devices
        if not brief or each.verdict == "fits"
    ]
    return {
        "points": rows,
        "devices": placed,
        "devices_too_small": sum(each.verdict == "too small" for each in devices),
        "devices_with_room_for_all": sum(each.verdict == "holds the largest plan" for each in devices),
        "knees": [point.budget_bytes for point in curve.knees],
        "smallest_bytes": curve.points[0].budget_bytes,
        "largest_bytes": curve.points[-1].budget_bytes,
        **({"predicted_from": curve.predicted_from} if curve.predicted_from else {}),
        "csv": str(csv) if csv else "not written (no --csv)",
        "plot": str(plot) if plot else "not drawn (no --plot)",
    }


def _step(curve: Curve) -> int:
    """A round number of bytes, about a tenth of the curve."""
    span = curve.points[-1].budget_bytes - curve.points[0].budget_bytes
    return int(10 ** max(0, len(str(span // 10)) - 1))


def _saving(curve: Curve, budget_bytes: int, step: int) -> str:
    here, there = curve.loss_at(budget_bytes), curve.loss_at(budget_bytes + step)
    return f"{1 - there / here:.1%}" if here > 0 else "0.0%"


def explanation_record(plan: Plan, explanations: Sequence[Explanation], *, brief: bool) -> Record:
    """The record of `mint explain`: all options of one unit; for several a row each, for people without features."""
    if len(explanations) == 1:
        only = explanations[0]
        rows = [
            {
                "format": str(option.format),
                "nbytes": option.nbytes,
                "sqnr_db": "exact" if option.sqnr_db == inf else round(option.sqnr_db, 2),
                "loss": option.loss,
                "verdict": option.verdict,
            }
            for option in only.options
        ]
        return {"options": rows, **_unit_record(plan, only, featured=True), "price_per_mb": plan.price * 1e6}
    rows = [_unit_record(plan, each, featured=not brief) for each in explanations]
    return {"units": rows, "price_per_mb": plan.price * 1e6}


def _unit_record(plan: Plan, explanation: Explanation, *, featured: bool) -> Record:
    choice = explanation.choice
    return {
        "path": choice.path,
        "format": str(choice.format),
        "reason": choice.reason,
        "alpha": choice.alpha,
        "alpha_from": choice.alpha_from,
        "loss": plan.loss_of(choice),
        "larger": _step_text(explanation.larger, plan.price, "saves"),
        "smaller": _step_text(explanation.smaller, plan.price, "costs"),
        **({"features": asdict(choice.features)} if choice.features and featured else {}),
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
    return {
        "changes": [
            {
                "unit": change.before.path,
                "before": str(change.before.format),
                "after": str(change.after.format),
                "nbytes": change.nbytes,
                "loss": change.loss,
            }
            for change in changes
        ],
        "changed_units": len(changes),
        "units": len(before.choices),
        "before_bytes": before.planned_bytes,
        "after_bytes": after.planned_bytes,
        "before_loss": before.loss,
        "after_loss": after.loss,
    }


def devices_record(part: str) -> Record:
    """The record of `mint devices`."""
    from mint.targets.devices import DEVICES

    rows = [{"device": device.name, **device.figures} for device in DEVICES if part.lower() in device.name]
    if not rows:
        raise MintError(f"no device has {part!r} in its name; `mint devices` lists all")
    return {"devices": rows, "shown": len(rows)}


def loaders_record() -> Record:
    """The record of `mint devices --loaders`."""
    from mint.targets.loaders import LOADERS

    return {
        "loaders": [
            {
                "loader": loader.name,
                "released": loader.released,
                "formats": ", ".join(map(str, loader.formats)),
                "mixed": loader.mixed,
                "source": loader.source,
            }
            for loader in LOADERS
        ]
    }
