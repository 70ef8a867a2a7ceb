"""Routes that bring models to the service: GGUF files are converted, models of the hub downloaded if it allows them."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from cluster.service.http.context import POSTED, Here, Reader, Service, Submitter, refusals
from cluster.service.http.error_answers import ApiError
from cluster.service.http.routes_jobs import need_seen
from cluster.service.http.schema import FetchAnswer
from cluster.service.http.schema_requests import FetchRequest
from mint.model.hub_cache import parse_id

router = APIRouter(prefix="/v1/fetches", tags=["fetches"])
FetchId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]


@router.post("", status_code=202, responses={200: {"model": FetchAnswer}, **refusals(*POSTED)})
def fetch_model(
    request: Request, response: Response, body: FetchRequest, service: Here, person: Submitter
) -> FetchAnswer:  # fmt: skip
    """Convert a GGUF file below a root, or download a model of the hub, so that jobs can be submitted for it.

    202 if that begins, 200 if an earlier request began it. The same request after an error resumes.
    """
    need_seen(body.model, person)
    name, source = _named(service, body.model)
    entry, is_new = service.fetches.ask(name, person, source)
    service.note(request, person, "fetch.asked", model=entry.model, is_new=is_new)
    response.status_code = 202 if is_new else 200
    return FetchAnswer.model_validate(entry)


def _named(service: Service, model: str) -> tuple[str, str]:
    """The one name of a model, and its source; raises `ApiError` for a model that cannot be fetched."""
    if files := service.models.gguf(model):
        return model, str(files[0])
    if not service.settings.allow_hub:
        raise ApiError(
            403,
            "this service takes no models of the hub; GET /v1/models lists those that it has. Who runs it may start it "
            "with --allow-hub",
            code="no_hub",
        )
    if not (id := parse_id(model)):
        raise ApiError(422, f"{model!r} is no id of the hub; needed OWNER/NAME or OWNER/NAME@REVISION")
    return str(id), str(id)


@router.get("/{id}", responses=refusals(404))
def show_fetch(id: FetchId, service: Here, person: Reader) -> FetchAnswer:
    """The progress of a download or a conversion."""
    return FetchAnswer.model_validate(service.fetches.get(id))
