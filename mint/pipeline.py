"""The one pipeline: analyze, probe, allocate, assemble, verify.

Python, the command line and the service run it. A caller's steps between the stages, such as leases, storing and
checks, stand in its `Hooks`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint.analysis.analysis import MAGIC, Analysis, read_analysis
from mint.analysis.analysis_name import write_name
from mint.analysis.analyze import analyze
from mint.analysis.cached import cached_analysis
from mint.analysis.probes.probe import probe, unasked
from mint.analysis.probes.probe_file import Probed, probe_path, probes_beside
from mint.analysis.probes.prober import Probing
from mint.assembly.assemble import drafted
from mint.assembly.draft import is_finished, read_finished, refuse_foreign
from mint.assembly.early_checks import check_request, keeps_all
from mint.assembly.reuse import Reuse
from mint.assembly.stock_child import stock
from mint.assembly.verify import Verification, verify
from mint.core.errors import MintError
from mint.core.files import begins_with, move_aside
from mint.core.log import log
from mint.core.memory import PROCESSES_BYTES, peak_rss_bytes
from mint.core.progress import OnNote, OnProgress, ignore, say_nothing
from mint.core.sizes import format_size
from mint.exports.source_card import read_source_card
from mint.kernels.ready import begin_kernels
from mint.kernels.warmup import MEASURE, WRITE
from mint.model.checkpoint.manifest import Manifest
from mint.model.module_tree import has_own_code, tokenizer_fault
from mint.model.remote.headers import missing_bytes
from mint.model.source import Source, open_source
from mint.plan.allocate import allocate_all
from mint.plan.plan import Plan, read_plan, write_plan
from mint.plan.problem import Problem
from mint.plan.recipe import Budget, Recipe
from mint.run.executor import Executor, in_process, measuring_device
from mint.run.low_disk import Streamed, check_streamable, streaming

if TYPE_CHECKING:
    from mint.forecast.forecast import Forecast

ANALYZE, PROBE, ALLOCATE, ASSEMBLE, VERIFY = "analyze", "probe", "allocate", "assemble", "verify"  # the stages
OnForecast = Callable[["Forecast"], object]


@dataclass(frozen=True, slots=True)
class Target:
    """A folder to write and its budget.

    `plan` is the file of the plan, for callers that resume earlier attempts: an existing plan is used again. An
    existing output that is the finished model of the plan is verified, not written again; any other one is refused.
    """

    output: Path
    budget: Budget
    plan: Path | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of a model, their files (`probes` need not exist), and the seconds of the stages."""

    analysis: Analysis
    probed: Probed | None
    path: Path
    probes: Path
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Quantized:
    """Result of one target: the folder, its plan, its checks, and the time and memory used."""

    output: Path
    analysis: Path
    plan: Plan
    manifest: Manifest
    verification: Verification
    reused_units: int
    reused_bytes: int
    notices: tuple[str, ...]  # about the source
    seconds: dict[str, float]
    peak_rss_bytes: int

    def __repr__(self) -> str:
        kl = f", KL {self.manifest.closeness['kl']['value']:.2g} measured" if self.manifest.closeness else ""
        size = format_size(self.manifest.weight_bytes)
        return f"<Quantized {self.output}: {size}, {self.plan.bits_per_weight:.2f} bits per weight{kl}>"


class Hooks:
    """The steps of a caller between the stages; these do nothing."""

    def stage(self, name: str, plan: Plan | None = None) -> AbstractContextManager[None]:
        """Surrounds a stage; `plan` is the one to assemble."""
        return nullcontext()

    def measured(self, measured: Measured) -> None:
        """Follows the analysis and the probes."""

    def earlier(self) -> Sequence[Path]:
        """More folders to copy units from; called within the stage, before each model is assembled."""
        return ()

    def assembled(self, reuse: Reuse) -> None:
        """Follows each model, within its stage."""

    def verified(self, output: Path, manifest: Manifest) -> None:
        """Follows each successful verification, within its stage."""


def quantize(
    model: Path | str,
    budget: int | str | Budget,
    output: Path | str,
    recipe: Recipe = Recipe(),  # noqa: B008, it is frozen
    *,
    analysis: Path | str | None = None,
    probing: Probing = Probing(),  # noqa: B008, it is frozen
    keep_nonfinite: bool = False,
    reuse: Sequence[Path | str] = (),
    executor: Executor = in_process,
    on_progress: OnProgress = ignore,
    force: bool = False,
    on_note: OnNote = say_nothing,
    memory: int | None = None,
    on_forecast: OnForecast | None = None,
    low_disk: bool = False,
) -> Quantized:
    """Write the best MLX model of `model` whose weight files take at most `budget` to the new folder `output`.

    `model` is a folder, or as a `str` an id of the Hugging Face hub, which is downloaded if need be.
    The analysis is kept (in the user's cache, or in `analysis`), so another budget costs no measuring. With
    `recipe.probe`, and where a rounding runs the model anyway and `probing` fits this machine, the sensitivities are
    measured too; later calls use them. `recipe.ignore_probe` leaves them out. Units that a folder of
    `reuse` holds in the planned format are copied. `on_forecast` gets the expected time, memory and disk before
    anything long begins. With `low_disk` the weights of a model of the hub are downloaded when they are needed, and the
    disk holds one shard of them (`mint/run/low_disk.py`). Killed at any point, the same call resumes. Raises
    `MintError` for everything that the user can fix, also if the work cannot keep to `memory` bytes. The model is
    verified before `output` appears; one that fails its verification raises too, and stays for inspection as
    `output`.partial.
    """
    work: dict[str, Any] = {"on_progress": on_progress, "on_note": on_note}
    with ExitStack() as stack:
        opened: Source | Path | str = model
        if low_disk:
            check_streamable(recipe.rounding, probe=recipe.probe, is_cluster=executor is not in_process)
            opened, executor = stack.enter_context(streaming(model, **recipe.opening, **work))
        pipeline = Pipeline(
            recipe, analysis, keep_nonfinite, reuse, executor, probing=probing, force=force, memory=memory,
            on_forecast=on_forecast, may_probe=True, **work,
        )  # fmt: skip
        (result,) = pipeline.run(opened, [Target(Path(output), Budget.of(budget))])
    return result


@dataclass(slots=True)
class Pipeline:
    """The stages from a model to the results of all targets, with their seconds; for one run. Options: `quantize`."""

    recipe: Recipe
    analysis: Path | str | None = None
    keep_nonfinite: bool = False
    reuse: Sequence[Path | str] = ()
    executor: Executor = in_process
    on_progress: OnProgress = ignore
    probing: Probing = Probing()  # noqa: RUF009, it is frozen
    force: bool = False
    on_note: OnNote = say_nothing
    memory: int | None = None  # bytes, for all processes together; by default those of this machine
    on_forecast: OnForecast | None = None
    may_probe: bool = False  # where the model runs anyway and fits; the default sensitivities suit few models
    hooks: Hooks = field(default_factory=Hooks)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, model: Source | Path | str, targets: Sequence[Target]) -> list[Quantized]:
        """Write one model per target from one analysis; without targets, only measure.

        All plans are made before anything is written. Later targets copy what earlier ones hold in the same format.
        """
        self._refuse(targets)
        if targets:
            stock()  # starts while this process analyzes
        source, sizes = self._opened(model, targets)
        if self.on_forecast:
            self.on_forecast(self._forecast(source, targets, sizes))
        measured = self._measure(source, sizes)
        plans = self._plans(targets, measured) if targets else []
        for target, plan in zip(targets, plans, strict=True):
            self._refuse([target], model=source.identity, plan=plan.digest)
            if self.force and (old := move_aside(target.output)):
                self.on_note(f"{target.output} is now {old}")
        folders = [Path(folder) for folder in self.reuse]
        results = []
        for target, plan in zip(targets, plans, strict=True):
            results.append(self._write(source, target, plan, measured.path, folders))
            folders.append(target.output)
        return results

    def foresee(self, model: Source | Path | str, targets: Sequence[Target]) -> "Forecast":
        """The forecast for `run`, after all checks that need no long work; notes tell of outputs that `run` refuses."""
        source, sizes = replace(self, force=True)._opened(model, targets)
        return self._forecast(source, targets, sizes)

    def _opened(self, model: Source | Path | str, targets: Sequence[Target]) -> tuple[Source, list[int]]:
        """The opened model and the bytes of each target at most; `MintError` for what must fail."""
        Reuse(self.reuse)  # refuses folders that mint did not write
        source = model
        if not isinstance(source, Source):
            source = open_source(source, **self.recipe.opening, on_progress=self.on_progress)
        for notice in source.notices:
            self.on_note(notice)
        self._refuse(targets, model=source.identity)
        budgets, outputs = [target.budget for target in targets], [target.output for target in targets]
        sizes = check_request(
            source, self.recipe, budgets, outputs, [self._analysis_path(source)],
            problem=self._known_problem(source), on_note=self.on_note,
        )  # fmt: skip
        if self.memory is not None:
            from mint.forecast.memory import check_memory

            check_memory(source, self.recipe.rounding, self.memory)
        if has_own_code(source.folder) and (fault := tokenizer_fault(source.folder)):
            self.on_note(f"{source.folder.name}: {fault}")
        return source, sizes

    def _known_problem(self, source: Source) -> Problem | None:
        """The choices of the model, if earlier runs measured all that decides them."""
        path, beside = self._analysis_path(source), self._probes_path(source)
        if not (path.is_file() and begins_with(path, MAGIC)) or self._missing_probes(source):
            return None
        analysis = read_analysis(path)
        is_of_source = (analysis.model, analysis.dtype) == (source.identity, source.dtype)
        return self.recipe.problem(analysis, probes_beside(beside)) if is_of_source else None

    def _forecast(self, source: Source, targets: Sequence[Target], sizes: Sequence[int]) -> "Forecast":
        probing = self._missing_probes(source) if self.recipe.probe or self._rounds(source, sizes) else None
        from mint.forecast.forecast import forecast

        analysis = self._analysis_path(source)
        streamed = self.executor if isinstance(self.executor, Streamed) else None
        streamed_bytes = streamed.disk_bytes if streamed else 0
        passes = 1 if analysis.exists() else 2  # to measure, and to write
        download_bytes = passes * streamed.model_bytes if streamed else missing_bytes(source)
        are_finished = [not self.force and is_finished(t.output, self.on_note, model=source.identity) for t in targets]
        new = [size for size, is_finished in zip(sizes, are_finished, strict=True) if not is_finished]
        return forecast(
            source, self.recipe.rounding, new, kept=sum(keeps_all(source, self.recipe, size) for size in new),
            finished=sum(are_finished), analysis=analysis, probing=probing, memory=self.memory,
            streamed_bytes=streamed_bytes, download_bytes=download_bytes, on_progress=self.on_progress,
        )  # fmt: skip

    def _refuse(self, targets: Sequence[Target], **digests: str) -> None:
        """Raise `MintError` for an existing output that is not the finished model of these digests."""
        for target in targets:
            if not self.force:
                refuse_foreign(target.output, **digests)

    def _analysis_path(self, source: Source) -> Path:
        device = measuring_device(self.executor)
        return Path(self.analysis or cached_analysis(source, self.recipe.rounding, device=device))

    def _probes_path(self, source: Source) -> Path:
        """The analysis that probes lie beside: they serve all roundings."""
        return Path(self.analysis or cached_analysis(source, device=measuring_device(self.executor)))

    def _missing_probes(self, source: Source) -> Probing | None:
        """The probes that a plan wants: asked for, or worth it on these machines, and not there yet."""
        path = probe_path(self._probes_path(source))
        if path.exists():
            return None
        if self.recipe.probe:
            return self.probing
        memory = self.executor.model_memory
        if self.memory is not None:
            memory = min(memory, self.memory - PROCESSES_BYTES)
        return unasked(source, path, self.probing, memory) if self._probes_unasked else None

    @property
    def _probes_unasked(self) -> bool:
        return self.may_probe and self.recipe.probes_unasked

    def _rounds(self, source: Source, sizes: Sequence[int]) -> bool:
        """True if anything is rounded in a model of one of these sizes; probes are of no use otherwise."""
        return not all(keeps_all(source, self.recipe, size) for size in sizes)

    def _measure(self, source: Source, sizes: Sequence[int]) -> Measured:
        """Analyze, and probe if that is wanted."""
        rounding = self.recipe.rounding
        path = self._analysis_path(source)
        beside = self._probes_path(source)
        works = (WRITE,) if path.exists() else (MEASURE, WRITE)
        begin_kernels(rounding, works, {unit.dtype for unit in source.units})  # they compile side by side
        work: dict[str, Any] = {"executor": self.executor, "on_progress": self.on_progress, "on_note": self.on_note}
        with self._stage(ANALYZE):
            analysis = analyze(source, path, rounding=rounding, keep_nonfinite=self.keep_nonfinite, **work)
        if not self.analysis:
            write_name(path, read_source_card(source.folder).name)
        is_wanted = self._probes_unasked and self._rounds(source, sizes)
        if self.recipe.probe or (is_wanted and self._missing_probes(source)):
            with self._stage(PROBE):  # another job may have probed before its turn came
                if probing := self.probing if self.recipe.probe else self._missing_probes(source):
                    probe(source, analysis, probe_path(beside), probing=probing, **work)
        measured = Measured(analysis, probes_beside(beside), path, probe_path(beside), dict(self.seconds))
        if is_wanted and not measured.probed:
            reason = "too little memory" if self.executor.model_memory else "no machine has all weights"
            log.warning("probes.none", reason=reason, used="default sensitivities")
        self.hooks.measured(measured)
        return measured

    def _plans(self, targets: Sequence[Target], measured: Measured) -> list[Plan]:
        """The plan of every target: the one in its file, or a new one."""
        with self._stage(ALLOCATE):
            missing = [target for target in targets if not (target.plan and target.plan.exists())]
            budgets = [target.budget for target in missing]
            new = allocate_all(measured.analysis, budgets, self.recipe, probed=measured.probed) if missing else []
            plans = dict(zip(missing, new, strict=True))
            for target, plan in plans.items():
                if target.plan:
                    write_plan(plan, target.plan)
            return [plans[target] if target in plans else read_plan(target.plan or "") for target in targets]

    def _write(self, source: Source, target: Target, plan: Plan, analysis: Path, folders: Sequence[Path]) -> Quantized:
        """Assemble and verify one model; it gets its name when it has passed."""
        output, reuse, draft = target.output, Reuse(), None
        with ExitStack() as stack:
            with self._stage(ASSEMBLE, plan):
                if output.exists():  # finished by an earlier attempt
                    manifest = read_finished(output)
                    self.on_note(f"{output} is the finished model of this plan: it is verified, not written again")
                else:
                    reuse = Reuse([*folders, *self.hooks.earlier()])
                    draft = stack.enter_context(
                        drafted(
                            plan, source, output, reuse=reuse, executor=self.executor, memory=self.memory,
                            on_progress=self.on_progress, on_note=self.on_note,
                        )
                    )  # fmt: skip
                    manifest = draft.manifest
                    self.hooks.assembled(reuse)
            with self._stage(VERIFY):
                verification = self._verified(draft.folder if draft else output, source)
                if draft:
                    draft.finish()
                self.hooks.verified(output, manifest)
        peak = peak_rss_bytes() + verification.peak_rss_bytes
        return Quantized(
            output, analysis, plan, manifest, replace(verification, folder=output), reuse.units, reuse.nbytes,
            source.notices, dict(self.seconds), peak,
        )  # fmt: skip

    def _verified(self, folder: Path, source: Source) -> Verification:
        """The verification of the model in `folder`; `MintError` if it fails."""
        is_here = not self.executor.lacking
        verification = verify(folder, source if is_here else None, measure_again=False, on_progress=self.on_progress)
        if not verification.passed:
            failed = "; ".join(f"{check.name}: {check.detail}" for check in verification.checks if not check.passed)
            raise MintError(
                f"{folder} is whole, but fails its verification ({failed}); do not use it, please report this. "
                "It stays under this name: remove it to begin again"
            )
        if verification.tokenizer_fault:
            self.on_note(verification.tokenizer_fault)
        return verification

    @contextmanager
    def _stage(self, name: str, plan: Plan | None = None) -> Iterator[None]:
        with self.hooks.stage(name, plan):
            started = time.perf_counter()
            yield
            self.seconds[name] = round(time.perf_counter() - started, 3)
