"""Checks of a request that need names and headers only: they come before the first long step, whatever makes a model.

A check refuses what must fail. Sizes are lower bounds: measuring can only forbid more formats (the veto).
"""

import shutil
from collections.abc import Mapping, Sequence
from math import log10, prod
from pathlib import Path

from mint.core.errors import DiskFullError, MintError
from mint.core.files import partial_path
from mint.core.memory import memory_bytes
from mint.core.progress import OnNote, say_nothing
from mint.core.sizes import format_size
from mint.formats.format import KEEP, Format
from mint.formats.units import Unit
from mint.model.opening.path_kind import check_outputs
from mint.model.source import Source
from mint.plan.objectives import objective
from mint.plan.recipe import Budget, Recipe
from mint.plan.rules import Allowance
from mint.plan.size_range import least_bytes, possible_bytes
from mint.run.stacks import held_bytes
from mint.targets.devices import device

# 4 bits of normal weights have a ratio of 21.7 dB, each bit has 6 dB; real weights have up to 2 dB less
OVERHEAD_DB = 4.5


def check_request(
    source: Source,
    recipe: Recipe,
    budgets: Sequence[Budget],
    outputs: Sequence[Path],
    files: Sequence[Path] = (),
    *,
    on_note: OnNote = say_nothing,
) -> list[int]:
    """The bytes of each output at most. Raises `MintError` for patterns without a unit, and too little of anything.

    `files` are those that the work writes beside the `outputs`. A note tells of a budget that the veto may forbid.
    """
    check_outputs(outputs, files, source.folder)
    allowance = Allowance(recipe.rules, source.units, objective(recipe.objective).formats)
    smallest = least_bytes(source.units, source.parameters, allowance.conceivable)
    _, largest = possible_bytes(source.units, source.parameters)
    sizes = [_most_bytes(budget, source, largest) for budget in budgets]
    for budget, nbytes in zip(budgets, sizes, strict=True):
        if nbytes is not None and nbytes < smallest:
            raise MintError(
                f"the budget {budget} ({format_size(nbytes)}) is too small; every plan takes more than "
                f"{format_size(smallest)}, by the headers alone. Raise the budget, or relax --keep, --set and --formats"
            )
    of_budgets = dict(zip(budgets, sizes, strict=True))
    _warn_of_veto(source, recipe, allowance, of_budgets, on_note)
    if not recipe.rules.formats and all(recipe.rules.permits_keep(unit.dtype) for unit in source.units):
        _note_of_room(of_budgets, largest, on_note)
    most = [min(nbytes or smallest, largest) for nbytes in sizes]
    _check_disk(list(zip(outputs, most, strict=True)))
    _check_memory(source)
    return most


def _warn_of_veto(
    source: Source, recipe: Recipe, allowance: Allowance, sizes: Mapping[Budget, int | None], on_note: OnNote
) -> None:
    """Note the budgets that have a plan only if the veto permits formats in which real weights may be too noisy."""

    def safe(unit: Unit) -> Sequence[Format]:
        formats = allowance.conceivable(unit)
        return [f for f in formats if f == KEEP or 10 * log10(4) * f.bits - OVERHEAD_DB >= recipe.veto_db] or formats

    nbytes = least_bytes(source.units, source.parameters, safe)
    for budget, size in sizes.items():
        if size is not None and size < nbytes:
            on_note(
                f"the budget {budget} ({format_size(size)}) may be too small: if the veto of {recipe.veto_db:g} dB "
                f"forbids the fewest bits, every plan takes more than {format_size(nbytes)}; the analysis will tell"
            )


def _note_of_room(sizes: Mapping[Budget, int | None], largest: int, on_note: OnNote) -> None:
    """Note the budgets, other than `max`, that hold the whole model unquantized."""
    for budget, size in sizes.items():
        is_max = budget.amount is not None and budget.amount.unit == "max"
        if size is not None and size >= largest and not is_max:
            on_note(f"{budget} has room for the whole model ({format_size(largest)}): no unit has to be quantized")


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
                f"{folder}: {format_size(free)} are free, needed {format_size(needed[disk])} for {path.name}; "
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
