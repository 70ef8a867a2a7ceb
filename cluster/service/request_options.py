"""The meaning of a request: its recipe, its budget, and the one way to write both.

Options that equal their defaults, or that do not matter to the budget, are no part of a request: a default that is
written out asks for the same job.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from mint.core.errors import MintError
from mint.core.sizes import UNITS, parse_budget
from mint.plan.recipe import ANALYSIS_FIELDS, Budget, Recipe, Room
from mint.targets.devices import device, devices

DEFAULTS = {**Recipe().to_dict(), **Room().to_dict()}
DEVICE_NAMES = frozenset(device.name for device in devices())
_GROWTH = 4


def recipe_of(budget: Budget | None, options: Mapping[str, Any]) -> Recipe:
    """The recipe of options, as far as they matter to a budget; without one, only the analysis is wanted."""
    fields = recipe_options(options)
    return Recipe.from_dict(fields if budget else {name: fields[name] for name in ANALYSIS_FIELDS if name in fields})


def recipe_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are fields of a recipe."""
    return {name: options[name] for name in Recipe().to_dict() if name in options}


def budget_of(text: str, options: Mapping[str, Any]) -> Budget:
    """The budget of a size, or of a device with the room that the options ask for."""
    text = text.strip()
    if text in DEVICE_NAMES:
        room = Room.from_dict({name: options[name] for name in Room().to_dict() if name in options})
        return Budget(device=text, room=room)
    return Budget(parse_budget(text))


def checked_options(budget: Budget | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that change something for this budget; raises `MintError` for one that nothing can be made of."""
    if unknown := sorted(set(options) - set(DEFAULTS)):
        raise MintError(f"unknown options: {', '.join(unknown)}; needed some of {', '.join(DEFAULTS)}")
    values = {**recipe_of(budget, options).to_dict(), **(budget.room if budget else Room()).to_dict()}
    return {name: value for name, value in values.items() if value != DEFAULTS[name]}


def canonical(budget: Budget | None) -> str:
    """The one way to write a budget: 4000MB and 4 GB are both 4GB. Empty for none."""
    if budget is None or budget.amount is None:
        return budget.device if budget else ""
    amount = budget.amount
    if amount.unit == "B":
        return min((_written(int(amount.number), unit) for unit in reversed(UNITS)), key=len)
    return amount.unit if amount.unit in ("min", "max") else f"{_plain(amount.number)}{amount.unit}"


def most_bytes(budget: Budget | None, source_bytes: int) -> int:
    """About the most that the answer takes, before anything is measured: for a quota.

    A relative budget is one of the source, which few results outgrow; no result has more than four times its bytes
    (4 bits that become 16), however large the device.
    """
    if budget is None:
        return 0
    if budget.amount is None:
        return min(device(budget.device).working_set_bytes, _GROWTH * source_bytes)
    if budget.amount.unit == "B":
        return min(int(budget.amount.number), _GROWTH * source_bytes)
    return min(int(budget.amount.number * source_bytes), source_bytes) if budget.amount.unit == "x" else source_bytes


def _written(nbytes: int, unit: str) -> str:
    number = Decimal(nbytes) / UNITS[unit]
    exact = number * UNITS[unit] == nbytes and number >= 1
    return f"{_plain(number)}{unit}" if exact else f"{nbytes}B"


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
