"""Routes that download models of the hub to the service's machine, if it allows them."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from cluster.service.http.context import POSTED, Here, Reader, Submitter, refusals
from cluster.service.http.error_answers import ApiError
from cluster.service.http.schema import FetchAnswer, FetchRequest
from mint.model.hub_cache import parse_id

router = APIRouter(prefix="/v1/fetches", tags=["fetches"])
FetchId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]


@router.post("", status_code=202, responses={200: {"model": FetchAnswer}, **refusals(*POSTED)})
def fetch_model(
    request: Request, response: Response, body: FetchRequest, service: Here, person: Submitter
) -> FetchAnswer:  # fmt: skip
    """Download a model of the hub to the service's machine, so that jobs can be submitted for it.

    202 if the download begins, 200 if an earlier request began it. The same request after an error resumes.
    """
    if not service.settings.allow_hub:
        raise ApiError(
            403,
            "this service takes no models of the hub; GET /v1/models lists those that it has. Who runs it may start it "
            "with --allow-hub",
            code="no_hub",
        )
    if not (id := parse_id(body.model)):
        raise ApiError(422, f"{body.model!r} is no id of the hub; needed OWNER/NAME or OWNER/NAME@REVISION")
    entry, is_new = service.fetches.ask(str(id), person)
    service.note(request, person, "fetch.asked", model=entry.model, is_new=is_new)
    response.status_code = 202 if is_new else 200
    return FetchAnswer.model_validate(entry)


@router.get("/{id}", responses=refusals(404))
def show_fetch(id: FetchId, service: Here, person: Reader) -> FetchAnswer:
    """The progress of a download."""
    return FetchAnswer.model_validate(service.fetches.get(id))
