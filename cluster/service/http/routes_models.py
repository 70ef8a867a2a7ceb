"""Routes of models and their analyses, and of curves and plans that a stored analysis yields at once."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from cluster.service.data.records import Artifact
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.http.context import POSTED, Here, Reader, Service, refusals
from cluster.service.http.error_answers import ApiError
from cluster.service.http.routes_artifacts import artifact_record
from cluster.service.http.routes_jobs import identified, job_record
from cluster.service.http.schema import (
    ArtifactAnswer,
    CurveAnswer,
    Dtype,
    ModelDetail,
    ModelsAnswer,
    ObjectiveName,
    PlanAnswer,
    PlanRequest,
    Rounding,
)
from cluster.service.offload.plan_pool import NotAnalyzedError
from cluster.service.recipe_of_wish import DEFAULTS, budget_of, canonical, recipe_of
from mint.core.errors import MintError
from mint.plan.recipe import Recipe

router = APIRouter(prefix="/v1", tags=["models"])
Identity = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the model's content.")]
_IDENTITY = re.compile("[0-9a-f]{64}")
_ANALYSIS, _PROBE = ".mint", ".probe"  # endings of the files of an analysis artifact
_MOST_JOBS = 100


@router.get("/models")
def models(service: Here, person: Reader) -> ModelsAnswer:
    """Every model below the roots of the service."""
    analyzed = {artifact.identity for artifact in service.catalog.find(kind="analysis", limit=10_000)}
    rows = [_model(service, name, analyzed) for name in service.models.names()]
    return ModelsAnswer.model_validate({"models": rows, "allows_hub": service.settings.allow_hub})


def _model(service: Service, name: str, analyzed: set[str]) -> dict[str, Any]:
    try:
        path, identity = service.models.identify(name)
    except DatabaseUnavailableError:
        raise
    except MintError as error:
        return {"name": name, "identity": "", "nbytes": 0, "analyzed": False, "reason": str(error)}
    nbytes = sum(shard.stat().st_size for shard in path.glob("*.safetensors"))
    return {"name": name, "identity": identity, "nbytes": nbytes, "analyzed": identity in analyzed, "reason": ""}


@router.get("/models/{identity}", responses=refusals(404))
def model(identity: Identity, service: Here, person: Reader) -> ModelDetail:
    """Everything that the service knows about a model."""
    rows = [_model(service, name, set()) for name in service.models.names()]
    named = [row for row in rows if row["identity"] == identity]
    jobs = service.queue.find(model_identity=identity, limit=_MOST_JOBS)
    artifacts = service.catalog.find(identity=identity, limit=_MOST_JOBS)
    if not named and not jobs and not artifacts:
        raise ApiError(404, f"nothing is known of a model {identity[:12]}; GET /v1/models lists those that there are")
    stored = stored_analyses(service, identity)
    structure: dict[str, Any] = {"model_type": "", "layers": 0, "roles": [], "analyses": []}
    if stored:
        structure |= service.planner.ask("roles", analyses=[files for _, files in stored])
        structure["analyses"] = [
            {**header, "artifact": artifact.digest}
            for header, (artifact, _) in zip(structure["analyses"], stored, strict=True)
        ]
    return ModelDetail.model_validate(
        {
            "identity": identity,
            "names": sorted({*(row["name"] for row in named), *(job.wish.model for job in jobs)}),
            "source_bytes": named[0]["nbytes"] if named else 0,
            **structure,
            "analyzed": sorted({header["rounding"] for header in structure["analyses"]}),
            "jobs": [job_record(job, person) for job in jobs],
            "artifacts": [artifact_record(artifact) for artifact in artifacts],
        }
    )


def stored_analyses(service: Service, identity: str) -> list[tuple[Artifact, dict[str, str]]]:
    """The stored analyses of a model, the last made first, with the paths of their files."""
    artifacts = service.catalog.find(kind="analysis", identity=identity)
    return [(artifact, _files(service, artifact)) for artifact in artifacts]


def _files(service: Service, artifact: Artifact) -> dict[str, str]:
    def path(ending: str) -> str:
        return next((str(service.store.path(file.digest)) for file in artifact.files if file.name.endswith(ending)), "")

    return {"analysis": path(_ANALYSIS), "probe": path(_PROBE)}


def _planned(service: Service, verb: str, identity: str, **request: Any) -> dict[str, Any]:
    analyses = [files for _, files in stored_analyses(service, identity)]
    try:
        if not analyses:
            raise NotAnalyzedError("not analyzed")
        return service.planner.ask(verb, analyses=analyses, **request)
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
    rounding: Rounding = DEFAULTS["rounding"],
    dtype: Dtype = DEFAULTS["dtype"],
    objective: ObjectiveName = DEFAULTS["objective"],
    points: Annotated[int, Query(ge=2, le=200)] = 60,
) -> CurveAnswer:
    """The curve of budget and loss of an analyzed model, its knees, and where devices lie on it."""
    recipe = Recipe(rounding=rounding, dtype=dtype, objective=objective)
    return CurveAnswer.model_validate(_planned(service, "curve", identity, recipe=recipe.to_dict(), points=points))


@router.post("/plans", responses=refusals(404, 409, *POSTED))
def plan(request: PlanRequest, service: Here, person: Reader) -> PlanAnswer:
    """The plan of a budget, now and without a job."""
    options = request.options.model_dump()
    budget = budget_of(request.budget, options)
    is_identity = _IDENTITY.fullmatch(request.model)
    identity = request.model if is_identity else identified(service, request.model)[1]
    recipe = recipe_of(budget, options)
    plan = _planned(service, "plan", identity, recipe=recipe.to_dict(), budget=budget.to_dict())
    return PlanAnswer.model_validate({"budget": canonical(budget), **plan})


@router.get("/analyses/{identity}", responses=refusals(404))
def analysis(
    identity: Identity,
    service: Here,
    person: Reader,
    rounding: Rounding = DEFAULTS["rounding"],
    dtype: Dtype = DEFAULTS["dtype"],
) -> ArtifactAnswer:
    """The files of an analysis: a few MB, from which everybody who has the model can make any plan, and assemble it."""
    stored = stored_analyses(service, identity)
    index = _which(service, [files for _, files in stored], rounding, dtype)
    if index is None:
        raise ApiError(
            404, f"the model {identity[:12]} is not analyzed with rounding {rounding}; submit a job first",
            code="not_analyzed",
        )  # fmt: skip
    return ArtifactAnswer.model_validate(artifact_record(stored[index][0]))


def _which(service: Service, analyses: Sequence[dict[str, str]], rounding: str, dtype: str) -> int | None:
    """The index of the analysis with a rounding and a dtype; None if there is none."""
    if not analyses:
        return None
    headers = service.planner.ask("headers", analyses=analyses)["analyses"]
    return next(
        (i for i, header in enumerate(headers) if (header["rounding"], header["dtype"]) == (rounding, dtype)), None
    )
