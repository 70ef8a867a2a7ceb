"""What differs between two plans of one model."""

from dataclasses import dataclass

from mint.core.errors import MintError
from mint.plan.plan import Choice, Plan, offset_digits


@dataclass(frozen=True, slots=True)
class Change:
    """A unit that has another format in the second plan; bytes and loss are those of the second less the first."""

    before: Choice
    after: Choice
    nbytes: int
    loss: float


def diff(before: Plan, after: Plan) -> tuple[Change, ...]:
    """The units whose formats differ, those with the largest change of loss first; `MintError` for two models."""
    if before.model != after.model or before.dtype != after.dtype:
        raise MintError(
            f"the plans are of two models (identities {before.model[:12]} and {after.model[:12]}); "
            "needed: two plans of one model"
        )
    digits = offset_digits(before)
    theirs = {choice.path: choice for choice in after.choices}
    changes = [
        Change(
            before=ours,
            after=theirs[ours.path],
            nbytes=theirs[ours.path].nbytes(digits) - ours.nbytes(digits),
            loss=after.loss_of(theirs[ours.path]) - before.loss_of(ours),
        )
        for ours in before.choices
        if ours.format != theirs[ours.path].format
    ]
    return tuple(sorted(changes, key=lambda change: (-abs(change.loss), change.before.path)))
