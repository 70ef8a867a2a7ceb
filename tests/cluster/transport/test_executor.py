"""Three Ray nodes on this machine, each with its own folder of models: the answers are those of one process."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from mint.analysis.analysis import Analysis
from mint.analysis.analyze import analyze
from mint.analysis.cross_device import rounded
from mint.analysis.probes.probe import probe
from mint.analysis.probes.probe_file import FULL
from mint.analysis.probes.prober import Probing
from mint.analysis.unit_jobs import Measure, Quantize
from mint.assembly.assemble import assemble
from mint.assembly.verify import verify
from mint.core.cache import cache_folder
from mint.core.errors import MintError
from mint.formats.format import parse_format
from mint.formats.units import Unit
from mint.model.locate import locate
from mint.model.source import PACKAGES, Source, open_source
from mint.plan.allocate import allocate
from mint.plan.recipe import Recipe
from mint.plan.size_range import possible_bytes
from mint.quality.sequences import TextSize
from mint.run.executor import Executor, in_process, memory_for_models
from mint.run.job import Job
from tests.conftest import own_cache
from tests.worlds.executors import FunctionExecutor
from tests.worlds.gguf_world import blocks_of, write_gguf
from tests.worlds.jobs import Clipped, Skewed, checksums_of
from tests.worlds.pictures import write_multimodal
from tests.worlds.zoo import write_model
from tools.models.make_shape import write_shape
from tools.models.shapes import QWEN3_06B, Shape, qwen3

pytest.importorskip("ray", reason="the cluster's tests need ray: pip install 'mint-mlx[cluster]'")
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on loopback alone; read when ray is imported

import ray
from ray.cluster_utils import Cluster

from cluster.copies.lending import Peers
from cluster.schedule.commands import Ping, Send
from cluster.schedule.events import Answered, Event, Joined, Policy
from cluster.settings import make_token
from cluster.transport.actor import as_actor
from cluster.transport.driver import Carrier, Link
from cluster.transport.executor import ClusterExecutor
from cluster.transport.messages import pack, tell_job, tell_model, unpack
from cluster.transport.worker import Worker

NODES = 3
STORE_BYTES = 80_000_000
LIMIT_SECONDS = 180
OTHER_CHIP = "MINT_TEST_OTHER_CHIP"  # the kind that a node of this test says that it is; nobody else reads it
IMPATIENT = Policy(patience_seconds=10, answer_seconds=3, stranded_seconds=60)


@pytest.fixture(autouse=True)
def _limited() -> Iterator[None]:
    """A cluster that hangs fails its test."""

    def too_long(signal_number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Lab:
    """The cluster of this test run, and the folder of models of each node."""

    def __init__(self, folder: Path) -> None:
        self.roots = [folder / f"root{n}" for n in range(NODES)]
        self.cache = str(own_cache(folder / "cache"))
        self.config = folder / "config"
        make_token(self.config / "cluster" / "token")
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add(root, chip) for root, chip in zip(self.roots, ("", "gpu Other", ""), strict=True)]
        ray.init(address=self.cluster.address, log_to_driver=False, namespace="mint-test")

    def add(self, root: Path, chip: str = "") -> Any:
        root.mkdir(exist_ok=True)
        variables = {
            "MINT_MODEL_ROOTS": str(root), "MINT_CACHE": self.cache, "MINT_CONFIG": str(self.config), OTHER_CHIP: chip,
        }  # fmt: skip
        return self.cluster.add_node(
            num_cpus=0, resources={"mlx": 1}, object_store_memory=STORE_BYTES, env_vars=variables
        )

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def carrier(lab: Lab) -> Iterator[Carrier]:
    """The workers, which know mint by now: starting one takes seconds."""
    carrier = Carrier()
    yield carrier
    carrier.quit()


@pytest.fixture
def connect(carrier: Carrier) -> Callable[..., ClusterExecutor]:
    return lambda model: ClusterExecutor(carrier, model, IMPATIENT, trial_seconds=0)


@pytest.fixture
def carrying(carrier: Carrier) -> Iterator[Callable[[type], Carrier]]:
    """A carrier whose workers are of this class; the others make room for them."""
    carrier.quit()
    made: list[Carrier] = []

    def carry(kind: type) -> Carrier:
        made.append(Carrier(as_actor(kind)))
        return made[-1]

    yield carry
    for carrier in made:
        carrier.quit()


def _distribute(model: Path, lab: Lab, held: Sequence[Sequence[int]]) -> None:
    """Copy the shards of these numbers to each node's root."""
    shards = sorted(model.glob("model*.safetensors"))
    for root, numbers in zip(lab.roots, held, strict=True):
        folder = root / model.name
        folder.mkdir()
        for number in numbers:
            shutil.copyfile(shards[number], folder / shards[number].name)


def _half(source: Source) -> int:
    return possible_bytes(source.units, source.parameters)[1] // 2


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_analysis_plan_and_model_are_those_of_one_process_whoever_holds_which_shards(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = write_model("llama", tmp_path / "llama-parts", shards=3, tokenizer=True)
    _distribute(model, lab, [(0, 1), (1, 2), (0, 1, 2)])
    source = open_source(model)
    alone = analyze(source, tmp_path / "alone.mint")
    plan = allocate(alone, _half(source))
    assemble(plan, source, tmp_path / "alone")
    executor = connect(model)
    analyze(open_source(model), tmp_path / "cluster.mint", executor=executor)
    assert (tmp_path / "cluster.mint").read_bytes() == (tmp_path / "alone.mint").read_bytes()
    assemble(plan, open_source(model), tmp_path / "cluster", executor=executor)
    assert _bytes(tmp_path / "cluster") == _bytes(tmp_path / "alone")


def test_the_head_needs_no_shard_of_its_own(lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path) -> None:
    model = write_model("qwen3_moe", tmp_path / "qwen-elsewhere", shards=3, tokenizer=True)
    _distribute(model, lab, [(0, 1, 2), (), (2,)])
    source = open_source(model)
    alone = analyze(source, tmp_path / "alone.mint")
    plan = allocate(alone, _half(source))
    assemble(plan, source, tmp_path / "alone")
    head = tmp_path / "head" / model.name
    shutil.copytree(model, head, ignore=shutil.ignore_patterns("*.safetensors"))
    executor = connect(head)
    assert len(executor.lacking) == 3
    folder = executor.whole_folder(head)
    assert open_source(folder).identity == source.identity
    analyze(open_source(folder), tmp_path / "cluster.mint", executor=executor)
    assert (tmp_path / "cluster.mint").read_bytes() == (tmp_path / "alone.mint").read_bytes()
    assemble(plan, open_source(folder), tmp_path / "cluster", executor=executor)
    assert _bytes(tmp_path / "cluster") == _bytes(tmp_path / "alone")


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_model_is_compensated_by_the_nodes_to_the_bytes_of_one_process(
    name: str, lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = write_model(name, tmp_path / f"{name}-compensated", shards=3, tokenizer=True)
    _distribute(model, lab, [(0, 1), (2,), (0, 1, 2)])
    source = open_source(model)
    analysis = analyze(source, tmp_path / "alone.mint", rounding="compensate")
    plan = allocate(analysis, "3.5bpw", Recipe(veto_db=0.0))  # few bits: matrices learn
    text = TextSize(4, 32)
    assemble(plan, source, tmp_path / "alone", text=text)
    executor = connect(model)
    assemble(plan, open_source(model), tmp_path / "cluster", executor=executor, text=text)
    assert _bytes(tmp_path / "cluster") == _bytes(tmp_path / "alone")
    compensated = {path for path, node in executor.made_by.items() if node and ".layers." in path}
    assert len(compensated) > len(source.units) / 2


def test_who_lacks_shards_cannot_compensate_and_is_told_at_once(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = write_model("llama", tmp_path / "llama-elsewhere", shards=3, tokenizer=True)
    _distribute(model, lab, [(0, 1, 2), (), ()])
    plan = allocate(analyze(open_source(model), tmp_path / "a.mint", rounding="compensate"), "6bpw")
    head = tmp_path / "head" / model.name
    shutil.copytree(model, head, ignore=shutil.ignore_patterns("*.safetensors"))
    executor = connect(head)
    source = open_source(executor.whole_folder(head))
    with pytest.raises(MintError, match=r"3 shards are not on this machine, which runs the model for .*compensate"):
        assemble(plan, source, tmp_path / "out", executor=executor)
    assert not list(tmp_path.glob("*out*"))


def test_nodes_convert_their_own_copies_of_a_gguf_model(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    file = tmp_path / "tiny-Q4_0.gguf"
    write_gguf(write_model("llama", tmp_path / "hf"), file, blocks_of(GGMLQuantizationType.Q4_0))
    for root in lab.roots:
        shutil.copyfile(file, root / file.name)
    model = locate(file)
    source = open_source(model)
    alone = analyze(source, tmp_path / "alone.mint")
    plan = allocate(alone, _half(source))
    assemble(plan, source, tmp_path / "alone")
    head = tmp_path / model.relative_to(model.parents[2])
    shutil.copytree(model, head)  # its norms are checked before they are cast to float16
    executor = connect(head)
    folder = executor.whole_folder(head)
    analyze(open_source(folder), tmp_path / "cluster.mint", executor=executor)
    assert (tmp_path / "cluster.mint").read_bytes() == (tmp_path / "alone.mint").read_bytes()
    assemble(plan, open_source(folder), tmp_path / "cluster", executor=executor)
    assert _bytes(tmp_path / "cluster") == _bytes(tmp_path / "alone")


class OlderPackages(Worker):
    """A worker that has other versions of the packages that few models need where `OTHER_CHIP` is set."""

    def hello(self, model: str, *, share: bool = False) -> bytes:
        record = unpack(super().hello(model, share=share))
        older = dict.fromkeys(PACKAGES, "0.0") if os.environ.get(OTHER_CHIP) else {}
        return pack(record | {"versions": record["versions"] | older})


@pytest.mark.usefixtures("vision")
def test_a_package_that_the_model_needs_has_one_version_on_all_nodes(
    lab: Lab, carrying: Callable[[type], Carrier], tmp_path: Path
) -> None:
    plain = write_model("llama", tmp_path / "plain")
    write_gguf(plain, tmp_path / "tiny.gguf")
    gguf, pictures = locate(tmp_path / "tiny.gguf"), write_multimodal("qwen2_5_vl", tmp_path / "pictures")
    carrier = carrying(OlderPackages)
    for model, package in ((plain, ""), (gguf, "gguf"), (pictures, "mlx-vlm"), (plain, "")):
        executor = ClusterExecutor(carrier, model, IMPATIENT)
        executor.whole_folder(model)
        expected = [f"{package}: found 0.0, needed {version(package)} as on this machine"] if package else []
        assert (list(carrier.refused.values()), len(carrier.links)) == (expected, NODES - len(expected))


def test_a_unit_whose_tensors_lie_on_several_nodes_is_refused_before_any_work_unless_they_share(
    lab: Lab, carrier: Carrier, tmp_path: Path
) -> None:
    model = write_model("qwen3_moe", tmp_path / "shared", shards=3, tokenizer=True)
    _distribute(model, lab, [(0,), (1,), ()])
    source = open_source(model)
    plan = allocate(analyze(source, tmp_path / "alone.mint"), _half(source))
    assemble(plan, source, tmp_path / "alone")
    head = tmp_path / "head" / model.name
    shutil.copytree(model, head, ignore=shutil.ignore_patterns("model-0000[12]*"))  # one shard is on the head alone
    executor = ClusterExecutor(carrier, head, IMPATIENT, trial_seconds=0)
    folder = executor.whole_folder(head)
    with pytest.raises(MintError, match=r"no node holds all shards of model\.\S+: .*--share"):
        analyze(open_source(folder), tmp_path / "refused.mint", executor=executor)
    with closing(ClusterExecutor(carrier, head, IMPATIENT, trial_seconds=0, share=True)) as executor:
        folder = executor.whole_folder(head)
        analyze(open_source(folder), tmp_path / "cluster.mint", executor=executor)
        assert (tmp_path / "cluster.mint").read_bytes() == (tmp_path / "alone.mint").read_bytes()
        assemble(plan, open_source(folder), tmp_path / "cluster", executor=executor)
        assert _bytes(tmp_path / "cluster") == _bytes(tmp_path / "alone")


class Told(Worker):
    """A worker that writes the names of the lenders that it is told to a file of its node."""

    def borrow_from(self, peers: Peers) -> None:
        names = {peer.name for lenders in peers.values() for peer in lenders}
        (cache_folder() / LENDERS).write_text("\n".join(names))
        super().borrow_from(peers)


def test_a_node_that_comes_back_lends_again_and_all_are_told(
    lab: Lab, carrying: Callable[[type], Carrier], tmp_path: Path
) -> None:
    source = open_source(_many_units(tmp_path, "moved"))
    carrier = carrying(Told)
    with closing(ClusterExecutor(carrier, source.folder, IMPATIENT, share=True)) as executor:
        first, *others = carrier.links.values()
        for link in others:
            carrier.refuse(link, "one is enough")
        for number, _ in enumerate(executor(source, JOB, source.units)):
            if not number:
                os.kill(_pid(first), signal.SIGKILL)
        (second,) = carrier.links.values()
        lenders = (Path(lab.cache) / LENDERS).read_text().splitlines()
        assert second.worker in lenders
        assert first.worker not in lenders


JOB = Measure("nearest")
LENDERS = "lenders"


def _pid(link: Link) -> int:
    assert link.holder
    return link.holder.pid


def _alone(source: Source) -> dict[str, Any]:
    return {unit.path: result for unit, result in in_process(source, JOB, source.units)}


def test_a_job_that_nobody_knew_is_done_by_the_nodes_as_in_one_process(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    source = open_source(_many_units(tmp_path, "unknown"))
    expected = dict(in_process(source, Clipped(0.02), source.units))
    executor = connect(source.folder)
    assert dict(executor(source, Clipped(0.02), source.units)) == expected
    assert executor.made_by.keys() == {unit.path for unit in source.units}


def _many_units(tmp_path: Path, name: str, seed: int = 0) -> Path:
    """More units than the workers can send ahead of whoever reads: some are always on their way."""
    model = write_model("qwen3_moe", tmp_path / name, seed=seed)
    assert len(open_source(model).units) > 12
    return model


def test_a_worker_that_crashes_is_replaced_and_nothing_is_lost(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "crash")
    source = open_source(model)
    executor = connect(model)
    for link in list(executor.carrier.links.values())[1:]:
        executor.carrier.refuse(link, "one is enough")
    results: dict[str, Any] = {}
    for unit, result in executor(source, JOB, source.units):
        if not results:
            (first,) = executor.carrier.links.values()
            os.kill(_pid(first), signal.SIGKILL)
        assert unit.path not in results
        results[unit.path] = result
    assert results == _alone(open_source(model))
    (second,) = executor.carrier.links.values()
    assert second.node.name == first.node.name
    assert second.worker != first.worker


def test_stopping_ends_the_workers_and_the_next_run_starts_new_ones(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "stopped")
    source = open_source(model)
    executor = connect(model)
    running = executor(source, JOB, source.units)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert not executor.carrier.links
    assert dict(_by_path(executor(open_source(model), JOB, source.units))) == _alone(open_source(model))


def _by_path(results: Iterator[tuple[Unit, Any]]) -> Iterator[tuple[str, Any]]:
    return ((unit.path, result) for unit, result in results)


def test_results_of_one_job_that_come_late_never_pass_for_those_of_the_next(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "late")
    source = open_source(model)
    executor = connect(model)
    list(executor(source, JOB, source.units))
    workers = list(executor.carrier.links)
    for worker in workers:  # as if they still had doubles to do when the last unit was done
        executor.carrier.carry(Send(worker, 1, tuple(unit.path for unit in source.units)))
    executor.carrier.rest()
    for worker in workers:
        executor.carrier.carry(Ping(worker))
    heard: list[Event] = []
    while len(heard) < len(workers):
        heard += executor.carrier.hear(1.0)
    heard += executor.carrier.hear(2.0)
    assert sorted(map(str, heard)) == sorted(str(Answered(worker)) for worker in workers)
    job = Quantize({unit.path: unit.formats[0] for unit in source.units}, checksums_of(source), "nearest")
    expected = dict(_by_path(in_process(open_source(model), job, source.units)))
    assert dict(_by_path(executor(source, job, source.units))) == expected


def test_a_worker_that_gets_ready_for_a_job_that_is_over_has_not_joined_the_next(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    """The units of two models may have the same names: a worker that still had the first would answer for the next."""
    models = [_many_units(tmp_path, name, seed) for seed, name in enumerate(("before", "after"), 1)]
    carrier = connect(models[1]).carrier
    link = next(iter(carrier.links.values()))
    job = pack(tell_job(JOB))

    def open_model(model: Path) -> None:
        carrier.open(link, ray.put(pack(tell_model(open_source(model), {}))), job, {"": 0}, {})

    with _frozen(_pid(link)):
        open_model(models[0])
        carrier.rest()
        open_model(models[1])
    heard: list[Event] = []
    while not heard:
        heard += carrier.hear(1.0)
    heard += carrier.hear(1.0)
    assert heard == [Joined(link.worker, {"": 0})]


def test_a_unit_that_fails_on_every_worker_is_named_and_the_others_are_done(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "poison")
    source = open_source(model)
    *others, bad = source.units
    job = Quantize({unit.path: unit.formats[0] for unit in others}, checksums_of(source), "nearest")
    executor = connect(model)
    done = []
    with pytest.raises(MintError, match=f"1 of {len(source.units)} units broke .* {re.escape(bad.path)}.*KeyError"):
        for unit, _ in executor(source, job, source.units):
            done.append(unit.path)
    assert sorted(done) == sorted(unit.path for unit in others)


def test_a_shard_with_other_content_is_refused_by_name_before_any_work(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = write_model("llama", tmp_path / "conflict", shards=2)
    _distribute(model, lab, [(0, 1), (0, 1), ()])
    damaged = lab.roots[1] / model.name / "model-00002-of-00002.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(MintError, match=r"shard model-00002-of-00002.safetensors differs: .* sampled content"):
        connect(model)


def test_shards_that_nobody_has_are_named(lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path) -> None:
    model = write_model("llama", tmp_path / "missing", shards=3)
    _distribute(model, lab, [(0,), (1,), ()])
    for shard in model.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(MintError, match=r"1 of 3 shards are nowhere: model-00003-of-00003.safetensors"):
        connect(model)


@contextmanager
def _frozen(*pids: int) -> Iterator[None]:
    """Processes that neither answer nor end, like all that runs behind a pulled cable."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_who_is_asked_and_silent_is_not_waited_for_while_another_can_answer(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "silent")
    carrier = connect(model).carrier
    first, second, *_ = carrier.links.values()
    outline = carrier.ask([first], "outline", "model.safetensors")
    with _frozen(_pid(first)):
        assert carrier.ask([first, second], "outline", "model.safetensors", seconds=1.0) == outline
        with pytest.raises(MintError, match=f"no answer from {re.escape(first.node.name)}, asked for its outline"):
            carrier.ask([first], "outline", "model.safetensors", seconds=1.0)


def test_weights_that_lie_on_a_silent_node_hold_nobody_up(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    """The run ends before Ray itself has noticed anything, which takes it a minute."""
    model = tmp_path / "heavy"
    model.mkdir()
    shape = QWEN3_06B | {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 1024}
    write_shape(model, Shape(shape, qwen3), random=True)
    source = open_source(model)
    job = Quantize({unit.path: parse_format("8/64") for unit in source.units}, checksums_of(source), "nearest")
    expected = dict(_by_path(in_process(open_source(model), job, source.units)))
    node = lab.add(tmp_path / "root")
    executor = connect(model)
    silent = next(link for link in executor.carrier.links.values() if link.node.id == node.node_id)
    raylet = node.all_processes["raylet"][0].process.pid
    results: dict[str, Any] = {}
    with ExitStack() as until_the_end:
        for unit, result in executor(source, job, source.units):
            if not results:
                until_the_end.enter_context(_frozen(raylet, _pid(silent)))
            results[unit.path] = result
        assert {record["NodeID"]: record["Alive"] for record in ray.nodes()}[node.node_id]
    assert results == expected
    lab.cluster.remove_node(node, allow_graceful=False)


def test_a_node_that_is_killed_in_the_middle_loses_nothing(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "killed")
    source = open_source(model)
    fourth = lab.add(tmp_path / "root")
    executor = connect(model)
    assert len(executor.carrier.links) == NODES + 1
    results: dict[str, Any] = {}
    for unit, result in executor(source, JOB, source.units):
        if not results:
            lab.cluster.remove_node(fourth, allow_graceful=False)
        assert unit.path not in results
        results[unit.path] = result
    assert results == _alone(open_source(model))


@pytest.mark.parametrize(("arriving", "alone"), [(1.0, True), (1e12, False)])
def test_the_assembling_node_packs_alone_where_little_arrives_and_says_so(
    lab: Lab, carrier: Carrier, tmp_path: Path, *, arriving: float, alone: bool
) -> None:
    model = _many_units(tmp_path, f"link{alone}")
    source = open_source(model)
    job = Quantize({unit.path: unit.formats[0] for unit in source.units}, checksums_of(source), "nearest")
    expected = dict(_by_path(in_process(open_source(model), job, source.units)))
    notes: list[str] = []
    executor = ClusterExecutor(
        carrier, model, IMPATIENT, trial_seconds=1e-9, rate_of=lambda *_: arriving, on_note=notes.append
    )
    results = list(_by_path(executor(source, job, source.units)))
    assert len(results) == len(expected)
    assert dict(results) == expected
    _, *others = (unit.path for unit in source.units)
    assert set(executor.made_by) == (set() if alone else set(others)), "the first is packed here in any case"
    assert [note.partition(":")[0] for note in notes] == ["this machine packs everything itself"] * alone


def test_how_fast_bytes_of_a_worker_arrive_is_measured_and_nothing_arrives_of_a_silent_one(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    carrier = connect(_many_units(tmp_path, "rate")).carrier
    holder, *others = carrier.links.values()
    assert all(carrier.rate_of(link) > 0 for link in [holder, *others])
    assert carrier.rate_of(replace(holder, holder=None)) == 0.0
    with _frozen(_pid(holder)):
        assert carrier.rate_of(holder, seconds=0.5) == 0.0


# jobs of several nodes that run the whole model


def _probed(source: Source, analysis: Analysis, output: Path, base: str, executor: Executor = in_process) -> bytes:
    probe(source, analysis, output, probing=Probing(sequences=2, length=8, base=base), executor=executor)
    return output.read_bytes()


def test_probes_are_made_by_the_nodes_that_hold_all_shards_and_are_those_of_one_process(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = write_model("llama", tmp_path / "llama-probed", shards=3, tokenizer=True)
    _distribute(model, lab, [(0, 1, 2), (0, 1, 2), (2,)])
    source = open_source(model)
    analysis = analyze(source, tmp_path / "a.mint")
    head = tmp_path / "head" / model.name
    shutil.copytree(model, head, ignore=shutil.ignore_patterns("*.safetensors"))
    executor = connect(head)
    assert executor.model_memory == memory_for_models()
    elsewhere = open_source(executor.whole_folder(head))
    for base in (FULL, "8"):
        alone = _probed(source, analysis, tmp_path / f"alone-{base}", base)
        assert _probed(elsewhere, analysis, tmp_path / f"cluster-{base}", base, executor) == alone


def test_probes_of_a_node_that_is_killed_are_made_by_others(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = write_model("llama", tmp_path / "probed-killed", tokenizer=True)
    source = open_source(model)
    analysis = analyze(source, tmp_path / "a.mint")
    fourth = lab.add(tmp_path / "root")
    executor = connect(model)
    assert len(executor.carrier.links) == NODES + 1
    killed: list[str] = []

    @FunctionExecutor
    def killing(source: Source, job: Job[Any], units: Sequence[Unit]) -> Iterator[tuple[Unit, Any]]:
        for pair in executor(source, job, units):
            if not killed:
                lab.cluster.remove_node(fourth, allow_graceful=False)
                killed.append(pair[0].path)
            yield pair

    probes = _probed(source, analysis, tmp_path / "cluster", FULL, killing)
    assert killed
    assert probes == _probed(source, analysis, tmp_path / "alone", FULL)


def test_a_model_that_no_node_holds_whole_is_probed_where_it_lies_or_not_at_all(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = write_model("llama", tmp_path / "scattered", shards=3, tokenizer=True)
    _distribute(model, lab, [(0,), (1,), (2,)])
    source = open_source(model)
    analysis = analyze(source, tmp_path / "a.mint")
    alone = _probed(source, analysis, tmp_path / "alone", FULL)
    assert connect(model).model_memory == memory_for_models()
    assert _probed(source, analysis, tmp_path / "cluster", FULL, connect(model)) == alone
    head = tmp_path / "head" / model.name
    shutil.copytree(model, head, ignore=shutil.ignore_patterns("*.safetensors"))
    executor = connect(head)
    assert executor.model_memory == 0
    elsewhere = open_source(executor.whole_folder(head))
    with pytest.raises(MintError, match=r"3 shards are not on this machine, and no node .* lacks 2 of 3 shards"):
        _probed(elsewhere, analysis, tmp_path / "nowhere", FULL, executor)


# chips of several kinds: the second node reports another kind, and measures slightly different errors


class OtherChip(Worker):
    """A worker that is of another kind where `OTHER_CHIP` is set, and measures errors times `factor`."""

    factor = 1 + 1e-8

    def hello(self, model: str, *, share: bool = False) -> bytes:
        record = unpack(super().hello(model, share=share))
        return pack(record | {"device": os.environ.get(OTHER_CHIP) or record["device"]})

    def open(self, number: int, model: bytes, job: bytes, peers: Peers) -> None:
        if os.environ.get(OTHER_CHIP) and unpack(job) == tell_job(JOB):
            job = pack(tell_job(Skewed(factor=self.factor)))
        super().open(number, model, job, peers)


class WrongChip(OtherChip):
    factor = 1 + 1e-3


def test_chips_of_two_kinds_measure_rounded_and_one_kind_writes(
    lab: Lab, carrying: Callable[[type], Carrier], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "mixed")
    source = open_source(model)
    alone = analyze(source, tmp_path / "alone.mint")
    executor = ClusterExecutor(carrying(OtherChip), model, IMPATIENT, trial_seconds=0)
    assert executor.devices == ("cpu", "gpu Other")
    mixed = analyze(open_source(model), tmp_path / "mixed.mint", executor=executor)
    assert mixed.device == "cpu + gpu Other"
    assert {path: rounded(measurement) for path, measurement in alone.measurements.items()} == mixed.measurements
    plan = allocate(mixed, _half(source))
    assemble(plan, open_source(model), tmp_path / "cluster", executor=executor)
    assemble(plan, source, tmp_path / "alone")
    assert _bytes(tmp_path / "cluster") == _bytes(tmp_path / "alone")
    assert verify(tmp_path / "cluster", source).passed
    assert analyze(source, tmp_path / "mixed.mint") == mixed  # as one of the two would go on with it


def test_a_chip_that_measures_something_else_is_found_out_before_anything_is_kept(
    lab: Lab, carrying: Callable[[type], Carrier], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "wrong")
    executor = ClusterExecutor(carrying(WrongChip), model, IMPATIENT, trial_seconds=0)
    message = r"unit \S+: error in \S+ is \S+ on \S+ \(cpu\) and \S+ on \S+ \(gpu Other\); needed: the same"
    with pytest.raises(MintError, match=message):
        analyze(open_source(model), tmp_path / "a.mint", executor=executor)
    with pytest.raises(MintError, match=message):
        analyze(open_source(model), tmp_path / "a.mint", executor=executor)
