"""How far long work has come: the record that verbs report and screens show."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """What one node has done of a stage: bytes of the weights that it worked through, and how many a second."""

    node: str
    nbytes: int
    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage has come: `done` of `total` (bytes of weights, checks or budgets), and what was finished last.

    `shares` are those of the nodes, where that is known.
    """

    stage: str
    done: int
    total: int
    item: str
    shares: tuple[Share, ...] = ()


OnProgress = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """For callers that do not watch."""
