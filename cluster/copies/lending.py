"""Byte ranges of one model's shards, lent by the nodes of a run with `--share` to those that lack them.

A lender lends only shards of its inventory: an unknown name never becomes part of a path. A file outside of the model's
folder (behind a link; a hub cache's own blobs count as the model's) is not lent. Every range comes with its digest.

Two pieces are on their way at once: while one is checked and written, the next is read and sent. After a peer that does
not answer, refuses, or sends other bytes than it read, the next one is asked; the error after the last one gives the
reason of every peer.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from cluster.copies.inventory import Held, Inventory
from mint.core.errors import MintError
from mint.formats.units import Unit
from mint.model.checkpoint.shards import SourceTensor
from mint.model.checkpoint.sparse_copy import Outline, Range, fill_in, make_outline, read_ranges
from mint.model.hub_cache import blob_folders

PIECE_BYTES = 8 << 20
UNDER_WAY = 2  # pieces

T = TypeVar("T")


class RefusedError(Exception):
    """The lender does not give these bytes, also when it is asked again."""


class Piece(NamedTuple):
    """The bytes of a range, and their SHA-256 where they were read."""

    content: bytes
    digest: bytes


class Lender:
    """Reads ranges of the shards of an inventory that may be `lent`; `unlent` has the reasons against the others."""

    def __init__(self, inventory: Inventory) -> None:
        self._folder = Path(inventory.folder)
        self.lent: dict[str, Held] = {}  # by name
        self.unlent: dict[str, str] = {}
        for shard in inventory.shards:
            if self._is_own(shard.name):
                self.lent[shard.name] = shard
            else:
                real = (self._folder / shard.name).resolve()
                self.unlent[shard.name] = f"a link to {real}, outside the model's folder {self._folder}"

    def piece(self, shard: str, start: int, nbytes: int) -> Piece:
        """A range of at most `PIECE_BYTES`; `RefusedError` for bytes that are not lent or not there any more."""
        if shard not in self.lent:
            raise RefusedError("not lent here")
        size = self.lent[shard].nbytes
        if not 0 <= start < start + nbytes <= size or nbytes > PIECE_BYTES:
            raise RefusedError(f"bytes {start} to {start + nbytes} are not a piece of {size} bytes")
        path = self._folder / shard
        if self._is_own(shard) and path.stat().st_size == size:
            (content,) = read_ranges(path, [(start, nbytes)])
            if len(content) == nbytes:
                return Piece(content, hashlib.sha256(content).digest())
        raise RefusedError("changed since this run began")

    def _is_own(self, shard: str) -> bool:
        """True for a file in the model's folder, or in the blobs of the hub cache that it is a snapshot of."""
        real, folder = (self._folder / shard).resolve(), self._folder.resolve()
        return real.parent == folder or any(real.is_relative_to(blobs) for blobs in blob_folders(folder))


Answer = Callable[[], Piece]  # waits; raises `RefusedError` for a refusal and for no answer


class Peer(Protocol):
    """A node that lends."""

    @property
    def name(self) -> str: ...

    def ask(self, shard: str, start: int, nbytes: int) -> Answer:
        """Begin to fetch a range."""


Peers = Mapping[str, Sequence[Peer]]  # by the shard that they lend


class Borrower:
    """Fetches ranges from the nodes that lend a shard; `peers` may be replaced, and `lost` emptied, at any time."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.lost: dict[str, str] = {}  # the reasons why peers are not asked any more, by name

    def pieces(self, shard: str, ranges: Iterable[Range]) -> Iterator[tuple[Range, bytes]]:
        """These ranges of a shard, in pieces and in their order in the file; neighbours become one range.

        Raises `MintError` when no peer gives a piece.
        """
        rest = (
            (offset, min(PIECE_BYTES, start + nbytes - offset))
            for start, nbytes in joined(ranges)
            for offset in range(start, start + nbytes, PIECE_BYTES)
        )
        coming: deque[tuple[Range, Peer, Answer]] = deque()
        while True:
            while len(coming) < UNDER_WAY and (piece := next(rest, None)):
                coming.append((piece, *self._ask(shard, piece)))
            if not coming:
                return
            piece, peer, answer = coming.popleft()
            yield piece, self._content(shard, piece, peer, answer)

    def _ask(self, shard: str, piece: Range) -> tuple[Peer, Answer]:
        """Begin to fetch a piece from the first peer that is not lost."""
        peers = self.peers.get(shard, ())
        for peer in peers:
            if peer.name not in self.lost:
                return peer, peer.ask(shard, *piece)
        reasons = "; ".join(f"{peer.name}: {self.lost[peer.name]}" for peer in peers)
        raise MintError(
            f"bytes {piece[0]} to {sum(piece)} of {shard} cannot be borrowed ({reasons or 'nobody lends it'}); needed: "
            "the nodes that hold it, reachable from here. Run the same command again, or copy the shard to this node"
        )

    def _content(self, shard: str, piece: Range, peer: Peer, answer: Answer) -> bytes:
        """The bytes of a piece, from this peer or from the next one that can give them."""
        while True:
            try:
                content, digest = answer()
            except RefusedError as refusal:
                self.lost[peer.name] = str(refusal)
            else:
                if len(content) == piece[1] and hashlib.sha256(content).digest() == digest:
                    return content
                self.lost[peer.name] = f"bytes {piece[0]} to {sum(piece)} of {shard} are not those that it read"
            peer, answer = self._ask(shard, piece)


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


@dataclass(frozen=True, slots=True)
class Loans:
    """The ranges that a view has borrowed for the current batch; its sparse files are made anew after the batch.

    So a node needs disk space for the missing bytes of one batch, not of the model.
    """

    view: Path
    outlines: Mapping[str, Outline]  # of the shards that the view lacks
    tensors: Mapping[str, SourceTensor]
    borrower: Borrower
    borrowed: set[str] = field(default_factory=set)  # names of tensors

    def before(self, units: Sequence[Unit], results: Iterator[T]) -> Iterator[T]:
        """`results` of `units`, each begun when its ranges and those of the next are there: mint reads one ahead.

        Ranges come in the order of the units while others are computed. Raises the error of a unit in its turn.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="mint-borrower")
        try:
            coming = [pool.submit(self._fill, unit) for unit in units]
            for number, _ in enumerate(units):
                wait(coming[number : number + 2])
                coming[number].result()
                yield next(results)
        finally:
            pool.shutdown(cancel_futures=True)

    def give_back(self) -> None:
        """Free the disk space; a reader that has an old file open goes on reading it."""
        for shard in {self.tensors[name].shard for name in self.borrowed}:
            make_outline(self.view, shard, self.outlines[shard])
        self.borrowed.clear()
        self.borrower.lost.clear()  # the next batch asks also the peers that failed

    def _fill(self, unit: Unit) -> None:
        missing: dict[str, list[SourceTensor]] = {}
        for tensor in (self.tensors[name] for name in unit.sources):
            if tensor.shard in self.outlines and tensor.name not in self.borrowed:
                missing.setdefault(tensor.shard, []).append(tensor)
        for shard, tensors in missing.items():
            for piece, content in self.borrower.pieces(shard, [(tensor.offset, tensor.nbytes) for tensor in tensors]):
                fill_in(self.view / shard, [piece], [content])
            self.borrowed.update(tensor.name for tensor in tensors)
