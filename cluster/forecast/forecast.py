"""Predicts the seconds to measure a model on one machine and on several, and gives advice.

Files reach the machines in one of three ways: a copy on every machine, one folder that the others read over the
network, or a file server. With S bytes, N equal machines, rate R, disk d and link B, the ideal seconds are
S/(N min(R,d)), S/(min(R,d) + min((N-1)R, B)) and S/min(NR, B). The simulation adds the start, batches and the uneven
end. The disk of a shared folder is assumed to serve both sides at full speed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.forecast.benchmark import MachineRates, measure_rates, source_bytes
from cluster.forecast.simulate import Costs, Machine, Pipe, Reads, simulate, simulate_alone
from cluster.schedule.events import Item
from mint.core.progress import OnProgress, ignore
from mint.formats.rounding import DEFAULT_ROUNDING
from mint.model.source import Source, open_source

WORTHWHILE = 1.3  # times as fast as one machine; below, a cluster does not pay
LINKS = {"1GbE": 0.11e9, "10GbE": 0.8e9, "Thunderbolt": 2.5e9}  # bytes per second that arrive


@dataclass(frozen=True, slots=True)
class Work:
    """The items, and the bytes of the source tensors of each."""

    items: tuple[Item, ...]
    reads: Reads

    @property
    def nbytes(self) -> int:
        """Bytes of all source tensors, counted once each."""
        return sum({name: nbytes for tensors in self.reads.values() for name, nbytes in tensors.items()}.values())


# the pipe of machine `i` in each way
WAYS: Mapping[str, Callable[[int, Sequence[MachineRates], float], Pipe]] = {
    "local copies": lambda i, machines, link: Pipe(f"disk {i}", machines[i].disk),
    "one shares its folder": lambda i, machines, link: (
        Pipe("link", min(link, machines[0].disk)) if i else Pipe("disk", machines[0].disk)
    ),
    "NFS": lambda i, machines, link: Pipe("link", link),
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted seconds over one link: of the first machine alone, and of all machines in each way."""

    link_name: str
    link: float
    machines: int
    nbytes: int
    alone: float
    ways: Mapping[str, float]

    def gain(self, way: str) -> float:
        """The speed relative to one machine."""
        return self.alone / self.ways[way]


def work_of(source: Source) -> Work:
    """The work of measuring every unit of `source`."""
    return Work(tuple(Item(unit.path, unit.nbytes) for unit in source.units), source_bytes(source))


def forecast(
    work: Work,
    machines: Sequence[MachineRates],
    link: float,
    *,
    link_name: str = "",
    costs: Costs = Costs(),  # noqa: B008, it is frozen
) -> Forecast:
    """Predict the seconds of `machines`, of which the first has the files, over links of `link` bytes per second.

    The lazy tree is built for every batch, in the seconds that the first machine needs.
    """
    first = machines[0]
    costs = replace(costs, batch_seconds=costs.batch_seconds + first.tree_seconds)
    ways = {}
    for way, pipe in WAYS.items():
        nodes = [Machine(str(i), rates.measuring, pipe(i, machines, link)) for i, rates in enumerate(machines)]
        ways[way] = simulate(work.items, nodes, reads=work.reads, costs=costs).seconds
    single = simulate_alone(work.items, Machine("0", first.measuring, Pipe("disk", first.disk)), reads=work.reads)
    return Forecast(link_name, link, len(machines), work.nbytes, single.seconds + first.tree_seconds, ways)


@dataclass(frozen=True, slots=True)
class Outlook:
    """The rates of a machine for a model, and forecasts for several like it."""

    rates: MachineRates
    forecasts: tuple[Forecast, ...]

    @property
    def advice(self) -> str:
        """The advice to use a cluster or not, in a sentence or two."""
        ways = [(link, way) for link in self.forecasts for way in link.ways]
        best, way = max(ways, key=lambda pair: pair[0].gain(pair[1]))
        gain = best.gain(way)
        figures = f"{minutes(best.alone)} min alone, {minutes(best.ways[way])} with {best.machines} machines like it"
        if gain < WORTHWHILE:
            return (
                f"One machine is enough: {figures}, {gain:.1f} times as fast at best; "
                f"below {WORTHWHILE} times a cluster is not worth its trouble."
            )
        if way == "local copies":
            copies = ", ".join(f"{minutes(link.nbytes / link.link)} over {link.link_name}" for link in self.forecasts)
            others = [(link, other) for link, other in ways if other != way and link.gain(other) >= WORTHWHILE]
            enough = [f"{other} over {link.link_name}" for link, other in others]
            without = f"without copies these are worth it too: {', '.join(enough)}" if enough else "do not go without"
            return (
                f"A cluster is worth it: {figures} and local copies, {gain:.1f} times as fast. Making one copy takes "
                f"{copies} min; {without}."
            )
        return f"A cluster is worth it: {figures}, {way} over {best.link_name}, {gain:.1f} times as fast."

    def table(self) -> str:
        """The predicted minutes by link and way, as text."""
        first = self.forecasts[0]
        lines = [
            f"{first.nbytes / 1e9:.1f} GB; this machine measures {self.rates.measuring / 1e9:.3f} GB/s "
            f"and reads {self.rates.disk / 1e9:.2f} GB/s",
            *(f"note: {caveat}" for caveat in self.rates.caveats),
            f"{'minutes':<24}" + "".join(f"{name:>24}" for name in ("one machine", *WAYS)),
        ]
        for link in self.forecasts:
            title = f"{link.machines} machines, {link.link_name}"
            cells = [minutes(link.alone), *(f"{minutes(link.ways[way])} (x{link.gain(way):.2f})" for way in WAYS)]
            lines.append(f"{title:<24}" + "".join(f"{cell:>24}" for cell in cells))
        return "\n".join([*lines, self.advice])

    def record(self) -> dict[str, Any]:
        """The same as a record for `--json`."""
        return {
            "measuring_bytes_per_second": self.rates.measuring,
            "disk_bytes_per_second": self.rates.disk,
            "tree_seconds": self.rates.tree_seconds,
            "caveats": list(self.rates.caveats),
            "source_nbytes": self.forecasts[0].nbytes,
            "forecasts": [
                {
                    "link": forecast.link_name,
                    "link_bytes_per_second": forecast.link,
                    "machines": forecast.machines,
                    "seconds": {"one machine": forecast.alone, **forecast.ways},
                }
                for forecast in self.forecasts
            ],
            "advice": self.advice,
        }


def plan_cluster(
    model: Path | str,
    *,
    machines: int = 2,
    dtype: str = "",
    rounding: str = DEFAULT_ROUNDING,
    seconds: float = 4.0,
    on_progress: OnProgress = ignore,
) -> Outlook:
    """Measure this machine for a few seconds with `model` and predict the seconds of several like it.

    Raises `MintError` if `model` is not a model.
    """
    source = open_source(model, dtype=dtype, requantize=True, on_progress=on_progress)
    rates = measure_rates(source, seconds=seconds, rounding=rounding, on_progress=on_progress)
    return outlook(work_of(source), rates, machines=machines)


def outlook(work: Work, rates: MachineRates, *, machines: int = 2, links: Mapping[str, float] = LINKS) -> Outlook:
    """The forecasts for `machines` of the same rates over every link."""
    forecasts = (forecast(work, [rates] * machines, link, link_name=name) for name, link in links.items())
    return Outlook(rates, tuple(forecasts))


def minutes(seconds: float) -> str:
    """Minutes with two significant digits."""
    return f"{seconds / 60:.2f}" if seconds < 60 else f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"
