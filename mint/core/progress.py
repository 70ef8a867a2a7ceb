"""The progress of long work: the record that verbs report and screens show."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """One node's share of a stage: bytes of the weights that it has processed, and how many a second."""

    node: str
    nbytes: int
    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a stage: `done` of `total` (bytes of weights, checks or budgets)."""

    stage: str
    done: int
    total: int
    item: str  # that was finished last
    shares: tuple[Share, ...] = ()  # of the nodes, where known


OnProgress = Callable[[Progress], None]
OnNote = Callable[[str], object]  # a sentence for people


def ignore(_: Progress) -> None:
    """For callers that do not watch."""


def say_nothing(_: str) -> None:
    """For callers that show no notes."""
