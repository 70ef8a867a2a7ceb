"""What --json prints of the verbs that run a model: one record of plain values each."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mint.analysis.analysis import Analysis
    from mint.analysis.probes.probe_file import Probed
    from mint.quality.evaluation import Evaluation

Record = dict[str, Any]


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
