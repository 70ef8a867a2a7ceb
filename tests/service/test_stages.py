"""What the stages of a job refuse and tell, without a runner."""

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.data.records import Person, Wish
from cluster.service.queue.queue import Queue
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import Store
from cluster.service.work.progress_events import EVERY_SECONDS, ProgressEvents
from cluster.service.work.stages import Stages, _refuse_tokenizer_code
from mint.analysis.analysis import read_analysis
from mint.analysis.analyze import analyze
from mint.analysis.cross_device import rounded
from mint.analysis.probes.probe_file import probe_path
from mint.core.errors import MintError
from mint.core.progress import Progress
from mint.model.source import open_source
from mint.pipeline import cached_analysis
from mint.run.device_kind import device_kind, joined_kinds
from mint.run.executor import Executor, in_process, measuring_device
from tests.worlds.executors import FunctionExecutor


def test_a_tokenizer_that_needs_its_own_code_is_refused_and_its_code_never_run(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    _refuse_tokenizer_code(folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil"}}))
    with pytest.raises(MintError, match="never run"):
        _refuse_tokenizer_code(folder)
    assert not (tmp_path / "ran").exists()


def test_progress_is_told_at_most_twice_a_second_and_the_ends_of_stages_always() -> None:
    told: list[tuple[float, dict[str, Any]]] = []
    now = 0.0
    telling = ProgressEvents(lambda kind, body: told.append((now, dict(body))), "here", lambda: now)
    for stage in ("analyze", "assemble"):
        for done in range(101):
            telling.on_progress(Progress(stage, done, 100, f"unit {done}"))
            now += 0.03
    for stage in ("analyze", "assemble"):
        mine = [(moment, body) for moment, body in told if body["stage"] == stage]
        assert [body["done"] for _, body in mine][:: len(mine) - 1] == [0, 100]
        times = [moment for moment, _ in mine[:-1]]
        assert all(later - earlier >= EVERY_SECONDS for earlier, later in itertools.pairwise(times))


def test_a_heard_executor_still_names_all_kinds_that_it_measures_on() -> None:
    heard = ProgressEvents(lambda kind, body: None, "here").counting(_two_kinds({"unit": "node"}))
    assert measuring_device(heard) == _BOTH
    assert heard.made_by == {"unit": "node"}


def test_an_analysis_of_a_mixed_cluster_bears_the_names_of_all_kinds_and_is_cached_under_them(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(llama)
    alone = analyze(source, tmp_path / "alone.mint")
    executor = _two_kinds(dict.fromkeys(alone.measurements, "node"))

    class Offer:
        def load(self) -> object:
            @contextmanager
            def place(address: str, model: Path, dtype: str, **_: object) -> Iterator[tuple[Path, Executor]]:
                yield model, executor

            return place

    monkeypatch.setattr("mint.run.executors.entry_points", lambda group: (Offer(),))
    with closing(connect(f"sqlite:///{tmp_path / 'service.db'}")) as database:
        queue, catalog = Queue(database), Catalog(database)
        roots, store = Roots([llama.parent], catalog), Store(tmp_path / "store", catalog)
        identity = roots.identify(llama.name)[1]
        queue.submit(Wish(llama.name, identity, "", {"probe": True}), Person("ann", ("submit",)))
        claim = queue.claim("here")
        assert claim is not None
        end = Stages(queue, claim, store, roots, tmp_path / "work", "here", cluster="10.0.0.1").run()
        stored = {file.name: store.path(file.digest) for file in catalog.get(end.artifact).files}
        events = queue.events(claim.job.id)
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


_BOTH = joined_kinds([device_kind(), "gpu Other"])


def _two_kinds(made_by: dict[str, str]) -> Executor:
    return FunctionExecutor(in_process, (device_kind(), "gpu Other"), made_by)
