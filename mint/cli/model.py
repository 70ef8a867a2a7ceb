"""The commands that read or write a model.

Commands call the verbs of `mint`, which are imported when first used, so that `--help` answers at once.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import mint
from mint.cli import options as opt
from mint.cli.options import argument, flag, option
from mint.cli.outputs import check_finished, check_names, default_outputs, described, outputs_of, refusals, set_aside
from mint.cli.terminal.screen import Answer, Record, Screen
from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.formats.quality import parse_quality
from mint.formats.rounding import ROUNDINGS

if TYPE_CHECKING:
    from mint.forecast.forecast import Forecast


def quantize(
    screen: Screen,
    model: opt.Model,
    budgets: opt.Budgets,
    recipe: opt.RecipeOptions,
    output: Annotated[
        Path | None,
        option(
            "", "New folder; default: MODEL-BUDGET beside a local model. OUTPUT-BUDGET for several.", "--output", "-o"
        ),
    ] = None,
    force: opt.Force = False,
    analysis: Annotated[
        Path | None, option("", "Keep the analysis here; default: in a cache.", panel=opt.METHOD)
    ] = None,
    keep_nonfinite: opt.KeepNonfinite = False,
    cluster: opt.Cluster = "",
    share: opt.Share = False,
    reuse: opt.Reused = opt.NONE,
    memory: opt.MemoryLimit = None,
    low_disk: opt.LowDisk = False,
    dry_run: opt.DryRun = False,
    upload: Annotated[str, option("OWNER/NAME", "Upload the verified model to this repository of the hub.")] = "",
) -> list[Answer]:
    """Write the best MLX model that fits: analyze, allocate, assemble, verify.

    A forecast comes first. Interrupted or killed, the same command resumes.

    Example: mint quantize models/Qwen3-8B --budget 6GB --output Qwen3-8B-6GB
    """
    outputs = outputs_of(budgets, output) if output else default_outputs(model, budgets)
    check_names(model, outputs, requantize=recipe.requantize, force=force or dry_run)
    if not (force or dry_run):
        check_finished(outputs, budgets, recipe.rounding)
    screen.begin(f"quantize {described(model)} to {', '.join(map(str, budgets))} -> {', '.join(map(str, outputs))}")
    if dry_run and not force:
        for reason in refusals(outputs, budgets, recipe.rounding):
            screen.note(f"without --dry-run this stops: {reason}")
            force = True  # as the forecast is for the run that writes all
    if upload:
        from mint.exports.upload import check_upload

        check_upload(upload)
        if len(outputs) > 1:
            raise MintError(f"--upload {upload}: a repository holds one model; needed: one budget, or mint upload")
    if low_disk:
        from mint.run.low_disk import check_streamable

        check_streamable(recipe.rounding, probe=recipe.probe, is_cluster=bool(cluster))
    if recipe.probe or ROUNDINGS[recipe.rounding].needs_model:
        from mint.run.blas import restart_with_fast_blas

        restart_with_fast_blas()
    from mint.assembly.stock_child import stock

    stock()  # imports mlx_lm while this process does
    from mint.model.remote.headers import headers_of
    from mint.pipeline import Pipeline, Target
    from mint.render.plans import quantized_record
    from mint.render.summary import model_summary
    from mint.run.executor import executing
    from mint.run.low_disk import streaming

    work: dict[str, Any] = {"on_progress": screen.on_progress, "on_note": screen.note}
    if dry_run and not (low_disk or cluster):  # weights that are not here stay where they are
        with headers_of(model, **recipe.opening, on_progress=screen.on_progress) as source:
            pipeline = Pipeline(
                recipe, analysis, keep_nonfinite, reuse, force=force, memory=memory, may_probe=True, **work
            )
            return [_foreseen(pipeline.foresee(source, list(map(Target, outputs, budgets))))]
    with (
        streaming(model, **recipe.opening, **work)
        if low_disk
        else executing(cluster, model, **recipe.opening, share=share, **work)
    ) as (opened, executor):
        pipeline = Pipeline(
            recipe, analysis, keep_nonfinite, reuse, executor, force=force, memory=memory, may_probe=True, **work
        )
        targets = list(map(Target, outputs, budgets))
        if dry_run:
            return [_foreseen(pipeline.foresee(opened, targets))]
        forecasts: list[Forecast] = []
        if not cluster:  # the rates are those of this machine alone

            def show(forecast: "Forecast") -> None:
                forecasts.append(forecast)
                screen.note(str(forecast))
                screen.meter.expect({step.name: step.seconds for step in forecast.steps})

            pipeline.on_forecast = show
        results = pipeline.run(opened, targets)
    if upload:
        screen.note(f"uploaded to {mint.upload(outputs[0], upload, on_progress=screen.on_progress).url}")
    expected = {"forecast": forecasts[0].to_dict()} if forecasts else {}
    return [
        Answer(
            {**quantized_record(result), **expected},
            model_summary(
                result.plan,
                result.output,
                result.manifest.closeness,
                result.manifest.uniform,
                analysis=result.analysis,
                original=model,
            ),
        )
        for result in results
    ]


def _foreseen(forecast: "Forecast") -> Answer:
    from mint.render.summary import forecast_summary

    return Answer({"forecast": forecast.to_dict()}, forecast_summary(forecast))


def inspect(
    screen: Screen,
    model: opt.Model,
    devices: opt.Devices,
    dtype: opt.Dtype = "",
    vision: opt.Vision = None,
    requantize: opt.Requantize = False,
) -> Record:
    """Show the units, roles and sizes of a model, and its smallest and largest result. Reads headers only.

    Of a model of the hub nothing but its headers is downloaded. With --device also the formats that fit there, each
    with its longest context.

    Example: mint inspect Qwen/Qwen3-8B --device m4-16
    """
    check_names(model, [], requantize=requantize)
    from mint.model.remote.headers import headers_of
    from mint.plan.device_fit import fit_rows
    from mint.render.models import source_record
    from mint.targets.devices import device

    opening: dict[str, Any] = {"dtype": dtype, "loader": opt.loader(vision), "requantize": requantize}
    with headers_of(model, **opening, on_progress=screen.on_progress) as source:
        for notice in source.notices:
            screen.note(notice)
        rows = [row for budget in devices for row in fit_rows(source, device(budget.device), budget.room)]
        record = source_record(source, model)
        if not screen.as_json:  # people have read the notices
            record = {field: value for field, value in record.items() if field != "notices" and value not in ([], {})}
            smallest = format_size(record.pop("smallest_bytes"))
            record["smallest"] = f"{smallest} with --quality fast; good and best can need less, their analysis tells"
        return {**({"fits": rows} if rows else {}), **record}


def analyze(
    screen: Screen,
    model: opt.Model,
    output: Annotated[
        Path | None, option("", "File to write; default: NAME.mint in this folder.", "--output", "-o")
    ] = None,
    dtype: opt.Dtype = "",
    vision: opt.Vision = None,
    requantize: opt.Requantize = False,
    quality: opt.Quality = "",
    rounding: opt.Rounding = "",
    keep_nonfinite: opt.KeepNonfinite = False,
    features: Annotated[bool, flag("Also describe units (spectrum, kurtosis, noise).", "--features")] = False,
    cluster: opt.Cluster = "",
    share: opt.Share = False,
    force: opt.Force = False,
) -> Record:
    """Measure the error of every format in every unit. Safe to interrupt: run it again to resume."""
    from mint.model.locate import model_name

    path = output or Path(f"{model_name(model)}.mint")
    check_names(model, [], [path], requantize=requantize)
    screen.begin(f"analyze {described(model)} -> {path}")
    from mint.render.models import analysis_record

    opening: dict[str, Any] = {"loader": opt.loader(vision), "requantize": requantize}
    with opt.opened(screen, model, dtype, cluster, share=share, **opening) as (source, executor):
        set_aside(screen, force, path)
        analysis = mint.analyze(
            source,
            path,
            rounding=rounding or parse_quality(quality).rounding,
            keep_nonfinite=keep_nonfinite,
            features=features,
            executor=executor,
            on_progress=screen.on_progress,
            on_note=screen.note,
        )
    record = analysis_record(analysis, path)
    next_command = f"mint allocate {shlex.quote(str(path))} --budget SIZE --output plan.json"
    return record if screen.as_json else {**record, "next": next_command}


def assemble(
    screen: Screen,
    plan: opt.PlanFile,
    model: Annotated[str, option("", "The analyzed model: its folder, or its id of the hub.", "--model", "-m")],
    output: Annotated[Path, option("", "New folder, built in OUTPUT.partial.", "--output", "-o")],
    reuse: opt.Reused = opt.NONE,
    cluster: opt.Cluster = "",
    share: opt.Share = False,
    force: opt.Force = False,
    memory: opt.MemoryLimit = None,
) -> Answer:
    """Write the model that a plan describes; formats edited by hand count. Run it again to resume."""
    chosen = mint.read_plan(plan)
    check_names(model, [output], requantize=True, force=force)
    screen.begin(f"assemble {plan} from {described(model)} -> {output}")
    from mint.forecast.memory import check_memory
    from mint.render.models import manifest_record
    from mint.render.summary import model_summary

    if ROUNDINGS[chosen.rounding].needs_model:
        from mint.run.blas import restart_with_fast_blas

        restart_with_fast_blas()
    for path in chosen.edited:
        screen.note(f"{path}: format changed by hand")
    earlier = mint.Reuse(reuse)
    opening: dict[str, Any] = {"loader": chosen.loader, "requantize": True}
    with opt.opened(screen, model, chosen.dtype, cluster, share=share, **opening) as (source, executor):
        if memory is not None:
            check_memory(source, chosen.rounding, memory)
        set_aside(screen, force, output)
        manifest = mint.assemble(
            chosen,
            source,
            output,
            reuse=earlier,
            memory=memory,
            executor=executor,
            on_progress=screen.on_progress,
            on_note=screen.note,
        )
    return Answer(
        manifest_record(manifest, output, earlier),
        model_summary(chosen, output, manifest.closeness, manifest.uniform, is_verified=False, original=model),
    )


def verify(
    screen: Screen,
    folder: Annotated[Path, argument("OUT", "A folder that mint wrote.")],
    model: Annotated[
        str, option("MODEL", "Also measure errors against this folder or id of the hub.", "--model", "-m")
    ] = "",
) -> Record:
    """Check sizes, digests, tensors and config, load the model with mlx_lm, and compare its logits."""
    from mint.model.checkpoint.manifest import read_manifest

    read_manifest(folder)
    screen.begin(f"verify {folder}" + (f" against {model}" if model else ""))
    from mint.assembly.stock_child import stock
    from mint.render.models import verification_record

    stock()  # imports mlx_lm while this process does
    source = None
    if model:
        plan = mint.read_plan(folder)
        opening: dict[str, Any] = {"dtype": plan.dtype, "loader": plan.loader, "requantize": True}  # as it was planned
        source = mint.open_source(model, **opening, on_progress=screen.on_progress)
    return verification_record(mint.verify(folder, source, on_progress=screen.on_progress))


def upload(
    screen: Screen,
    folder: Annotated[Path, argument("OUT", "A verified folder that mint wrote.")],
    repository: Annotated[str, argument("OWNER/NAME", "Repository of the Hugging Face hub; made if need be.")],
    private: Annotated[bool, flag("Make a private repository.", "--private")] = False,
) -> Record:
    """Upload a verified model to the Hugging Face hub. Interrupted, the same command resumes.

    Example: mint upload Qwen3-8B-6GB me/Qwen3-8B-6GB
    """
    from dataclasses import asdict

    screen.begin(f"upload {described(str(folder))} to {repository}")
    return asdict(mint.upload(folder, repository, private=private, on_progress=screen.on_progress))
