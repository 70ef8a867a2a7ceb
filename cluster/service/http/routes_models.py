"""Routes of models and their analyses, and of curves and plans that a stored analysis yields at once."""

import re
from collections.abc import Set
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from cluster.service.data.records import Person
from cluster.service.data.visibility import group_of, sees, sees_model
from cluster.service.errors import DatabaseUnavailableError, NotFetchedError
from cluster.service.http import schema
from cluster.service.http import schema_requests as requests
from cluster.service.http.context import POSTED, Here, Reader, Service, refusals
from cluster.service.http.error_answers import ApiError
from cluster.service.http.routes_artifacts import artifact_answer
from cluster.service.http.routes_jobs import identified, job_record
from cluster.service.http.stored import has, planned, stored_analyses
from cluster.service.request_options import DEFAULTS, budget_of, canonical, recipe_of
from mint.core.errors import MintError
from mint.plan.recipe import Recipe

router = APIRouter(prefix="/v1", tags=["models"])
Identity = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the model's content.")]
_MOST_JOBS = 100


@router.get("/models")
def list_models(service: Here, person: Reader) -> schema.ModelsAnswer:
    """Every model below the roots of the service."""
    names = [name for name in service.models.names() if sees(person, group_of(name))]
    analyzed = {artifact.identity for artifact in service.catalog.find(kind="analysis", limit=10_000)}
    rows = [_model(service, name, analyzed) for name in names]
    return schema.ModelsAnswer(models=rows, allows_hub=service.settings.allow_hub)


def _model(service: Service, name: str, analyzed: Set[str] = frozenset()) -> schema.ModelAnswer:
    try:
        path, identity = service.models.identify(name)
    except DatabaseUnavailableError:
        raise
    except NotFetchedError:
        nbytes = sum(file.stat().st_size for file in service.models.gguf(name))
        return schema.ModelAnswer(name=name, identity="", nbytes=nbytes, analyzed=False, reason="")
    except MintError as error:
        return schema.ModelAnswer(name=name, identity="", nbytes=0, analyzed=False, reason=str(error))
    nbytes = sum(shard.stat().st_size for shard in path.glob("*.safetensors"))
    return schema.ModelAnswer(name=name, identity=identity, nbytes=nbytes, analyzed=identity in analyzed, reason="")


@router.get("/models/{identity}", responses=refusals(404))
def show_model(identity: Identity, service: Here, person: Reader) -> schema.ModelDetail:
    """Everything that the service knows about a model."""
    if not sees_model(service.database, person, identity):
        raise _no_model(identity)
    names = [name for name in service.models.names() if sees(person, group_of(name))]
    rows = [row for name in names if (row := _model(service, name)).identity == identity]
    jobs = service.queue.find(viewer=person, model_identity=identity, limit=_MOST_JOBS)
    artifacts = service.catalog.find(identity=identity, limit=_MOST_JOBS, viewer=person)
    if not rows and not jobs and not artifacts:
        raise _no_model(identity)
    structure: dict[str, Any] = {"model_type": "", "layers": 0, "roles": []}
    if analyses := stored_analyses(service, identity, person):
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


def _no_model(identity: str) -> ApiError:
    return ApiError(404, f"nothing is known of a model {identity[:12]}; GET /v1/models lists those that there are")


@router.get("/models/{identity}/curve", responses=refusals(404, 409))
def show_curve(
    identity: Identity,
    service: Here,
    person: Reader,
    rounding: requests.Rounding = DEFAULTS["rounding"],
    dtype: requests.Dtype = DEFAULTS["dtype"],
    loader: requests.Loader = DEFAULTS["loader"],
    objective: requests.ObjectiveName = DEFAULTS["objective"],
    points: Annotated[int, Query(ge=2, le=200)] = 60,
) -> schema.CurveAnswer:
    """The curve of budget and loss of an analyzed model, its knees, and where devices lie on it."""
    recipe = Recipe(rounding=rounding, dtype=dtype, loader=loader, objective=objective)
    return schema.CurveAnswer(**planned(service, "curve", identity, recipe, person, points=points))


@router.post("/plans", responses=refusals(404, 409, *POSTED))
def make_plan(request: requests.PlanRequest, service: Here, person: Reader) -> schema.PlanAnswer:
    """The plan of a budget, now and without a job."""
    options = request.options.model_dump()
    budget = budget_of(request.budget, options)
    is_identity = re.fullmatch("[0-9a-f]{64}", request.model)
    identity = request.model if is_identity else identified(service, request.model, person)[1]
    plan = planned(service, "plan", identity, recipe_of(budget, options), person, budget=budget.to_dict())
    return schema.PlanAnswer(budget=canonical(budget), **plan)


@router.get("/analyses/{identity}", responses=refusals(404))
def show_analysis(
    identity: Identity,
    service: Here,
    person: Reader,
    rounding: requests.Rounding = DEFAULTS["rounding"],
    dtype: requests.Dtype = DEFAULTS["dtype"],
    loader: requests.Loader = DEFAULTS["loader"],
) -> schema.ArtifactAnswer:
    """The files of an analysis: a few MB, from which everybody who has the model can make any plan, and assemble it."""
    return _stored(service, identity, person, rounding, dtype, loader)


@router.get("/analyses", responses=refusals(404, 409))
def find_analysis(
    model: requests.ModelName,
    service: Here,
    person: Reader,
    rounding: requests.Rounding = DEFAULTS["rounding"],
    dtype: requests.Dtype = DEFAULTS["dtype"],
    loader: requests.Loader = DEFAULTS["loader"],
    probe: Annotated[bool, Query(description="Only an analysis with probes.")] = False,
) -> schema.ArtifactAnswer:
    """The same by the name of a model."""
    return _stored(service, identified(service, model, person)[1], person, rounding, dtype, loader, probe=probe)


def _stored(
    service: Service, identity: str, person: Person, rounding: str, dtype: str, loader: str, *, probe: bool = False
) -> schema.ArtifactAnswer:
    for entry in stored_analyses(service, identity, person):
        if has(entry.answer, rounding, dtype, loader) and entry.answer.probed >= probe:
            return artifact_answer(entry.artifact)
    kind = f"rounding {rounding}{' and probes' if probe else ''}"
    raise ApiError(
        404, f"the model {identity[:12]} is not analyzed with {kind}; submit a job first",
        code="not_analyzed",
    )  # fmt: skip
