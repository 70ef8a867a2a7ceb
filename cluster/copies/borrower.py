"""Byte ranges of shards that this node lacks, from the nodes that lend them (`lender.py`).

Two pieces are on their way at once: while one is checked and written, the next is read and sent. Every piece is checked
by its digest before it counts. A peer that does not answer, refuses, or sends other bytes than it read is left for the
next one, and when none is left the error says what each of them did.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol, TypeVar

from cluster.copies.lender import PIECE_BYTES, Piece, RefusedError
from cluster.copies.sparse_copy import Outline, Range, fill_in, make_outline
from mint.core.errors import MintError
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor

UNDER_WAY = 2  # pieces

T = TypeVar("T")
Answer = Callable[[], Piece]  # waits; raises `RefusedError` for a refusal and for no answer


class Peer(Protocol):
    """A node that lends."""

    @property
    def name(self) -> str: ...

    def ask(self, shard: str, start: int, nbytes: int) -> Answer:
        """Begin to fetch a range."""


Peers = Mapping[str, Sequence[Peer]]  # by the shard that they lend


class Borrower:
    """Fetches ranges from the nodes that lend a shard."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._lost: dict[str, str] = {}  # names of peers that are not asked any more, and why

    def pieces(self, shard: str, ranges: Iterable[Range]) -> Iterator[tuple[Range, bytes]]:
        """These ranges of a shard, in pieces and in their order in the file; neighbours are asked for as one.

        Raises `MintError` when no peer gives a piece.
        """
        rest = iter(_pieces_of(ranges))
        coming: deque[tuple[Range, Peer, Answer]] = deque()
        while True:
            while len(coming) < UNDER_WAY and (piece := next(rest, None)):
                coming.append((piece, *self._ask(shard, piece)))
            if not coming:
                return
            piece, peer, answer = coming.popleft()
            yield piece, self._content(shard, piece, peer, answer)

    def lent_by(self, peers: Peers) -> None:
        """Ask these peers from now on."""
        self._peers = peers

    def trust_again(self) -> None:
        """Ask also those peers again that did not give what they should."""
        self._lost.clear()

    def _ask(self, shard: str, piece: Range) -> tuple[Peer, Answer]:
        """Begin to fetch a piece from the first peer that is not lost."""
        peers = self._peers.get(shard, ())
        for peer in peers:
            if peer.name not in self._lost:
                return peer, peer.ask(shard, *piece)
        reasons = "; ".join(f"{peer.name}: {self._lost[peer.name]}" for peer in peers)
        raise MintError(
            f"bytes {piece[0]} to {sum(piece)} of {shard} cannot be borrowed ({reasons or 'nobody lends it'}); needed: "
            "the nodes that hold it, reachable from here. Run the same command again, or copy the shard to this node"
        )

    def _content(self, shard: str, piece: Range, peer: Peer, answer: Answer) -> bytes:
        """The bytes of a piece, from the peer that was asked or from the next one that can."""
        while True:
            try:
                content, digest = answer()
            except RefusedError as refusal:
                self._lost[peer.name] = str(refusal)
            else:
                if len(content) == piece[1] and hashlib.sha256(content).digest() == digest:
                    return content
                self._lost[peer.name] = f"bytes {piece[0]} to {sum(piece)} of {shard} are not those that it read"
            peer, answer = self._ask(shard, piece)


def _pieces_of(ranges: Iterable[Range]) -> Iterator[Range]:
    for start, nbytes in joined(ranges):
        for offset in range(start, start + nbytes, PIECE_BYTES):
            yield offset, min(PIECE_BYTES, start + nbytes - offset)


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as can be, in their order in the file."""
    runs: list[Range] = []
    for start, nbytes in sorted(ranges):
        if runs and start <= sum(runs[-1]):
            first = runs[-1][0]
            runs[-1] = first, max(sum(runs[-1]), start + nbytes) - first
        elif nbytes:
            runs.append((start, nbytes))
    return runs


class Loans:
    """The ranges that a view has borrowed for the current batch; its sparse files are made anew when that is done.

    So a node needs disk space for what it lacks of one batch, not of the model.
    """

    def __init__(
        self, view: Path, outlines: Mapping[str, Outline], tensors: Mapping[str, SourceTensor], borrower: Borrower
    ) -> None:
        self._view = view
        self._outlines = outlines  # of the shards that are not held here
        self._tensors = tensors
        self._borrower = borrower
        self._there: set[str] = set()  # names of tensors

    def before(self, units: Sequence[Unit], results: Iterator[T]) -> Iterator[T]:
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
        """Free the disk space; a reader that has an old file open goes on reading it."""
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
            ranges = [(tensor.offset, tensor.nbytes) for tensor in tensors]
            for piece, content in self._borrower.pieces(shard, ranges):
                fill_in(self._view / shard, [piece], [content])
            self._there.update(tensor.name for tensor in tensors)
