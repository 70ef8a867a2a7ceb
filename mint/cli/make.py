"""The commands that read or write a model: one function each, a thin rim around one verb."""

from pathlib import Path
from typing import Annotated

import typer

from mint.cli.options import (
    Cluster,
    Dtype,
    Features,
    Json,
    KeepNonfinite,
    Model,
    PlanFile,
    Reused,
    Room,
    Rounding,
    Share,
    Wishes,
    checked_dtype,
    takes,
)
from mint.cli.screen import Screen

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder to write; must not exist. It is built in OUTPUT.partial.")
]


@takes(Room, Wishes)
def quantize(
    model: Model,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o",
            help="Folder to write; must not exist. It is built in OUTPUT.partial. Several budgets: OUTPUT-BUDGET each.",
        ),
    ],
    room: Room,
    wishes: Wishes,
    analysis: Annotated[
        Path | None, typer.Option(help="Keep the analysis here; default: a cache, so the next budget is quick.")
    ] = None,
    dtype: Dtype = "",
    rounding: Rounding = "nearest",
    keep_nonfinite: KeepNonfinite = False,
    cluster: Cluster = "",
    share: Share = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="Measure how sensitive the output is to each unit first (see mint probe).")
    ] = False,
    reuse: Reused = [],  # noqa: B006, typer copies it
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write the best MLX model that fits: analyze, allocate, assemble, verify.

    Interrupted or killed, the same command goes on where it stopped.

    Example: mint quantize models/Qwen3-8B --budget 6GB --output Qwen3-8B-6GB
    """
    room.check()
    wishes.rules()
    from mint.formats.rounding import ROUNDINGS

    if probe or ROUNDINGS[_rounding(rounding)].needs_model:
        from mint.run.blas import restart_with_fast_blas

        restart_with_fast_blas()
    outputs = room.outputs(output)
    from mint.assembly.stock_child import stock

    stock()  # imports mlx_lm while this process does
    from mint.analysis.probes.prober import Probing
    from mint.cli.json_records import quantized_record
    from mint.pipeline import Target, quantize_all
    from mint.run.executors import executing

    with (
        Screen(as_json) as screen,
        executing(
            cluster, model, checked_dtype(dtype), share=share, on_progress=screen.on_progress, on_note=screen.note
        ) as (folder, executor),
    ):
        done = quantize_all(
            folder,
            [Target(path, room.budget_of(name)) for name, path in outputs.items()],
            wishes.problem,
            analysis=analysis,
            dtype=checked_dtype(dtype),
            rounding=_rounding(rounding),
            keep_nonfinite=keep_nonfinite,
            probing=Probing() if probe else None,
            reuse=reuse,
            executor=executor,
            on_progress=screen.on_progress,
        )
    screen.answer_all([quantized_record(each) for each in done])


def inspect(model: Model, dtype: Dtype = "", as_json: Json = False) -> None:
    """Show what a model is made of: units, roles, sizes, smallest and largest possible model. Reads headers only."""
    from mint.cli.json_records import source_record
    from mint.model.source import open_source

    with Screen(as_json) as screen:
        source = open_source(model, dtype=checked_dtype(dtype), on_progress=screen.on_progress)
    screen.answer(source_record(source))


def analyze(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: NAME.mint in this folder.")
    ] = None,
    dtype: Dtype = "",
    rounding: Rounding = "nearest",
    keep_nonfinite: KeepNonfinite = False,
    features: Features = False,
    cluster: Cluster = "",
    share: Share = False,
    as_json: Json = False,
) -> None:
    """Measure what every format would do to every unit. Killed at any point, the same command goes on."""
    from mint.analysis.analyze import analyze as run
    from mint.cli.json_records import analysis_record
    from mint.model.locate import model_name
    from mint.model.source import open_source
    from mint.run.executors import executing

    path = output or Path(f"{model_name(model)}.mint")
    with (
        Screen(as_json) as screen,
        executing(cluster, model, checked_dtype(dtype), share=share, on_progress=screen.on_progress) as place,
    ):
        folder, executor = place
        source = open_source(folder, dtype=dtype)
        analysis = run(
            source,
            path,
            rounding=_rounding(rounding),
            keep_nonfinite=keep_nonfinite,
            features=features,
            executor=executor,
            on_progress=screen.on_progress,
        )
    screen.answer(analysis_record(analysis, path))


def assemble(
    plan: PlanFile,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model that was analyzed: its folder, or its id of the hub.")
    ],
    output: Output,
    reuse: Reused = [],  # noqa: B006, typer copies it
    cluster: Cluster = "",
    share: Share = False,
    as_json: Json = False,
) -> None:
    """Write the model that a plan describes; formats edited by hand count. Killed, the same command goes on."""
    from mint.assembly.assemble import assemble as run
    from mint.assembly.reuse import Reuse
    from mint.cli.json_records import manifest_record
    from mint.formats.rounding import ROUNDINGS
    from mint.model.source import open_source
    from mint.plan.plan import read_plan
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
    as_json: Json = False,
) -> None:  # fmt: skip
    """Check sizes, digests, tensors and config, load the model with mlx_lm, and compare its logits."""
    from mint.assembly.stock_child import stock

    stock()  # imports mlx_lm while this process does
    from mint.assembly.verify import verify as run
    from mint.cli.json_records import verification_record
    from mint.model.source import open_source
    from mint.plan.plan import read_plan

    with Screen(as_json) as screen:
        source = None
        if model:
            source = open_source(model, dtype=read_plan(folder).dtype, on_progress=screen.on_progress)
        verification = run(folder, source, on_progress=screen.on_progress)
    screen.answer(verification_record(verification))
    if not verification.passed:
        raise typer.Exit(1)


def _rounding(name: str) -> str:
    from mint.formats.rounding import ROUNDINGS

    if name not in ROUNDINGS:
        raise typer.BadParameter(f"found {name!r}, needed {' or '.join(ROUNDINGS)}", param_hint="--rounding")
    return name
