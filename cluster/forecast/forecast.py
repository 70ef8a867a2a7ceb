"""Is a cluster worth it? Predicted seconds of measuring a model on one machine and on several, and advice.

The ways to have the files, in the order of what they need: a copy on every machine; one machine whose folder the
others read over the network; a file server that all read from. Shipping and serving are the same to the coordinator:
every machine sees all shards. With S bytes, N machines alike, rate R, disk d and link B the ideals are S/(N min(R,d)),
S/(min(R,d) + min((N-1)R, B)) and S/min(NR, B); the simulated seconds add the start, batches and the ragged end.
The disk of the one who shares is taken to serve both sides at full speed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.forecast.benchmark import Rates, measure_rates, read_bytes, source_bytes
from cluster.forecast.simulate import Costs, Machine, Reads, alone, simulate
from cluster.schedule.events import Item
from mint.core.progress import OnProgress, ignore
from mint.model.source import Source, open_source

WORTHWHILE = 1.3  # times as fast as one machine; below, a cluster is more trouble than it saves
LINKS = {"1GbE": 0.11e9, "10GbE": 0.8e9, "Thunderbolt": 2.5e9}  # bytes per second that arrive


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do: the items, and the bytes of every source tensor that each is made of."""

    items: tuple[Item, ...]
    reads: Reads

    @property
    def nbytes(self) -> int:
        """Bytes of all source tensors."""
        return read_bytes(self.reads)


_Layout = tuple[list[Machine], dict[str, float]]  # machines, and the bandwidths of the pipes they read from


def _copies(machines: Sequence[Rates], link: float) -> _Layout:
    pipes = {f"disk {index}": rates.disk for index, rates in enumerate(machines)}
    return [Machine(str(i), rates.measuring, f"disk {i}") for i, rates in enumerate(machines)], pipes


def _shipped(machines: Sequence[Rates], link: float) -> _Layout:
    holder, *others = machines
    borrowers = [Machine(str(i), rates.measuring, "link") for i, rates in enumerate(others, 1)]
    pipes = {"disk": holder.disk, "link": min(link, holder.disk)}
    return [Machine("0", holder.measuring, "disk"), *borrowers], pipes


def _served(machines: Sequence[Rates], link: float) -> _Layout:
    return [Machine(str(i), rates.measuring, "link") for i, rates in enumerate(machines)], {"link": link}


WAYS: Mapping[str, Callable[[Sequence[Rates], float], _Layout]] = {
    "local copies": _copies,
    "one shares its folder": _shipped,
    "NFS": _served,
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted seconds over one link: of the first machine alone, and of all of them by every way."""

    link_name: str
    link: float
    machines: int
    nbytes: int
    alone: float
    ways: Mapping[str, float]

    def gain(self, way: str) -> float:
        """How many times as fast as one machine."""
        return self.alone / self.ways[way]


def work_of(source: Source) -> Work:
    """Measuring every unit of `source`."""
    return Work(tuple(Item(unit.path, unit.nbytes) for unit in source.units), source_bytes(source))


def forecast(
    work: Work,
    machines: Sequence[Rates],
    link: float,
    *,
    link_name: str = "",
    costs: Costs = Costs(),  # noqa: B008, it is frozen
) -> Forecast:
    """What to expect of `machines`, of which the first has the files, with links of so many bytes per second.

    The lazy tree is built once a batch, at the first machine's pace.
    """
    first = machines[0]
    costs = replace(costs, batch_seconds=costs.batch_seconds + first.tree_seconds)
    single = alone(work.items, Machine("0", first.measuring, "disk"), {"disk": first.disk}, reads=work.reads)
    ways = {}
    for name, way in WAYS.items():
        places, pipes = way(machines, link)
        ways[name] = simulate(work.items, places, pipes, reads=work.reads, costs=costs).seconds
    return Forecast(link_name, link, len(machines), work.nbytes, single.seconds + first.tree_seconds, ways)


@dataclass(frozen=True, slots=True)
class Outlook:
    """The rates of a machine for a model, and forecasts for several like it."""

    rates: Rates
    forecasts: tuple[Forecast, ...]

    @property
    def advice(self) -> str:
        """Whether to use a cluster, in a sentence or two."""
        best, way = max(
            ((each, way) for each in self.forecasts for way in each.ways), key=lambda pair: pair[0].gain(pair[1])
        )
        gain = best.gain(way)
        figures = f"{minutes(best.alone)} min alone, {minutes(best.ways[way])} with {best.machines} machines like it"
        if gain < WORTHWHILE:
            return (
                f"One machine is enough: {figures}, {gain:.1f} times as fast at best; "
                f"below {WORTHWHILE} times a cluster is not worth its trouble."
            )
        if way == "local copies":
            copies = ", ".join(f"{minutes(each.nbytes / each.link)} over {each.link_name}" for each in self.forecasts)
            others = [(each, name) for each in self.forecasts for name in each.ways if name != way]
            enough = [f"{name} over {each.link_name}" for each, name in others if each.gain(name) >= WORTHWHILE]
            without = f"without copies these are worth it too: {', '.join(enough)}" if enough else "do not go without"
            return (
                f"A cluster is worth it: {figures} and local copies, {gain:.1f} times as fast. Making one copy takes "
                f"{copies} min; {without}."
            )
        return f"A cluster is worth it: {figures}, {way} over {best.link_name}, {gain:.1f} times as fast."

    def table(self) -> str:
        """Predicted minutes by link and way."""
        first = self.forecasts[0]
        lines = [
            f"{first.nbytes / 1e9:.1f} GB; this machine measures {self.rates.measuring / 1e9:.3f} GB/s "
            f"and reads {self.rates.disk / 1e9:.2f} GB/s",
            *(f"note: {caveat}" for caveat in self.rates.caveats),
            f"{'minutes':<24}" + "".join(f"{name:>24}" for name in ("one machine", *WAYS)),
        ]
        for each in self.forecasts:
            title = f"{each.machines} machines, {each.link_name}"
            cells = [minutes(each.alone), *(f"{minutes(each.ways[way])} (x{each.gain(way):.2f})" for way in WAYS)]
            lines.append(f"{title:<24}" + "".join(f"{cell:>24}" for cell in cells))
        return "\n".join([*lines, self.advice])

    def record(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {
            "measuring_bytes_per_second": self.rates.measuring,
            "disk_bytes_per_second": self.rates.disk,
            "tree_seconds": self.rates.tree_seconds,
            "caveats": list(self.rates.caveats),
            "source_nbytes": self.forecasts[0].nbytes,
            "forecasts": [
                {
                    "link": each.link_name,
                    "link_bytes_per_second": each.link,
                    "machines": each.machines,
                    "seconds": {"one machine": each.alone, **each.ways},
                }
                for each in self.forecasts
            ],
            "advice": self.advice,
        }


def plan_cluster(
    model: Path | str,
    *,
    machines: int = 2,
    links: Mapping[str, float] = LINKS,
    dtype: str = "",
    rounding: str = "nearest",
    seconds: float = 4.0,
    on_progress: OnProgress = ignore,
) -> Outlook:
    """Measure this machine for a few seconds with `model` and say what several like it would do.

    Raises `MintError` for what is not a model.
    """
    source = open_source(model, dtype=dtype, on_progress=on_progress)
    rates = measure_rates(source, seconds=seconds, rounding=rounding, on_progress=on_progress)
    return outlook(work_of(source), rates, machines=machines, links=links)


def outlook(work: Work, rates: Rates, *, machines: int = 2, links: Mapping[str, float] = LINKS) -> Outlook:
    """Forecasts for `machines` of the same rates over every link."""
    return Outlook(
        rates,
        tuple(forecast(work, [rates] * machines, link, link_name=name) for name, link in links.items()),
    )


def minutes(seconds: float) -> str:
    """Minutes with two digits that count."""
    return f"{seconds / 60:.2f}" if seconds < 60 else f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"
