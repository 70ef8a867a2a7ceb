"""What there is to choose for a model, in bytes and losses: an analysis under an objective and rules.

Prepared once, solved for any number of budgets. The knapsack sees bytes and losses only; names stay here.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod

import numpy as np

from mint.analysis.analysis import Analysis, Measurement
from mint.analysis.probes.probe_file import Probed
from mint.analysis.probes.sensitivity import PROBED, alphas_from
from mint.core.errors import MintError
from mint.core.sizes import format_size
from mint.formats.format import KEEP, parse_format
from mint.formats.layout import MAX_SHARD_BYTES, name_nbytes, overhead_nbytes, parameter_nbytes, unnamed_nbytes
from mint.formats.rounding import ROUNDINGS
from mint.formats.units import Unit
from mint.plan.knapsack.relaxation import Floats, Integers
from mint.plan.knapsack.solve import InfeasibleError, Knapsack, Solution
from mint.plan.objectives import OBJECTIVES, Objective
from mint.plan.plan import Choice, Plan, digits_for
from mint.plan.prediction import Evidence, Sampling, predicted_kl
from mint.plan.rules import Allowance, Allowed, Rules
from mint.quality.estimates import Estimate
from mint.targets.speed import decode_cost

_REFERENCE = parse_format("4/64")  # what a preference for speed is measured against


class Problem:
    """One analysis under an objective and rules, ready for any budget.

    `prefer_speed` charges a format for what it costs at decoding: at 1, a hundredth of the time of uniform 4/64 is
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
        self.objective = objective
        self.rules = rules
        self.prefer_speed = prefer_speed
        self.max_shard_bytes = max_shard_bytes
        self._digits = digits_for((unit.shape for unit in analysis.units), analysis.parameters)
        measured = probed.alphas if probed and objective.probes else {}
        self._sensitivities = alphas_from(
            objective.alphas(analysis.units), analysis.units, measured, probed.origin if probed else PROBED
        )
        self._sampling = Sampling([unit.path for unit in analysis.units], probed if objective.probes else None)
        self._alphas = {path: alpha.value for path, alpha in self._sensitivities.items()}
        self._active = active_shares(analysis)
        self._kinds: dict[tuple[tuple[int, ...], str, int], tuple[Integers, Integers, Integers]] = {}
        allowance = Allowance(rules, analysis.units, objective.formats)
        self._allowed = [allowance.of(unit, analysis.measurements[unit.path]) for unit in analysis.units]
        self._speed_price = prefer_speed and prefer_speed * self._reference_price()
        rows = self._all_rows()
        self._knapsack = Knapsack([sizes for sizes, _, _ in rows], [charged for _, _, charged in rows])
        self._losses = [losses for _, losses, _ in rows]
        self._parameter_nbytes = sum(
            sum(parameter_nbytes(parameter.name, parameter.shape, parameter.dtype, self._digits))
            for parameter in analysis.parameters
        )
        self._rows = rows

    @property
    def weights(self) -> int:
        """Number of weights of the unquantized model."""
        analysis = self.analysis
        return sum(unit.size for unit in analysis.units) + sum(prod(p.shape) for p in analysis.parameters)

    @cached_property
    def smallest_bytes(self) -> int:
        """The smallest budget that has a plan."""
        return self._with_overhead(self._knapsack.smallest)

    @cached_property
    def largest_bytes(self) -> int:
        """The smallest budget whose plan has the least loss of all."""
        return self._with_overhead(sum(_size_of_least(sizes, charged) for sizes, _, charged in self._rows))

    def plan(self, budget_bytes: int) -> Plan:
        """The plan of least loss within the budget, with its bound: proved, or the best one found with its gap.

        Raises `MintError` naming the smallest budget that works when there is no plan.
        """
        try:
            solution = self._knapsack.solve(self._capacity(budget_bytes))
        except InfeasibleError as error:
            raise MintError(self._infeasible(budget_bytes)) from error
        return self._plan(budget_bytes, solution)

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
        """What the predicted KL of an answer rests on."""
        found = self._sampling.evidence(self._chosen(solution))
        return replace(found, compensated=not ROUNDINGS[self.analysis.rounding].is_measured)

    def _chosen(self, solution: Solution) -> Floats:
        """The losses (U,) of an answer without a charge for speed."""
        return np.array([losses[index] for losses, index in zip(self._losses, solution.choice, strict=True)])

    def _plan(self, budget_bytes: int, solution: Solution) -> Plan:
        capacity = self._capacity(budget_bytes)
        analysis = self.analysis
        plan = Plan(
            model=analysis.model,
            model_type=analysis.model_type,
            dtype=analysis.dtype,
            analysis=analysis.digest,
            rounding=analysis.rounding,
            device=analysis.device,
            budget_bytes=budget_bytes,
            objective=self.objective,
            rules=self.rules,
            speed_price=self._speed_price,
            bound=solution.bound,
            price=self._knapsack.price(capacity),
            choices=tuple(
                self._choice(unit, allowed, index)
                for unit, allowed, index in zip(analysis.units, self._allowed, solution.choice, strict=True)
            ),
            parameters=analysis.parameters,
            evidence=self.evidence(solution),
            max_shard_bytes=self.max_shard_bytes,
        )
        assert plan.planned_bytes <= budget_bytes, "the overhead of the shards was underestimated"
        return plan

    def _choice(self, unit: Unit, allowed: Allowed, index: int) -> Choice:
        measurement = self.analysis.measurements[unit.path]
        known = not measurement.nonfinite
        _, _, places = self._columns(unit, measurement, allowed)
        return Choice(
            path=unit.path,
            format=allowed.formats[index],
            error=(*measurement.errors, 0.0)[places[index]],
            reason=allowed.reason,
            shape=unit.shape,
            dtype=unit.dtype,
            role=unit.role,
            layer=unit.layer,
            min_bits=unit.min_bits,
            alpha=self._alphas.get(unit.path, 0.0),
            alpha_from=self._sensitivities[unit.path].origin if unit.path in self._sensitivities else "",
            active=self._active.get(unit.path, 1.0),
            formats=measurement.formats if known else (),
            errors=measurement.errors if known else (),
            vetoed=allowed.vetoed,
            features=measurement.features,
        )

    def _all_rows(self) -> list[tuple[Integers, Floats, Floats]]:
        """Bytes, losses, and losses with the charge for speed (F,) of the F formats that each unit may have.

        Computed for all units of a kind at once.
        """
        units, measurements = self.analysis.units, self.analysis.measurements
        kinds: dict[tuple[tuple[int, ...], str, int], list[int]] = defaultdict(list)
        for i, (unit, allowed) in enumerate(zip(units, self._allowed, strict=True)):
            kinds[unit.shape, unit.dtype, id(allowed)].append(i)
        rows: dict[int, tuple[Integers, Floats, Floats]] = {}
        for places in kinds.values():
            alike = [units[i] for i in places]
            columns = self._kind_rows(alike, [measurements[unit.path] for unit in alike], self._allowed[places[0]])
            rows.update(zip(places, zip(*columns, strict=True), strict=True))
        return [rows[i] for i in range(len(units))]

    def _kind_rows(
        self, units: Sequence[Unit], measurements: Sequence[Measurement], allowed: Allowed
    ) -> tuple[Integers, Floats, Floats]:
        """(U, F) bytes, losses, and losses with the charge for speed of the F formats that U units of a kind have."""
        nbytes, entries, positions = self._columns(units[0], measurements[0], allowed)
        names = np.array([name_nbytes(unit.path) for unit in units], np.int64)
        alphas = np.array([self._alphas.get(unit.path, 0.0) for unit in units])
        errors = np.array([(*measurement.errors, 0.0) for measurement in measurements])[:, positions]
        losses = charged = self.objective.losses(alphas[:, None], errors)
        if self._speed_price:
            active = [self._active.get(unit.path, 1.0) for unit in units]
            costs = {
                share: [decode_cost(format, units[0].shape, units[0].dtype, share) for format in allowed.formats]
                for share in set(active)
            }
            charged = losses + self._speed_price * np.array([costs[share] for share in active])
        return nbytes + entries * names[:, None], losses, charged

    def _columns(self, unit: Unit, measurement: Measurement, allowed: Allowed) -> tuple[Integers, Integers, Integers]:
        """Per format: bytes with an empty path, header entries, and where its error stands; shared by all of a kind."""
        kind = (unit.shape, unit.dtype, id(allowed))
        if kind not in self._kinds:
            parts = [unnamed_nbytes(format, unit.shape, unit.dtype, self._digits) for format in allowed.formats]
            # the error of a kept unit, 0, stands after the measured ones
            places = {format: place for place, format in enumerate((*measurement.formats, KEEP))}
            self._kinds[kind] = (
                np.array([data + entries for data, entries, _ in parts], np.int64),
                np.array([count for _, _, count in parts], np.int64),
                np.array([places[format] for format in allowed.formats], np.int64),
            )
        return self._kinds[kind]

    def _reference_price(self) -> float:
        """Loss of uniform 4/64 over its decoding cost; units that cannot have it count in neither."""
        loss = cost = 0.0
        for unit in self.analysis.units:
            measurement = self.analysis.measurements[unit.path]
            if _REFERENCE in measurement.formats:
                loss += self.objective.loss(self._alphas.get(unit.path, 0.0), measurement.error(_REFERENCE))
                cost += decode_cost(_REFERENCE, unit.shape, unit.dtype, self._active.get(unit.path, 1.0))
        return loss / cost if cost else 0.0

    def _capacity(self, budget_bytes: int) -> int:
        return budget_bytes - self._parameter_nbytes - overhead_nbytes(budget_bytes, self.max_shard_bytes)

    def _with_overhead(self, nbytes: int) -> int:
        """The smallest budget that leaves this capacity."""
        budget = nbytes + self._parameter_nbytes
        while self._capacity(budget) < nbytes:
            budget += nbytes - self._capacity(budget)
        return budget

    def _infeasible(self, budget_bytes: int) -> str:
        limits = [f"the veto (now {self.rules.veto_db:g} dB) with --veto"]
        limits += ["the formats set or kept"] if self.rules.locks else []
        limits += [f"--min-bits {self.rules.min_bits}"] if self.rules.min_bits else []
        limits += ["--formats or --compat"] if self.rules.formats else []
        return (
            f"the budget of {budget_bytes} bytes ({format_size(budget_bytes)}) is too small; "
            f"the smallest that works is {self.smallest_bytes} bytes ({format_size(self.smallest_bytes)}, rounded). "
            f"Raise the budget, or relax {', '.join(limits)}"
        )


def active_shares(analysis: Analysis) -> dict[str, float]:
    """The share of a unit's weights that one token reads, where it is not all of them.

    A token reads one row of an embedding, unless that is the head too, and some experts of a stack.
    """
    shares = dict(analysis.active)
    if any(unit.role == "head" for unit in analysis.units):
        looked_up = [unit for unit in analysis.units if unit.role == "embedding"]
        shares.update((unit.path, 1 / unit.shape[-2]) for unit in looked_up)
    return shares


def _size_of_least(sizes: Integers, losses: Floats) -> int:
    """The size of the smallest of the options with the least loss."""
    return int(sizes[losses == losses.min()].min())
