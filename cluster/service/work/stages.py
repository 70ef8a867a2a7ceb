"""The stages of a job, from mint's own verbs: every one begins with what earlier runners of the job, or others, left.

An analysis lies in the cache by the identity of its model, with its journal; the plan, the half-written model and the
whole one lie in the job's folder. So a runner that is killed at any moment costs at most the unit that it was at.
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.service.data.records import Artifact, Claim
from cluster.service.data.states import ANALYZING, ASSEMBLING, DONE, PROBING, SOLVING, VERIFYING
from cluster.service.errors import DatabaseUnavailableError, NotFoundError
from cluster.service.queue.queue import Queue
from cluster.service.recipe_of_wish import budget_bytes_of, option, problem_of
from cluster.service.store.model_roots import Roots
from cluster.service.store.reservation import OUTPUT, holder_of, reserve_space, written_bytes
from cluster.service.store.store import Store
from cluster.service.work.folder_lock import in_turn
from cluster.service.work.lease import retry_while_leased
from cluster.service.work.progress_events import Telling
from mint.analysis.analysis import Analysis
from mint.analysis.analyze import analyze
from mint.analysis.probes.probe import probe
from mint.analysis.probes.probe_file import Probed, probe_path, probes_beside
from mint.analysis.probes.prober import Probing
from mint.assembly.assemble import assemble
from mint.assembly.reuse import Reuse
from mint.assembly.stock_child import stock
from mint.assembly.verify import Verification, verify
from mint.cli.json_records import quantized_record
from mint.core.errors import MintError
from mint.core.log import log
from mint.core.memory import peak_rss_bytes
from mint.core.sizes import format_size
from mint.formats.rounding import ROUNDINGS
from mint.model.checkpoint.manifest import Manifest, read_manifest
from mint.model.module_tree import has_tokenizer, read_tokenizer
from mint.model.source import Source, open_source
from mint.pipeline import Quantized, cached_analysis
from mint.plan.plan import Plan, read_plan, write_plan
from mint.run.device_kind import device_kind, versions
from mint.run.executor import Executor, measuring_device
from mint.run.executors import executing

_REUSED = 4  # earlier results of the model are looked into, the last made first
_MARGIN_BYTES = 1 << 20  # of config, card, plan and manifest
_MAY_NAME_CODE = ("tokenizer_config.json", "config.json")
_NOT_IN_RESULT = ("output", "analysis")  # paths on this machine


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended: its last state, and what it made."""

    artifact: str
    result: Mapping[str, Any]
    state: str = DONE


@dataclass
class Stages:
    """The work on one claimed job. `work` is the job's folder, `host` this machine, `cluster` the address of a Ray."""

    queue: Queue
    claim: Claim
    store: Store
    roots: Roots
    work: Path
    host: str
    cluster: str = ""
    _seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> End:
        """Do all that is left to do. Raises `MintError` for what fails the job, `DiskFullError` if it must wait."""
        wish = self.claim.job.wish
        self._telling = Telling(self._tell, self.host)
        if wish.budget:
            stock()  # imports mlx_lm while this process works
        folder = self._identified()
        self.work.mkdir(parents=True, exist_ok=True)
        dtype = self._option("dtype")
        with executing(self.cluster, folder, dtype, on_note=self._note) as (view, executor):
            source = open_source(view, dtype=dtype)
            self._insist_on(source.identity)
            _refuse_tokenizer_code(folder)
            executor = self._telling.heard(executor)
            analysis, probed, path = self._measured(source, executor)
            measured = self._store_analysis(
                path, probe_path(cached_analysis(source, device=measuring_device(executor)))
            )
            if not wish.budget:
                return End(measured.digest, {"analysis": measured.digest, **self._took()})
            plan = self._planned(analysis, probed)
            manifest, reuse = self._assembled(plan, source, executor)
        output = self._output
        with self._stage(VERIFYING):
            verification = verify(output, on_progress=self._telling.on_progress)
            _insist(verification)
            self._identified()  # it may have changed meanwhile
            files = {each.name: each for each in output.iterdir()}
            made = self.store.put("model", wish.identity, files, manifest.files, holder=holder_of(self.claim))
        peak = peak_rss_bytes() + verification.peak_rss_bytes
        done = Quantized(output, path, plan, manifest, verification, reuse.nbytes, self._seconds, peak)
        record = {name: value for name, value in quantized_record(done).items() if name not in _NOT_IN_RESULT}
        return End(
            made.digest, {**_finite(record), "reused_units": reuse.units, "analysis": measured.digest, **self._took()}
        )

    # the model

    def _identified(self) -> Path:
        path, identity = self.roots.identify(self.claim.job.wish.model)
        self._insist_on(identity)
        return path

    def _insist_on(self, identity: str) -> None:
        wish = self.claim.job.wish
        if identity != wish.identity:
            raise MintError(
                f"the model {wish.model} has changed since it was submitted (found identity {identity[:12]}, needed "
                f"{wish.identity[:12]}); submit it again, or put its files back"
            )

    # the stages

    def _measured(self, source: Source, executor: Executor) -> tuple[Analysis, Probed | None, Path]:
        rounding, told = self._option("rounding"), self._telling.on_progress
        device = measuring_device(executor)
        path = cached_analysis(source, rounding, device=device)
        with self._stage(ANALYZING):
            analysis = analyze(source, path, rounding=rounding, executor=executor, on_progress=told)
        beside = cached_analysis(source, device=device)  # whatever the rounding
        if not self._option("probe"):
            return analysis, probes_beside(beside), path
        with self._stage(PROBING), in_turn(beside.with_name(beside.name + ".turn")):
            found = probe(source, analysis, probe_path(beside), probing=Probing(), executor=executor, on_progress=told)
        return analysis, found, path

    def _store_analysis(self, path: Path, probes: Path) -> Artifact:
        """Put the analysis, and the probes if there are any, where they can be downloaded."""
        files = {"analysis.mint": path}
        if probes.exists():
            files["analysis.mint.probe"] = probes
        return self.store.put("analysis", self.claim.job.wish.identity, files)

    def _planned(self, analysis: Analysis, probed: Probed | None) -> Plan:
        """The plan of the first attempt, if there was one: what is half written was written by it."""
        wish = self.claim.job.wish
        with self._stage(SOLVING):
            file = self._folder / "plan.json"
            if file.exists():
                return read_plan(file)
            problem = problem_of(wish.options, analysis, probed)
            plan = problem.plan(budget_bytes_of(wish.budget, wish.options, problem))
            write_plan(plan, file)
            return plan

    def _assembled(self, plan: Plan, source: Source, executor: Executor) -> tuple[Manifest, Reuse]:
        needed = plan.planned_bytes + _copied_bytes(source.folder) + _MARGIN_BYTES
        with self._stage(ASSEMBLING, needed_bytes=needed):
            self._need_room(needed)
            if self._output.exists():  # whole, by an earlier runner
                return read_manifest(self._output), Reuse()
            reuse = Reuse(self._earlier() if ROUNDINGS[plan.rounding].is_reusable else [])
            manifest = assemble(
                plan, source, self._output, reuse=reuse, executor=executor, on_progress=self._telling.on_progress
            )
            if reuse.units:
                text = f"{reuse.units} units ({format_size(reuse.nbytes)}) were taken from earlier results"
                self._note(text)
            shutil.rmtree(self._reused, ignore_errors=True)
            return manifest, reuse

    def _need_room(self, needed: int) -> None:
        limit = self.store.max_bytes
        if limit is not None and needed > limit:
            raise MintError(
                f"the result takes {format_size(needed)}, the service stores at most {format_size(limit)}; needed a "
                "smaller budget, or a service with another --max-store"
            )
        written = written_bytes(self._folder)
        reserve_space(self.queue, self.claim, self.store, needed, self.work, written=written)

    def _earlier(self) -> list[Path]:
        """Folders with earlier results of the model, as views that stay whole whatever is evicted."""
        shutil.rmtree(self._reused, ignore_errors=True)
        found = []
        for artifact in self.store.ledger.find(kind="model", identity=self.claim.job.wish.identity, limit=_REUSED):
            folder = self._reused / artifact.digest[:16]
            try:
                self.store.link_out(artifact, folder)
            except NotFoundError:
                continue  # it made room for others just now
            found.append(folder)
        return found

    # where things lie

    @property
    def _folder(self) -> Path:
        """What was begun by these versions on this device: what others began cannot be gone on with."""
        made_by = json.dumps([device_kind(), versions()], sort_keys=True)
        folder = self.work / hashlib.sha256(made_by.encode()).hexdigest()[:12]
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def _output(self) -> Path:
        return self._folder / OUTPUT

    @property
    def _reused(self) -> Path:
        return self._folder / "earlier"

    # telling

    def _tell(self, kind: str, body: Mapping[str, Any]) -> None:
        try:
            self.queue.emit(self.claim, kind, body)
        except (
            DatabaseUnavailableError
        ) as error:  # what is lost is a figure; whether to go on without a database, the keeper decides
            log.warning("event.not_written", reason=str(error))

    def _note(self, text: str) -> None:
        self._tell("note", {"message": text})

    def _option(self, name: str) -> Any:
        return option(self.claim.job.wish.options, name)

    @contextmanager
    def _stage(self, state: str, needed_bytes: int | None = None) -> Iterator[None]:
        retry_while_leased(lambda: self.queue.advance(self.claim, state, needed_bytes=needed_bytes))
        started = time.perf_counter()
        yield
        self._seconds[state] = round(time.perf_counter() - started, 3)

    def _took(self) -> dict[str, Any]:
        return {"seconds": round(sum(self._seconds.values()), 3), "stage_seconds": dict(self._seconds)}


def _finite(value: Any) -> Any:
    """The same without infinities and NaN, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _copied_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.suffix != ".safetensors")


def _insist(verification: Verification) -> None:
    if not verification.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in verification.checks if not check.passed)
        raise MintError(f"the model was written, but fails its verification ({failed}); please report this")


def _refuse_tokenizer_code(folder: Path) -> None:
    """Raise `MintError` for a tokenizer that cannot be loaded without running code that the model brings."""
    if not has_tokenizer(folder):
        return
    named = [json.loads(file.read_text()) for file in map(folder.joinpath, _MAY_NAME_CODE) if file.exists()]
    if not any(isinstance(each, dict) and "auto_map" in each for each in named):
        return
    try:
        read_tokenizer(folder)
    except Exception as error:  # whatever transformers raises
        raise MintError(
            f"{folder.name}: its tokenizer brings its own code, which is never run, and does not load without "
            f"({' '.join(str(error).split())[:200]}); needed: a tokenizer that transformers itself implements"
        ) from error
