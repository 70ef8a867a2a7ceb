"""Routes of models and their analyses, and of curves and plans that a stored analysis yields at once."""

import re
from collections.abc import Set
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from cluster.service.data.records import Artifact
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.http import schema
from cluster.service.http.context import POSTED, Here, Reader, Service, refusals
from cluster.service.http.error_answers import ApiError
from cluster.service.http.routes_artifacts import artifact_answer
from cluster.service.http.routes_jobs import identified, job_record
from cluster.service.offload.plan_pool import NotAnalyzedError
from cluster.service.recipe_of_wish import DEFAULTS, budget_of, canonical, recipe_of
from mint.core.errors import MintError
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
    analyses = _analyses(service, identity)
    structure: dict[str, Any] = {"model_type": "", "layers": 0, "roles": [], "analyses": []}
    if analyses:
        structure = service.planner.ask("roles", analyses=[files for _, files in analyses])
        for header, (artifact, _) in zip(structure["analyses"], analyses, strict=True):
            header["artifact"] = artifact.digest
    return schema.ModelDetail(
        identity=identity,
        names=sorted({*(row.name for row in rows), *(job.wish.model for job in jobs)}),
        source_bytes=rows[0].nbytes if rows else 0,
        **structure,
        analyzed=sorted({header["rounding"] for header in structure["analyses"]}),
        jobs=[schema.JobAnswer(**job_record(job, person)) for job in jobs],
        artifacts=list(map(artifact_answer, artifacts)),
    )


def _analyses(service: Service, identity: str) -> list[tuple[Artifact, dict[str, str]]]:
    """The stored analyses of a model, the last made first, with the paths of their files."""

    def path(artifact: Artifact, ending: str) -> str:
        return next((str(service.store.path(file.digest)) for file in artifact.files if file.name.endswith(ending)), "")

    return [
        (artifact, {"analysis": path(artifact, ".mint"), "probe": path(artifact, ".probe")})
        for artifact in service.catalog.find(kind="analysis", identity=identity)
    ]


def _planned(service: Service, verb: str, identity: str, **request: Any) -> dict[str, Any]:
    try:
        if not (analyses := _analyses(service, identity)):
            raise NotAnalyzedError("not analyzed")
        return service.planner.ask(verb, analyses=[files for _, files in analyses], **request)
    except NotAnalyzedError as error:
        raise ApiError(
            409,
            f"the model {identity[:12]} is {error}; submit a job first (without a budget: the analysis alone)",
            code="not_analyzed",
        ) from error


@router.get("/models/{identity}/curve", responses=refusals(404, 409))
def curve(
    identity: Identity,
    service: Here,
    person: Reader,
    rounding: schema.Rounding = DEFAULTS["rounding"],
    dtype: schema.Dtype = DEFAULTS["dtype"],
    objective: schema.ObjectiveName = DEFAULTS["objective"],
    points: Annotated[int, Query(ge=2, le=200)] = 60,
) -> schema.CurveAnswer:
    """The curve of budget and loss of an analyzed model, its knees, and where devices lie on it."""
    recipe = Recipe(rounding=rounding, dtype=dtype, objective=objective)
    return schema.CurveAnswer(**_planned(service, "curve", identity, recipe=recipe.to_dict(), points=points))


@router.post("/plans", responses=refusals(404, 409, *POSTED))
def plan(request: schema.PlanRequest, service: Here, person: Reader) -> schema.PlanAnswer:
    """The plan of a budget, now and without a job."""
    options = request.options.model_dump()
    budget = budget_of(request.budget, options)
    is_identity = re.fullmatch("[0-9a-f]{64}", request.model)
    identity = request.model if is_identity else identified(service, request.model)[1]
    recipe = recipe_of(budget, options).to_dict()
    plan = _planned(service, "plan", identity, recipe=recipe, budget=budget.to_dict())
    return schema.PlanAnswer(budget=canonical(budget), **plan)


@router.get("/analyses/{identity}", responses=refusals(404))
def analysis(
    identity: Identity,
    service: Here,
    person: Reader,
    rounding: schema.Rounding = DEFAULTS["rounding"],
    dtype: schema.Dtype = DEFAULTS["dtype"],
) -> schema.ArtifactAnswer:
    """The files of an analysis: a few MB, from which everybody who has the model can make any plan, and assemble it."""
    analyses = _analyses(service, identity)
    files = [files for _, files in analyses]
    headers = service.planner.ask("headers", analyses=files)["analyses"] if files else []
    for (artifact, _), header in zip(analyses, headers, strict=True):
        if (header["rounding"], header["dtype"]) == (rounding, dtype):
            return artifact_answer(artifact)
    raise ApiError(
        404, f"the model {identity[:12]} is not analyzed with rounding {rounding}; submit a job first",
        code="not_analyzed",
    )  # fmt: skip
