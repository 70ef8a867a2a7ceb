"""The stages of a job without a runner: refusals, progress and devices."""

import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.service.data.database import connect
from cluster.service.data.records import Claim, Job, ModelRequest
from cluster.service.errors import YieldedError
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import Store
from cluster.service.work.progress_events import EVERY_SECONDS, ProgressEvents
from cluster.service.work.stages import End, Stages
from mint.analysis.analysis import read_analysis
from mint.analysis.analyze import analyze
from mint.analysis.cached import cached_analysis
from mint.analysis.cross_device import rounded
from mint.analysis.probes.probe_file import probe_path
from mint.core.errors import MintError
from mint.core.memory import PROCESSES_BYTES
from mint.core.progress import Progress
from mint.model.checkpoint.manifest import PLAN_NAME
from mint.model.source import open_source
from mint.plan.plan import read_plan
from mint.run.device_kind import device_kind, joined_kinds
from mint.run.executor import Executor, in_process, measuring_device
from tests.worlds.executors import FunctionExecutor
from tests.worlds.service_world import ANN, World, submit


@dataclass
class Lab:
    """Jobs of one model, whose stages run in this process."""

    folder: Path
    model: Path
    world: World

    def __post_init__(self) -> None:
        self.roots = Roots([self.model.parent], self.world.catalog)

    def submit(self, budget: str = "", **options: Any) -> Job:
        _, identity = self.roots.identify(self.model.name)
        return submit(self.world.queue, ModelRequest(self.model.name, identity, budget, options), ANN)[0]

    def run(self, claim: Claim, cluster: str = "", max_bytes: int | None = None, memory: int | None = None) -> End:
        store, work = Store(self.folder / "store", self.world.catalog, max_bytes), self.folder / "work"
        return Stages(self.world.queue, claim, store, self.roots, work, "here", cluster, memory=memory).run()

    def files(self, artifact: str) -> dict[str, Path]:
        store = Store(self.folder / "store", self.world.catalog)
        return {file.name: store.path(file.digest) for file in self.world.catalog.get(artifact).files}


@pytest.fixture
def lab(tmp_path: Path, llama: Path) -> Iterator[Lab]:
    with closing(connect(f"sqlite:///{tmp_path / 'service.db'}")) as database:
        yield Lab(tmp_path, shutil.copytree(llama, tmp_path / "models" / "llama"), World(database))


def test_a_tokenizer_that_needs_its_own_code_is_said_at_the_start_and_its_code_never_run(
    lab: Lab, tmp_path: Path
) -> None:
    lab.submit()
    lab.run(lab.world.claim())
    (lab.model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (lab.model / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    config = json.loads((lab.model / "config.json").read_text())
    (lab.model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil"}}))
    job = lab.submit()
    lab.run(lab.world.claim())
    notes = [event.body["message"] for event in lab.world.queue.events(job.id) if event.kind == "note"]
    assert any("not run here" in note and "--trust-remote-code" in note for note in notes)
    assert not (tmp_path / "ran").exists()


def test_progress_becomes_at_most_two_events_a_second_and_the_ends_of_stages_always() -> None:
    events: list[tuple[float, dict[str, Any]]] = []
    now = 0.0
    progress = ProgressEvents(lambda kind, body: events.append((now, dict(body))), "here", lambda: now)
    for stage in ("analyze", "assemble"):
        for done in range(101):
            progress.on_progress(Progress(stage, done, 100, f"unit {done}"))
            now += 0.03
    for stage in ("analyze", "assemble"):
        mine = [(moment, body) for moment, body in events if body["stage"] == stage]
        assert [body["done"] for _, body in mine][:: len(mine) - 1] == [0, 100]
        times = [moment for moment, _ in mine[:-1]]
        assert all(later - earlier >= EVERY_SECONDS for earlier, later in itertools.pairwise(times))


def test_a_counting_executor_still_names_all_kinds_that_it_measures_on() -> None:
    counting = ProgressEvents(lambda kind, body: None, "here").counting(_two_kinds({"unit": "node"}))
    assert measuring_device(counting) == _BOTH
    assert counting.made_by == {"unit": "node"}


def _offer(monkeypatch: pytest.MonkeyPatch, executor: Executor) -> None:
    """Install a cluster whose work `executor` does."""

    class Offer:
        def load(self) -> object:
            @contextmanager
            def opened(
                address: str, model: Path, dtype: str, loader: str, **_: object
            ) -> Iterator[tuple[Path, Executor]]:
                yield model, executor

            return opened

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: (Offer(),))


def test_models_get_no_more_memory_than_the_job() -> None:
    executor = FunctionExecutor(in_process, model_memory=3 * PROCESSES_BYTES)
    events = ProgressEvents(lambda kind, body: None, "here")
    limits = (None, 5 * PROCESSES_BYTES, 2 * PROCESSES_BYTES, 1)
    memories = [events.counting(executor, limit).model_memory for limit in limits]
    assert memories == [3 * PROCESSES_BYTES, 3 * PROCESSES_BYTES, PROCESSES_BYTES, 0]


def test_an_analysis_of_a_mixed_cluster_bears_the_names_of_all_kinds_and_is_cached_under_them(
    tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(lab.model)
    alone = analyze(source, tmp_path / "alone.mint")
    _offer(monkeypatch, _two_kinds(dict.fromkeys(alone.measurements, "node")))
    job = lab.submit(probe=True)
    stored = lab.files(lab.run(lab.world.claim(), "10.0.0.1").artifact)
    events = lab.world.queue.events(job.id)
    path = cached_analysis(source, device=_BOTH)
    analysis = read_analysis(path)
    assert analysis.device == _BOTH
    assert analysis.measurements == {path: rounded(measurement) for path, measurement in alone.measurements.items()}
    assert not cached_analysis(source).exists(), "one kind alone measured nothing"
    assert {name: file.read_bytes() for name, file in stored.items()} == {
        "analysis.mint": path.read_bytes(),
        "analysis.mint.probe": probe_path(path).read_bytes(),
    }
    hosts = {host["host"] for event in events if event.kind == "progress" for host in event.body["hosts"]}
    assert hosts == {"node"}


def test_a_job_whose_cluster_grows_between_two_attempts_makes_its_plan_from_the_new_analysis(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.submit("5bpw")
    claim = lab.world.claim()
    with pytest.raises(MintError, match="the service stores at most 10 B"):  # after its plan
        lab.run(claim, max_bytes=10)
    lab.world.queue.release(claim, "")
    _offer(monkeypatch, _two_kinds({}))
    end = lab.run(lab.world.claim(), "10.0.0.1")
    plan = read_plan(lab.files(end.artifact)[PLAN_NAME])
    analysis = read_analysis(lab.files(str(end.result["analysis"]))["analysis.mint"])
    assert (plan.analysis, plan.device) == (analysis.digest, _BOTH)


def test_a_job_that_must_yield_stops_after_a_unit_and_measures_and_writes_nothing_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: dict[str, list[int]] = {"analyze": [], "assemble": []}
    must_yield = threading.Event()
    original = ProgressEvents.on_progress

    def observed(events: ProgressEvents, progress: Progress) -> None:
        original(events, progress)
        if progress.stage in done and progress.item:
            done[progress.stage].append(progress.done)
            must_yield.set()

    monkeypatch.setattr(ProgressEvents, "on_progress", observed)
    job, store = lab.submit("5bpw"), Store(lab.folder / "store", lab.world.catalog)
    pauses = 0
    while True:
        must_yield.clear()
        claim = lab.world.claim()
        try:
            stages = Stages(
                lab.world.queue, claim, store, lab.roots, lab.folder / "work", "here", must_yield=must_yield
            )
            end = stages.run()
            break
        except YieldedError as error:
            lab.world.queue.release(claim, str(error))
            pauses += 1
    units = len(open_source(lab.model).units)
    assert pauses == 2 * units, "one stop after each unit measured and each written"
    for stage in done.values():
        assert len(stage) == len(set(stage)) == units and stage == sorted(stage)
    assert lab.world.queue.get(job.id).attempts == 1
    assert not [name for name in lab.files(end.artifact) if name.endswith(".tmp")]


_BOTH = joined_kinds([device_kind(), "gpu Other"])


def _two_kinds(made_by: dict[str, str]) -> Executor:
    return FunctionExecutor(in_process, (device_kind(), "gpu Other"), made_by)
