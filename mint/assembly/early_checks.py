"""Checks of a request that need names and headers only: they come before the first long step, whatever makes a model.

A check refuses what must fail. Sizes are lower bounds: measuring can only forbid more formats (the veto).
"""

import shutil
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from mint.core.errors import DiskFullError, MintError
from mint.core.files import partial_path
from mint.core.memory import memory_bytes
from mint.core.progress import OnNote, say_nothing
from mint.core.sizes import enough_size, format_size, parse_size
from mint.formats.format import KEEP
from mint.model.opening.path_kind import check_outputs
from mint.model.roles import TOWER
from mint.model.source import Source
from mint.plan.objectives import objective
from mint.plan.problem import Problem
from mint.plan.recipe import Budget, Recipe
from mint.plan.rules import BITS, FORMATS, LOCKS, VETO, Allowance, Rules
from mint.plan.size_range import least_bytes, possible_bytes
from mint.run.stacks import held_bytes
from mint.targets.devices import device


def check_request(
    source: Source,
    recipe: Recipe,
    budgets: Sequence[Budget],
    outputs: Sequence[Path],
    files: Sequence[Path] = (),
    *,
    problem: Problem | None = None,
    on_note: OnNote = say_nothing,
) -> list[int]:
    """The bytes of each output at most. Raises `MintError` for patterns without a unit, and too little of anything.

    `files` are those that the work writes beside the `outputs`. `problem` is known if the model was analyzed before:
    its sizes are exact. Without it a note tells of a budget that the veto may forbid.
    """
    check_outputs(outputs, files, source.folder)
    _, largest = possible_bytes(source.units, source.parameters)
    if problem:
        smallest = problem.smallest_bytes
        sizes: list[int | None] = [budget.nbytes(problem) for budget in budgets]
        for nbytes in filter(None, sizes):
            problem.require(nbytes)
    else:
        sizes = [_most_bytes(budget, source, largest) for budget in budgets]
        smallest = _check_sizes(source, recipe, dict(zip(budgets, sizes, strict=True)), on_note)
    of_budgets = dict(zip(budgets, sizes, strict=True))
    if keeps_all(source, recipe, largest):
        _note_of_room(of_budgets, largest, on_note)
    most = [min(nbytes or smallest, largest) for nbytes in sizes]
    _check_disk(list(zip(outputs, most, strict=True)))
    _check_memory(source)
    return most


def _check_sizes(source: Source, recipe: Recipe, sizes: Mapping[Budget, int | None], on_note: OnNote) -> int:
    """The smallest budget that may have a plan, by the headers; `MintError` for a smaller one of `sizes`.

    A note tells of budgets that have a plan only if the veto permits formats in which usual weights are too noisy.
    """
    chosen, rules = objective(recipe.objective), recipe.rules
    is_floorless = recipe.probe or not chosen.probes
    unfloored = {unit.path for unit in source.units if unit.role != TOWER} if is_floorless else ()
    allowance = Allowance(rules, source.units, chosen.formats, unfloored)
    smallest, usual = (
        least_bytes(source.units, source.parameters, formats, parse_size(recipe.max_shard_size))
        for formats in (allowance.conceivable, allowance.expected)
    )
    limits = f", and up to {enough_size(usual)} with {_limits(rules)}, rounded to nearest" if usual > smallest else ""
    takes = f"the smallest plan takes {enough_size(smallest)} by the headers alone{limits}"
    for budget, nbytes in sizes.items():
        if nbytes is None or nbytes >= usual:
            continue
        named = f"the budget {budget} ({format_size(nbytes)})"
        if nbytes < smallest:
            locks = f", or relax {rules.named(LOCKS)}" if rules.locks else ""
            raise MintError(f"{named} is too small; {takes}. Raise the budget{locks}")
        on_note(f"{named} may be too small: {takes}; the analysis will tell")
    return smallest


def _limits(rules: Rules) -> str:
    """The limits that make the smallest plan larger than the headers tell, in words."""
    limits = [VETO, *([BITS] if rules.min_bits else []), *([FORMATS] if rules.formats else [])]
    return ", ".join(map(rules.named, limits))


def keeps_all(source: Source, recipe: Recipe, nbytes: int) -> bool:
    """True if the plan of a budget keeps every unit: it has room for all, and no rule asks for a format."""
    rules, (_, largest) = recipe.rules, possible_bytes(source.units, source.parameters)
    is_free = not (rules.formats or recipe.prefer_speed or any(format != KEEP for _, format in rules.locks))
    return is_free and nbytes >= largest and all(rules.permits_keep(unit.dtype) for unit in source.units)


def _note_of_room(sizes: Mapping[Budget, int | None], largest: int, on_note: OnNote) -> None:
    """Note the budgets, other than `max`, that hold the whole model unquantized."""
    for budget, size in sizes.items():
        is_max = budget.amount is not None and budget.amount.unit == "max"
        if size is not None and size >= largest and not is_max:
            on_note(
                f"{budget} has room for the whole model ({format_size(largest)}): no unit is quantized. For a smaller "
                "model give less, such as --budget 4.5bpw, the size of uniform 4-bit"
            )


def _most_bytes(budget: Budget, source: Source, largest: int) -> int | None:
    """Bytes of a budget at most; None for the smallest plan."""
    if budget.amount is None:
        return device(budget.device).working_set_bytes - budget.room.reserve_bytes
    weights = sum(unit.size for unit in source.units) + sum(prod(p.shape) for p in source.parameters)
    if budget.amount.unit in ("min", "max"):
        return None if budget.amount.unit == "min" else largest
    return budget.amount.nbytes(weights, source.nbytes)


def _check_disk(sizes: Sequence[tuple[Path, int]]) -> None:
    """Raise `DiskFullError` where the outputs of one disk cannot fit it; what unfinished outputs hold counts."""
    needed: dict[int, int] = {}
    for path, nbytes in sizes:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        disk, partial = folder.stat().st_dev, partial_path(path)
        held = sum(file.stat().st_blocks * 512 for file in partial.glob("*") if file.is_file())
        needed[disk] = needed.get(disk, 0) + max(0, nbytes - held)
        if needed[disk] > (free := shutil.disk_usage(folder).free):
            raise DiskFullError(
                f"{folder}: {format_size(free)} are free, needed {enough_size(needed[disk])} for {path.name}; "
                "free some space, or choose an --output on another disk"
            )


def _check_memory(source: Source) -> None:
    """Raise `MintError` for a weight that this machine cannot hold."""
    held = {unit.path: held_bytes(source, unit) for unit in source.units}
    largest = max(held, key=held.__getitem__, default="")
    if largest and held[largest] > (memory := memory_bytes()):
        raise MintError(
            f"{largest} takes {format_size(held[largest])}, this machine has {format_size(memory)} of memory; "
            "needed: a machine that holds the largest weight"
        )
