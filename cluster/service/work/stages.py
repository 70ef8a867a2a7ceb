"""The stages of a job: mint's own pipeline, with what the service does between its stages.

An analysis lies in the cache by the identity of its model, with its journal; the plan, the half-written model and the
whole one lie in the job's folder. So a runner that is killed at any moment costs at most the unit that it worked on.
"""

import json
import math
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.service.data.records import Claim
from cluster.service.data.states import ANALYZING, ASSEMBLING, PROBING, SOLVING, VERIFYING
from cluster.service.errors import DatabaseUnavailableError, NotFoundError, YieldedError
from cluster.service.queue.queue import Queue
from cluster.service.request_options import budget_of, recipe_of
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import OUTPUT, Store, reserve_space, written_bytes
from cluster.service.work.folder_lock import in_turn
from cluster.service.work.lease import retry_while_leased
from cluster.service.work.progress_events import ProgressEvents
from mint import pipeline
from mint.analysis.cached import cached_analysis
from mint.assembly.reuse import Reuse
from mint.assembly.stock_child import stock
from mint.core.errors import MintError
from mint.core.files import sha256_of
from mint.core.log import log
from mint.core.progress import Progress
from mint.core.sizes import enough_size, format_size
from mint.formats.rounding import ROUNDINGS
from mint.model.checkpoint.manifest import Manifest
from mint.model.source import open_source
from mint.pipeline import Measured, Quantized, Target
from mint.plan.plan import Plan
from mint.render.plans import quantized_record
from mint.run.device_kind import device_kind, versions
from mint.run.executor import executing, measuring_device

_REUSED = 4  # earlier results of the model are looked into, the last made first
_REUSED_FOLDER = "earlier"
_MARGIN_BYTES = 1 << 20  # of config, card, plan and manifest
_SAVED = (pipeline.ANALYZE, pipeline.PROBE, pipeline.ASSEMBLE)  # stages that save each unit
_NOT_IN_RESULT = ("output", "analysis")  # paths on this machine
_STATES = {
    pipeline.ANALYZE: ANALYZING,
    pipeline.PROBE: PROBING,
    pipeline.ALLOCATE: SOLVING,
    pipeline.ASSEMBLE: ASSEMBLING,
    pipeline.VERIFY: VERIFYING,
}


@dataclass(frozen=True, slots=True)
class End:
    """The artifact of a job that is done, by its digest, and the figures of the result."""

    artifact: str
    result: Mapping[str, Any]


@dataclass
class Stages(pipeline.Hooks):
    """The work on one claimed job. `work` is the job's folder, `host` this machine, `cluster` the address of a Ray.

    `memory` limits its processes together, in bytes: models that need more are not probed unless someone asks for it.
    """

    queue: Queue
    claim: Claim
    store: Store
    roots: Roots
    work: Path
    host: str
    cluster: str = ""
    must_yield: threading.Event = field(default_factory=threading.Event)
    memory: int | None = None

    def run(self) -> End:
        """Do all that is left to do. Raises `MintError` for what fails the job, `DiskFullError` if it must wait."""
        request = self.claim.job.request
        budget = budget_of(request.budget, request.options) if request.budget else None
        self._recipe = recipe = recipe_of(budget, request.options)
        if budget:
            stock()  # imports mlx_lm while this process works
        self._events = events = ProgressEvents(self._emit, self.host)
        model = self._identified()
        with ExitStack() as self._nodes:
            nodes = executing(self.cluster, model, **recipe.opening, on_note=self._note)
            view, executor = self._nodes.enter_context(nodes)
            self._executor = events.counting(executor, self.memory)
            self._source = open_source(view, **recipe.opening)
            self._insist_on(self._source.identity)
            self._folder = self._make_folder()
            work: dict[str, Any] = {"hooks": self, "on_progress": self._on_progress, "on_note": self._note}
            line = pipeline.Pipeline(recipe, executor=self._executor, may_probe=True, **work)
            targets = [Target(self._folder / OUTPUT, budget, self._folder / "plan.json")] if budget else []
            results = line.run(self._source, targets)
        result = results[0] if results else None
        seconds = result.seconds if result else self._measured.seconds
        figures = {
            **(_figures(result) if result else {}),
            "analysis": self._analysis.digest,
            "seconds": round(sum(seconds.values()), 3),
            "stage_seconds": {_STATES[name]: duration for name, duration in seconds.items()},
        }
        return End((self._model if result else self._analysis).digest, figures)

    def _make_folder(self) -> Path:
        """The folder of these versions on these devices; attempts of others cannot be resumed."""
        made_by = json.dumps([device_kind(), measuring_device(self._executor), versions()], sort_keys=True)
        folder = self.work / sha256_of([made_by.encode()])[:12]
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # the model

    def _identified(self) -> Path:
        path, identity = self.roots.identify(self.claim.job.request.model)
        self._insist_on(identity)
        return path

    def _insist_on(self, identity: str) -> None:
        request = self.claim.job.request
        if identity != request.identity:
            raise MintError(
                f"the model {request.model} has changed since it was submitted (found identity {identity[:12]}, needed "
                f"{request.identity[:12]}); submit it again, or put its files back"
            )

    # between the stages

    @contextmanager
    def stage(self, name: str, plan: Plan | None = None) -> Iterator[None]:
        """Tells the queue; takes room for what is assembled; probes of one model are made one after the other."""
        if name == pipeline.VERIFY:
            self._nodes.close()  # the other machines are free from here on
        needed = plan.planned_bytes + _copied_bytes(self._source.folder) + _MARGIN_BYTES if plan else 0
        retry_while_leased(self.queue.advance, self.claim, _STATES[name], needed_bytes=needed)
        if needed:
            self._need_room(needed)
        analysis = cached_analysis(self._source, device=measuring_device(self._executor))
        with in_turn(analysis.with_name(analysis.name + ".turn")) if name == pipeline.PROBE else nullcontext():
            yield

    def measured(self, measured: Measured) -> None:
        """Puts the analysis, and the probes if there are any, where they can be downloaded."""
        files = {"analysis.mint": measured.path}
        if measured.probes.exists():
            files["analysis.mint.probe"] = measured.probes
        self._measured = measured
        self._analysis = self.store.put("analysis", self.claim.job.request.identity, files)

    def earlier(self) -> Sequence[Path]:
        """Folders with earlier results of the model, as views that stay whole whatever is evicted."""
        reused = self._folder / _REUSED_FOLDER
        shutil.rmtree(reused, ignore_errors=True)
        if ROUNDINGS[self._recipe.rounding].sequential:
            return ()
        folders = []
        for artifact in self.store.catalog.find(kind="model", identity=self.claim.job.request.identity, limit=_REUSED):
            folder = reused / artifact.digest[:16]
            try:
                self.store.link_out(artifact, folder)
            except NotFoundError:
                continue  # it was evicted just now
            folders.append(folder)
        return folders

    def assembled(self, reuse: Reuse) -> None:
        """Notes what was copied, and drops the views."""
        if reuse.units:
            self._note(f"{reuse.units} units ({format_size(reuse.nbytes)}) were taken from earlier results")
        shutil.rmtree(self._folder / _REUSED_FOLDER, ignore_errors=True)

    def verified(self, output: Path, manifest: Manifest) -> None:
        """Puts the model into the store."""
        self._identified()  # it may have changed meanwhile
        files = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
        identity, holder = self.claim.job.request.identity, self.claim.holder
        self._model = self.store.put("model", identity, files, manifest.files, holder=holder)

    def _need_room(self, needed: int) -> None:
        limit = self.store.max_bytes
        if limit is not None and needed > limit:
            raise MintError(
                f"the result takes {enough_size(needed)}, the service stores at most {format_size(limit)}; needed a "
                "smaller budget, or a service with another --max-store"
            )
        written = written_bytes(self._folder)
        reserve_space(self.queue, self.claim, self.store, needed, self.work, written=written)

    # events

    def _on_progress(self, progress: Progress) -> None:
        """Emit progress; raises `YieldedError` after a unit, whose result is saved, if the job must yield.

        So every turn of a job brings it on by a unit at least, however long its start takes.
        """
        self._events.on_progress(progress)
        if self.must_yield.is_set() and progress.stage in _SAVED and progress.item:
            raise YieldedError("it stopped after a unit, and resumes")

    def _emit(self, kind: str, body: Mapping[str, Any]) -> None:
        try:
            self.queue.emit(self.claim, kind, body)
        except DatabaseUnavailableError as error:  # a figure is lost; the lease keeper decides whether to go on
            log.warning("event.not_written", reason=str(error))

    def _note(self, text: str) -> None:
        self._emit("note", {"message": text})


def _figures(result: Quantized) -> dict[str, Any]:
    record = {name: value for name, value in quantized_record(result).items() if name not in _NOT_IN_RESULT}
    return {**_finite(record), "reused_units": result.reused_units}


def _finite(value: Any) -> Any:
    """The same without infinities and NaN, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _copied_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.suffix != ".safetensors")
