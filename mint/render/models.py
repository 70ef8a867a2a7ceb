"""Models, their analyses, probes and evaluations, and the tables of devices and loaders, as plain values."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from statistics import median, median_high
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mint.analysis.probes.sensitivity import prior_alphas
from mint.core.records import pick
from mint.core.sizes import format_seconds, format_size
from mint.formats.quality import QUALITIES, Quality
from mint.quality.evaluation import Evaluation, Refused
from mint.quality.verdict import interval_in_words
from mint.targets.devices import GIB, devices_with
from mint.targets.loaders import loaders

if TYPE_CHECKING:
    from mint.analysis.analysis import Analysis, Measurement
    from mint.analysis.probes.probe_file import Probed
    from mint.assembly.reuse import Reuse
    from mint.assembly.verify import Verification
    from mint.formats.units import Unit
    from mint.model.checkpoint.manifest import Manifest
    from mint.model.source import Source
    from mint.plan.size_range import Kept

Record = dict[str, Any]


def source_record(source: Source, name: str) -> Record:
    """The record of `mint inspect` for the model of this name."""
    from mint.plan.size_range import floor_bits, kept_matrices, possible_bytes

    smallest, largest = possible_bytes(source.units, source.parameters)
    kept = kept_matrices(source.units, source.parameters)
    return {
        "roles": role_rows(source.units),
        "kept": kept_rows(kept),
        "model": name,
        "model_type": source.config["model_type"],
        **pick(source, "identity layers"),
        "shards": len(source.shards),
        "source_bytes": source.nbytes,
        "weights": sum(unit.size for unit in source.units) + sum(prod(p.shape) for p in source.parameters),
        "units": len(source.units),
        "parameters": len(source.parameters),
        "dropped_tensors": list(source.dropped),
        "dropped_towers": list(source.dropped_towers),
        "notices": list(source.notices),
        "kept_units": {unit.path: unit.kept for unit in source.units if unit.kept},
        "floors": {unit.path: bits for unit in source.units if (bits := floor_bits(unit)) and not unit.kept},
        "smallest_bytes": smallest,
        "largest_bytes": largest,
    }


def _by_role(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    roles: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        roles[unit.role].append(unit)
    return roles


def role_rows(units: Sequence[Unit]) -> list[Record]:
    """The units by role, the role with most weights first."""
    rows = [
        {
            "role": role,
            "units": len(members),
            "matrices": sum(unit.slices for unit in members),
            "weights": sum(unit.size for unit in members),
            "nbytes": sum(unit.nbytes for unit in members),
            "shapes": ", ".join("x".join(map(str, shape)) for shape in sorted({unit.shape for unit in members})[:3]),
        }
        for role, members in _by_role(units).items()
    ]
    return sorted(rows, key=lambda row: -row["weights"])


def kept_rows(kept: Sequence[Kept]) -> list[Record]:
    """The matrices that every plan keeps, those of all layers in one row, the most bytes first."""
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for matrix in kept:
        rows[re.sub(r"\b\d+\b", "*", matrix.name), matrix.reason].append(matrix.nbytes)
    records = [
        {"matrices": name, "count": len(sizes), "nbytes": sum(sizes), "reason": reason}
        for (name, reason), sizes in rows.items()
    ]
    return sorted(records, key=lambda row: -row["nbytes"])


def analysis_record(analysis: Analysis, path: Path) -> Record:
    """The record of `mint analyze`: by role the median error in the affine formats of group size 64, and features."""
    by_role = {
        role: [analysis.measurements[unit.path] for unit in units] for role, units in _by_role(analysis.units).items()
    }
    return {
        "sqnr": [_error_row(role, measured) for role, measured in by_role.items()],
        **({"features": _feature_rows(by_role)} if analysis.features else {}),
        "analysis": str(path),
        **pick(analysis, "digest model_type model rounding device"),
        "dropped_towers": list(analysis.dropped_towers),
        "units": len(analysis.units),
        "nonfinite_units": [path for path, m in analysis.measurements.items() if m.nonfinite],
    }


def _error_row(role: str, measured: Sequence[Measurement]) -> Record:
    from mint.analysis.analysis import sqnr_db

    row: Record = {"role": role, "units": len(measured)}
    for format in measured[0].formats:
        if format.scheme.is_default and format.group_size == 64:
            error = median_high(m.error(format) for m in measured if format in m.formats)
            row[f"{format} dB"] = round(sqnr_db(error), 1)
    return row


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
        **pick(manifest, "plan budget_bytes weight_bytes closeness uniform"),
        "reused_bytes": reuse.nbytes,
        "reused_units": reuse.units,
        "files": len(manifest.files),
    }


def verification_record(verification: Verification) -> Record:
    """The record of `mint verify`."""
    checks = [{"check": check.name, **pick(check, "passed detail")} for check in verification.checks]
    return {"checks": checks, "output": str(verification.folder), "passed": verification.passed}


def devices_record(part: str, *, brief: bool) -> Record:
    """The record of `mint devices NAME`; `brief` leaves out sources, and lists the sizes of a chip in one row."""
    matches = devices_with(part)
    if not brief:
        fields = map(asdict, matches)
        return {"devices": [{"device": row.pop("name"), **row} for row in fields], "shown": len(matches)}
    if part:
        rows = [
            {"device": device.name, "memory": _gib(device.memory_bytes), "gpu": _gib(device.working_set_bytes)}
            | pick(device, "gb_per_second")
            for device in matches
        ]
        return {"devices": rows}
    families: dict[tuple[str, float], list[str]] = defaultdict(list)
    for device in matches:
        families[device.chip, device.gb_per_second].append(device.name)
    rows = [
        {"chip": chip, "gb_per_second": speed, "devices": ", ".join(names)} for (chip, speed), names in families.items()
    ]
    return {"devices": rows, "more": "mint devices NAME shows the memory of devices, --sources where figures come from"}


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.4g} GiB"


def qualities_record(forecasts: Mapping[str, Record] = MappingProxyType({})) -> Record:
    """The record of `mint recipes`, with the forecasts for a model by quality if there are any."""

    def costs(row: Quality) -> Record:
        if row.name not in forecasts:
            return pick(row, "seconds memory")
        forecast = forecasts[row.name]
        return {"time": format_seconds(forecast["seconds"]), "memory": format_size(forecast["peak_memory_bytes"])}

    return {
        "qualities": [
            {"quality": row.name, "rounding": row.rounding, **costs(row), **pick(row, "kl title")}
            for row in QUALITIES.values()
        ]
    }


def loaders_record(*, brief: bool) -> Record:
    """The record of `mint devices --loaders`; `brief` leaves out sources."""
    rows = [
        {"loader": loader.name, **pick(loader, "released mixed")}
        | {"formats": ", ".join(map(str, loader.formats))}
        | ({} if brief else {"source": loader.source})
        for loader in loaders()
    ]
    return {"loaders": rows}


def evaluation_record(evaluation: Evaluation | Refused) -> Record:
    """The record of `mint evaluate` for a model."""
    if isinstance(evaluation, Refused):
        return {"output": evaluation.output, "passed": False, "error": evaluation.error.typed}
    names = "output reference identity text seed sequences tokens device seconds peak_rss_bytes"
    figures = [{"figure": name, **asdict(figure)} for name, figure in evaluation.estimates.items()]
    verdict = interval_in_words(evaluation.estimates["kl_mean"])
    return {"figures": figures, **pick(evaluation, names), "verdict": verdict}


def probed_record(analysis: Analysis, probed: Probed, path: Path) -> Record:
    """The record of `mint probe`: alphas by role beside the prior table's."""
    priors, alphas = prior_alphas(analysis.units), probed.alphas
    rows = []
    for role, units in _by_role([unit for unit in analysis.units if unit.path in alphas]).items():
        known = [alphas[unit.path] for unit in units]
        prior = median(priors.get(unit.path, 0.0) for unit in units)
        row = {"least": min(known), "median": median(known), "most": max(known), "prior_median": prior}
        rows.append({"role": role, "units": len(units), **row})
    return {"alphas": rows, "probes": str(path), "probed_units": len(alphas), **pick(probed, "tokens base")}
