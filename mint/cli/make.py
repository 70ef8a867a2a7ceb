"""The commands that read or write a model: one function each, a thin rim around one verb."""

from pathlib import Path
from typing import Annotated

import typer

from mint.cli import options as opt
from mint.cli.screen import Screen

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write; must not exist. It is built in OUTPUT.partial.")
]


def quantize(
    model: opt.Model,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o",
            help="Folder to write; must not exist. It is built in OUTPUT.partial. Several budgets: OUTPUT-BUDGET each.",
        ),
    ],
    budget: opt.Budgets = opt.NONE,
    device: opt.Devices = opt.NONE,
    context: opt.Context = opt.ROOM.context,
    kv_bits: opt.KvBits = opt.ROOM.kv_bits,
    reserve: opt.Reserve = opt.ROOM.reserve,
    objective: opt.Objective = opt.RECIPE.objective,
    veto: opt.Veto = opt.RECIPE.veto_db,
    min_bits: opt.MinBits = opt.RECIPE.min_bits,
    max_bits: opt.MaxBits = opt.RECIPE.max_bits,
    formats: opt.Formats = opt.NONE,
    keep: opt.Keep = opt.NONE,
    set: opt.Set = opt.NONE,
    locks: opt.Locks = None,
    compat: opt.Compat = opt.RECIPE.compat,
    prefer_speed: opt.PreferSpeed = opt.RECIPE.prefer_speed,
    ignore_probe: opt.IgnoreProbe = opt.RECIPE.ignore_probe,
    max_shard_size: opt.MaxShardSize = opt.RECIPE.max_shard_size,
    analysis: Annotated[
        Path | None, typer.Option(help="Keep the analysis here; default: a cache, so the next budget is quick.")
    ] = None,
    dtype: opt.Dtype = opt.RECIPE.dtype,
    rounding: opt.Rounding = opt.RECIPE.rounding,
    keep_nonfinite: opt.KeepNonfinite = False,
    cluster: opt.Cluster = "",
    share: opt.Share = False,
    probe: opt.Probe = opt.RECIPE.probe,
    reuse: opt.Reused = opt.NONE,
    as_json: opt.Json = False,
) -> None:  # fmt: skip
    """Write the best MLX model that fits: analyze, allocate, assemble, verify.

    Interrupted or killed, the same command goes on where it stopped.

    Example: mint quantize models/Qwen3-8B --budget 6GB --output Qwen3-8B-6GB
    """
    budgets, recipe = opt.budgets_of(locals()), opt.recipe_of(locals())
    from mint.formats.rounding import ROUNDINGS

    if recipe.probe or ROUNDINGS[recipe.rounding].needs_model:
        from mint.run.blas import restart_with_fast_blas

        restart_with_fast_blas()
    from mint.assembly.stock_child import stock

    stock()  # imports mlx_lm while this process does
    from mint.pipeline import Target, run
    from mint.render.plans import quantized_record
    from mint.run.executors import executing

    with (
        Screen(as_json) as screen,
        executing(cluster, model, recipe.dtype, share=share, on_progress=screen.on_progress, on_note=screen.note) as (
            folder,
            executor,
        ),
    ):
        done = run(
            folder,
            recipe,
            [Target(path, budget) for path, budget in zip(opt.outputs_of(budgets, output), budgets, strict=True)],
            analysis=analysis,
            keep_nonfinite=keep_nonfinite,
            reuse=reuse,
            executor=executor,
            on_progress=screen.on_progress,
        )
    screen.answer_all([quantized_record(each) for each in done])


def inspect(model: opt.Model, dtype: opt.Dtype = opt.RECIPE.dtype, as_json: opt.Json = False) -> None:
    """Show what a model is made of: units, roles, sizes, smallest and largest possible model. Reads headers only."""
    from mint.model.source import open_source
    from mint.render.models import source_record

    with Screen(as_json) as screen:
        source = open_source(model, dtype=opt.checked_dtype(dtype), on_progress=screen.on_progress)
    screen.answer(source_record(source))


def analyze(
    model: opt.Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: NAME.mint in this folder.")
    ] = None,
    dtype: opt.Dtype = opt.RECIPE.dtype,
    rounding: opt.Rounding = opt.RECIPE.rounding,
    keep_nonfinite: opt.KeepNonfinite = False,
    features: opt.Features = False,
    cluster: opt.Cluster = "",
    share: opt.Share = False,
    as_json: opt.Json = False,
) -> None:
    """Measure what every format would do to every unit. Killed at any point, the same command goes on."""
    from mint.analysis.analyze import analyze as run
    from mint.model.locate import model_name
    from mint.model.source import open_source
    from mint.render.models import analysis_record
    from mint.run.executors import executing

    path = output or Path(f"{model_name(model)}.mint")
    with (
        Screen(as_json) as screen,
        executing(cluster, model, opt.checked_dtype(dtype), share=share, on_progress=screen.on_progress) as place,
    ):
        folder, executor = place
        source = open_source(folder, dtype=dtype)
        analysis = run(
            source,
            path,
            rounding=opt.checked_rounding(rounding),
            keep_nonfinite=keep_nonfinite,
            features=features,
            executor=executor,
            on_progress=screen.on_progress,
        )
    screen.answer(analysis_record(analysis, path))


def assemble(
    plan: opt.PlanFile,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model that was analyzed: its folder, or its id of the hub.")
    ],
    output: Output,
    reuse: opt.Reused = opt.NONE,
    cluster: opt.Cluster = "",
    share: opt.Share = False,
    as_json: opt.Json = False,
) -> None:
    """Write the model that a plan describes; formats edited by hand count. Killed, the same command goes on."""
    from mint.assembly.assemble import assemble as run
    from mint.assembly.reuse import Reuse
    from mint.formats.rounding import ROUNDINGS
    from mint.model.source import open_source
    from mint.plan.plan import read_plan
    from mint.render.models import manifest_record
    from mint.run.blas import restart_with_fast_blas
    from mint.run.executors import executing

    with Screen(as_json) as screen:
        chosen = read_plan(plan)
        if ROUNDINGS[chosen.rounding].needs_model:
            restart_with_fast_blas()
        for path in chosen.edited:
            screen.note(f"{path}: format changed by hand")
        taken = Reuse(reuse)
        with executing(
            cluster, model, chosen.dtype, share=share, on_progress=screen.on_progress, on_note=screen.note
        ) as (folder, executor):
            source = open_source(folder, dtype=chosen.dtype)
            manifest = run(chosen, source, output, reuse=taken, executor=executor, on_progress=screen.on_progress)
    screen.answer(manifest_record(manifest, output, taken))


def verify(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that mint wrote.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", metavar="MODEL",
            help="Also measure the error of every unit against this model: its folder, or its id of the hub.",
        ),
    ] = "",
    as_json: opt.Json = False,
) -> None:  # fmt: skip
    """Check sizes, digests, tensors and config, load the model with mlx_lm, and compare its logits."""
    from mint.assembly.stock_child import stock

    stock()  # imports mlx_lm while this process does
    from mint.assembly.verify import verify as run
    from mint.model.source import open_source
    from mint.plan.plan import read_plan
    from mint.render.models import verification_record

    with Screen(as_json) as screen:
        source = None
        if model:
            source = open_source(model, dtype=read_plan(folder).dtype, on_progress=screen.on_progress)
        verification = run(folder, source, on_progress=screen.on_progress)
    screen.answer(verification_record(verification))
    if not verification.passed:
        raise typer.Exit(1)
