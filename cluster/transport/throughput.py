"""The rate of this node in its last batch of each job: stored beside its cache, shown by `mint cluster status`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from cluster.schedule.solo import Timed
from mint.core.cache import cache_folder, keep, recall
from mint.formats.units import Unit

T = TypeVar("T")


def metered(job: str, pieces: Iterator[tuple[Unit, T, bool]]) -> Iterator[tuple[Unit, T, bool]]:
    """The pieces of results as they come, each marked if it is the last; their rate is stored at the end.

    Only the time in which they are made counts.
    """
    timed, nbytes = Timed(pieces), 0
    try:
        for unit, piece, is_last in timed:
            nbytes += unit.nbytes if is_last else 0
            yield unit, piece, is_last
    finally:
        if nbytes:
            keep(_path(), json.dumps({**rates(), job: nbytes / timed.seconds}).encode())


def rates() -> dict[str, float]:
    """Source bytes per second by job, as far as this node has worked."""
    return recall(_path(), lambda text: {str(job): float(rate) for job, rate in json.loads(text).items()}) or {}


def _path() -> Path:
    return cache_folder() / "cluster" / "rates.json"
