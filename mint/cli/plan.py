"""The commands that need an analysis or a plan, and never the model: they take a moment."""

import time
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from mint.cli import options as opt
from mint.cli.screen import Screen
from mint.core.errors import MintError
from mint.plan.recipe import Room


def allocate(
    analysis: Annotated[
        str,
        typer.Argument(
            metavar="ANALYSIS",
            help="A file that `mint analyze` wrote; with --server a model of that service: its analysis comes here.",
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
    server: opt.Server = "",
    token_file: opt.TokenFile = None,
    ca: opt.Authorities = None,
    insecure: opt.Insecure = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the plan here as JSON; default: only show it. Several budgets: NAME-BUDGET."
        ),
    ] = None,
    dtype: opt.Dtype = opt.RECIPE.dtype,
    rounding: opt.Rounding = opt.RECIPE.rounding,
    probe: Annotated[
        bool, typer.Option("--probe", help="Let the service measure how sensitive the output is to each unit first.")
    ] = opt.RECIPE.probe,
    as_json: opt.Json = False,
) -> None:
    """Choose a format for every unit: the least predicted loss that fits the budget. Takes a moment.

    --dtype, --rounding and --probe say which analysis of the service is wanted; a file's was chosen by mint analyze.

    Example: mint allocate Qwen3-8B --server lab:8420 --budget 6GB -o plan.json
    """
    from mint.analysis.analysis import read_analysis
    from mint.analysis.probes.probe_file import probes_beside
    from mint.plan.allocate import allocate_all
    from mint.plan.plan import write_plan
    from mint.render.plans import plan_record

    started, options = time.perf_counter(), locals()
    budgets, recipe = opt.budgets_of(options), opt.recipe_of(options)
    asked = recipe.analysis.to_dict()
    changed = [f"--{name}" for name, value in opt.RECIPE.to_dict().items() if asked[name] != value]
    if not server and changed:
        raise MintError(
            f"{', '.join(changed)} with {analysis}: an analysis that is there stays as it is; "
            "needed: --server, which is asked for another, or mint analyze and mint probe"
        )
    outputs = opt.outputs_of(budgets, output) if output else []
    for path in outputs:
        if path.exists():
            raise MintError(f"{path} exists; nothing is ever overwritten. Choose another --output")
    with Screen(as_json) as screen:
        path = Path(analysis)
        if server:
            with opt.client_of(options) as client:
                path = client.analysis(analysis, recipe, on_progress=screen.on_progress)
            screen.note(f"the service's analysis lies in {path}")
        plans = allocate_all(read_analysis(path), budgets, recipe, probed=probes_beside(path))
        for plan, path in zip(plans, outputs, strict=False):
            write_plan(plan, path)
    seconds = time.perf_counter() - started
    screen.answer_all([plan_record(plan, path, seconds) for plan, path in zip_longest(plans, outputs)])


def curve(
    analysis: opt.AnalysisFile,
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
    points: Annotated[int, typer.Option(min=2, help="How many budgets to solve.")] = 100,
    context: Annotated[
        str, typer.Option(metavar="TOKENS", help="Context that the devices have to hold too.")
    ] = opt.ROOM.context,
    reserve: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory of the devices for everything else.")
    ] = opt.ROOM.reserve,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all points here.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png|svg", help="Draw the curve here.")] = None,
    as_json: opt.Json = False,
) -> None:
    """Show the whole curve of budget and loss: knees, what the next bytes buy, where every device lies on it."""
    from mint.analysis.analysis import read_analysis
    from mint.analysis.probes.probe_file import probes_beside
    from mint.cli.chart import draw_curve, write_csv
    from mint.plan.curve import curve as run
    from mint.plan.device_fit import devices_on
    from mint.render.plans import curve_record

    recipe, room = opt.recipe_of(locals()), Room(context=context, reserve=reserve)
    for path in filter(None, (csv, plot)):
        if path.exists():
            raise MintError(f"{path} exists; nothing is ever overwritten. Choose another name")
    with Screen(as_json) as screen:
        problem = recipe.problem(read_analysis(analysis), probes_beside(analysis))
        found = run(problem, points=points, on_progress=screen.on_progress)
        devices = devices_on(problem, room)
        if csv:
            write_csv(found, csv)
        if plot:
            draw_curve(found, devices, plot, title=problem.analysis.model_type)
    screen.answer(curve_record(found, devices, csv, plot, brief=not as_json))


def explain(
    plan: opt.PlanFile,
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Units, such as '*.layers.0.*'.")] = "*",
    as_json: opt.Json = False,
) -> None:
    """Tell why units have their formats: what else there was, what the veto took, the next step up and down."""
    from mint.plan.explain import explain as run
    from mint.plan.plan import read_plan
    from mint.render.plans import explanation_record

    with Screen(as_json) as screen:
        chosen = read_plan(plan)
        explanations = run(chosen, pattern)
    screen.answer(explanation_record(chosen, explanations, brief=not as_json))


def diff(
    before: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan, or a folder that mint wrote.")],
    after: Annotated[Path, typer.Argument(metavar="PLAN", help="Another one of the same model.")],
    as_json: opt.Json = False,
) -> None:
    """Show which units differ between two plans, and what that costs and saves."""
    from mint.plan.explain import diff as run
    from mint.plan.plan import read_plan
    from mint.render.plans import diff_record

    with Screen(as_json) as screen:
        first, second = read_plan(before), read_plan(after)
        changes = run(first, second)
    screen.answer(diff_record(first, second, changes))


def devices(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only devices whose name contains this.")] = "",
    loaders: Annotated[bool, typer.Option("--loaders", help="List loaders for --compat instead.")] = False,
    as_json: opt.Json = False,
) -> None:
    """List the devices that a budget can be named after, with what they leave for a model."""
    from mint.render.models import devices_record, loaders_record

    with Screen(as_json) as screen:
        record = loaders_record() if loaders else devices_record(name)
    screen.answer(record)
