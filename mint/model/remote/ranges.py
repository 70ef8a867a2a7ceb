"""Reads ranges of a file of the hub, without the rest of it.

The hub sends a reader to another host, whose address serves for the next ranges too: its limit of requests counts the
first one alone. The token goes to the hub only. A connection that breaks is made again where it broke.
"""

from collections.abc import Iterator

import httpx2
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)

from mint.core.errors import MintError
from mint.model.hub_cache import HubId

_SECONDS = 30.0  # without an answer
_TRIES = 5  # in a row that bring nothing
_PIECE = 1 << 20
_EXPIRED = (401, 403)  # answers of a signed address that is too old


class HubFile:
    """One file of a model at a commit. Errors are those of huggingface_hub."""

    def __init__(self, id: HubId, commit: str, name: str) -> None:
        self._id, self._name = id, name
        self._url = self._address = hf_hub_url(id.repository, name, revision=commit)

    def read(self, start: int, nbytes: int) -> bytes:
        """So many bytes from `start` on."""
        return b"".join(self.pieces(start, nbytes))

    def pieces(self, start: int, nbytes: int) -> Iterator[bytes]:
        """The same piece by piece."""
        position, end, failures = start, start + nbytes, 0
        while position < end:
            before = position
            for piece in self._piecewise(position, end, is_last_try=failures == _TRIES):
                position += len(piece)
                yield piece
            if position == before and failures == _TRIES:
                fault = f"{constants.ENDPOINT} sends no byte of {self._name} from {position} on"
                raise MintError(f"{self._id}: {fault}; check HF_ENDPOINT and proxies, then run the same command again")
            failures = 0 if position > before else failures + 1

    def _piecewise(self, start: int, end: int, *, is_last_try: bool) -> Iterator[bytes]:
        """The pieces of one answer, which may end early; its error is raised at the last try."""
        is_hub = self._address == self._url
        headers = {**build_hf_headers(token=None if is_hub else False), "Accept-Encoding": "identity"}
        headers["Range"] = f"bytes={start}-{end - 1}"
        cut: httpx2.TransportError | None = None
        with http_stream_backoff("GET", self._address, headers=headers, timeout=_SECONDS) as response:
            if response.status_code in _EXPIRED and not is_hub and not is_last_try:
                self._address = self._url
                return
            hf_raise_for_status(response)
            address = response.url
            if address.host != httpx2.URL(self._url).host:
                self._address = str(address)
            content = response.headers.get("Content-Range", "")
            if response.status_code != httpx2.codes.PARTIAL_CONTENT or not content.startswith(f"bytes {start}-"):
                fault = f"{address.host} answers a request for {end - start} bytes of {self._name} with other bytes"
                remedy = "needed: a hub that sends ranges of files. Without one, hf download brings the whole model"
                raise MintError(f"{self._id}: {fault} ({response.status_code} {content}); {remedy}")
            try:
                for piece in response.iter_raw(_PIECE):
                    yield piece[: end - start]
                    start += len(piece)
            except httpx2.TransportError as error:  # raised in here, it would be taken for one of the request
                cut = error
        if cut and is_last_try:
            raise cut
