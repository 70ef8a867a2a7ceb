"""Plans to look at: the alternatives of each unit with their cost, and the differences between two plans."""

from dataclasses import dataclass, replace

from mint.analysis.analysis import sqnr_db
from mint.core.errors import MintError
from mint.core.records import require_record
from mint.formats.format import KEEP, Format
from mint.plan.plan import Choice, Plan
from mint.plan.rules import LOSSLESS, matching

CHOSEN, OPEN, WORSE = "chosen", "possible", "larger and no better than another"
VETOED, FLOOR, EXCLUDED = "below the veto", "below the floor of the model or the role", "left out by the rules"


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store a unit: its bytes, its error, its loss, and the reason for or against it."""

    format: Format
    nbytes: int
    sqnr_db: float
    loss: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Step:
    """A change of format: bytes added (negative: freed) and loss saved (negative: added)."""

    format: Format
    nbytes: int
    loss: float

    @property
    def loss_per_mb(self) -> float:
        return self.loss / self.nbytes * 1e6


@dataclass(frozen=True, slots=True)
class Explanation:
    """A unit's choice, its options by size, and the best step to a larger and to a smaller format."""

    choice: Choice
    options: tuple[Option, ...]
    larger: Step | None
    smaller: Step | None


@dataclass(frozen=True, slots=True)
class Change:
    """A unit whose format differs between two plans; bytes and loss are the second plan's minus the first's."""

    before: Choice
    after: Choice
    nbytes: int
    loss: float


def explain(plan: Plan, pattern: str = "*") -> tuple[Explanation, ...]:
    """Explain the units whose path matches `pattern`; `MintError` if no path matches."""
    require_record("read_plan", plan)
    paths = set(matching(pattern, [choice.path for choice in plan.choices]))
    return tuple(_explain(plan, choice) for choice in plan.choices if choice.path in paths)


def diff(before: Plan, after: Plan) -> tuple[Change, ...]:
    """The units whose formats differ, by falling change of loss; `MintError` for plans of two models."""
    require_record("read_plan", before, after)
    if before.model != after.model or before.dtype != after.dtype:
        raise MintError(
            f"the plans are of two models (identities {before.model[:12]} and {after.model[:12]}); "
            "needed: two plans of one model"
        )
    choices = {choice.path: choice for choice in after.choices}
    changes = [
        Change(old, new, after.nbytes_of(new) - before.nbytes_of(old), after.loss_of(new) - before.loss_of(old))
        for old in before.choices
        if (new := choices[old.path]).format != old.format
    ]
    return tuple(sorted(changes, key=lambda change: (-abs(change.loss), change.before.path)))


def _explain(plan: Plan, choice: Choice) -> Explanation:
    options = _options(plan, choice)
    chosen = next(option for option in options if option.format == choice.format)
    steps = [Step(o.format, o.nbytes - chosen.nbytes, chosen.loss - o.loss) for o in options if o.verdict == OPEN]
    larger = [step for step in steps if step.nbytes > 0 and step.loss > 0]
    smaller = [step for step in steps if step.nbytes < 0]
    best_larger = max(larger, key=lambda step: step.loss_per_mb, default=None)
    best_smaller = min(smaller, key=lambda step: step.loss_per_mb, default=None)
    return Explanation(choice, tuple(options), best_larger, best_smaller)


def _options(plan: Plan, choice: Choice) -> list[Option]:
    """The unit's options by size; a possible one that a smaller option equals or beats is `WORSE`."""
    options = [
        Option(
            format,
            plan.nbytes_of(choice, format),
            sqnr_db(choice.error_of(format)),
            plan.loss_of(choice, format),
            _verdict(plan, choice, format),
        )
        for format in (*choice.formats, KEEP)
    ]
    options.sort(key=lambda option: (option.nbytes, option.loss))
    least = float("inf")
    for index, option in enumerate(options):
        if option.verdict == OPEN and option.loss >= least:
            options[index] = replace(option, verdict=WORSE)
        if option.verdict in (OPEN, CHOSEN):
            least = min(least, option.loss)
    return options


def _verdict(plan: Plan, choice: Choice, format: Format) -> str:
    if format == choice.format:
        return CHOSEN
    if choice.reason.startswith(("kept", "set to")):
        return VETOED if format in choice.vetoed else EXCLUDED
    if format == KEEP:
        return OPEN if plan.rules.permits_keep(choice.dtype) else EXCLUDED
    if choice.error_of(format) <= LOSSLESS and plan.rules.permits_lossless(format):
        return OPEN
    if format.bits < choice.min_bits:
        return FLOOR
    if not plan.rules.permits(format, plan.objective.formats):
        return EXCLUDED
    return VETOED if format in choice.vetoed else OPEN
