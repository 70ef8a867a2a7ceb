"""The stored analyses of a model, and what the planner says about them at once."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.service.data.records import Artifact, Person
from cluster.service.data.visibility import sees_model
from cluster.service.errors import ServiceBusyError
from cluster.service.http.context import Service
from cluster.service.http.error_answers import ApiError
from cluster.service.http.schema import AnalysisAnswer
from mint.analysis.analysis import MAGIC
from mint.core.journal import read_header
from mint.core.log import log
from mint.plan.recipe import Budget, Recipe


@dataclass(frozen=True, slots=True)
class StoredAnalysis:
    """A stored analysis, the paths of its files (`probe` is empty without probes), and its settings."""

    artifact: Artifact
    path: str
    probe: str
    answer: AnalysisAnswer


def stored_analyses(service: Service, identity: str, person: Person) -> list[StoredAnalysis]:
    """The stored analyses of a model, the last made first; a damaged one counts as none, so a job makes it anew.

    There are none of a model that the person does not see.
    """
    if not sees_model(service.database, person, identity):
        return []
    analyses = []
    for artifact in service.catalog.find(kind="analysis", identity=identity):
        paths = {Path(file.name).suffix: str(service.store.path(file.digest)) for file in artifact.files}
        path, probe = paths[".mint"], paths.get(".probe", "")
        header = read_header(Path(path), MAGIC)
        if not header or "rounding" not in header:
            log.warning("analysis.damaged", artifact=artifact.digest)
            continue
        settings = {name: header[name] for name in ("rounding", "dtype", "loader")} | {"probed": bool(probe)}
        answer = AnalysisAnswer(**settings, artifact=artifact.digest)
        analyses.append(StoredAnalysis(artifact, path, probe, answer))
    return analyses


def has(answer: AnalysisAnswer, rounding: str, dtype: str, loader: str) -> bool:
    """True for an analysis with these settings; no loader asks for that of any."""
    return answer.rounding == rounding and is_opened_as(answer, dtype, loader)


def is_opened_as(answer: AnalysisAnswer, dtype: str, loader: str) -> bool:
    """True for an analysis of the model in this dtype and loader, whatever its rounding: its probes serve all."""
    return answer.dtype == dtype and loader in ("", answer.loader)


def planned(
    service: Service, verb: str, identity: str, recipe: Recipe, person: Person, **request: Any
) -> dict[str, Any]:
    """The answer of the planner from the newest analysis with the recipe's rounding and dtype."""
    analyses = stored_analyses(service, identity, person)
    for entry in analyses:
        if has(entry.answer, recipe.rounding, recipe.dtype, recipe.loader):
            opened = entry.answer.dtype, entry.answer.loader
            probes = (other.probe for other in analyses if is_opened_as(other.answer, *opened))
            probe = next(filter(None, probes), "")
            return service.planner.ask(verb, analysis=entry.path, probe=probe, recipe=recipe.to_dict(), **request)
    fault = f" with rounding {recipe.rounding} and dtype {recipe.dtype or 'of its own'}" if analyses else ""
    raise ApiError(
        409,
        f"the model {identity[:12]} is not analyzed{fault}; submit a job first (without a budget: the analysis alone)",
        code="not_analyzed",
    )


def require_room(service: Service, identity: str, recipe: Recipe, budgets: Sequence[Budget], person: Person) -> None:
    """Raise `MintError` for a budget that no plan of a stored analysis fits; its job would wait for its turn to fail.

    Without an analysis, or while the planner is busy, the job finds out.
    """
    with suppress(ServiceBusyError):
        try:
            planned(service, "require", identity, recipe, person, budgets=[budget.to_dict() for budget in budgets])
        except ApiError as error:
            if error.code != "not_analyzed":
                raise
