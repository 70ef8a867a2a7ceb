"""A service that works over a cluster: nodes come and go while a job runs, and the result is that of one process."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the cluster's tests need ray: pip install 'mint-mlx[cluster]'")
pytest.importorskip("fastapi")

from cluster.settings import Secrets, make_token, ray_environment, token_path
from mint.client.client import Client, JobEvent
from mint.plan.recipe import Recipe
from mint.run.blas import fast_environment
from tests.conftest import own_cache
from tools.bench.service import serving
from tools.models.make_shape import write_shape
from tools.models.shapes import TINY, Shape, qwen3

LAYERS = 12
RECIPE = Recipe(rounding="compensate")
BUDGET = "4.5bpw"
START_SECONDS = 180
CLUSTER = """
import sys
from cluster.head.handshake import LABELS, own_versions
from ray.cluster_utils import Cluster

bytes_of_store = 80_000_000
labels = {label: version for label, version in own_versions().items() if label in LABELS}
node = {"num_cpus": 0, "resources": {"mlx": 1}, "object_store_memory": bytes_of_store, "labels": labels}
cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
nodes = []
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "join\\n":
        nodes.append(cluster.add_node(**node))
    else:
        cluster.remove_node(nodes.pop(0), allow_graceful=False)  # as if its machine lost its power
    print("done", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A Ray cluster in a process of its own, whose head works too."""

    def __init__(self, roots: Path) -> None:
        variables = fast_environment() | ray_environment(Secrets(token_path())) | {"MINT_MODEL_ROOTS": str(roots)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.address = self._answer()

    def join(self) -> None:
        """Let one more node join."""
        self._tell("join")

    def kill(self) -> None:
        """Kill the node that joined first."""
        self._tell("kill")

    def end(self) -> None:
        """Shut all of them down."""
        self._process.communicate(timeout=START_SECONDS)

    def _tell(self, what: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        """The next line; the process is killed if none comes."""
        limit = threading.Timer(START_SECONDS, self._process.kill)
        limit.start()
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        limit.cancel()
        return line


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    write_shape(folder, Shape(TINY | {"num_hidden_layers": LAYERS}, qwen3), random=True)
    return folder.parent


@contextmanager
def _nodes(roots: Path) -> Iterator[Nodes]:
    nodes = Nodes(roots)
    try:
        yield nodes
    finally:
        nodes.end()


def _done(client: Client, id: str) -> dict[str, str]:
    """The digests of the files of a job that must be done."""
    job = client.wait(id)
    assert job.state == "done", job.reason
    assert "probing" in job.result["stage_seconds"]
    return {file["name"]: file["digest"] for file in client.artifact(job.artifact)["files"]}


def _is_compensating(event: JobEvent) -> bool:
    return event.kind == "progress" and event.body["stage"] == "assemble" and event.body["done"] > 0


def test_a_node_leaves_and_another_joins_while_a_job_compensates_and_the_bytes_are_those_of_one_process(
    roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINT_CONFIG", str(tmp_path / "config"))
    own_cache(tmp_path / "alone" / "cache")
    with serving(tmp_path / "alone", "--root", str(roots)) as served, Client(served.url) as client:
        (job,) = client.submit("small", [BUDGET], RECIPE)
        expected = _done(client, job.id)
    make_token(token_path())
    own_cache(tmp_path / "served" / "cache")
    with _nodes(roots) as nodes:
        nodes.join()
        options = ("--root", str(roots), "--cluster", nodes.address)
        with serving(tmp_path / "served", *options) as served, Client(served.url) as client:
            (job,) = client.submit("small", [BUDGET], RECIPE)
            next(event for event in client.events(job.id) if _is_compensating(event))
            nodes.kill()
            nodes.join()
            assert not client.job(job.id).is_final
            assert _done(client, job.id) == expected
