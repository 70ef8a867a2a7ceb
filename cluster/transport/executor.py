"""The executor of a cluster: inventory, placement, workers, gathering. A verb of `mint` uses it as any other.

The shards of the nodes are compared before any work. Every node that holds the shards of a unit may do it, and the
first result counts: all do the same arithmetic on the same bytes, so the result is that of one machine. Nodes with
another kind of device do jobs of `any_device` only; some of their results are compared (`cross_check.py`).

A job of `whole_model` is done by the nodes that hold all shards. A job that is not portable is done in this process.
Compensation runs the model here, layer by layer behind those that are stored already, and tells the nodes the second
moments of each layer's inputs: they round its matrices.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray

from cluster.copies.inventory import Holder, Holdings, take_inventory
from cluster.schedule.commands import Accept, Finish
from cluster.schedule.coordinator import Coordinator
from cluster.schedule.cross_check import check_agreement, cross_check_units
from cluster.schedule.events import Arrived, Policy
from cluster.schedule.placement import Placement, place_units, place_whole_model, within_memory
from cluster.schedule.solo import TRIAL_SECONDS, LinkSpeed, Timed, reason_to_pack_alone
from cluster.settings import RESOURCE
from cluster.transport.driver import Carrier, Link
from cluster.transport.messages import from_pieces, pack, tell_job, tell_model
from mint.analysis.unit_jobs import peak_bytes
from mint.core.errors import MintError
from mint.core.log import log
from mint.formats.units import Unit
from mint.model.checkpoint.shards import PATTERN, read_shards, sampled_ranges
from mint.model.checkpoint.sparse_copy import Outline, Range, fill_in, make_view, read_outline, view_folder
from mint.model.config import check_config
from mint.model.module_tree import read_source_config
from mint.model.opening.kinds import refuse_other_kinds
from mint.model.source import Source, open_source, packages_of
from mint.run.device_kind import device_kind
from mint.run.executor import in_process, memory_for_models
from mint.run.job import Job, PortableJob

T = TypeVar("T")
TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """A job for some units of a model, and the kinds of device that may do it."""

    source: Source
    job: PortableJob[T]
    units: Sequence[Unit]
    kinds: Sequence[str]


class ClusterExecutor:
    """Do jobs on the nodes of a cluster that hold the model's shards."""

    def __init__(
        self,
        carrier: Carrier,
        model: Path,
        policy: Policy = Policy(),  # noqa: B008, it is frozen
        *,
        share: bool = False,
        trial_seconds: float = TRIAL_SECONDS,
        rate_of: Callable[[Carrier, Link], float] = Carrier.rate_of,
        on_note: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Meet the workers. `trial_seconds` of packing here decide where the rest is packed; with 0 the workers do it.

        `rate_of` measures the link from a worker; `on_note` gets the decision as text.
        """
        self.carrier = carrier
        self._trial_seconds = trial_seconds
        self._rate_of = rate_of
        self._on_note = on_note
        self._share = share
        self.made_by: dict[str, str] = {}  # by the path of a unit, the node that did it last
        self._policy = policy
        here = any(model.glob(PATTERN)) or (model / "config.json").exists()
        self._head = head = take_inventory("this machine", model if here else None)
        self._take_on(carrier.meet(model, share=share))
        if share:
            carrier.lend(head)

    def _take_on(self, links: Sequence[Link]) -> None:
        """Work with these workers; raises `MintError` if there are none, or if a shard is on none of them."""
        holders = {link.node.name: link.holder for link in links if link.holder}
        if not holders:
            reasons = "; ".join(f"{node}: {why}" for node, why in self.carrier.refused.items())
            raise MintError(
                f"no node of the cluster can work ({reasons or 'none is there'}); needed: at least one that was "
                f"started with the resource {RESOURCE}: 1 and with this version of mint"
            )
        self._holdings = Holdings(self._head, holders)
        self.devices = self._holdings.devices  # that measure
        self.lacking = self._holdings.lacking  # shards that this machine does not hold itself

    @property
    def model_memory(self) -> int:
        here = 0 if self.lacking else memory_for_models()
        return max(here, self._holdings.model_memory(device_kind()))

    def close(self) -> None:
        """End the lending of this machine's shards; that of the nodes ends with their workers."""
        self.carrier.stop_lending()

    def whole_folder(self, model: Path, dtype: str = "", loader: str = "") -> Path:
        """The folder to open `model` from: itself if all shards are here, else a view of it.

        Nodes that differ in the packages that the model needs do not take part; raises `MintError` if no node stays.
        """
        folder = self._view(model, dtype, loader)
        refuse_other_kinds(folder)
        check_config(folder, requantize=True)
        config, _, tree_loader = read_source_config(folder, read_shards(folder), loader)
        self._take_on(self.carrier.require(packages_of(tree_loader.name, config)))
        return folder

    def _view(self, model: Path, dtype: str, loader: str) -> Path:
        """`model` itself if all shards are here, else a view of it with the true headers, samples and parameters.

        The view opens with the identity of the whole model, but lacks the weights of its units.
        """
        if not self.lacking:
            return model
        config = model / "config.json"
        if not config.is_file():
            raise MintError(f"{model}: no config.json found; needed here, also when the shards are elsewhere")
        owners = {name: self._owners(name) for name in self.lacking}
        outlines = {name: Outline(**self.carrier.ask(links, "outline", name)) for name, links in owners.items()}
        view = make_view(view_folder("head", model), model, config.read_bytes(), outlines)
        for name, links in owners.items():
            start = 8 + len(outlines[name].header)
            samples = [(first, size) for first, size in sampled_ranges(start, outlines[name].nbytes) if size > 0]
            self._fetch(view, links, name, samples)
        source = open_source(view, dtype=dtype, loader=loader, requantize=True)  # refused later, if at all
        tensors = source.tensors()
        for tensor in (tensors[name] for parameter in source.parameters for name in parameter.sources):
            if tensor.shard in owners:
                self._fetch(view, owners[tensor.shard], tensor.shard, [(tensor.offset, tensor.nbytes)])
        return view

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        """Do `job` for every unit; an `Executor` of mint."""
        if not units:
            return
        if isinstance(job, PortableJob) and job.any_device:
            spread = self._compared if len(self.devices) > 1 else self._spread
            yield from spread(Work(source, job, units, self.devices))
        elif isinstance(job, PortableJob) and self._can_spread(source, job, units):
            spread = self._tried if any(map(job.result_nbytes, units)) else self._spread
            yield from spread(Work(source, job, units, (device_kind(),)))
        else:
            self._insist_on_shards(source, job)
            yield from in_process(source, job, units)

    def _compared(self, work: Work[T]) -> Iterator[tuple[Unit, T]]:
        """Do some units on every kind of device and compare their results, before all others on any kind."""
        tensors = work.source.tensors()
        able = {kind: self._holdings.fed(work.source.units, tensors, kind) for kind in work.kinds}
        twice = {unit.path for unit in cross_check_units(work.source.units, able)}
        if not twice:
            log.warning("chips.not_compared", reason="no unit has its shards on nodes of two kinds", kinds=work.kinds)
        compared: dict[str, dict[str, T]] = {}
        for kind in work.kinds:
            units = [unit for unit in work.units if unit.path in twice & able[kind]]
            for unit, result in self._spread(replace(work, units=units, kinds=(kind,))):
                compared.setdefault(unit.path, {})[f"{self.made_by[unit.path]} ({kind})"] = result
        for path, results in compared.items():
            check_agreement(path, results, work.job.difference)
        for unit in work.units:
            if unit.path in compared:
                yield unit, next(iter(compared[unit.path].values()))
        yield from self._spread(replace(work, units=[unit for unit in work.units if unit.path not in compared]))

    def _tried(self, work: Work[T]) -> Iterator[tuple[Unit, T]]:
        """Do a few units here; then all others here or with all workers, whatever is faster."""
        tensors = work.source.tensors()
        fits = max(peak_bytes(work.source, unit, tensors) for unit in work.units) <= memory_for_models()
        if self.lacking or not fits or not self._trial_seconds:
            yield from self._spread(work)
            return
        here, sizes = Timed(in_process(work.source, work.job, work.units)), []
        for unit, result in here:
            sizes.append(unit.nbytes)
            yield unit, result
            if here.seconds > self._trial_seconds:
                break
        rest = replace(work, units=work.units[len(sizes) :])
        if not rest.units:
            return
        if reason := reason_to_pack_alone(here.rate(sizes), self._link_speeds(rest)):
            self._on_note(reason)
            yield from here
        else:
            del here  # and the weight that it has read ahead
            yield from self._spread(rest)

    def _link_speeds(self, work: Work[Any]) -> list[LinkSpeed]:
        """The links of the workers that can do some of these units."""
        packed = sum(map(work.job.result_nbytes, work.units))
        nbytes = sum(unit.nbytes for unit in work.units)
        links = {link.node.name: link for link in self.carrier.links.values() if link.holder}
        speeds = []
        for node, missing in self._placement(work).missing.items():
            if missing and (link := links.get(node)):
                crossing = (packed + work.job.told_nbytes() + sum(missing.values())) / nbytes
                is_local = link.node.address == ray.util.get_node_ip_address()
                speeds.append(LinkSpeed(self._rate_of(self.carrier, link), crossing, is_local))
        return speeds

    def _spread(self, work: Work[T]) -> Iterator[tuple[Unit, T]]:
        """Do all units on the nodes that can."""
        if not work.units:
            return
        placement = self._placement(work)
        outlines = {name: read_outline(work.source.folder / name) for name in self._holdings.needed}
        model, job = ray.put(pack(tell_model(work.source, outlines))), ray.put(pack(tell_job(work.job)))

        def open_worker(link: Link, placement: Placement) -> None:
            if missing := placement.missing.get(link.node.name):
                self.carrier.open(link, model, job, dict(missing), self.carrier.peers())

        def welcome(link: Link, holder: Holder) -> None:
            self._holdings.holders[link.node.name] = holder
            if self._share:
                self.carrier.tell_peers()
            open_worker(link, self._placement(work))

        self.carrier.on_hello = welcome
        for link in list(self.carrier.links.values()):
            open_worker(link, placement)
        coordinator = Coordinator(placement.items, self._policy)
        del placement  # the coordinator keeps what it needs in a few bytes a unit
        try:
            for event in self._accepted(coordinator):
                unit = work.units[coordinator.items.ranks[coordinator.items.index(event.item)]]
                yield unit, from_pieces(work.job, unit, event.pieces)
        except BaseException:  # also when the consumer stops: the workers' results have no use then
            self.carrier.quit()
            raise
        self.carrier.rest()
        assert coordinator.finished
        _insist(coordinator.finished, work.units)

    def _placement(self, work: Work[Any]) -> Placement:
        """The units that each node of these kinds can do."""
        owners = self._holdings.owners()
        if work.job.whole_model:
            able = [node for node, obstacle in self._obstacles(work.source, work.job).items() if not obstacle]
            return place_whole_model(work.units, work.source.nbytes, owners, able)
        tensors = work.source.tensors()
        nodes = self._holdings.nodes_of(work.kinds)
        placement = place_units(work.units, tensors, owners, nodes, set(self.carrier.peers()) if self._share else None)
        peaks = {
            unit.path: peak_bytes(work.source, unit, tensors) + work.job.working_bytes(unit) for unit in work.units
        }
        return within_memory(placement, peaks, {node: self._holdings.holders[node].memory_bytes for node in nodes})

    def _obstacles(self, source: Source, job: PortableJob[Any]) -> dict[str, str]:
        """By node, why it cannot run the whole model for a job; empty where it can."""
        return self._holdings.obstacles(device_kind(), job.memory_bytes(source))

    def _can_spread(self, source: Source, job: PortableJob[Any], units: Sequence[Unit]) -> bool:
        """True if nodes of this machine's kind can do a job: all units of it where there are other kinds too."""
        if job.whole_model:
            return "" in self._obstacles(source, job).values()
        if self.devices == (device_kind(),):
            return True
        return {unit.path for unit in units} <= self._holdings.fed(units, source.tensors(), device_kind())

    def _insist_on_shards(self, source: Source, job: Job[Any]) -> None:
        """Raise `MintError` unless this machine has all shards."""
        if not self.lacking:
            return
        why = f"where this has to be done: no other {device_kind()} holds them all or can be told to"
        if isinstance(job, PortableJob) and job.whole_model:
            nodes = "; ".join(f"{node} {obstacle}" for node, obstacle in self._obstacles(source, job).items())
            why = f"and no node can run the whole model ({nodes})"
        raise MintError(
            f"{len(self.lacking)} shards are not on this machine, {why}; "
            f"copy them to {source.folder}, the first is {self.lacking[0]}"
        )

    def _accepted(self, coordinator: Coordinator) -> Iterator[Arrived]:
        """Drive the coordinator; yield the first result of every item."""
        self.carrier.carry(*coordinator.step(time.monotonic()))
        while coordinator.finished is None:
            wait = min(coordinator.wakes_at - time.monotonic(), TICK_SECONDS)
            for event in self.carrier.hear(max(wait, 0.0)):
                commands = coordinator.step(time.monotonic(), event)
                self.carrier.carry(*commands)
                if isinstance(event, Arrived):
                    accepted = Accept(event.item) in commands
                    log.debug("result.arrived", worker=event.worker, unit=event.item, accepted=accepted)
                    if accepted:
                        self.made_by[event.item] = event.worker.partition("~")[0]  # a restarted worker is NODE~LIVES
                        yield event
            self.carrier.carry(*coordinator.step(time.monotonic()))

    def _owners(self, shard: str) -> list[Link]:
        nodes = self._holdings.owners()[shard]
        return [link for link in self.carrier.links.values() if link.node.name in nodes and link.holder]

    def _fetch(self, view: Path, links: list[Link], shard: str, ranges: list[Range]) -> None:
        fill_in(view / shard, ranges, self.carrier.ask(links, "ranges", shard, ranges))
        log.debug("ranges.fetched", shard=shard, nbytes=sum(nbytes for _, nbytes in ranges))


def _insist(end: Finish, units: Sequence[Unit]) -> None:
    """Raise `MintError` for the units that could not be done."""
    if end.bad_items:
        first, reasons = next(iter(end.bad_items.items()))
        nbytes = next(unit.nbytes for unit in units if unit.path == first)
        raise MintError(
            f"{len(end.bad_items)} of {len(units)} units broke every worker that tried, the first is {first} "
            f"({nbytes} bytes): {'; '.join(reasons)}. Everything else is kept; fix that and run the same command again"
        )
    if end.stranded:
        raise MintError(
            f"{len(end.stranded)} of {len(units)} units wait for nodes that are gone, the first is {end.stranded[0]}; "
            "everything else is kept; bring a node back that holds their shards and run the same command again"
        )
