"""The commands that need an analysis or a plan, and never the model: they take a moment."""

import shlex
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import mint
from mint.cli import options as opt
from mint.cli.options import argument, flag, option
from mint.cli.outputs import check_files, default_outputs, described, outputs_of, write_files
from mint.cli.terminal.screen import Answer, Record, Screen
from mint.core.errors import MintError
from mint.core.records import pick
from mint.core.sizes import enough_size
from mint.formats.quality import QUALITIES
from mint.plan.recipe import Room


def allocate(
    screen: Screen,
    analysis: Annotated[
        str,
        argument("ANALYSIS", "A file that `mint analyze` wrote; with --server a model of that service."),
    ],
    budgets: opt.Budgets,
    recipe: opt.RecipeOptions,
    client: opt.OptionalService,
    output: Annotated[
        Path | None, option("", "New file for the plan, as JSON; several budgets: NAME-BUDGET.", "--output", "-o")
    ] = None,
    force: opt.Force = False,
) -> list[Answer]:
    """Choose a format for every unit: the least predicted loss that fits the budget.

    --dtype, --rounding and --probe choose an analysis of the service; those of a file were chosen by mint analyze.

    Example: mint allocate Qwen3-8B --server lab:8420 --budget 6GB -o plan.json
    """
    from mint.analysis.cached import probes_of
    from mint.plan.allocate import allocate_all
    from mint.plan.plan import plan_text
    from mint.render.plans import plan_record
    from mint.render.summary import plan_summary

    started = time.perf_counter()
    defaults = opt.RECIPE.to_dict()
    changed = [f"--{name}" for name, value in recipe.analysis.to_dict().items() if defaults[name] != value]
    if not client and changed:
        raise MintError(
            f"{', '.join(changed)} with {analysis}: a finished analysis stays as it is; "
            "needed: --server, which makes another, or mint analyze and mint probe"
        )
    outputs = outputs_of(budgets, output) if output else []
    check_files(outputs, force=force)
    path = Path(analysis)
    if client:
        path = client.analysis(analysis, recipe, on_progress=screen.on_progress, on_note=screen.note)
        screen.note(f"the service's analysis is in {path}")
    measured = mint.read_analysis(path)
    plans = allocate_all(measured, budgets, recipe, probed=probes_of(measured, path))
    texts = {file: plan_text(plan).encode() for plan, file in zip(plans, outputs, strict=False)}
    write_files(screen, texts, force=force)
    seconds = time.perf_counter() - started
    return [
        Answer(plan_record(plan, file, seconds), plan_summary(plan, file, path))
        for plan, file in zip_longest(plans, outputs)
    ]


def curve(
    screen: Screen,
    analysis: Annotated[Path, argument("ANALYSIS", "A file that `mint analyze` wrote.")],
    recipe: opt.RuleOptions,
    points: Annotated[int, option("", "Number of budgets to solve.", min=2)] = 100,
    context: Annotated[str, option("TOKENS", "Context that the devices hold too.")] = opt.ROOM.context,
    reserve: Annotated[str, option("SIZE", "Memory of the devices for everything else.")] = opt.ROOM.reserve,
    csv: Annotated[Path | None, option("FILE", "Write all points here.")] = None,
    plot: Annotated[Path | None, option("FILE.png|svg", "Draw the curve here.")] = None,
    force: opt.Force = False,
) -> Record:
    """Show the whole curve of budget and loss: its knees, the gain of the next bytes, the position of every device."""
    from mint.analysis.cached import probes_of
    from mint.plan.device_fit import devices_on
    from mint.render.chart import curve_table, drawn_curve, require_picture
    from mint.render.plans import curve_record

    room = Room(context=context, reserve=reserve)
    check_files(filter(None, (csv, plot)), force=force)
    if plot:
        require_picture(plot)
    measured = mint.read_analysis(analysis)
    problem = recipe.problem(measured, probes_of(measured, analysis))
    line = mint.curve(problem, points=points, on_progress=screen.on_progress)
    devices = devices_on(problem, room)
    files = {csv: curve_table(line)} if csv else {}
    if plot:
        files[plot] = drawn_curve(line, devices, plot.suffix, title=analysis.stem)
    write_files(screen, files, force=force)
    return curve_record(line, devices, csv, plot, brief=not screen.as_json)


def report(
    screen: Screen,
    paths: Annotated[list[Path], argument("PATH...", "Analyses, plans and model folders that mint wrote.")],
    recipe: opt.RuleOptions,
    output: Annotated[Path, option("FILE.html", "New page.", "--output", "-o")] = Path("report.html"),
    force: opt.Force = False,
) -> Record:
    """Write one HTML page about analyses, plans and models: curve, formats, errors, sensitivities, quality.

    The rules are those of the curve of an analysis. Several plans are compared. The page needs no network.

    Example: mint report Qwen3-8B.mint Qwen3-8B-6GB Qwen3-8B-8GB -o report.html
    """
    from mint.render.report.report import report as report_of

    check_files([output], force=force)
    screen.begin(f"report on {', '.join(map(str, paths))} -> {output}")
    text = report_of(paths, recipe).encode()
    write_files(screen, {output: text}, force=force)
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    opening = {} if screen.as_json else {"next": f"{opener} {shlex.quote(str(output))}, or open it in any browser"}
    return {"report": str(output), "nbytes": len(text), **opening}


def explain(
    screen: Screen,
    plan: opt.PlanFile,
    pattern: Annotated[str, argument("[PATTERN]", "Units, such as '*.layers.0.*'.")] = "*",
) -> Record:
    """Explain the formats of units: the alternatives, the vetoed formats, the next step up and down."""
    from mint.render.plans import explanation_record

    chosen = mint.read_plan(plan)
    return explanation_record(chosen, mint.explain(chosen, pattern), brief=not (screen.as_json or screen.is_verbose))


def show(
    screen: Screen,
    path: Annotated[Path, argument("PATH", "A model folder, a plan or an analysis that mint wrote.")],
) -> Answer | Record:
    """Show what a model folder, a plan or an analysis is. --verbose shows its formats too."""
    from mint.analysis.analysis import MAGIC
    from mint.core.files import begins_with
    from mint.model.checkpoint.manifest import read_manifest
    from mint.model.checkpoint.verified import is_verified
    from mint.render.models import analysis_record
    from mint.render.plans import plan_record
    from mint.render.summary import model_summary, plan_summary

    if not path.exists():
        raise MintError(f"{path}: no such file or folder; needed: an analysis, a plan or a folder that mint wrote")
    if begins_with(path, MAGIC):
        return {"kind": "analysis", **analysis_record(mint.read_analysis(path), path)}
    plan = mint.read_plan(path)
    record = plan_record(plan, path, 0.0)
    if not path.is_dir():
        return Answer({"kind": "plan", **record}, plan_summary(plan, path))
    manifest = read_manifest(path)
    summary = model_summary(plan, path, manifest.closeness, manifest.uniform, is_verified=is_verified(path))
    facts = {**pick(manifest, "closeness uniform"), "verified": is_verified(path)}
    return Answer({"kind": "model", **record, **facts}, summary)


def diff(
    before: Annotated[Path, argument("PLAN", "A plan, or a folder that mint wrote.")],
    after: Annotated[Path, argument("PLAN", "Another one of the same model.")],
) -> Record:
    """Show the units that differ between two plans, with the change in bytes and loss."""
    from mint.render.plans import diff_record

    first, second = mint.read_plan(before), mint.read_plan(after)
    return diff_record(first, second, mint.diff(first, second))


def export_predicate(
    screen: Screen,
    plan: opt.PlanFile,
    output: Annotated[Path, option("FILE.py", "New Python file.", "--output", "-o")] = Path("quant_predicate.py"),
    tensor_types: Annotated[
        Path | None, option("FILE", "Also write a file for llama-quantize --tensor-type-file.")
    ] = None,
    force: opt.Force = False,
) -> Record:
    """Write a plan as a Python file for mlx_lm.convert(quant_predicate=...); the file needs no mint.

    The converter rounds to nearest. llama.cpp has other formats, so its file names types of as many bits.

    Example: mint export-predicate Qwen3-8B-6GB && python quant_predicate.py Qwen/Qwen3-8B out
    """
    from mint.exports.predicate import predicate_text
    from mint.exports.tensor_types import tensor_types as types_of

    check_files(filter(None, (output, tensor_types)), force=force)
    if not output.stem.isidentifier() or output.suffix != ".py":
        raise MintError(f"{output}: Python cannot import it; needed: a name such as quant_predicate.py")
    chosen = mint.read_plan(plan)
    types, unnamed = types_of(chosen) if tensor_types else ("", ())
    files = {output: predicate_text(chosen, output.name).encode()}
    if tensor_types:
        files[tensor_types] = types.encode()
    write_files(screen, files, force=force)
    record: Record = {"predicate": str(output), "units": len(chosen.choices), "plan_rounding": chosen.rounding}
    if tensor_types:
        record |= {"tensor_types": str(tensor_types), "without_name": list(unnamed)}
    return record


def recipes(
    screen: Screen,
    model: Annotated[str, argument("[MODEL]", "Also give the time and memory of this model on this machine.")] = "",
) -> Record:
    """List the qualities: the rounding that each stands for, its cost and its gain.

    Seconds and memory are those of SmolLM2-135M on two cores; the KL is against uniform 4-bit at equal bytes. Of a
    MODEL they are forecasts for the size of uniform 4-bit, as `mint quantize --dry-run` gives them for that budget.
    """
    from mint.render.models import qualities_record

    if not model:
        screen.note("of SmolLM2-135M on two cores; of another model: mint recipes MODEL")
        return qualities_record()
    screen.begin(f"forecast {described(model)}")
    from mint.run.blas import restart_with_fast_blas

    restart_with_fast_blas()
    from mint.pipeline import Pipeline, Target
    from mint.plan.plan import CONVERTED
    from mint.plan.recipe import Budget, Recipe
    from mint.plan.size_range import format_bytes

    source = mint.open_source(model, on_progress=screen.on_progress)
    nbytes = format_bytes(source.units, source.parameters)[str(CONVERTED)]
    budget = Budget.of(enough_size(nbytes))
    target = Target(default_outputs(model, [budget])[0], budget)
    screen.note(f"forecast for --budget {str(budget).replace(' ', '')}, the size of uniform 4-bit")

    def expected(rounding: str) -> Record:
        return Pipeline(Recipe(rounding=rounding), force=True, may_probe=True).foresee(source, [target]).to_dict()

    forecasts = {row.name: expected(row.rounding) for row in QUALITIES.values()}
    return {**qualities_record(forecasts), "budget": str(budget).replace(" ", "")}


def devices(
    screen: Screen,
    name: Annotated[str, argument("[NAME]", "Only devices whose name contains this; 'this': this machine.")] = "",
    loaders: Annotated[bool, flag("List loaders for --compat instead.", "--loaders")] = False,
    sources: Annotated[bool, flag("Also list where the figures come from.", "--sources")] = False,
) -> Record:
    """List the devices for --device, with the memory that they leave for a model."""
    from mint.render.models import devices_record, loaders_record

    brief = not (screen.as_json or sources)
    return loaders_record(brief=brief) if loaders else devices_record(name, brief=brief)
