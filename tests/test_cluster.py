"""Three Ray nodes on this machine, each with its own folder of models: the answers are those of one process."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
import pytest

from mint.allocate import allocate
from mint.analyze import analyze
from mint.assemble import assemble
from mint.errors import MintError
from mint.jobs import measure
from mint.possible import possible_bytes
from mint.source import Source, open_source
from mint.units import Unit
from tests.conftest import own_cache
from tests.zoo import write_model

pytest.importorskip("ray", reason="the cluster's tests need ray: pip install 'mint-mlx[cluster]'")
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # listen on loopback alone; read when ray is imported

import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from cluster.carrier import Carrier  # noqa: E402
from cluster.events import Policy  # noqa: E402
from cluster.execute import ClusterExecutor  # noqa: E402

NODES = 3
STORE_BYTES = 80_000_000
LIMIT_SECONDS = 180
IMPATIENT = Policy(patience_seconds=10, answer_seconds=3, stranded_seconds=15)


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
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add(root) for root in self.roots]
        ray.init(address=self.cluster.address, log_to_driver=False, namespace="mint-test")

    def add(self, root: Path) -> Any:
        root.mkdir(exist_ok=True)
        variables = {"MINT_MODEL_ROOTS": str(root), "MINT_CACHE": self._cache}
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


@pytest.fixture
def connect(lab: Lab) -> Iterator[Callable[..., ClusterExecutor]]:
    carriers = []

    def make(model: Path, policy: Policy = IMPATIENT) -> ClusterExecutor:
        carriers.append(Carrier(str(model)))
        return ClusterExecutor(carriers[-1], model, policy)

    yield make
    for carrier in carriers:
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
