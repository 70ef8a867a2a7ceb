"""Reports the progress of a stage that works through units and can resume."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from time import perf_counter

from mint.core.progress import OnProgress, Progress
from mint.formats.units import Unit
from mint.run.job import T


def reported(
    stage: str,
    results: Iterable[tuple[Unit, T]],
    units: Sequence[Unit],
    pending: Sequence[Unit],
    on_progress: OnProgress,
    cost: Callable[[Unit], int] = attrgetter("nbytes"),
) -> Iterator[tuple[Unit, T, float]]:
    """The `results` for the `pending` ones of `units`, with the seconds of each; progress follows once it is used."""
    total, left = sum(map(cost, units)), sum(map(cost, pending))
    on_progress(Progress(stage, total - left, total, ""))
    started = perf_counter()
    for unit, result in results:
        seconds, started = perf_counter() - started, perf_counter()
        yield unit, result, seconds
        left -= cost(unit)
        on_progress(Progress(stage, total - left, total, unit.path))
