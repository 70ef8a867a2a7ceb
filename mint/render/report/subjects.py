"""The subjects of a report: analyses, plans and written folders, each read from its path."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint.analysis.analysis import MAGIC, Analysis, read_analysis
from mint.analysis.analysis_name import read_name
from mint.analysis.cached import probes_of
from mint.core.errors import MintError
from mint.core.files import begins_with
from mint.model.checkpoint.manifest import MANIFEST_NAME, read_manifest
from mint.plan.curve import Curve, curve
from mint.plan.device_fit import Placed, devices_on
from mint.plan.plan import Plan, read_plan
from mint.plan.recipe import Recipe, Room

POINTS = 60  # of a curve


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A plan with the name of its file or folder, and the measured distance of its model, if it was measured."""

    name: str
    plan: Plan
    closeness: Mapping[str, Any] | None = None
    uniform: Mapping[str, Any] | None = None  # that of uniform 4-bit, on the same text


@dataclass(frozen=True, slots=True)
class AnalyzedModel:
    """An analysis with its name, the curve of all budgets, the devices on it, and the best plan of the largest one."""

    name: str
    analysis: Analysis
    curve: Curve
    devices: tuple[Placed, ...]
    best: Plan


def read_subjects(paths: Iterable[Path], recipe: Recipe) -> tuple[list[AnalyzedModel], list[PlannedModel]]:
    """The analyses and the plans of these paths; `recipe` has the rules of the curves.

    Raises `MintError` for other paths.
    """
    analyzed, planned = [], []
    for path in paths:
        if not path.exists():
            raise MintError(f"{path}: no such file or folder; needed: an analysis, a plan or a folder that mint wrote")
        if begins_with(path, MAGIC):
            analyzed.append(_analyzed(path, recipe))
        else:
            manifest = read_manifest(path) if (path / MANIFEST_NAME).is_file() else None
            measured = (manifest.closeness, manifest.uniform) if manifest else (None, None)
            planned.append(PlannedModel(_name(path), read_plan(path), *measured))
    return analyzed, planned


def _analyzed(path: Path, recipe: Recipe) -> AnalyzedModel:
    analysis = read_analysis(path)
    problem = recipe.problem(analysis, probes_of(analysis, path))
    placed = [] if isinstance(analysis.traced, str) else devices_on(problem, Room())
    best = problem.plan(problem.largest_bytes)
    return AnalyzedModel(read_name(path) or _name(path), analysis, curve(problem, points=POINTS), tuple(placed), best)


def _name(path: Path) -> str:
    return path.absolute().name if path.is_dir() else path.stem
