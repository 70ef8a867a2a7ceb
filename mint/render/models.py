"""Models, their analyses, probes and evaluations, and the tables of devices and loaders, as plain values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from mint.core.errors import MintError

if TYPE_CHECKING:
    from mint.analysis.analysis import Analysis, Measurement
    from mint.analysis.probes.probe_file import Probed
    from mint.assembly.reuse import Reuse
    from mint.assembly.verify import Verification
    from mint.formats.units import Unit
    from mint.model.checkpoint.manifest import Manifest
    from mint.model.source import Source
    from mint.quality.evaluation import Evaluation

Record = dict[str, Any]


def source_record(source: Source) -> Record:
    """The record of `mint inspect`."""
    from mint.plan.size_range import possible_bytes

    smallest, largest = possible_bytes(source.units, source.parameters)
    return {
        "roles": role_rows(source.units),
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


def role_rows(units: Sequence[Unit]) -> list[Record]:
    """The units by role, the role with most weights first."""
    roles: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        roles[unit.role].append(unit)
    rows = [
        {
            "role": role,
            "units": len(members),
            "matrices": sum(unit.slices for unit in members),
            "weights": sum(unit.size for unit in members),
            "nbytes": sum(unit.nbytes for unit in members),
            "shapes": ", ".join("x".join(map(str, shape)) for shape in sorted({unit.shape for unit in members})[:3]),
        }
        for role, members in roles.items()
    ]
    return sorted(rows, key=lambda row: -row["weights"])


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
    features_of = {role: [asdict(m.features) for m in measured if m.features] for role, measured in by_role.items()}
    return [
        {"role": role} | {name: float(f"{median(unit[name] for unit in features):.4g}") for name in features[0]}
        for role, features in features_of.items()
        if features
    ]


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


def devices_record(part: str) -> Record:
    """The record of `mint devices`."""
    from mint.targets.devices import devices

    matches = [asdict(device) for device in devices() if part.lower() in device.name]
    rows = [{"device": row.pop("name"), **row} for row in matches]
    if not rows:
        raise MintError(f"no device has {part!r} in its name; `mint devices` lists all")
    return {"devices": rows, "shown": len(rows)}


def loaders_record() -> Record:
    """The record of `mint devices --loaders`."""
    from mint.targets.loaders import loaders

    return {
        "loaders": [
            {
                "loader": loader.name,
                "released": loader.released,
                "formats": ", ".join(map(str, loader.formats)),
                "mixed": loader.mixed,
                "source": loader.source,
            }
            for loader in loaders()
        ]
    }


def evaluation_record(evaluation: Evaluation) -> Record:
    """The record of `mint evaluate`."""
    return {
        "figures": [
            {"figure": name, "value": figure.value, "low": figure.low, "high": figure.high}
            for name, figure in evaluation.estimates.items()
        ],
        "output": evaluation.output,
        "reference": evaluation.reference,
        "identity": evaluation.identity,
        "text": evaluation.text,
        "seed": evaluation.seed,
        "sequences": evaluation.sequences,
        "tokens": evaluation.tokens,
        "device": evaluation.device,
        "seconds": evaluation.seconds,
        "peak_rss_bytes": evaluation.peak_rss_bytes,
    }


def probed_record(analysis: Analysis, probed: Probed, path: Path) -> Record:
    """The record of `mint probe`: alphas by role beside the prior table's."""
    from mint.analysis.probes.sensitivity import prior_alphas

    priors = prior_alphas(analysis.units)
    by_role: dict[str, list[str]] = defaultdict(list)
    for unit in analysis.units:
        if unit.path in probed.probes:
            by_role[unit.role].append(unit.path)
    rows = [
        {
            "role": role,
            "units": len(paths),
            "least": min(probed.probes[name].alpha for name in paths),
            "median": median(probed.probes[name].alpha for name in paths),
            "most": max(probed.probes[name].alpha for name in paths),
            "prior_median": median(priors.get(name, 0.0) for name in paths),
        }
        for role, paths in by_role.items()
    ]
    return {
        "alphas": rows,
        "probes": str(path),
        "probed_units": len(probed.probes),
        "tokens": probed.tokens,
        "base": probed.base,
    }
