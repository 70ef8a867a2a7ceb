"""The rate of this node in its last batch of each job: stored beside its cache, shown by `mint cluster status`."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from mint.core.cache import cache_folder
from mint.formats.units import Unit

T = TypeVar("T")


def metered(job: str, results: Iterator[tuple[Unit, T]]) -> Iterator[tuple[Unit, T]]:
    """`results` as they come; the rate is noted when they end. Only the time in which they are made counts."""
    nbytes, seconds = 0, 0.0
    try:
        while True:
            started = time.perf_counter()
            try:
                unit, result = next(results)
            except StopIteration:
                return
            seconds += time.perf_counter() - started
            nbytes += unit.nbytes
            yield unit, result
    finally:
        if nbytes:
            _note(job, nbytes / seconds)


def rates() -> dict[str, float]:
    """Source bytes per second by job, as far as this node has worked."""
    try:
        found: dict[str, float] = json.loads(_place().read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found


def _note(job: str, bytes_per_second: float) -> None:
    new = _place().with_name(f"rates.{os.getpid()}")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(json.dumps({**rates(), job: bytes_per_second}))
    new.replace(_place())


def _place() -> Path:
    return cache_folder() / "cluster" / "rates.json"
