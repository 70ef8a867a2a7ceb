"""The executor of a cluster: inventory, placement, workers, gather. A verb of `mint` gets it and does not know.

What the nodes hold is compared before any work. Every node that holds the shards of a unit may do it, whatever comes
first of it counts, and since all do the same arithmetic on the same bytes, the result is that of one machine.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from cluster.carrier import Carrier, Link
from cluster.coordinator import Coordinator
from cluster.events import Accept, Command, Event, Finish, Policy
from cluster.inventory import agree, needed_shards, take_inventory
from cluster.placement import place
from cluster.settings import RESOURCE
from cluster.view import Outline, fill_in, make_view, read_outline
from cluster.wire import can_travel, from_pieces, make_folder_name, pack, tell_job, tell_model
from cluster.workers import views
from mint.device import device_kind, versions
from mint.errors import MintError
from mint.execute import Job, in_process
from mint.log import log
from mint.shards import PATTERN, sampled_ranges
from mint.source import Source, open_source
from mint.units import Unit

T = TypeVar("T")
TICK_SECONDS = 0.5


class ClusterExecutor:
    """Do jobs on the nodes of a cluster that hold the model's shards."""

    def __init__(self, carrier: Carrier, model: Path, policy: Policy = Policy()) -> None:  # noqa: B008, it is frozen
        self.carrier = carrier
        self.made_by: dict[str, str] = {}  # the node that did a unit last, by the unit's path
        self._policy = policy
        here = any(model.glob(PATTERN)) or (model / "config.json").exists()
        self._head = take_inventory("this machine", model if here else None)
        carrier.on_hello(self._check)
        links = [link for link in carrier.meet(str(model)) if link.worker in carrier.links]
        if not links:
            reasons = "; ".join(f"{node}: {why}" for node, why in carrier.refused.items())
            raise MintError(
                f"no node of the cluster can work ({reasons or 'none is there'}); needed: at least one that was "
                f"started with the resource {RESOURCE}: 1 and with this version of mint"
            )
        self._inventories = {link.node: link.inventory for link in links if link.inventory}
        self._needed = needed_shards(self._head, self._inventories.values())
        self._agree()

    @property
    def lacking(self) -> list[str]:
        """The shards that this machine does not hold itself."""
        held = {shard.name for shard in self._head.shards}
        return [name for name in self._needed if name not in held]

    def whole_folder(self, model: Path, dtype: str = "") -> Path:
        """`model` itself if all shards are here, else a view of it that has the true headers, samples and parameters.

        It opens with the identity of the whole model; the weights of its units are not there.
        """
        if not self.lacking:
            return model
        config = model / "config.json"
        if not config.is_file():
            raise MintError(f"{model}: no config.json found; needed here, also when the shards are elsewhere")
        owners = {name: self._owner(name) for name in self.lacking}
        outlines = {name: Outline(*self.carrier.ask(link, "outline", name)) for name, link in owners.items()}
        view = make_view(views() / make_folder_name("head", model), model, config.read_bytes(), outlines)
        for name, link in owners.items():
            start = 8 + len(outlines[name].header)
            self._fetch(
                view, link, name, [each for each in sampled_ranges(start, outlines[name].nbytes) if each[1] > 0]
            )
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
        if not can_travel(job):  # probes and compensation run the model
            if self.lacking:
                raise MintError(
                    f"{len(self.lacking)} shards are not on this machine, where the model has to run for this; "
                    f"copy them to {source.folder}, the first is {self.lacking[0]}"
                )
            yield from in_process(source, job, units)
            return
        told = tell_job(job)
        tensors = source.tensors()
        placement = place(units, tensors, self._agree(), self._inventories)
        outlines = {name: read_outline(source.folder / name) for name in self._needed}
        model, work = self.carrier.put(pack(tell_model(source, outlines))), pack(told)

        def open_worker(link: Link) -> None:
            self._check(link)
            if link.worker in self.carrier.links and link.inventory:
                self._inventories[link.node] = link.inventory
                reach = place(units, tensors, self._agree(), self._inventories).missing
                self.carrier.open(link, model, work, dict(reach[link.node]))

        self.carrier.on_hello(open_worker)
        for link in [link for link in self.carrier.links.values() if link.node in self._inventories]:
            self.carrier.open(link, model, work, dict(placement.missing[link.node]))
        by_path = {unit.path: unit for unit in units}
        coordinator = Coordinator(placement.items, self._policy)
        try:
            for item, pieces in self._accepted(coordinator):
                yield by_path[item], from_pieces(told, by_path[item], pieces)
        except BaseException:  # also when the consumer stops: what they still do is not wanted
            self.carrier.quit()
            raise
        self.carrier.rest()
        assert coordinator.finished
        _insist(coordinator.finished, by_path)

    def _accepted(self, coordinator: Coordinator) -> Iterator[tuple[str, list[bytes]]]:
        """Drive the coordinator; items and the pieces of their results as they come."""
        self._carry(coordinator.step(time.monotonic()))
        while coordinator.finished is None:
            wait = min(coordinator.wakes_at - time.monotonic(), TICK_SECONDS)
            for event, pieces in self.carrier.hear(max(wait, 0.0)):
                commands = coordinator.step(time.monotonic(), event)
                self._carry(commands)
                for command in commands:
                    if isinstance(command, Accept):
                        self._note_maker(command.item, event)
                        yield command.item, pieces
            self._carry(coordinator.step(time.monotonic()))

    def _note_maker(self, item: str, event: Event) -> None:
        link = self.carrier.links.get(getattr(event, "worker", ""))
        if link:
            self.made_by[item] = link.node

    def _carry(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self.carrier.carry(command)

    def _check(self, link: Link) -> None:
        """Refuse a node whose results would not be those of this machine."""
        for what, found, needed in (
            ("device", link.device, device_kind()),
            *((name, link.versions.get(name), here) for name, here in versions().items()),
        ):
            if found != needed:
                self.carrier.refuse(link, f"{what}: found {found}, needed {needed} as on this machine")
                return

    def _agree(self) -> dict[str, tuple[str, ...]]:
        everybody = [inventory for inventory in self._inventories.values() if inventory]
        return dict(agree(self._needed, [self._head, *everybody]))

    def _owner(self, shard: str) -> Link:
        holders = self._agree()[shard]
        return next(link for link in self.carrier.links.values() if link.node in holders and link.inventory)

    def _fetch(self, view: Path, link: Link, shard: str, ranges: list[tuple[int, int]]) -> None:
        fill_in(view / shard, ranges, self.carrier.ask(link, "ranges", shard, ranges))
        log.debug("ranges.fetched", shard=shard, worker=link.worker, nbytes=sum(nbytes for _, nbytes in ranges))


def _insist(end: Finish, units: dict[str, Unit]) -> None:
    """Raise `MintError` for what could not be done."""
    if end.poisoned:
        first, troubles = next(iter(end.poisoned.items()))
        raise MintError(
            f"{len(end.poisoned)} of {len(units)} units broke every worker that tried, the first is {first} "
            f"({units[first].nbytes} bytes): {'; '.join(troubles)}. Everything else is kept; mend that and run the "
            "same command again"
        )
    if end.stranded:
        raise MintError(
            f"{len(end.stranded)} of {len(units)} units wait for nodes that are gone, the first is {end.stranded[0]}; "
            "everything else is kept; bring a node back that holds their shards and run the same command again"
        )
