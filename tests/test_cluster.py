"""Three Ray nodes on this machine, each with its own folder of models: the answers are those of one process."""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mint.allocate import allocate
from mint.analyze import analyze
from mint.assemble import assemble
from mint.errors import MintError
from mint.execute import in_process
from mint.jobs import measure, quantize_as_planned
from mint.possible import possible_bytes
from mint.source import Source, open_source
from mint.units import Unit
from tests.conftest import own_cache
from tests.zoo import write_model

pytest.importorskip("ray", reason="the cluster's tests need ray: pip install 'mint-mlx[cluster]'")
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on loopback alone; read when ray is imported

import ray
from ray.cluster_utils import Cluster

from cluster.carrier import Carrier
from cluster.events import Answered, Event, Ping, Policy, Send
from cluster.execute import ClusterExecutor
from cluster.settings import TOKEN_VARIABLE, make_token

NODES = 3
STORE_BYTES = 80_000_000
LIMIT_SECONDS = 180
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
        self._cache = str(own_cache(folder / "cache"))
        self.config = folder / "config"
        make_token(self.config / "cluster" / "token")
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add(root) for root in self.roots]
        ray.init(address=self.cluster.address, log_to_driver=False, namespace="mint-test")

    def add(self, root: Path) -> Any:
        root.mkdir(exist_ok=True)
        variables = {"MINT_MODEL_ROOTS": str(root), "MINT_CACHE": self._cache, "MINT_CONFIG": str(self.config)}
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
    return lambda model: ClusterExecutor(carrier, model, IMPATIENT)


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


def test_a_unit_whose_tensors_lie_on_several_nodes_is_refused_before_any_work_unless_they_share(
    lab: Lab, carrier: Carrier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    monkeypatch.setenv("MINT_CONFIG", str(lab.config))
    model = write_model("qwen3_moe", tmp_path / "shared", shards=3, tokenizer=True)
    _distribute(model, lab, [(0,), (1,), ()])
    source = open_source(model)
    plan = allocate(analyze(source, tmp_path / "alone.mint"), _half(source))
    assemble(plan, source, tmp_path / "alone")
    head = tmp_path / "head" / model.name
    shutil.copytree(model, head, ignore=shutil.ignore_patterns("model-0000[12]*"))  # one shard is on the head alone
    executor = ClusterExecutor(carrier, head, IMPATIENT)
    folder = executor.whole_folder(head)
    with pytest.raises(MintError, match=r"no node holds all shards that model\.\S+ is made of: .*--share"):
        analyze(open_source(folder), tmp_path / "refused.mint", executor=executor)
    with closing(ClusterExecutor(carrier, head, IMPATIENT, share=True)) as executor:
        folder = executor.whole_folder(head)
        analyze(open_source(folder), tmp_path / "cluster.mint", executor=executor)
        assert (tmp_path / "cluster.mint").read_bytes() == (tmp_path / "alone.mint").read_bytes()
        assemble(plan, open_source(folder), tmp_path / "cluster", executor=executor)
        assert _bytes(tmp_path / "cluster") == _bytes(tmp_path / "alone")


JOB = partial(measure, rounding="nearest")


def _alone(source: Source) -> dict[str, Any]:
    return {unit.path: result for unit, result in in_process(source, JOB, source.units)}


def _many_units(tmp_path: Path, name: str) -> Path:
    """More units than the workers can send ahead of whoever reads: some are always on their way."""
    model = write_model("qwen3_moe", tmp_path / name)
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
    found: dict[str, Any] = {}
    for unit, result in executor(source, JOB, source.units):
        if not found:
            (first,) = executor.carrier.links.values()
            os.kill(first.pid, signal.SIGKILL)
        assert unit.path not in found
        found[unit.path] = result
    assert found == _alone(open_source(model))
    (second,) = executor.carrier.links.values()
    assert second.worker == f"{first.node}~2"


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
        heard += [event for event, _ in executor.carrier.hear(1.0)]
    heard += [event for event, _ in executor.carrier.hear(2.0)]
    assert sorted(map(str, heard)) == sorted(str(Answered(worker)) for worker in workers)
    job = partial(quantize_as_planned, {unit.path: unit.formats[0] for unit in source.units}, "nearest")
    expected = dict(_by_path(in_process(open_source(model), job, source.units)))
    assert dict(_by_path(executor(source, job, source.units))) == expected


def test_a_unit_that_fails_on_every_worker_is_named_and_the_others_are_done(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "poison")
    source = open_source(model)
    *others, bad = source.units
    job = partial(quantize_as_planned, {unit.path: unit.formats[0] for unit in others}, "nearest")
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


def test_a_node_that_is_killed_in_the_middle_loses_nothing(
    lab: Lab, connect: Callable[..., ClusterExecutor], tmp_path: Path
) -> None:
    model = _many_units(tmp_path, "killed")
    source = open_source(model)
    fourth = lab.add(tmp_path / "root")
    executor = connect(model)
    assert len(executor.carrier.links) == NODES + 1
    found: dict[str, Any] = {}
    for unit, result in executor(source, JOB, source.units):
        if not found:
            lab.cluster.remove_node(fourth, allow_graceful=False)
        assert unit.path not in found
        found[unit.path] = result
    assert found == _alone(open_source(model))
