"""The commands that need an analysis or a plan, and never the model: they take a moment."""

import time
from pathlib import Path
from typing import Annotated

import typer

from mint.cli.options import AnalysisFile, Dtype, Json, PlanFile, Room, Rounding, Server, Wishes, checked_dtype, takes
from mint.cli.screen import Screen
from mint.core.errors import MintError


@takes(Room, Wishes, Server)
def allocate(
    analysis: Annotated[
        str,
        typer.Argument(
            metavar="ANALYSIS",
            help="A file that `mint analyze` wrote; with --server a model of that service: its analysis comes here.",
        ),
    ],
    room: Room,
    wishes: Wishes,
    server: Server,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the plan here as JSON; default: only show it. Several budgets: NAME-BUDGET."
        ),
    ] = None,
    dtype: Dtype = "",
    rounding: Rounding = "nearest",
    probe: Annotated[
        bool, typer.Option("--probe", help="Let the service measure how sensitive the output is to each unit first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Choose a format for every unit: the least predicted loss that fits the budget. Takes a moment.

    --dtype, --rounding and --probe say which analysis of the service is wanted; a file's was chosen by mint analyze.

    Example: mint allocate Qwen3-8B --server lab:8420 --budget 6GB -o plan.json
    """
    from mint.analysis.analysis import read_analysis
    from mint.analysis.probes.probe_file import probes_beside
    from mint.cli.json_records import plan_record
    from mint.plan.plan import write_plan

    started = time.perf_counter()
    room.check()
    asked = {"dtype": checked_dtype(dtype), "rounding": rounding, "probe": probe}
    if not server.server and (given := [name for name, value in asked.items() if value not in ("", "nearest", False)]):
        raise MintError(
            f"{', '.join(f'--{name}' for name in given)} with {analysis}: an analysis that is there stays as it is; "
            "needed: --server, which is asked for another, or mint analyze and mint probe"
        )
    outputs = room.outputs(output) if output else {}
    for path in outputs.values():
        if path.exists():
            raise MintError(f"{path} exists; nothing is ever overwritten. Choose another --output")
    with Screen(as_json) as screen:
        path = Path(analysis)
        if server.server:
            with server.client() as client:
                path = client.analysis(analysis, options=asked, on_progress=screen.on_progress)
            screen.note(f"the service's analysis lies in {path}")
        problem = wishes.problem(read_analysis(path), probes_beside(path))
        plans = {name: problem.plan(room.budget_of(name)(problem)) for name in room.names}
        for name, path in outputs.items():
            write_plan(plans[name], path)
    seconds = time.perf_counter() - started
    screen.answer_all([plan_record(plan, outputs.get(name), seconds) for name, plan in plans.items()])


@takes(Wishes)
def curve(
    analysis: AnalysisFile,
    wishes: Wishes,
    points: Annotated[int, typer.Option(min=2, help="How many budgets to solve.")] = 100,
    context: Annotated[str, typer.Option(metavar="TOKENS", help="Context that the devices have to hold too.")] = "8k",
    reserve: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the devices for everything else.")] = "1GB",
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all points here.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png|svg", help="Draw the curve here.")] = None,
    as_json: Json = False,
) -> None:
    """Show the whole curve of budget and loss: knees, what the next bytes buy, where every device lies on it."""
    from mint.analysis.analysis import read_analysis
    from mint.analysis.probes.probe_file import probes_beside
    from mint.cli.chart import draw_curve, write_csv
    from mint.cli.json_records import curve_record
    from mint.core.sizes import parse_size, parse_tokens
    from mint.plan.curve import curve as run
    from mint.plan.device_fit import devices_on

    for path in filter(None, (csv, plot)):
        if path.exists():
            raise MintError(f"{path} exists; nothing is ever overwritten. Choose another name")
    with Screen(as_json) as screen:
        problem = wishes.problem(read_analysis(analysis), probes_beside(analysis))
        found = run(problem, points=points, on_progress=screen.on_progress)
        devices = devices_on(problem, tokens=parse_tokens(context), reserve_bytes=parse_size(reserve))
        if csv:
            write_csv(found, csv)
        if plot:
            draw_curve(found, devices, plot, title=problem.analysis.model_type)
    screen.answer(curve_record(found, devices, csv, plot, brief=not as_json))


def explain(
    plan: PlanFile,
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="Units, such as '*.layers.0.*'.")] = "*",
    as_json: Json = False,
) -> None:
    """Tell why units have their formats: what else there was, what the veto took, the next step up and down."""
    from mint.cli.json_records import explanation_record
    from mint.plan.explain import explain as run
    from mint.plan.plan import read_plan

    with Screen(as_json) as screen:
        chosen = read_plan(plan)
        explanations = run(chosen, pattern)
    screen.answer(explanation_record(chosen, explanations, brief=not as_json))


def diff(
    before: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan, or a folder that mint wrote.")],
    after: Annotated[Path, typer.Argument(metavar="PLAN", help="Another one of the same model.")],
    as_json: Json = False,
) -> None:
    """Show which units differ between two plans, and what that costs and saves."""
    from mint.cli.json_records import diff_record
    from mint.plan.explain import diff as run
    from mint.plan.plan import read_plan

    with Screen(as_json) as screen:
        first, second = read_plan(before), read_plan(after)
        changes = run(first, second)
    screen.answer(diff_record(first, second, changes))


def devices(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Only devices whose name contains this.")] = "",
    loaders: Annotated[bool, typer.Option("--loaders", help="List loaders for --compat instead.")] = False,
    as_json: Json = False,
) -> None:
    """List the devices that a budget can be named after, with what they leave for a model."""
    from mint.cli.json_records import devices_record, loaders_record

    with Screen(as_json) as screen:
        record = loaders_record() if loaders else devices_record(name)
    screen.answer(record)
