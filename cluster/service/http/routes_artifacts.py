"""Routes of artifacts: list them, describe their files, download and resume those."""

import secrets
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from cluster.service.data.records import Artifact, Person
from cluster.service.errors import DatabaseUnavailableError
from cluster.service.http.context import BEARER, POSTED, Admin, Here, Reader, Service, refusals
from cluster.service.http.downloads import Download
from cluster.service.http.error_answers import ApiError
from cluster.service.http.schema import ArtifactAnswer, ArtifactsAnswer, FileAnswer, TicketAnswer
from cluster.service.http.schema_requests import Sha256, TicketRequest
from mint.client.download import ServedFile

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])
Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the list of its files.")]
FileName = Annotated[str, Path(min_length=1, max_length=512)]
_HOLD_SECONDS = 600.0  # renewed while a download goes on


def artifact_answer(artifact: Artifact) -> ArtifactAnswer:
    """An artifact as the API answers it."""
    digest = artifact.digest
    return ArtifactAnswer(
        digest=digest,
        kind=artifact.kind,
        identity=artifact.identity,
        nbytes=artifact.nbytes,
        files=[FileAnswer(**asdict(file), url=_url(digest, file.name)) for file in artifact.files],
    )


def _url(digest: str, name: str) -> str:
    return f"/v1/artifacts/{digest}/files/{quote(name)}"


@router.get("")
def list_artifacts(
    service: Here,
    person: Reader,
    kind: Literal["model", "analysis"] | None = None,
    model: Annotated[Sha256 | None, Query(description="The identity of a model.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> ArtifactsAnswer:
    """The stored artifacts, the last made first."""
    return ArtifactsAnswer(
        artifacts=list(map(artifact_answer, service.catalog.find(kind, model, limit, viewer=person)))
    )


@router.get("/{digest}", responses=refusals(404))
def show_artifact(digest: Digest, service: Here, person: Reader) -> ArtifactAnswer:
    """The files of an artifact."""
    return artifact_answer(service.catalog.get(digest, person))


@router.delete("/{digest}", responses=refusals(404, 409))
def remove_artifact(request: Request, digest: Digest, service: Here, person: Admin) -> ArtifactAnswer:
    """Remove an artifact from the disk. A job that asks for it again makes it anew; one in use is refused."""
    artifact = service.catalog.get(digest)
    service.store.remove(digest)
    service.note(request, person, "artifact.removed", artifact=digest, nbytes=artifact.nbytes)
    return artifact_answer(artifact)


@router.post("/{digest}/tickets", status_code=201, responses=refusals(404, *POSTED))
def make_ticket(request: Request, digest: Digest, body: TicketRequest, service: Here, person: Reader) -> TicketAnswer:
    """A link to one file that works once, within a minute, for a browser: a link cannot send a token."""
    file = _file(service.catalog.get(digest, person), body.name)
    ticket = service.tickets.give(person.name, digest, file.name, service.grant(request))
    service.note(request, person, "ticket.given", artifact=digest, file=file.name)
    return TicketAnswer(url=f"{_url(digest, file.name)}?ticket={ticket}")


_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_FILE: dict[str, Any] = {
    "path": "/{digest}/files/{name:path}",
    "response_class": Response,
    "dependencies": [Depends(BEARER)],
    "responses": {
        200: {**_BINARY, "description": "The whole file."},
        206: {**_BINARY, "description": "The range that was asked for."},
        304: {"description": "The file with the ETag that the client named."},
        **refusals(404, 416),
    },
}
Ticket = Annotated[str | None, Query(max_length=64, description="Of POST .../tickets, in place of a token.")]


@router.head(
    **_FILE,
    operation_id="describe_file",
    summary="Describe",
    description="The headers of a file: its size and its SHA-256.",
)
@router.get(**_FILE, operation_id="download_file")
def download(request: Request, digest: Digest, name: FileName, service: Here, ticket: Ticket = None) -> Response:
    """A file, or one range of it. Its ETag is its SHA-256: a cut download goes on with `Range` and `If-Range`."""
    person, grant = _allowed(service, request, digest, name, ticket)
    file = _file(service.catalog.get(digest, None if ticket else person), name)  # a ticket is of somebody who sees it
    holder = f"download-{secrets.token_hex(8)}"

    # a database that cannot record a hold, on a full disk, evicts nothing either
    def hold() -> None:
        with suppress(DatabaseUnavailableError):
            service.catalog.hold(digest, holder, _HOLD_SECONDS)

    def begin(status: int) -> None:
        if request.method == "GET":
            service.note(request, person, "file.sent", artifact=digest, file=name, status=status)

    def end(nbytes: int) -> None:
        with suppress(DatabaseUnavailableError):
            service.catalog.drop(holder)
        service.metrics.sent.inc(nbytes)

    hold()
    try:
        return Download(
            service.store.path(file.digest),
            file,
            allowed=lambda: service.token_cache.is_still_good(grant),
            begin=begin,
            renew=hold,
            end=end,
            chunk_bytes=service.settings.chunk_bytes,
        )
    except BaseException as error:
        end(0)
        if not isinstance(error, FileNotFoundError):
            raise
        raise ApiError(
            404,
            f"the file {name!r} is gone from the service's disk. The service forgets it when it is started again, "
            "and then makes it anew for who submits the job again",
        ) from error


def _allowed(service: Service, request: Request, digest: str, name: str, ticket: str | None) -> tuple[Person, str]:
    """The person who downloads, and the digest of the token: that of the request, or that behind a ticket."""
    if ticket is None:
        return service.person(request, "read"), service.grant(request)
    entry = service.tickets.use(ticket, digest, name)
    if entry is None or not service.token_cache.is_good(entry.grant):
        raise ApiError(401, "the ticket was used, is older than a minute, or is for another file; ask for a new one")
    return Person(entry.person, ("read",)), entry.grant


def _file(artifact: Artifact, name: str) -> ServedFile:
    file = next((file for file in artifact.files if file.name == name), None)
    if file is None:
        raise ApiError(
            404, f"the artifact has no file {name!r}; GET /v1/artifacts/DIGEST lists its {len(artifact.files)}"
        )
    return file
