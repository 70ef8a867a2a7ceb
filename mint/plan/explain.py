"""Why a unit has its format: everything else it could have had, and what that would cost and save."""

from dataclasses import dataclass

from mint.analysis.analysis import sqnr_db
from mint.formats.format import KEEP, Format
from mint.plan.plan import Choice, Plan, offset_digits
from mint.plan.rules import matching

CHOSEN, VETOED, FLOOR, EXCLUDED, WORSE, OPEN = (
    "chosen",
    "below the veto",
    "below the model's own floor",
    "left out by the rules",
    "larger and no better than another",
    "possible",
)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a unit: bytes, what it would hurt, and whether it could be chosen."""

    format: Format
    nbytes: int
    sqnr_db: float
    loss: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Step:
    """From the chosen format to the best next one: bytes added or freed, loss saved or added, and loss per MB of it."""

    format: Format
    nbytes: int
    loss: float

    @property
    def loss_per_mb(self) -> float:
        return self.loss / self.nbytes * 1e6


@dataclass(frozen=True, slots=True)
class Explanation:
    """A unit's choice, its options by size, and the best steps to a larger and to a smaller format, where there are."""

    choice: Choice
    options: tuple[Option, ...]
    larger: Step | None
    smaller: Step | None


def explain(plan: Plan, pattern: str = "*") -> tuple[Explanation, ...]:
    """Why the units whose path matches `pattern` have their formats; `MintError` when none does."""
    wanted = set(matching(pattern, [choice.path for choice in plan.choices]))
    digits = offset_digits(plan)
    return tuple(_explain(plan, choice, digits) for choice in plan.choices if choice.path in wanted)


def _explain(plan: Plan, choice: Choice, digits: int) -> Explanation:
    options = sorted(
        (
            Option(
                format=format,
                nbytes=choice.nbytes(digits, format),
                sqnr_db=sqnr_db(choice.error_of(format)),
                loss=plan.objective.loss(choice.alpha, choice.error_of(format)),
                verdict=_verdict(plan, choice, format),
            )
            for format in (*choice.formats, KEEP)
        ),
        key=lambda option: (option.nbytes, option.loss),
    )
    least = float("inf")
    judged = []
    for option in options:
        worse = option.verdict == OPEN and option.loss >= least
        judged.append(Option(option.format, option.nbytes, option.sqnr_db, option.loss, WORSE) if worse else option)
        if option.verdict in (OPEN, CHOSEN):
            least = min(least, option.loss)
    here = next(option for option in judged if option.format == choice.format)
    steps = [Step(o.format, o.nbytes - here.nbytes, here.loss - o.loss) for o in judged if o.verdict == OPEN]
    larger = [step for step in steps if step.nbytes > 0 and step.loss > 0]
    smaller = [step for step in steps if step.nbytes < 0]
    return Explanation(
        choice=choice,
        options=tuple(judged),
        larger=max(larger, key=lambda step: step.loss_per_mb, default=None),
        smaller=min(smaller, key=lambda step: step.loss_per_mb, default=None),
    )


def _verdict(plan: Plan, choice: Choice, format: Format) -> str:
    if format == choice.format:
        return CHOSEN
    if choice.reason.startswith(("kept", "set to")):
        return VETOED if format in choice.vetoed else EXCLUDED
    if format == KEEP:
        return OPEN if plan.rules.permits_keep(choice.dtype) else EXCLUDED
    if format.bits < choice.min_bits:
        return FLOOR
    if not plan.rules.permits(format, plan.objective.formats):
        return EXCLUDED
    return VETOED if format in choice.vetoed else OPEN
