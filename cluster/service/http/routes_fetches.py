"""Models of the hub that are to come to the service's machine, where it allows them."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from cluster.service.http.context import POSTED, Here, Reader, Submitter, refusals
from cluster.service.http.error_answers import ApiError
from cluster.service.http.schema import FetchAnswer, FetchRequest
from cluster.service.offload.fetch_pool import Fetch
from mint.model.hub_cache import parse_id

router = APIRouter(prefix="/v1/fetches", tags=["fetches"])
FetchId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]


@router.post("", status_code=202, responses={200: {"model": FetchAnswer}, **refusals(*POSTED)})
def fetch(
    request: Request, response: Response, wanted: FetchRequest, service: Here, person: Submitter
) -> FetchAnswer:  # fmt: skip
    """Let a model of the hub come to the service's machine, so that jobs can be submitted for it.

    202 where that begins, 200 where it is on its way already, for whoever asked first. Asking again after an error
    goes on where it was.
    """
    if not service.settings.allow_hub:
        raise ApiError(
            403,
            "this service takes no models of the hub; GET /v1/models lists those that it has. Who runs it may start it "
            "with --allow-hub",
            code="no_hub",
        )
    if not (id := parse_id(wanted.model)):
        raise ApiError(422, f"{wanted.model!r} is no id of the hub; needed OWNER/NAME or OWNER/NAME@REVISION")
    found, is_new = service.fetches.ask(str(id), person)
    service.note(request, person, "fetch.asked", model=found.model, is_new=is_new)
    response.status_code = 202 if is_new else 200
    return _answer(found)


@router.get("/{id}", responses=refusals(404))
def look(id: FetchId, service: Here, person: Reader) -> FetchAnswer:
    """How far a fetch is."""
    return _answer(service.fetches.get(id))


def _answer(fetch: Fetch) -> FetchAnswer:
    return FetchAnswer(
        id=fetch.id,
        model=fetch.model,
        state=fetch.state,
        done_bytes=fetch.done_bytes,
        total_bytes=fetch.total_bytes,
        reason=fetch.reason,
    )
