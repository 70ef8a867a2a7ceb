"""Requests of the API, version 1. Sizes are bytes.

Requests forbid unknown fields and bound every length; patterns define a budget, a size or a lock exactly, so that a
program can generate valid requests from the description.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cluster.service.request_options import DEFAULTS, DEVICE_NAMES
from mint.formats.rounding import ROUNDINGS
from mint.plan.objectives import OBJECTIVES
from mint.plan.recipe import DTYPES, LOADERS
from mint.targets.loaders import loaders

_AMOUNT = r"([1-9][0-9]{0,5}(\.[0-9]{1,3})?|0\.0{0,2}[1-9][0-9]{0,2})"
_SIZE = rf"({_AMOUNT} ?[kKMGTmgt]i?[bB]|[1-9][0-9]{{0,14}} ?[bB])"
_PART = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"  # of an id of the hub
_BITS, _GROUP = "[234568]", "(32|64|128)"
_FORMAT = rf"({_BITS}/{_GROUP}|mxfp4|nvfp4)"
_FORMATS = rf"(({_BITS}|{_FORMAT})(,({_BITS}|{_FORMAT}))*|{_BITS}(,{_BITS})*@{_GROUP}(,{_GROUP})*)"
_LOADERS = "|".join(loader.name.replace(".", r"\.") for loader in loaders() if loader.mixed)

Budget = Annotated[
    str,
    Field(
        max_length=64,
        pattern=rf"^({_SIZE}|{_AMOUNT} ?(bpw|x)|min|max|{'|'.join(sorted(DEVICE_NAMES))})$",
        description="A size (24GB, 16.5GiB), bits per weight (4.5bpw), a share of the source (0.3x), min, max, or the "
        "name of a device, which leaves room for `context` tokens.",
        examples=["24GB", "4.5bpw"],
    ),
]
ModelName = Annotated[
    str,
    Field(
        min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$", examples=["Qwen3-8B"],
        description="A folder or a GGUF file below one of the service's roots, as `GET /v1/models` names it; or, where "
        "the service allows it, an id of the Hugging Face hub. `POST /v1/fetches` makes either ready.",
    ),
]  # fmt: skip


_Formats = Annotated[str, Field(max_length=100, pattern=f"^{_FORMATS}$", examples=["3,4,8@64", "mxfp4"])]
_LOCK = rf"^[A-Za-z0-9_.*?-]{{1,200}}=({_FORMAT}|keep)$"
_Lock = Annotated[str, Field(max_length=240, pattern=_LOCK, examples=["*.down_proj=6/64"])]
_Pattern = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_.*?-]+$", examples=["*.gate"])]
Rounding = Literal[*ROUNDINGS]  # type: ignore[valid-type]
Dtype = Literal["", *DTYPES]  # type: ignore[valid-type]
Loader = Literal["", *LOADERS]  # type: ignore[valid-type]
ObjectiveName = Literal[*OBJECTIVES]  # type: ignore[valid-type]
# a number without a fraction is an integer in JSON, however it is written: 4.0 is 4
Whole = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Options(_Request):
    """The choices of `mint quantize`, with its defaults."""

    rounding: Rounding = DEFAULTS["rounding"]
    dtype: Dtype = DEFAULTS["dtype"]
    loader: Loader = DEFAULTS["loader"]
    requantize: bool = DEFAULTS["requantize"]
    probe: bool = DEFAULTS["probe"]
    objective: ObjectiveName = DEFAULTS["objective"]
    veto_db: Annotated[float, Field(ge=-20, le=120, allow_inf_nan=False)] = DEFAULTS["veto_db"]
    min_bits: Annotated[int, Field(ge=0, le=16), Whole] = DEFAULTS["min_bits"]
    max_bits: Annotated[int, Field(ge=2, le=64), Whole] = DEFAULTS["max_bits"]
    formats: Annotated[list[_Formats], Field(max_length=32)] = DEFAULTS["formats"]
    lock: Annotated[list[_Lock], Field(max_length=256)] = DEFAULTS["lock"]
    ignore_floors: Annotated[list[_Pattern], Field(max_length=256)] = DEFAULTS["ignore_floors"]
    compat: Annotated[str, Field(max_length=64, pattern=rf"^({_LOADERS})?$")] = DEFAULTS["compat"]
    prefer_speed: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = DEFAULTS["prefer_speed"]
    ignore_probe: bool = DEFAULTS["ignore_probe"]
    max_shard_size: Annotated[str, Field(max_length=16, pattern="^[1-9][0-9]{0,4} ?[MG]i?B$")] = DEFAULTS[
        "max_shard_size"
    ]
    context: Annotated[
        str, Field(max_length=16, pattern="^([1-9][0-9]{0,6}|[1-9][0-9]{0,3}[kKmM])$", description="Tokens.")
    ] = DEFAULTS["context"]
    kv_bits: Annotated[Literal[2, 3, 4, 6, 8] | None, Whole] = DEFAULTS["kv_bits"]
    reserve: Annotated[str, Field(max_length=32, pattern=f"^(0|{_SIZE})$")] = DEFAULTS["reserve"]


class Submission(_Request):
    """A model and budgets: a job each; without a budget, one for the analysis alone."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"model": "Qwen3-8B", "budgets": ["6GB", "4.5bpw"]}]},
    )
    model: ModelName
    budgets: Annotated[list[Budget], Field(max_length=64)] = []
    options: Options = Options()
    priority: Annotated[int, Field(ge=-10, le=10, description="Above 0 only for admins."), Whole] = 0
    group: Annotated[
        str,
        Field(max_length=64, pattern="^([A-Za-z0-9][A-Za-z0-9._@-]*)?$", description="One of yours, which alone sees "
              "the jobs; empty: everybody, or the group of the model."),
    ] = ""  # fmt: skip
    deadline_hours: Annotated[
        float | None, Field(gt=0, le=10_000, allow_inf_nan=False, description="Of work; the job fails after them.")
    ] = None


class ForecastRequest(_Request):
    """A submission that is only considered."""

    model: ModelName
    budgets: Annotated[list[Budget], Field(max_length=64)] = []
    options: Options = Options()


class JobChange(_Request):
    """The state that an unfinished job shall have: paused, or in the queue."""

    paused: bool


class Nothing(_Request):
    """An empty object."""


class HostChange(_Request):
    """True for a machine that shall begin no more jobs."""

    drained: bool


_Group = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
_Limit = Annotated[int | None, Field(ge=0, le=2**53), Whole]


class QuotaChange(_Request):
    """The limits of a person: running jobs, unfinished jobs, stored and expected bytes. Null is none."""

    active: _Limit = None
    queued: _Limit = None
    nbytes: _Limit = None


class PersonChange(_Request):
    """A new quota or new groups of a person, in place of the old ones; null changes nothing."""

    quota: QuotaChange | None = None
    groups: Annotated[list[_Group], Field(max_length=32)] | None = None


class FetchRequest(_Request):
    """A model of the Hugging Face hub to be downloaded to the service, or a GGUF file to be converted there."""

    model: Annotated[
        str,
        Field(
            max_length=255, pattern=rf"^({_PART}/{_PART}(@{_PART}(/{_PART})*)?|[^\x00-\x1f\x7f]+\.gguf)$",
            examples=["Qwen/Qwen3-8B"],
            description="OWNER/NAME or OWNER/NAME@REVISION; or a GGUF file, as `GET /v1/models` names it.",
        ),
    ]  # fmt: skip


class PlanRequest(_Request):
    """A plan to be made at once from a stored analysis."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"model": "Qwen3-8B", "budget": "6GB"}]}
    )
    model: ModelName  # or its identity
    budget: Budget
    options: Options = Options()


class TicketRequest(_Request):
    """A file of an artifact for a browser to download."""

    name: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
