"""How far long work has come: the record that verbs report and screens show."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage has come: `done` of `total` (bytes of weights, checks or budgets), and what was finished last."""

    stage: str
    done: int
    total: int
    item: str


OnProgress = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """For callers that do not watch."""
