"""Routes of models and their analyses, and of curves and plans that a stored analysis yields at once."""

import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from cluster.service.data.records import Artifact
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.http import schema
from cluster.service.http.context import POSTED, Here, Reader, Service, refusals
from cluster.service.http.error_answers import ApiError
from cluster.service.http.routes_artifacts import artifact_answer
from cluster.service.http.routes_jobs import identified, job_record
from cluster.service.request_options import DEFAULTS, budget_of, canonical, recipe_of
from mint.analysis.analysis import MAGIC
from mint.core.errors import MintError
from mint.core.journal import read_header
from mint.plan.recipe import Recipe

router = APIRouter(prefix="/v1", tags=["models"])
Identity = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the model's content.")]
_MOST_JOBS = 100


@router.get("/models")
def models(service: Here, person: Reader) -> schema.ModelsAnswer:
    """Every model below the roots of the service."""
    analyzed = {artifact.identity for artifact in service.catalog.find(kind="analysis", limit=10_000)}
    rows = [_model(service, name, analyzed) for name in service.models.names()]
    return schema.ModelsAnswer(models=rows, allows_hub=service.settings.allow_hub)


def _model(service: Service, name: str, analyzed: Set[str] = frozenset()) -> schema.ModelAnswer:
    try:
        path, identity = service.models.identify(name)
    except DatabaseUnavailableError:
        raise
    except MintError as error:
        return schema.ModelAnswer(name=name, identity="", nbytes=0, analyzed=False, reason=str(error))
    nbytes = sum(shard.stat().st_size for shard in path.glob("*.safetensors"))
    return schema.ModelAnswer(name=name, identity=identity, nbytes=nbytes, analyzed=identity in analyzed, reason="")


@router.get("/models/{identity}", responses=refusals(404))
def model(identity: Identity, service: Here, person: Reader) -> schema.ModelDetail:
    """Everything that the service knows about a model."""
    rows = [row for name in service.models.names() if (row := _model(service, name)).identity == identity]
    jobs = service.queue.find(model_identity=identity, limit=_MOST_JOBS)
    artifacts = service.catalog.find(identity=identity, limit=_MOST_JOBS)
    if not rows and not jobs and not artifacts:
        raise ApiError(404, f"nothing is known of a model {identity[:12]}; GET /v1/models lists those that there are")
    structure: dict[str, Any] = {"model_type": "", "layers": 0, "roles": []}
    if analyses := _analyses(service, identity):
        structure = service.planner.ask("roles", analysis=analyses[0].path)
    return schema.ModelDetail(
        identity=identity,
        names=sorted({*(row.name for row in rows), *(job.request.model for job in jobs)}),
        source_bytes=rows[0].nbytes if rows else 0,
        **structure,
        analyzed=sorted({entry.answer.rounding for entry in analyses}),
        analyses=[entry.answer for entry in analyses],
        jobs=[schema.JobAnswer(**job_record(job, person)) for job in jobs],
        artifacts=list(map(artifact_answer, artifacts)),
    )


@dataclass(frozen=True, slots=True)
class _Analysis:
    """A stored analysis, the paths of its files (`probe` is empty without probes), and its settings."""

    artifact: Artifact
    path: str
    probe: str
    answer: schema.AnalysisAnswer


def _analyses(service: Service, identity: str) -> list[_Analysis]:
    """The stored analyses of a model, the last made first."""
    analyses = []
    for artifact in service.catalog.find(kind="analysis", identity=identity):
        paths = {FilePath(file.name).suffix: str(service.store.path(file.digest)) for file in artifact.files}
        path, probe = paths[".mint"], paths.get(".probe", "")
        header = read_header(FilePath(path), MAGIC)
        if not header or "rounding" not in header:
            raise MintError("the stored analysis is damaged; submit the model again")
        settings = {name: header[name] for name in ("rounding", "dtype", "loader")} | {"probed": bool(probe)}
        answer = schema.AnalysisAnswer(**settings, artifact=artifact.digest)
        analyses.append(_Analysis(artifact, path, probe, answer))
    return analyses


def _has(answer: schema.AnalysisAnswer, rounding: str, dtype: str, loader: str) -> bool:
    """True for an analysis with these settings; no loader asks for that of any."""
    return (answer.rounding, answer.dtype) == (rounding, dtype) and loader in ("", answer.loader)


def _planned(service: Service, verb: str, identity: str, recipe: Recipe, **request: Any) -> dict[str, Any]:
    """The answer of the planner from the newest analysis with the recipe's rounding, dtype and loader."""
    analyses = _analyses(service, identity)
    for entry in analyses:
        if _has(entry.answer, recipe.rounding, recipe.dtype, recipe.loader):
            opened = entry.answer.dtype, entry.answer.loader
            same = (other for other in analyses if (other.answer.dtype, other.answer.loader) == opened)
            probe = next((other.probe for other in same if other.probe), "")  # it serves all roundings
            return service.planner.ask(verb, analysis=entry.path, probe=probe, recipe=recipe.to_dict(), **request)
    fault = f" with rounding {recipe.rounding} and dtype {recipe.dtype or 'of its own'}" if analyses else ""
    raise ApiError(
        409,
        f"the model {identity[:12]} is not analyzed{fault}; submit a job first (without a budget: the analysis alone)",
        code="not_analyzed",
    )


@router.get("/models/{identity}/curve", responses=refusals(404, 409))
def curve(
    identity: Identity,
    service: Here,
    person: Reader,
    rounding: schema.Rounding = DEFAULTS["rounding"],
    dtype: schema.Dtype = DEFAULTS["dtype"],
    loader: schema.Loader = DEFAULTS["loader"],
    objective: schema.ObjectiveName = DEFAULTS["objective"],
    points: Annotated[int, Query(ge=2, le=200)] = 60,
) -> schema.CurveAnswer:
    """The curve of budget and loss of an analyzed model, its knees, and where devices lie on it."""
    recipe = Recipe(rounding=rounding, dtype=dtype, loader=loader, objective=objective)
    return schema.CurveAnswer(**_planned(service, "curve", identity, recipe, points=points))


@router.post("/plans", responses=refusals(404, 409, *POSTED))
def plan(request: schema.PlanRequest, service: Here, person: Reader) -> schema.PlanAnswer:
    """The plan of a budget, now and without a job."""
    options = request.options.model_dump()
    budget = budget_of(request.budget, options)
    is_identity = re.fullmatch("[0-9a-f]{64}", request.model)
    identity = request.model if is_identity else identified(service, request.model)[1]
    plan = _planned(service, "plan", identity, recipe_of(budget, options), budget=budget.to_dict())
    return schema.PlanAnswer(budget=canonical(budget), **plan)


@router.get("/analyses/{identity}", responses=refusals(404))
def analysis(
    identity: Identity,
    service: Here,
    person: Reader,
    rounding: schema.Rounding = DEFAULTS["rounding"],
    dtype: schema.Dtype = DEFAULTS["dtype"],
    loader: schema.Loader = DEFAULTS["loader"],
) -> schema.ArtifactAnswer:
    """The files of an analysis: a few MB, from which everybody who has the model can make any plan, and assemble it."""
    for entry in _analyses(service, identity):
        if _has(entry.answer, rounding, dtype, loader):
            return artifact_answer(entry.artifact)
    raise ApiError(
        404, f"the model {identity[:12]} is not analyzed with rounding {rounding}; submit a job first",
        code="not_analyzed",
    )  # fmt: skip
