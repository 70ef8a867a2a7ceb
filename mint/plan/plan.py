"""One format for every unit, and why: the record, and the JSON that a person can read and edit.

A line per unit. Change its `format` and the plan is recomputed and checked when it is read: bytes, loss and totals
follow from the formats and the measured curve, never from the numbers in the file.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import fsum, prod
from pathlib import Path
from typing import Any

from mint.analysis.analysis import sqnr_db
from mint.analysis.features import Features
from mint.core.errors import MintError
from mint.formats.format import KEEP, Format, TensorSpec, parse_format
from mint.formats.layout import MAX_SHARD_BYTES, OutputShard, lay_out, parameter_nbytes, shards_nbytes, unit_nbytes
from mint.formats.rounding import parse_rounding
from mint.formats.units import Parameter
from mint.model.checkpoint.manifest import PLAN_NAME
from mint.model.roles import layer_of
from mint.plan.objectives import Objective, objective
from mint.plan.prediction import NO_PROBES, Evidence, predicted_kl
from mint.plan.rules import Rules
from mint.quality.estimates import Estimate
from mint.targets.speed import bytes_per_token, decode_cost

SCHEMA = 4
KIND = "mint plan"


@dataclass(frozen=True, slots=True)
class Choice:
    """The format of one unit, what it costs and hurts, and what else was there to choose from."""

    path: str
    format: Format
    error: float  # squared relative, in this format
    reason: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    layer: int
    min_bits: int  # the model's own floor
    alpha: float
    alpha_from: str  # where it comes from: the prior table, or a probe
    active: float  # share of the weights that one token reads
    formats: tuple[Format, ...]  # measured
    errors: tuple[float, ...]  # squared relative, of each
    vetoed: tuple[Format, ...] = ()
    features: Features | None = None  # where they were measured

    @property
    def weights(self) -> int:
        return prod(self.shape)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return self.format.tensors(self.path, self.shape, self.dtype)

    def nbytes(self, digits: int, format: Format | None = None) -> int:
        """Bytes that the unit adds to the files, in its format or another."""
        return sum(unit_nbytes(self.path, format or self.format, self.shape, self.dtype, digits))

    def error_of(self, format: Format) -> float:
        """Squared relative error of the unit in a measured format, or kept."""
        return 0.0 if format == KEEP else self.errors[self.formats.index(format)]


@dataclass(frozen=True)
class Plan:
    """What to write: every byte of it follows from this record and the model. What is derived is computed once."""

    model: str  # identity of the source
    model_type: str
    dtype: str
    analysis: str  # digest
    rounding: str  # of the measured errors, and of what will be written
    device: str
    budget_bytes: int
    objective: Objective
    rules: Rules
    speed_price: float  # loss that a byte read at decoding is worth; 0 where only the loss counts
    bound: float  # no plan within the budget has less loss and charge
    price: float  # loss that one more byte of budget saves
    choices: tuple[Choice, ...]
    parameters: tuple[Parameter, ...]
    max_shard_bytes: int = MAX_SHARD_BYTES
    evidence: Evidence = NO_PROBES  # what the predicted KL rests on
    edited: tuple[str, ...] = ()  # paths whose format was changed by hand

    @cached_property
    def loss(self) -> float:
        """What the objective predicts; for `output`, nats of KL divergence per token."""
        return fsum(self.loss_of(choice) for choice in self.choices)

    @property
    def predicted_kl(self) -> Estimate | None:
        """The KL divergence to expect, in nats per token; None for objectives that predict none."""
        return predicted_kl(self.loss, self.evidence) if self.objective.probes else None

    def loss_of(self, choice: Choice) -> float:
        """A unit's share in the loss."""
        return self.objective.loss(choice.alpha, choice.error)

    @cached_property
    def charge(self) -> float:
        """What the wish for speed adds to the loss."""
        if not self.speed_price:
            return 0.0
        costs = (decode_cost(choice.format, choice.shape, choice.dtype, choice.active) for choice in self.choices)
        return self.speed_price * fsum(costs)

    @property
    def gap(self) -> float:
        """Relative distance to the proved bound; 0 when no plan within the budget can be better."""
        cost = self.loss + self.charge
        gap = (cost - self.bound) / cost if cost > 0 else 0.0
        return gap if gap > 1e-12 else 0.0  # below: the same sum in another order

    @cached_property
    def bytes_per_token(self) -> float:
        """Bytes of weights that decoding one token reads, about: every unit in use, every parameter."""
        units = (bytes_per_token(choice.format, choice.shape, choice.dtype, choice.active) for choice in self.choices)
        return fsum(units) + sum(parameter.nbytes for parameter in self.parameters)

    @cached_property
    def planned_bytes(self) -> int:
        """Size of all weight files, headers included."""
        digits = offset_digits(self)
        sizes = [(c.layer, unit_nbytes(c.path, c.format, c.shape, c.dtype, digits)) for c in self.choices]
        sizes += [(layer_of(p.name), parameter_nbytes(p.name, p.shape, p.dtype, digits)) for p in self.parameters]
        sizes.sort(key=_layer)
        return shards_nbytes((nbytes for _, nbytes in sizes), self.max_shard_bytes)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.planned_bytes / max(self.weights, 1)

    @cached_property
    def weights(self) -> int:
        """Number of weights of the unquantized model."""
        kept = sum(prod(parameter.shape) for parameter in self.parameters)
        return kept + sum(choice.weights for choice in self.choices)

    def groups(self) -> tuple[tuple[TensorSpec, ...], ...]:
        """The tensors to write, kept together as they are stored, layer by layer."""
        units = [(choice.layer, choice.tensors) for choice in self.choices]
        rest: list[tuple[int, tuple[TensorSpec, ...]]] = [
            (layer_of(parameter.name), (TensorSpec(parameter.name, parameter.dtype, parameter.shape),))
            for parameter in self.parameters
        ]
        return tuple(tensors for _, tensors in sorted(units + rest, key=_layer))

    @cached_property
    def layout(self) -> tuple[OutputShard, ...]:
        """The weight files, to the byte."""
        digits = offset_digits(self)
        return lay_out(self.groups(), digits=digits, max_shard_bytes=self.max_shard_bytes)

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the bytes of the output."""
        formats = [(c.path, str(c.format)) for c in self.choices]
        decisive = [self.model, self.dtype, self.rounding, self.max_shard_bytes, formats]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _layer(pair: tuple[int, Any]) -> int:
    return pair[0]


def offset_digits(plan: Plan) -> int:
    """Digits that any offset of any plan for this model can have."""
    return digits_for((choice.shape for choice in plan.choices), plan.parameters)


def digits_for(shapes: Iterable[tuple[int, ...]], parameters: Iterable[Parameter]) -> int:
    """Digits of an upper bound of the model's bytes: 8 a weight."""
    return len(str(8 * (sum(map(prod, shapes)) + sum(prod(parameter.shape) for parameter in parameters))))


def quantization_entries(plan: Plan) -> dict[str, Any]:
    """The config's `quantization`: the commonest format as default, and an entry for every module all the same.

    Loaders that infer nothing (older mlx_lm, mlx-vlm, mlx-swift) need them all. `mode` is left out where all are
    affine, the default: loaders from before modes take the key for an error.
    """
    used = Counter(choice.format for choice in plan.choices if choice.format != KEEP)
    if not used:
        return {}
    default = min(used, key=lambda format: (-used[format], format))
    entries: dict[str, Any] = dict(default.parameters())
    entries.update({choice.path: choice.format.config() for choice in plan.choices})
    if all(format.scheme.is_default for format in used):
        for entry in (entries, *entries.values()):
            if isinstance(entry, dict):
                entry.pop("mode", None)
    return {"quantization": entries, "quantization_config": entries}


def write_plan(plan: Plan, path: Path | str) -> None:
    """Write the plan as JSON, one line per unit, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(plan_text(plan))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def plan_text(plan: Plan) -> str:
    """The JSON text of a plan."""
    head = {
        "kind": KIND,
        "schema": SCHEMA,
        "digest": plan.digest,
        "model": plan.model,
        "model_type": plan.model_type,
        "dtype": plan.dtype,
        "analysis": plan.analysis,
        "rounding": plan.rounding,
        "device": plan.device,
        "budget_bytes": plan.budget_bytes,
        "planned_bytes": plan.planned_bytes,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "bytes_per_token": round(plan.bytes_per_token),
        "objective": plan.objective.name,
        "loss": plan.loss,
        "bound": plan.bound,
        "gap": plan.gap,
        "price": plan.price,
        "speed_price": plan.speed_price,
        "predicted_kl": asdict(plan.predicted_kl) if plan.predicted_kl else None,
        "evidence": asdict(plan.evidence),
        "rules": plan.rules.to_dict(),
        "max_shard_bytes": plan.max_shard_bytes,
    }
    digits = offset_digits(plan)
    units = [_choice_record(plan, choice, digits) for choice in plan.choices]
    parameters = [{**asdict(parameter), "shape": list(parameter.shape)} for parameter in plan.parameters]
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    return "\n".join(["{", *lines, *_lines("units", units), "  ],", *_lines("parameters", parameters), "  ]", "}", ""])


def read_plan(path: Path | str) -> Plan:
    """Read a plan, or that of a folder that mint wrote, and check it anew.

    Formats changed by hand are taken over and listed in `edited`. Raises `MintError` for a file that is not a plan, a
    format that a unit cannot have, or a total over the budget.
    """
    path = Path(path)
    if path.is_dir():
        path /= PLAN_NAME
    if not path.is_file():
        raise MintError(f"{path}: no such plan; make one with: mint allocate ANALYSIS --budget SIZE --output {path}")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise MintError(f"{path}: not valid JSON ({error}); needed: a plan that `mint allocate` wrote") from error
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise MintError(f"{path}: not a plan; needed: a file that `mint allocate` wrote")
    if record.get("schema") != SCHEMA:
        raise MintError(
            f"{path}: a plan of schema {record.get('schema')}, written by another version of mint; needed: one of "
            f"schema {SCHEMA}. Make it again with mint allocate"
        )
    try:
        plan = _plan(record)
    except (KeyError, TypeError, ValueError) as error:
        raise MintError(f"{path}: a damaged plan ({error!r}); make it again with mint allocate") from error
    if plan.digest != record["digest"] and not plan.edited:
        raise MintError(f"{path}: changed beyond its formats; edit only the `format` of units, or run mint allocate")
    if plan.planned_bytes > plan.budget_bytes:
        raise MintError(
            f"{path}: needs {plan.planned_bytes} bytes, its budget is {plan.budget_bytes}; "
            "choose smaller formats or raise budget_bytes"
        )
    return plan


def _plan(record: dict[str, Any]) -> Plan:
    parameters = tuple(
        Parameter(fields["name"], tuple(fields["shape"]), fields["dtype"], tuple(fields["sources"]))
        for fields in record["parameters"]
    )
    digits = digits_for((fields["shape"] for fields in record["units"]), parameters)
    wanted = objective(record["objective"])
    parse_rounding(record["rounding"])
    pairs = [_choice(fields, wanted, digits) for fields in record["units"]]
    return Plan(
        model=record["model"],
        model_type=record["model_type"],
        dtype=record["dtype"],
        analysis=record["analysis"],
        rounding=record["rounding"],
        device=record["device"],
        budget_bytes=int(record["budget_bytes"]),
        objective=wanted,
        rules=Rules.from_dict(record["rules"]),
        speed_price=float(record["speed_price"]),
        bound=float(record["bound"]),
        price=float(record["price"]),
        choices=tuple(choice for choice, _ in pairs),
        parameters=parameters,
        max_shard_bytes=int(record["max_shard_bytes"]),
        evidence=Evidence(**record["evidence"]),
        edited=tuple(choice.path for choice, edited in pairs if edited),
    )


def _choice_record(plan: Plan, choice: Choice, digits: int) -> dict[str, Any]:
    return {
        "path": choice.path,
        "format": str(choice.format),
        "nbytes": choice.nbytes(digits),
        "sqnr_db": round(sqnr_db(choice.error), 2) if choice.error else "exact",
        "loss": plan.loss_of(choice),
        "reason": choice.reason,
        "role": choice.role,
        "layer": choice.layer,
        "shape": list(choice.shape),
        "dtype": choice.dtype,
        "min_bits": choice.min_bits,
        "alpha": choice.alpha,
        "alpha_from": choice.alpha_from,
        "active": choice.active,
        "curve": dict(zip(map(str, choice.formats), choice.errors, strict=True)),
        "vetoed": [str(format) for format in choice.vetoed],
        **({"features": asdict(choice.features)} if choice.features else {}),
    }


def _choice(fields: dict[str, Any], objective: Objective, digits: int) -> tuple[Choice, bool]:
    """The choice of a line, and whether its format was changed by hand since it was written."""
    format = parse_format(fields["format"])
    curve = {parse_format(name): float(error) for name, error in fields["curve"].items()}
    if format not in (KEEP, *curve):
        known = ", ".join(map(str, (*curve, KEEP)))
        raise MintError(f"unit {fields['path']} cannot be stored as {format}; needed one of {known}")
    choice = Choice(
        path=fields["path"],
        format=format,
        error=curve.get(format, 0.0),
        reason=fields["reason"],
        shape=tuple(fields["shape"]),
        dtype=fields["dtype"],
        role=fields["role"],
        layer=int(fields["layer"]),
        min_bits=int(fields["min_bits"]),
        alpha=float(fields["alpha"]),
        alpha_from=fields["alpha_from"],
        active=float(fields["active"]),
        formats=tuple(curve),
        errors=tuple(curve.values()),
        vetoed=tuple(map(parse_format, fields["vetoed"])),
        features=Features(**fields["features"]) if "features" in fields else None,
    )
    written = (int(fields["nbytes"]), float(fields["loss"]))
    edited = (choice.nbytes(digits), objective.loss(choice.alpha, choice.error)) != written
    return (replace(choice, reason="chosen by hand") if edited else choice), edited


def _lines(name: str, records: list[dict[str, Any]]) -> list[str]:
    rows = [f"    {json.dumps(record)}" for record in records]
    return [f'  "{name}": [', *(f"{row}," for row in rows[:-1]), *rows[-1:]]
