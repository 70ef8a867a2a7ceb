"""A plan: one format per unit, with its reason. The record, and the JSON that a person can read and edit.

The JSON has a line per unit. After an edit of a unit's `format`, reading the plan recomputes and checks it: bytes, loss
and totals follow from the formats and the measured curve, never from the numbers in the file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from math import fsum, prod
from operator import itemgetter
from pathlib import Path
from typing import Any

from mint.analysis.analysis import sqnr_db
from mint.analysis.features.features import Features
from mint.core.errors import MintError
from mint.core.files import begins_with, read_json, write_whole
from mint.core.records import pick
from mint.core.sizes import MAX_SHARD_BYTES
from mint.formats.format import AFFINE, KEEP, MXFP4, NVFP4, Format, TensorSpec, parse_format
from mint.formats.layout import OutputShard, lay_out, shards_nbytes, stored_nbytes, unit_nbytes
from mint.formats.rounding import ROUNDINGS, SEARCHED_SHARE, parse_rounding
from mint.formats.units import Parameter
from mint.model.checkpoint.manifest import PLAN_NAME
from mint.model.opening.path_kind import refuse_kind
from mint.model.roles import layer_numbers
from mint.plan.objectives import Objective, objective
from mint.plan.prediction import NO_PROBES, Evidence, predicted_kl
from mint.plan.rules import NONFINITE, Rules
from mint.quality.estimates import Estimate
from mint.targets.speed import bytes_per_token, decode_cost

SCHEMA = 7
KIND = "mint plan"
CONVERTED = parse_format("4/64")  # by `mlx_lm.convert -q`
UNIFORM = (*(format for format in AFFINE if format.group_size == 64), MXFP4, NVFP4)  # its other formats
_BY_LAYER = itemgetter(0)
_HEAD = (
    "digest model model_type dtype loader analysis rounding device budget_bytes planned_bytes bits_per_weight "
    "bytes_per_token objective loss bound gap price speed_price predicted_kl evidence rules max_shard_bytes "
    "dropped_towers"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The format of one unit, its reason, and the alternatives."""

    path: str
    format: Format
    reason: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    layer: int
    min_bits: int  # the floor of the model or the role
    alpha: float
    alpha_from: str  # the source of alpha: the prior table, or a probe
    active: float  # share of the weights that one token reads
    checksum: str  # of the measured weight
    formats: tuple[Format, ...]  # measured
    errors: tuple[float, ...]  # squared relative error of each measured format
    vetoed: tuple[Format, ...] = ()
    features: Features | None = None  # None if not measured

    @property
    def weights(self) -> int:
        return prod(self.shape)

    @property
    def is_finite(self) -> bool:
        """False for a unit that is kept with NaN or infinite weights, as the user allowed."""
        return not self.reason.endswith(NONFINITE)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        return self.format.tensors(self.path, self.shape, self.dtype)

    @property
    def error(self) -> float:
        """Squared relative error of the unit in its format."""
        return self.error_of(self.format)

    def error_of(self, format: Format) -> float:
        """Squared relative error of the unit in a measured format; 0 if it is kept."""
        return 0.0 if format == KEEP else self.errors[self.formats.index(format)]


@dataclass(frozen=True)
class Plan:
    """The model to write: this record and the source decide every byte. Derived values are computed once."""

    model: str  # identity of the source
    model_type: str
    dtype: str
    loader: str  # the package whose classes hold the model, and that loads the result
    analysis: str  # digest
    rounding: str  # of the measured errors, and of the model to write
    device: str
    budget_bytes: int
    objective: Objective
    rules: Rules
    speed_price: float  # loss charged per byte read at decoding; 0 without a preference for speed
    bound: float  # no plan within the budget has less loss plus charge
    price: float  # loss that one more byte of budget saves
    choices: tuple[Choice, ...]
    parameters: tuple[Parameter, ...]
    parameter_checksums: Mapping[str, str]  # by name, when they were measured
    max_shard_bytes: int = MAX_SHARD_BYTES
    evidence: Evidence = NO_PROBES  # of the predicted KL
    dropped_towers: tuple[str, ...] = ()  # vision or audio: the model to write is text only
    edited: tuple[str, ...] = ()  # paths whose format a person changed

    def __repr__(self) -> str:
        return f"<Plan of {len(self.choices)} units, {self.planned_bytes:,} bytes, loss {self.loss:.4g}>"

    @cached_property
    def loss(self) -> float:
        """The value of the objective; for `output`, nats of KL divergence per token."""
        return fsum(self.loss_of(choice) for choice in self.choices)

    @property
    def predicted_kl(self) -> Estimate | None:
        """The expected KL divergence in nats per token; None for objectives that predict none."""
        return predicted_kl(self.loss, self.evidence) if self.objective.probes else None

    @property
    def keeps_all(self) -> bool:
        """True where every unit stays as it is: nothing is rounded."""
        return all(choice.format == KEEP for choice in self.choices)

    def loss_of(self, choice: Choice, format: Format | None = None) -> float:
        """A unit's share of the loss, in its format or another measured one."""
        return self.objective.loss(choice.alpha, choice.error_of(format or choice.format))

    def nbytes_of(self, choice: Choice, format: Format | None = None) -> int:
        """Bytes of a unit in the files, header entries included, in its format or another."""
        return sum(unit_nbytes(choice.path, format or choice.format, choice.shape, choice.dtype, self.digits))

    @cached_property
    def digits(self) -> int:
        """The most digits of an offset, in any plan of the model."""
        return digits_for(self.weights)

    @cached_property
    def charge(self) -> float:
        """The preference for speed, as an addition to the loss."""
        costs = (decode_cost(choice.format, choice.shape, choice.dtype, choice.active) for choice in self.choices)
        return self.speed_price * fsum(costs) if self.speed_price else 0.0

    @property
    def gap(self) -> float:
        """Relative distance to the proved bound; 0 if no plan within the budget can be better."""
        cost = self.loss + self.charge
        gap = (cost - self.bound) / cost if cost > 0 else 0.0
        return gap if gap > 1e-12 else 0.0  # a smaller gap is the same sum in another order

    @cached_property
    def bytes_per_token(self) -> float:
        """Approximate bytes of weights that decoding one token reads: every active unit, every parameter."""
        units = (bytes_per_token(choice.format, choice.shape, choice.dtype, choice.active) for choice in self.choices)
        return fsum(units) + sum(parameter.nbytes for parameter in self.parameters)

    @cached_property
    def _layers(self) -> dict[str, int]:
        """The number of the layer of every unit and parameter."""
        return layer_numbers([*(choice.path for choice in self.choices), *(p.name for p in self.parameters)])

    @cached_property
    def planned_bytes(self) -> int:
        """Size of all weight files, headers included."""
        sizes = [(c.layer, unit_nbytes(c.path, c.format, c.shape, c.dtype, self.digits)) for c in self.choices]
        sizes += [(self._layers[p.name], stored_nbytes((p.tensor,), self.digits)) for p in self.parameters]
        sizes.sort(key=_BY_LAYER)
        return shards_nbytes((nbytes for _, nbytes in sizes), self.max_shard_bytes)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.planned_bytes / max(self.weights, 1)

    @cached_property
    def weights(self) -> int:
        """Number of weights of the unquantized model."""
        shapes = [choice.shape for choice in self.choices] + [parameter.shape for parameter in self.parameters]
        return sum(map(prod, shapes))

    @property
    def formats(self) -> dict[str, Format]:
        """The format of every unit by path."""
        return {choice.path: choice.format for choice in self.choices}

    @property
    def checksums(self) -> dict[str, str]:
        """The checksum of every measured weight by path."""
        return {choice.path: choice.checksum for choice in self.choices}

    def groups(self) -> tuple[tuple[TensorSpec, ...], ...]:
        """The tensors to write, in groups that are stored together, layer by layer."""
        groups = [(choice.layer, choice.tensors) for choice in self.choices]
        groups += [(self._layers[p.name], (p.tensor,)) for p in self.parameters]
        return tuple(tensors for _, tensors in sorted(groups, key=_BY_LAYER))

    @cached_property
    def layout(self) -> tuple[OutputShard, ...]:
        """The weight files, to the byte."""
        return lay_out(self.groups(), digits=self.digits, max_shard_bytes=self.max_shard_bytes)

    @property
    def digest(self) -> str:
        """SHA-256 of the fields that decide the bytes of the output."""
        formats = [(c.path, str(c.format), c.checksum) for c in self.choices]
        parameters = [self.parameter_checksums[parameter.name] for parameter in self.parameters]
        decisive = [self.model, self.dtype, self.rounding, self.max_shard_bytes, formats, parameters]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def uniform(plan: Plan, format: Format) -> Plan:
    """The plan that stores every unit in one format, as far as it was measured there, and keeps the others."""
    choices = [
        replace(choice, format=format if format in choice.formats else KEEP, reason="uniform")
        for choice in plan.choices
    ]
    return replace(plan, choices=tuple(choices))


def converted(plan: Plan, format: Format = CONVERTED) -> Plan:
    """The plan of `mlx_lm.convert -q` in a format: uniform, rounded to nearest; its errors are estimated."""
    plain = uniform(plan, format)
    share = SEARCHED_SHARE[str(format)] if ROUNDINGS[plan.rounding].searches else 1.0
    choices = [replace(choice, errors=tuple(error / share for error in choice.errors)) for choice in plain.choices]
    evidence = replace(plan.evidence, compensated=False)
    return replace(plain, choices=tuple(choices), rounding="nearest", evidence=evidence)


def converted_plans(plan: Plan) -> dict[str, Plan]:
    """The plans of `mlx_lm.convert` by the name of their format; none for a format that no unit has."""
    plans = {str(format): converted(plan, format) for format in UNIFORM}
    return {name: plain for name, plain in plans.items() if any(c.format != KEEP for c in plain.choices)}


def digits_for(weights: int) -> int:
    """Digits of an upper bound of a model's bytes, 8 per weight."""
    return len(str(8 * weights))


def quantization_entries(plan: Plan) -> dict[str, Any]:
    """The config's `quantization`: the most frequent format as default, and an entry for every module.

    Loaders that infer nothing (older mlx_lm, mlx-vlm, mlx-swift) need an entry for every module. `mode` is left out if
    every format is affine, the default: loaders older than modes reject the key.
    """
    counts = Counter(choice.format for choice in plan.choices if choice.format != KEEP)
    if not counts:
        return {}
    default = min(counts, key=lambda format: (-counts[format], format)).parameters()
    modules = {choice.path: choice.format.config() for choice in plan.choices}
    if all(format.scheme.is_default for format in counts):
        for entry in (default, *modules.values()):
            if isinstance(entry, dict):
                entry.pop("mode", None)
    entries = {**default, **modules}
    return {"quantization": entries, "quantization_config": entries}


def write_plan(plan: Plan, path: Path | str) -> None:
    """Write the plan as JSON, one line per unit, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, plan_text(plan).encode())


def plan_text(plan: Plan) -> str:
    """The JSON text of a plan."""
    head = {"kind": KIND, "schema": SCHEMA, **pick(plan, _HEAD)} | {
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "bytes_per_token": round(plan.bytes_per_token),
        "objective": plan.objective.name,
        "predicted_kl": asdict(plan.predicted_kl) if plan.predicted_kl else None,
        "evidence": asdict(plan.evidence),
        "rules": plan.rules.to_dict(),
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    units = _lines("units", [_choice_record(plan, choice) for choice in plan.choices])
    checksums = plan.parameter_checksums
    parameters = _lines("parameters", [asdict(p) | {"checksum": checksums[p.name]} for p in plan.parameters])
    return "\n".join(["{", *lines, *units, "  ],", *parameters, "  ]", "}", ""])


def read_plan(path: Path | str) -> Plan:
    """Read a plan, or the plan of a folder that mint wrote, and check it.

    Formats that a person changed are adopted and listed in `edited`. Raises `MintError` for a file that is not a plan,
    a format that a unit cannot have, or a total over the budget.
    """
    path = Path(path)
    if path.name != PLAN_NAME:
        refuse_kind(path, "a plan, or a folder that mint wrote", "a plan", "a model that mint wrote")
    if path.is_dir():
        path /= PLAN_NAME
    if not path.is_file():
        raise MintError(f"{path}: no such plan; make one with: mint allocate ANALYSIS --budget SIZE --output {path}")
    if not begins_with(path, b"{"):
        raise MintError(f"{path}: not a plan; needed: a plan that `mint allocate` wrote, or a folder that mint wrote")
    record = read_json(path, "needed: a plan that `mint allocate` wrote")
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise MintError(f"{path}: not a plan; needed: a file that `mint allocate` wrote")
    if record.get("schema") != SCHEMA:
        raise MintError(
            f"{path}: a plan of schema {record.get('schema')}, written by another version of mint; needed: one of "
            f"schema {SCHEMA}. Make it again with mint allocate"
        )
    try:
        plan = _plan(record)
        digest, planned_bytes, _ = record["digest"], plan.planned_bytes, plan.predicted_kl  # computed from all fields
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MintError(f"{path}: a damaged plan ({error!r}); make it again with mint allocate") from error
    if plan.digest != digest and not plan.edited:
        raise MintError(f"{path}: changed beyond its formats; edit only the `format` of units, or run mint allocate")
    if planned_bytes > plan.budget_bytes:
        raise MintError(
            f"{path}: needs {planned_bytes} bytes, its budget is {plan.budget_bytes}; "
            "choose smaller formats or raise budget_bytes"
        )
    return plan


def _plan(record: dict[str, Any]) -> Plan:
    parse_rounding(record["rounding"])
    plan = Plan(
        **_scalars(Plan, record),
        objective=objective(record["objective"]),
        rules=Rules.from_dict(record["rules"]),
        choices=tuple(map(_choice, record["units"])),
        parameters=tuple(
            Parameter(line["name"], tuple(line["shape"]), line["dtype"], tuple(line["sources"]))
            for line in record["parameters"]
        ),
        parameter_checksums={str(line["name"]): str(line["checksum"]) for line in record["parameters"]},
        evidence=Evidence(**record["evidence"]),
        dropped_towers=tuple(record["dropped_towers"]),
    )
    written = [(int(line["nbytes"]), float(line["loss"])) for line in record["units"]]
    changes = {
        choice.path: replace(choice, reason="chosen by hand")
        for choice, numbers in zip(plan.choices, written, strict=True)
        if (plan.nbytes_of(choice), plan.loss_of(choice)) != numbers
    }
    choices = tuple(changes.get(choice.path, choice) for choice in plan.choices)
    return replace(plan, choices=choices, edited=tuple(changes))


def _scalars(cls: type[Plan | Choice], record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all fields that are text or numbers, as their declared types."""
    return {field.name: field.type(record[field.name]) for field in fields(cls) if field.type in (str, int, float)}


def _choice_record(plan: Plan, choice: Choice) -> dict[str, Any]:
    return {
        "path": choice.path,
        "format": str(choice.format),
        "nbytes": plan.nbytes_of(choice),
        "sqnr_db": round(sqnr_db(choice.error), 2) if choice.error else "exact",
        "loss": plan.loss_of(choice),
        **pick(choice, "reason role layer shape dtype checksum min_bits alpha alpha_from active"),
        "curve": dict(zip(map(str, choice.formats), choice.errors, strict=True)),
        "vetoed": list(map(str, choice.vetoed)),
        **({"features": asdict(choice.features)} if choice.features else {}),
    }


def _choice(line: dict[str, Any]) -> Choice:
    format = parse_format(line["format"])
    curve = {parse_format(name): float(error) for name, error in line["curve"].items()}
    if format not in (KEEP, *curve):
        formats = ", ".join(map(str, (*curve, KEEP)))
        raise MintError(f"unit {line['path']} cannot be stored as {format}; needed one of {formats}")
    return Choice(
        **_scalars(Choice, line),
        format=format,
        shape=tuple(line["shape"]),
        formats=tuple(curve),
        errors=tuple(curve.values()),
        vetoed=tuple(map(parse_format, line["vetoed"])),
        features=Features(**line["features"]) if "features" in line else None,
    )


def _lines(name: str, records: list[dict[str, Any]]) -> list[str]:
    rows = [f"    {json.dumps(record)}" for record in records]
    return [f'  "{name}": [', *(f"{row}," for row in rows[:-1]), *rows[-1:]]
