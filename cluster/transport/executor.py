"""The executor of a cluster: inventory, placement, workers, gathering. A verb of `mint` uses it as any other.

The shards of the nodes are compared before any work. Every node that holds the shards of a unit may do it, and the
first result counts: all do the same arithmetic on the same bytes, so the result is that of one machine. Nodes with
another kind of device do jobs of `any_device` only; some of their results are compared (`cross_check.py`).

A job of `whole_model` is done by the nodes that hold all shards. A job that is not portable is done in this process:
compensation, for example, rounds every layer behind those that are stored already.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cluster.copies.holdings import Holder, Holdings
from cluster.copies.inventory import take_inventory
from cluster.copies.sparse_copy import Outline, fill_in, make_view, read_outline
from cluster.schedule.coordinator import Coordinator
from cluster.schedule.cross_check import check_agreement, cross_check_units
from cluster.schedule.eligibility import place_whole_model, within_memory
from cluster.schedule.events import Accept, Arrived, Command, Finish, Policy, Send, Skip
from cluster.schedule.placement import Placement, place_units
from cluster.schedule.solo import TRIAL_SECONDS, LinkSpeed, Timed, reason_to_pack_alone
from cluster.settings import RESOURCE
from cluster.transport.driver import Carrier, Link
from cluster.transport.wire import from_pieces, make_folder_name, pack, tell_job, tell_model
from cluster.transport.worker import views
from mint.analysis.probes.packed_base import memory_for_models
from mint.analysis.unit_jobs import peak_bytes
from mint.core.errors import MintError
from mint.core.log import log
from mint.formats.units import Unit
from mint.model.checkpoint.shards import PATTERN, sampled_ranges
from mint.model.source import Source, open_source
from mint.run.device_kind import device_kind, versions
from mint.run.executor import in_process
from mint.run.job import Job, PortableJob

T = TypeVar("T")
TICK_SECONDS = 0.5


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
        on_note: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Meet the workers. `trial_seconds` of packing here decide where the rest is packed; with 0 the workers do it.

        `on_note` gets the decision as text.
        """
        self.carrier = carrier
        self._trial_seconds = trial_seconds
        self._on_note = on_note
        self._share = share
        self.made_by: dict[str, str] = {}  # by the path of a unit, the node that did it last
        self._policy = policy
        here = any(model.glob(PATTERN)) or (model / "config.json").exists()
        self._head = take_inventory("this machine", model if here else None)
        carrier.on_hello(self._check)
        links = [link for link in carrier.meet(str(model), share=share) if link.worker in carrier.links]
        if not links:
            reasons = "; ".join(f"{node}: {why}" for node, why in carrier.refused.items())
            raise MintError(
                f"no node of the cluster can work ({reasons or 'none is there'}); needed: at least one that was "
                f"started with the resource {RESOURCE}: 1 and with this version of mint"
            )
        self._holdings = Holdings(self._head, {link.node: _holder(link) for link in links})
        self.devices = self._holdings.devices  # that measure
        if share:
            carrier.lend(self._head)

    def close(self) -> None:
        """End the lending of this machine's shards; that of the nodes ends with their workers."""
        self.carrier.stop_lending()

    @property
    def lacking(self) -> list[str]:
        """The shards that this machine does not hold itself."""
        return self._holdings.lacking

    def whole_folder(self, model: Path, dtype: str = "") -> Path:
        """`model` itself if all shards are here, else a view of it with the true headers, samples and parameters.

        The view opens with the identity of the whole model, but lacks the weights of its units.
        """
        if not self.lacking:
            return model
        config = model / "config.json"
        if not config.is_file():
            raise MintError(f"{model}: no config.json found; needed here, also when the shards are elsewhere")
        owners = {name: self._owners(name) for name in self.lacking}
        outlines = {name: Outline(*self.carrier.ask(links, "outline", name)) for name, links in owners.items()}
        view = make_view(views() / make_folder_name("head", model), model, config.read_bytes(), outlines)
        for name, links in owners.items():
            start = 8 + len(outlines[name].header)
            samples = [(first, size) for first, size in sampled_ranges(start, outlines[name].nbytes) if size > 0]
            self._fetch(view, links, name, samples)
        source = open_source(view, dtype=dtype)
        tensors = source.tensors()
        for parameter in source.parameters:
            for tensor in (tensors[feeder] for feeder in parameter.sources):
                if tensor.shard in owners:
                    self._fetch(view, owners[tensor.shard], tensor.shard, [(tensor.offset, tensor.nbytes)])
        return view

    def __call__(self, source: Source, job: Job[T], units: Sequence[Unit]) -> Iterator[tuple[Unit, T]]:
        """Do `job` for every unit; an `Executor` of mint."""
        if not units:
            return
        if isinstance(job, PortableJob) and job.any_device:
            spread = self._compared if len(self.devices) > 1 else self._spread
            yield from spread(source, job, units, self.devices)
        elif isinstance(job, PortableJob) and self._can_spread(source, job, units):
            spread = self._tried if any(map(job.result_nbytes, units)) else self._spread
            yield from spread(source, job, units, (device_kind(),))
        else:
            self._insist_on_shards(source, job)
            yield from in_process(source, job, units)

    def _compared(
        self, source: Source, job: PortableJob[T], units: Sequence[Unit], kinds: Sequence[str]
    ) -> Iterator[tuple[Unit, T]]:
        """Do some units on every kind of device and compare their results, before all others on any kind."""
        tensors = source.tensors()
        able = {kind: self._holdings.fed(source.units, tensors, kind) for kind in kinds}
        twice = {unit.path for unit in cross_check_units(source.units, able)}
        if not twice:
            log.warning("chips.not_compared", reason="no unit has its shards on nodes of two kinds", kinds=kinds)
        compared: dict[str, dict[str, T]] = {}
        for kind in kinds:
            for unit, result, node in self._done(
                source, job, [unit for unit in units if unit.path in twice & able[kind]], (kind,)
            ):
                compared.setdefault(unit.path, {})[f"{node} ({kind})"] = result
        for path, results in compared.items():
            check_agreement(path, results, job.difference)
        for unit in units:
            if unit.path in compared:
                yield unit, next(iter(compared[unit.path].values()))
        yield from self._spread(source, job, [unit for unit in units if unit.path not in compared], kinds)

    def _tried(
        self, source: Source, job: PortableJob[T], units: Sequence[Unit], kinds: Sequence[str]
    ) -> Iterator[tuple[Unit, T]]:
        """Do a few units here; then all others here or with all workers, whatever is faster."""
        tensors = source.tensors()
        fits = max(peak_bytes(unit, tensors) for unit in units) <= memory_for_models()
        if self.lacking or not fits or not self._trial_seconds:
            yield from self._spread(source, job, units, kinds)
            return
        here, sizes = Timed(in_process(source, job, units)), []
        for unit, result in here:
            sizes.append(unit.nbytes)
            yield unit, result
            if here.seconds > self._trial_seconds:
                break
        rest = units[len(sizes) :]
        if not rest:
            return
        if reason := reason_to_pack_alone(here.rate(sizes), self._link_speeds(source, job, rest)):
            self._on_note(reason)
            yield from here
        else:
            del here  # and what it has read ahead
            yield from self._spread(source, job, rest, kinds)

    def _link_speeds(self, source: Source, job: PortableJob[Any], units: Sequence[Unit]) -> list[LinkSpeed]:
        """The workers that can do some of these units, and how fast bytes of them arrive here."""
        packed = sum(map(job.result_nbytes, units))
        nbytes = sum(unit.nbytes for unit in units)
        reached = []
        for node, missing in self._placement(source, job, units, (device_kind(),)).missing.items():
            link = next((each for each in self.carrier.links.values() if each.node == node), None)
            if missing and link and link.inventory:
                crossing = (packed + sum(missing.values())) / nbytes
                own = link.address == self.carrier.own_address
                reached.append(LinkSpeed(self.carrier.rate_of(link), crossing, own))
        return reached

    def _spread(
        self, source: Source, job: PortableJob[T], units: Sequence[Unit], kinds: Sequence[str]
    ) -> Iterator[tuple[Unit, T]]:
        return ((unit, result) for unit, result, _ in self._done(source, job, units, kinds))

    def _done(
        self, source: Source, job: PortableJob[T], units: Sequence[Unit], kinds: Sequence[str]
    ) -> Iterator[tuple[Unit, T, str]]:
        """Every unit with its result and the worker that it came from, done by nodes of these kinds."""
        if not units:
            return
        placement = self._placement(source, job, units, kinds)
        outlines = {name: read_outline(source.folder / name) for name in self._holdings.needed}
        model, work = self.carrier.put(pack(tell_model(source, outlines))), pack(tell_job(job))

        def open_worker(link: Link) -> None:
            self._check(link)
            if link.worker in self.carrier.links and link.inventory:
                self._holdings.holders[link.node] = _holder(link)
                if self._share:
                    self.carrier.tell_peers()
                if reach := self._placement(source, job, units, kinds).missing.get(link.node):
                    self.carrier.open(link, model, work, dict(reach), self.carrier.peers())

        self.carrier.on_hello(open_worker)
        for link in list(self.carrier.links.values()):
            if reach := placement.missing.get(link.node):
                self.carrier.open(link, model, work, dict(reach), self.carrier.peers())
        coordinator = Coordinator(placement.items, self._policy)
        del placement  # the coordinator keeps what it needs in a few bytes a unit
        try:
            for item, pieces, worker in self._accepted(coordinator):
                unit = units[coordinator.items.rank_of(item)]
                yield unit, from_pieces(job, unit, pieces), worker
        except BaseException:  # also when the consumer stops: nobody wants what the workers still do
            self.carrier.quit()
            raise
        self.carrier.rest()
        assert coordinator.finished
        _insist(coordinator.finished, units)

    def _placement(
        self, source: Source, job: PortableJob[Any], units: Sequence[Unit], kinds: Sequence[str]
    ) -> Placement:
        """Which of the nodes of these kinds can do which units."""
        if job.whole_model:
            return place_whole_model(units, source.nbytes, self._holdings.owners(), self._runners(source, job))
        tensors = source.tensors()
        nodes = self._holdings.nodes_of(kinds)
        lent = set(self.carrier.peers()) if self._share else None
        placement = place_units(units, tensors, self._holdings.owners(), nodes, lent)
        peaks = {unit.path: peak_bytes(unit, tensors) for unit in units}
        return within_memory(placement, peaks, {node: self._holdings.holders[node].memory_bytes for node in nodes})

    def _runners(self, source: Source, job: PortableJob[Any]) -> list[str]:
        """The nodes of this machine's kind that hold all of the model and have the memory to run it."""
        reasons = self._holdings.obstacles(device_kind(), job.memory_bytes(source))
        return [node for node, reason in reasons.items() if not reason]

    def _can_spread(self, source: Source, job: PortableJob[Any], units: Sequence[Unit]) -> bool:
        """Whether nodes of this machine's kind can do a job, all units of it where there are other kinds too."""
        if job.whole_model:
            return bool(self._runners(source, job))
        if self.devices == (device_kind(),):
            return True
        return {unit.path for unit in units} <= self._holdings.fed(units, source.tensors(), device_kind())

    def _insist_on_shards(self, source: Source, job: Job[Any]) -> None:
        """Raise `MintError` unless this machine has all shards."""
        if not self.lacking:
            return
        why = f"where this has to be done: no other {device_kind()} holds them all or can be told to"
        if isinstance(job, PortableJob) and job.whole_model:
            reasons = self._holdings.obstacles(device_kind(), job.memory_bytes(source))
            nodes = "; ".join(f"{node} {reason}" for node, reason in reasons.items())
            why = f"and no node can run the whole model ({nodes})"
        raise MintError(
            f"{len(self.lacking)} shards are not on this machine, {why}; "
            f"copy them to {source.folder}, the first is {self.lacking[0]}"
        )

    def _accepted(self, coordinator: Coordinator) -> Iterator[tuple[str, list[bytes], str]]:
        """Drive the coordinator; yield every item with the pieces of its result and the worker that did it."""
        self._carry(coordinator.step(time.monotonic()))
        while coordinator.finished is None:
            wait = min(coordinator.wakes_at - time.monotonic(), TICK_SECONDS)
            for event, pieces in self.carrier.hear(max(wait, 0.0)):
                commands = coordinator.step(time.monotonic(), event)
                if isinstance(event, Arrived):
                    accepted = Accept(event.item) in commands
                    log.debug("result.arrived", worker=event.worker, unit=event.item, accepted=accepted)
                self._carry(commands)
                for command in commands:
                    if isinstance(command, Accept):
                        if link := self.carrier.links.get(event.worker):
                            self.made_by[command.item] = link.node
                        yield command.item, pieces, event.worker
            self._carry(coordinator.step(time.monotonic()))

    def _carry(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self.carrier.carry(command)
            if isinstance(command, Send | Skip):
                event = "batch.sent" if isinstance(command, Send) else "batch.shortened"
                log.debug(event, worker=command.worker, units=list(command.items))

    def _check(self, link: Link) -> None:
        """Refuse a node whose results would not be those of this machine."""
        for name, needed in versions().items():
            if (found := link.versions.get(name)) != needed:
                self.carrier.refuse(link, f"{name}: found {found}, needed {needed} as on this machine")
                return

    def _owners(self, shard: str) -> list[Link]:
        holders = self._holdings.owners()[shard]
        return [link for link in self.carrier.links.values() if link.node in holders and link.inventory]

    def _fetch(self, view: Path, links: list[Link], shard: str, ranges: list[tuple[int, int]]) -> None:
        fill_in(view / shard, ranges, self.carrier.ask(links, "ranges", shard, ranges))
        log.debug("ranges.fetched", shard=shard, nbytes=sum(nbytes for _, nbytes in ranges))


def _holder(link: Link) -> Holder:
    assert link.inventory, "a link that has not said hello holds nothing"
    return Holder(link.inventory, link.device, link.memory_bytes)


def _insist(end: Finish, units: Sequence[Unit]) -> None:
    """Raise `MintError` for what could not be done."""
    if end.bad_items:
        first, troubles = next(iter(end.bad_items.items()))
        nbytes = next(unit.nbytes for unit in units if unit.path == first)
        raise MintError(
            f"{len(end.bad_items)} of {len(units)} units broke every worker that tried, the first is {first} "
            f"({nbytes} bytes): {'; '.join(troubles)}. Everything else is kept; mend that and run the "
            "same command again"
        )
    if end.stranded:
        raise MintError(
            f"{len(end.stranded)} of {len(units)} units wait for nodes that are gone, the first is {end.stranded[0]}; "
            "everything else is kept; bring a node back that holds their shards and run the same command again"
        )
