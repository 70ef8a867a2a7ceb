"""Byte ranges of shards that this node lacks, from the nodes that lend them (`range_server`).

Every piece is checked by its seal before it counts. A connection that breaks is made again; a lender that stays away,
does not know the token or sends other bytes than it sealed is left for the next one, and when none is left the error
says what each of them did.
"""

import ssl
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from cluster.copies.range_server import CONTENT_SEAL, PIECE_BYTES
from cluster.copies.seals import content_seal, is_seal, request_seal
from cluster.copies.sparse_copy import Outline, Range, fill_in, make_outline
from mint.core.errors import MintError
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor

PAUSES = (0.2, 1.0, 3.0)  # seconds before a broken connection is made again
_ANSWER_SECONDS = 10.0

T = TypeVar("T")


class _RefusedError(Exception):
    """A lender that will not do better when it is asked again."""


class Borrower:
    """Connections to the nodes that lend; `lenders` are their addresses (URLs) by shard."""

    def __init__(
        self,
        lenders: Mapping[str, Sequence[str]],
        key: bytes,
        tls: ssl.SSLContext | None = None,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._lenders = lenders
        self._key = key
        self._tls = tls
        self._pauses = pauses
        self._connections: dict[str, HTTPConnection] = {}
        self._lost: dict[str, str] = {}  # lenders that are not asked any more, and why

    def pieces(self, shard: str, ranges: Iterable[Range]) -> Iterator[tuple[Range, bytes]]:
        """These ranges of a shard, in pieces as they come; neighbours are asked for as one.

        Raises `MintError` when nobody who lends the shard gives a piece.
        """
        for start, nbytes in joined(ranges):
            for offset in range(start, start + nbytes, PIECE_BYTES):
                piece = offset, min(PIECE_BYTES, start + nbytes - offset)
                yield piece, self._piece(shard, piece)

    def lent_by(self, lenders: Mapping[str, Sequence[str]]) -> None:
        """Ask these from now on: one came back elsewhere."""
        self._lenders = lenders

    def trust_again(self) -> None:
        """Ask also those again that did not give what they should."""
        self._lost.clear()

    def close(self) -> None:
        """End all connections."""
        for url in list(self._connections):
            self._hang_up(url)

    def _hang_up(self, url: str) -> None:
        if url in self._connections:
            self._connections.pop(url).close()

    def _piece(self, shard: str, piece: Range) -> bytes:
        while url := next((url for url in self._lenders.get(shard, ()) if url not in self._lost), ""):
            try:
                return self._from(url, shard, piece)
            except _RefusedError as refusal:
                self._lost[url] = str(refusal)
                self._hang_up(url)
        reasons = "; ".join(f"{url}: {self._lost[url]}" for url in self._lenders.get(shard, ()))
        raise MintError(
            f"bytes {piece[0]} to {sum(piece)} of {shard} cannot be borrowed ({reasons or 'nobody lends it'}); needed: "
            "the nodes that hold it, reachable from here and with the same token. Run the same command again, or copy "
            "the shard to this node"
        )

    def _from(self, url: str, shard: str, piece: Range) -> bytes:
        """A piece from one lender, over a connection that is made again when it breaks."""
        for pause in (*self._pauses, None):
            try:
                return self._ask(self._connection(url), shard, piece)
            except ssl.SSLCertVerificationError as error:
                raise _RefusedError(f"its certificate is not of this cluster ({error.verify_message})") from error
            except (OSError, HTTPException) as error:
                self._hang_up(url)
                if pause is None:
                    raise _RefusedError(f"no answer ({error or type(error).__name__})") from error
                time.sleep(pause)
        raise AssertionError("the last pause is None")

    def _connection(self, url: str) -> HTTPConnection:
        if url not in self._connections:
            host, port = urlsplit(url).hostname or "", urlsplit(url).port
            if urlsplit(url).scheme == "https":
                connection: HTTPConnection = HTTPSConnection(host, port, timeout=_ANSWER_SECONDS, context=self._tls)
            else:
                connection = HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
            self._connections[url] = connection
        return self._connections[url]

    def _ask(self, connection: HTTPConnection, shard: str, piece: Range) -> bytes:
        start, nbytes = piece
        headers = {
            "Range": f"bytes={start}-{start + nbytes - 1}",
            "Authorization": f"Bearer {request_seal(self._key, shard, start, nbytes)}",
        }
        connection.request("GET", f"/{quote(shard)}", headers=headers)
        answer = connection.getresponse()
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            raise _RefusedError(f"{answer.status} {answer.read(200).decode(errors='replace')}")
        content = answer.read(nbytes + 1)
        if len(content) < nbytes:
            raise HTTPException(f"{len(content)} of {nbytes} bytes came")
        expected = content_seal(self._key, shard, start, content)
        if not is_seal(answer.headers.get(CONTENT_SEAL, ""), expected):
            raise _RefusedError(f"bytes {start} to {start + nbytes} of {shard} are not those that were sealed there")
        return content


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as can be, in their order in the file."""
    found: list[Range] = []
    for start, nbytes in sorted(ranges):
        if found and start <= sum(found[-1]):
            first = found[-1][0]
            found[-1] = first, max(sum(found[-1]), start + nbytes) - first
        elif nbytes:
            found.append((start, nbytes))
    return found


class Loans:
    """What a view has borrowed for the batch in hand; given back, by making its sparse files anew, when that is done.

    So a node needs room on disk for what it lacks of one batch, not of the model.
    """

    def __init__(
        self, view: Path, outlines: Mapping[str, Outline], tensors: Mapping[str, SourceTensor], borrower: Borrower
    ) -> None:
        self._view = view
        self._outlines = outlines  # of the shards that are not held here
        self._tensors = tensors
        self._borrower = borrower
        self._there: set[str] = set()  # names of tensors

    def before(self, units: Sequence[Unit], results: Iterator[tuple[Unit, T]]) -> Iterator[tuple[Unit, T]]:
        """`results` of `units`, each asked for when its ranges and those of the next are there: mint reads one ahead.

        Ranges come in the order of the units while others are computed. Raises what went wrong when it is the turn of
        the unit that lacks them.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="mint-borrower")
        try:
            coming: list[Future[None]] = [pool.submit(self._fill, unit) for unit in units]
            for number, _ in enumerate(units):
                wait(coming[number : number + 2])
                coming[number].result()
                yield next(results)
        finally:
            pool.shutdown(cancel_futures=True)

    def give_back(self) -> None:
        """Free the disk. Whoever still reads an old file goes on reading that."""
        for name, outline in self._outlines.items():
            if any(self._tensors[tensor].shard == name for tensor in self._there):
                make_outline(self._view, name, outline)
        self._there.clear()
        self._borrower.trust_again()

    def _fill(self, unit: Unit) -> None:
        wanted: dict[str, list[SourceTensor]] = {}
        for tensor in (self._tensors[name] for name in unit.sources):
            if tensor.shard in self._outlines and tensor.name not in self._there:
                wanted.setdefault(tensor.shard, []).append(tensor)
        for shard, tensors in wanted.items():
            for piece, content in self._borrower.pieces(shard, [(each.offset, each.nbytes) for each in tensors]):
                fill_in(self._view / shard, [piece], [content])
            self._there.update(tensor.name for tensor in tensors)
