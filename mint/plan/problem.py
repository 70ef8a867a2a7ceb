"""An analysis under an objective and rules: bytes and losses of every format that every unit may have.

Prepared once, solved for any number of budgets. The knapsack sees bytes and losses only; names stay here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np

from mint.analysis.analysis import Analysis
from mint.analysis.probes.probe_file import Probed
from mint.analysis.probes.sensitivity import PROBED, Alpha, alphas_from
from mint.core.errors import MintError
from mint.core.records import pick
from mint.core.sizes import MAX_SHARD_BYTES, enough_size, format_size
from mint.formats.format import KEEP, parse_format
from mint.formats.layout import budget_nbytes, name_nbytes, overhead_nbytes, stored_nbytes, unnamed_nbytes
from mint.formats.quality import option_of
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.model.roles import TOWER, UNTIED
from mint.plan.knapsack.relaxation import Floats, Integers
from mint.plan.knapsack.solve import InfeasibleError, Knapsack, Solution
from mint.plan.objectives import OBJECTIVES, Objective
from mint.plan.plan import Choice, Plan, digits_for
from mint.plan.prediction import Evidence, Sampling, predicted_kl
from mint.plan.rules import Allowance, Allowed, Rules
from mint.plan.size_range import kept_matrices
from mint.quality.estimates import Estimate
from mint.targets.speed import decode_cost

_REFERENCE = parse_format("4/64")  # of a preference for speed
_NO_ALPHA = Alpha(0.0, "")


class _Row(NamedTuple):
    """The F formats that a unit may have, as arrays (F,)."""

    nbytes: Integers
    losses: Floats
    charged: Floats  # losses with the charge for speed


_FREE = _Row(np.zeros(1, np.int64), np.zeros(1), np.zeros(1))  # of a unit that another one decides


class Problem:
    """One analysis under an objective and rules, ready for any budget.

    `prefer_speed` penalizes formats that decode slowly: at 1, a hundredth of the time of uniform 4/64 is
    worth a hundredth of the loss of uniform 4/64. Raises `MintError` for rules that contradict each other.
    """

    def __init__(
        self,
        analysis: Analysis,
        objective: Objective = OBJECTIVES["output"],
        rules: Rules = Rules(),  # noqa: B008, it is frozen
        *,
        probed: Probed | None = None,
        prefer_speed: float = 0.0,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        if probed and probed.model != analysis.model:
            raise MintError("the probes are of another model than the analysis; probe this one, or go without")
        self.analysis = analysis
        self._probed = probed
        self.objective = objective
        self.rules = rules
        self.max_shard_bytes = max_shard_bytes
        self._digits = digits_for(self.weights)
        units, measured = analysis.units, probed.alphas if probed and objective.probes else {}
        alphas = alphas_from(objective.alphas(units), units, measured, probed.origin if probed else PROBED)
        self._alphas = {unit.path: alphas.get(unit.path, _NO_ALPHA) for unit in units}
        self._active = {unit.path: 1.0 for unit in units} | active_shares(analysis)
        self._sampling = Sampling([unit.path for unit in units], probed if objective.probes else None)
        # floors of roles stand for probes, and belong to no other objective, but for that of towers
        probed_paths = {path for path, alpha in measured.items() if alpha > 0}
        language = {unit.path for unit in units if unit.role != TOWER}
        unfloored = probed_paths if objective.probes else language
        allowance = self._allowance = Allowance(rules, units, objective.formats, unfloored)
        indices = {unit.path: index for index, unit in enumerate(units)}
        self._twins = {indices[unit.path]: indices[unit.twin] for unit in units if unit.twin}
        self._allowed = [allowance.of(unit, analysis.measurements[unit.path]) for unit in units]
        for twin, main in self._twins.items():
            self._allowed[twin] = self._allowed[main] = _shared(units[twin], self._allowed[main], self._allowed[twin])
        self._speed_price = prefer_speed and prefer_speed * self._reference_price()
        self._rows = self._all_rows()
        for twin, main in self._twins.items():  # the row of the main unit chooses for both
            self._rows[main] = _Row(*map(np.add, self._rows[main], self._rows[twin]))
            self._rows[twin] = _FREE
        self._knapsack = Knapsack([row.nbytes for row in self._rows], [row.charged for row in self._rows])
        tensors = [parameter.tensor for parameter in analysis.parameters]
        self._parameter_nbytes = sum(stored_nbytes(tensors, self._digits))

    @property
    def weights(self) -> int:
        """Number of weights of the unquantized model."""
        analysis = self.analysis
        return sum(unit.size for unit in analysis.units) + sum(prod(p.shape) for p in analysis.parameters)

    @cached_property
    def smallest_bytes(self) -> int:
        """The smallest budget that has a plan."""
        return budget_nbytes(self._knapsack.smallest + self._parameter_nbytes, self.max_shard_bytes)

    @cached_property
    def largest_bytes(self) -> int:
        """The smallest budget whose plan has the least loss of all."""
        return budget_nbytes(sum(map(_size_of_least, self._rows)) + self._parameter_nbytes, self.max_shard_bytes)

    def require(self, budget_bytes: int) -> None:
        """Raise `MintError` naming the smallest budget that works if this one has no plan; solves nothing."""
        if budget_bytes < self.smallest_bytes:
            raise MintError(self._infeasible(budget_bytes))

    def plan(self, budget_bytes: int) -> Plan:
        """The plan of least loss within the budget, with its bound: proved, or the best one found with its gap.

        Raises `MintError` naming the smallest budget that works when there is no plan.
        """
        capacity = self._capacity(budget_bytes)
        try:
            solution = self._knapsack.solve(capacity)
        except InfeasibleError as error:
            raise MintError(self._infeasible(budget_bytes)) from error
        choice = [solution.choice[self._twins.get(index, index)] for index in range(len(self._rows))]
        picks = zip(self.analysis.units, self._allowed, choice, strict=True)
        plan = Plan(
            **pick(self.analysis, "model model_type dtype loader rounding device dropped_towers"),
            **pick(self.analysis, "parameters parameter_checksums"),
            **pick(self, "objective rules max_shard_bytes"),
            analysis=self.analysis.digest,
            budget_bytes=budget_bytes,
            speed_price=self._speed_price,
            bound=solution.bound,
            price=self._knapsack.price(capacity),
            choices=tuple(self._choice(unit, allowed, index) for unit, allowed, index in picks),
            evidence=self.evidence(solution),
        )
        assert plan.planned_bytes <= budget_bytes, "the overhead of the shards was underestimated"
        return plan

    def solutions(self, budgets: Iterable[int]) -> Iterator[Solution]:
        """The knapsack's own answers for many budgets, all of them feasible."""
        return (self._knapsack.solve(self._capacity(budget)) for budget in budgets)

    def planned_bytes(self, solution: Solution) -> int:
        """The size of the weight files of an answer, at most."""
        nbytes = solution.nbytes + self._parameter_nbytes
        return nbytes + overhead_nbytes(nbytes, self.max_shard_bytes)

    def predicted_kl(self, solution: Solution) -> Estimate | None:
        """The KL divergence that an answer is predicted to have; None for objectives that predict none."""
        if not self.objective.probes:
            return None
        return predicted_kl(float(self._chosen(solution).sum()), self.evidence(solution))

    def evidence(self, solution: Solution) -> Evidence:
        """The basis of the predicted KL of an answer."""
        evidence = self._sampling.evidence(self._chosen(solution))
        return replace(evidence, compensated=not ROUNDINGS[self.analysis.rounding].is_measured)

    def _chosen(self, solution: Solution) -> Floats:
        """The losses (U,) of an answer without a charge for speed."""
        return np.array([row.losses[index] for row, index in zip(self._rows, solution.choice, strict=True)])

    def _choice(self, unit: Unit, allowed: Allowed, index: int) -> Choice:
        measurement, alpha = self.analysis.measurements[unit.path], self._alphas[unit.path]
        return Choice(
            **pick(unit, "path shape dtype role layer"),
            min_bits=self._allowance.floor(unit),
            format=allowed.formats[index],
            reason=allowed.reason,
            alpha=alpha.value,
            alpha_from=alpha.origin,
            active=self._active[unit.path],
            checksum=measurement.checksum,
            formats=() if measurement.nonfinite else measurement.formats,
            errors=() if measurement.nonfinite else measurement.errors,
            vetoed=allowed.vetoed,
            features=measurement.features,
        )

    def _all_rows(self) -> list[_Row]:
        """The row of every unit, computed for all units of a kind at once."""
        kinds: dict[tuple[tuple[int, ...], str, int], list[int]] = defaultdict(list)
        for index, (unit, allowed) in enumerate(zip(self.analysis.units, self._allowed, strict=True)):
            kinds[unit.shape, unit.dtype, id(allowed)].append(index)
        rows: dict[int, _Row] = {}
        for indices in kinds.values():
            columns = self._columns([self.analysis.units[index] for index in indices], self._allowed[indices[0]])
            rows.update(zip(indices, map(_Row, *columns), strict=True))
        return [rows[index] for index in range(len(rows))]

    def _columns(self, units: Sequence[Unit], allowed: Allowed) -> tuple[Integers, Floats, Floats]:
        """The fields of a row (U, F) for U units of one kind."""
        shape, dtype = units[0].shape, units[0].dtype
        parts = [unnamed_nbytes(format, shape, dtype, self._digits) for format in allowed.formats]
        entries = np.array([count for _, _, count in parts], np.int64)
        names = np.array([name_nbytes(unit.path) for unit in units], np.int64)
        nbytes = np.array([data + header for data, header, _ in parts], np.int64) + entries * names[:, None]
        measurements = [self.analysis.measurements[unit.path] for unit in units]
        formats = (*measurements[0].formats, KEEP)  # the error of a kept unit, 0, stands after the measured ones
        errors = np.array([(*measurement.errors, 0.0) for measurement in measurements])
        alphas = np.array([self._alphas[unit.path].value for unit in units])
        columns = [formats.index(format) for format in allowed.formats]
        losses = charged = self.objective.losses(alphas[:, None], errors[:, columns])
        if self._speed_price:
            active = [self._active[unit.path] for unit in units]
            costs = {
                share: [decode_cost(format, shape, dtype, share) for format in allowed.formats] for share in set(active)
            }
            charged = losses + self._speed_price * np.array([costs[share] for share in active])
        return nbytes, losses, charged

    def _reference_price(self) -> float:
        """Loss of uniform 4/64 over its decoding cost; units that cannot have it count in neither."""
        loss = cost = 0.0
        for unit in self.analysis.units:
            measurement = self.analysis.measurements[unit.path]
            if _REFERENCE in measurement.formats:
                loss += self.objective.loss(self._alphas[unit.path].value, measurement.error(_REFERENCE))
                cost += decode_cost(_REFERENCE, unit.shape, unit.dtype, self._active[unit.path])
        return loss / cost if cost else 0.0

    def _capacity(self, budget_bytes: int) -> int:
        return budget_bytes - self._parameter_nbytes - overhead_nbytes(budget_bytes, self.max_shard_bytes)

    def _infeasible(self, budget_bytes: int) -> str:
        limits = [
            f"without {self.rules.named(limit)} it is {enough_size(nbytes)}"
            for limit, nbytes in self._relaxed().items()
        ]
        remedy = f"Raise the budget, or relax what binds: {'; '.join(limits)}" if limits else "Raise the budget"
        kept = kept_matrices(list(filter(self._allowance.keeps, self.analysis.units)), self.analysis.parameters)
        total = format_size(sum(matrix.nbytes for matrix in kept))
        largest = ", ".join(f"{matrix.name} ({format_size(matrix.nbytes)}: {matrix.reason})" for matrix in kept[:3])
        stays = f". {len(kept)} matrices of {total} stay as they are: {largest}" if kept else ""
        return (
            f"the budget of {budget_bytes} bytes ({format_size(budget_bytes)}) is too small; "
            f"the smallest that works is {self.smallest_bytes} bytes ({enough_size(self.smallest_bytes)}) with "
            f"{option_of(self.analysis.rounding)}. {remedy}{stays}{', ...' if len(kept) > 3 else ''}"
        )

    def _relaxed(self) -> dict[str, int]:
        """The smallest budget without each limit that binds, the smallest first."""
        sizes = {
            limit: Problem(
                self.analysis, self.objective, self.rules.without(limit),
                probed=self._probed, max_shard_bytes=self.max_shard_bytes,
            ).smallest_bytes
            for limit in self._binding()
        }  # fmt: skip
        return dict(sorted(sizes.items(), key=lambda item: item[1]))

    def _binding(self) -> set[str]:
        """The limits that keep units from the smallest format that was measured."""
        limits = set()
        for unit, allowed, row in zip(self.analysis.units, self._allowed, self._rows, strict=True):
            measured = self.analysis.measurements[unit.path]
            sizes = {format: format.nbytes(unit.shape, unit.dtype) for format in measured.formats}
            smallest = min(sizes, key=sizes.__getitem__, default=None)
            chosen = allowed.formats[int(row.nbytes.argmin())]
            if smallest and not measured.nonfinite and sizes[smallest] < chosen.nbytes(unit.shape, unit.dtype):
                limits.add(self._allowance.binding(unit, smallest))
        return limits


def _shared(unit: Unit, main: Allowed, twin: Allowed) -> Allowed:
    """The formats that a unit and its twin may both have; `MintError` if there is none."""
    formats = tuple(format for format in main.formats if format in twin.formats)
    if not formats:
        raise MintError(f"{unit.path} and {unit.twin} are loaded from one weight; set both to one format")
    return replace(main, formats=formats)


def active_shares(analysis: Analysis) -> dict[str, float]:
    """The share of a unit's weights that one token reads, where it is not all of them.

    A token reads one row of an embedding, unless that is the head too, and some experts of a stack.
    """
    shares = dict(analysis.active)
    looked_up = {UNTIED, "embedding"} if any(unit.role == "head" for unit in analysis.units) else {UNTIED}
    shares.update((unit.path, 1 / unit.shape[-2]) for unit in analysis.units if unit.role in looked_up)
    shares.update((unit.path, 0.0) for unit in analysis.units if unit.role == TOWER)
    return shares


def _size_of_least(row: _Row) -> int:
    """The size of the smallest of the options with the least loss."""
    return int(row.nbytes[row.charged == row.charged.min()].min())
