"""The objectives: what a plan minimizes, the sum over units of alpha * NRMSE^power.

`output` is the form that theory (the linearity theorem of HIGGS, arXiv 2411.17525) and measurement support. `mint` is
the objective published under that name, kept for comparison: it adds errors, not their squares, so it spends its bytes
on the many small matrices. `energy` weighs every squared relative error by the number of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

from mint.core.errors import MintError
from mint.formats.format import FORMATS, KEEP, Format, parse_format

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mint.formats.units import Unit


@dataclass(frozen=True, slots=True)
class Objective:
    """A name, a summary, the sensitivities, and the formats to choose from by default."""

    name: str
    summary: str
    alphas: Callable[[Sequence[Unit]], Mapping[str, float]]  # by path of every unit that may be quantized
    power: int  # of NRMSE: 1 or 2
    formats: tuple[Format, ...]
    probes: bool = False  # its alphas are the sensitivities that a probe measures

    def loss(self, alpha: float, error: float) -> float:
        """The loss of a unit of sensitivity `alpha` and squared relative error (NRMSE^2) `error`."""
        return alpha * error if self.power == 2 else alpha * sqrt(error)

    def losses(self, alphas: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
        """`loss` of arrays that broadcast."""
        import numpy as np  # not above: the names of objectives must load without it

        return alphas * (errors if self.power == 2 else np.sqrt(errors))


def _priors(units: Sequence[Unit]) -> dict[str, float]:
    from mint.analysis.probes.sensitivity import prior_alphas  # as late as numpy

    return prior_alphas(units)


_PUBLISHED_NAMES = "2/32 2/64 3/32 3/64 4/32 4/64 4/128 5/32 5/64 6/32 6/64 8/64 8/128"
_PUBLISHED_FORMATS = tuple(map(parse_format, _PUBLISHED_NAMES.split()))
_PUBLISHED_ROLES = {"embedding": 10.0, "input_embedding": 10.0, "head": 10.0, "router": 8.0}


def _published(units: Sequence[Unit]) -> dict[str, float]:
    """The priors of the published system, looked up in its order."""
    last = max((unit.layer for unit in units), default=0)

    def prior(unit: Unit) -> float:
        if unit.role in _PUBLISHED_ROLES:
            return _PUBLISHED_ROLES[unit.role]
        if "vision" in unit.path:
            return 8.0
        if unit.layer == 0:
            return 3.0
        return 2.0 if unit.layer == last >= 0 else 1.0

    return {unit.path: prior(unit) for unit in units if not unit.keep_reason}


def _sizes(units: Sequence[Unit]) -> dict[str, float]:
    total = sum(unit.size for unit in units) or 1
    return {unit.path: unit.size / total for unit in units if not unit.keep_reason}


_ALL = tuple(format for format in FORMATS if format != KEEP)
OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("output", "sensitivity of the output x squared relative error", _priors, 2, _ALL, probes=True),
        Objective("mint", "the published one: priors x relative error, 13 formats", _published, 1, _PUBLISHED_FORMATS),
        Objective("energy", "share of the weights x squared relative error", _sizes, 2, _ALL),
    )
}


def objective(name: str) -> Objective:
    """The objective of this name; `MintError` lists the names."""
    if name not in OBJECTIVES:
        raise MintError(f"{name!r} is not an objective; needed one of: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]
