"""Forecasts the seconds of a job's stages, from the jobs that were done before.

A stage takes its seconds per byte of the source, for one rounding and with or without probes. The median of the latest
jobs serves; of the analysis, which most jobs find stored, the largest value. Where nothing was measured yet a table by
rounding serves, which is right within a factor of ten: enough for the lanes.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any

from sqlalchemy import select

from cluster.service.data.database import Database
from cluster.service.data.states import ANALYZING, ASSEMBLING, DONE, PROBING, SOLVING, VERIFYING
from cluster.service.data.tables import jobs
from cluster.service.request_options import DEFAULTS, recipe_options
from mint.plan.recipe import Recipe

_RECENT = 100
_MEASURED = (ANALYZING, PROBING)  # of a model once, not of each budget
_ANALYZING = {
    "nearest": 20.0,
    "search": 200.0,
    "compensate": 1000.0,
    "couple": 1500.0,
    "tune": 3000.0,
}  # seconds per GB
_OTHERS = {PROBING: 300.0, SOLVING: 1.0, ASSEMBLING: 10.0, VERIFYING: 10.0}
_GB = 1e9


def expected_stages(
    database: Database, options: Mapping[str, Any], source_bytes: int, *, stored: Collection[str], only_analysis: bool
) -> dict[str, float]:
    """The expected seconds of each stage of a job; `stored` are stages whose results are there already."""
    kind = rounding, probes = _kind(options)
    rates = _rates(database, kind)
    probes |= not only_analysis and Recipe.from_dict(recipe_options(options)).probes_unasked
    usual = {ANALYZING: _ANALYZING.get(rounding, max(_ANALYZING.values())), **_OTHERS}
    stages = [ANALYZING, *([PROBING] if probes else [])]
    stages += [] if only_analysis else [SOLVING, ASSEMBLING, VERIFYING]
    wanted = [stage for stage in stages if stage not in stored]
    return {stage: round(rates.get(stage, usual[stage] / _GB) * source_bytes, 3) for stage in wanted}


def _rates(database: Database, kind: tuple[str, bool]) -> dict[str, float]:
    """The seconds per byte of each stage of such jobs."""
    columns = (jobs.c.options, jobs.c.source_bytes, jobs.c.result)
    done = select(*columns).where(jobs.c.state == DONE, jobs.c.source_bytes > 0)
    rates: dict[str, list[float]] = defaultdict(list)
    for row in database.rows(done.order_by(jobs.c.number.desc()).limit(_RECENT)):
        if _kind(row.options) == kind:
            for stage, seconds in row.result.get("stage_seconds", {}).items():
                rates[stage].append(seconds / row.source_bytes)
    return {stage: max(values) if stage in _MEASURED else median(values) for stage, values in rates.items()}


def _kind(options: Mapping[str, Any]) -> tuple[str, bool]:
    """The rounding, and true with probes."""
    return options.get("rounding", DEFAULTS["rounding"]), bool(options.get("probe", DEFAULTS["probe"]))
