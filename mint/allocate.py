"""Analysis and budget to Plan: the least predicted loss that fits.

minimize sum_i alpha_i * NRMSE_i(format_i)^2 subject to the bytes of the weight files, one format per unit. The
knapsack sees bytes and losses only; what may be chosen at all (the model's floors, the veto) is decided here.
"""

from collections.abc import Mapping, Sequence

from mint.analysis import Analysis, Measurement, sqnr_db
from mint.budget import format_size
from mint.errors import MintError
from mint.formats import KEEP, Format, TensorSpec
from mint.knapsack import Infeasible, solve
from mint.layout import MAX_SHARD_BYTES, overhead_nbytes, stored_nbytes
from mint.plan import Choice, Plan, digits_for
from mint.sensitivity import prior_alphas
from mint.units import Unit

VETO_DB = 9.0  # the published floor: below it a matrix is mostly noise


def allocate(
    analysis: Analysis,
    budget_bytes: int,
    *,
    veto_db: float = VETO_DB,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Plan:
    """The plan of least predicted loss whose weight files take at most `budget_bytes`, with its proved bound.

    Formats whose worst matrix has a signal-to-noise ratio below `veto_db` are not chosen. Raises `MintError` naming
    the smallest budget that works when there is no plan.
    """
    alphas = prior_alphas(analysis.units)
    digits = digits_for((unit.shape for unit in analysis.units), analysis.parameters)
    options = [_options(unit, analysis.measurements[unit.path], veto_db) for unit in analysis.units]
    sizes = [
        [stored_nbytes(format.tensors(unit.path, unit.shape, unit.dtype), digits) for format in formats]
        for unit, (formats, _) in zip(analysis.units, options, strict=True)
    ]
    losses = [
        [alphas.get(unit.path, 0.0) * analysis.measurements[unit.path].error(format) for format in formats]
        for unit, (formats, _) in zip(analysis.units, options, strict=True)
    ]
    fixed = sum(
        stored_nbytes((TensorSpec(parameter.name, parameter.dtype, parameter.shape),), digits)
        for parameter in analysis.parameters
    )
    fixed += overhead_nbytes(budget_bytes, max_shard_bytes)
    try:
        solution = solve(sizes, losses, budget_bytes - fixed)
    except Infeasible as error:
        raise MintError(_infeasible(budget_bytes, error.smallest + fixed, veto_db)) from error
    choices = tuple(
        _choice(unit, analysis.measurements[unit.path], formats[index], reason, alphas)
        for unit, (formats, reason), index in zip(analysis.units, options, solution.choice, strict=True)
    )
    plan = Plan(
        model=analysis.model,
        model_type=analysis.model_type,
        dtype=analysis.dtype,
        analysis=analysis.digest,
        device=analysis.device,
        budget_bytes=budget_bytes,
        bound=solution.bound,
        veto_db=veto_db,
        choices=choices,
        parameters=analysis.parameters,
        max_shard_bytes=max_shard_bytes,
    )
    assert plan.planned_bytes <= budget_bytes, "the overhead of the shards was underestimated"
    return plan


def _options(unit: Unit, measurement: Measurement, veto_db: float) -> tuple[Sequence[Format], str]:
    """What may be chosen for a unit, and why it is so."""
    if unit.keep_reason:
        return (KEEP,), f"kept: {unit.keep_reason}"
    if measurement.nonfinite:
        return (KEEP,), f"kept: {measurement.nonfinite} weights are NaN or infinite"
    above_floor = [format for format in measurement.formats if format.bits >= unit.min_bits]
    safe = [format for format in above_floor if sqnr_db(measurement.worst_error(format)) >= veto_db]
    if not measurement.formats:
        return (KEEP,), f"kept: no group size divides its last axis ({unit.shape[-1]})"
    if not safe:
        return (KEEP,), f"kept: every format is below {veto_db:g} dB"
    vetoed = len(above_floor) - len(safe)
    notes = [f"at least {unit.min_bits} bits (the model's own rule)"] if unit.min_bits else []
    notes += [f"{vetoed} formats below {veto_db:g} dB"] if vetoed else []
    return (*safe, KEEP), "least loss" + "".join(f"; {note}" for note in notes)


def _choice(unit: Unit, measurement: Measurement, format: Format, reason: str, alphas: Mapping[str, float]) -> Choice:
    return Choice(
        path=unit.path,
        format=format,
        reason=reason,
        shape=unit.shape,
        dtype=unit.dtype,
        role=unit.role,
        layer=unit.layer,
        alpha=alphas.get(unit.path, 0.0),
        curve={} if measurement.nonfinite else dict(zip(measurement.formats, measurement.errors, strict=True)),
    )


def _infeasible(budget_bytes: int, smallest: int, veto_db: float) -> str:
    return (
        f"the budget of {budget_bytes} bytes ({format_size(budget_bytes)}) is too small; "
        f"the smallest that works is {smallest} bytes ({format_size(smallest)}, rounded). "
        f"Raise the budget, or lower the veto (now {veto_db:g} dB) with --veto"
    )
