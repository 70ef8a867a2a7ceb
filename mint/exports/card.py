"""The model card of a written folder: README.md, with the metadata of the Hugging Face hub."""

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mint.core.sizes import format_size, parse_size
from mint.core.version import __version__
from mint.exports.source_card import SourceCard
from mint.formats.quality import option_of
from mint.plan.plan import Choice, Plan, converted
from mint.plan.recipe import TEXT, Recipe
from mint.quality.verdict import interval_in_words, is_vague, kl_text, predicted_text
from mint.run.device_kind import CPU, device_kind, versions

if TYPE_CHECKING:  # it brings mlx_lm, which planning never needs
    from mint.quality.closeness import Closeness
    from mint.quality.estimates import Estimate

MODEL = "MODEL"  # stands in the commands for this folder, or its id on the hub
RECIPE_NAME = "quant-recipe.json"  # as mlx-kld reads it
_TAGS = ("mlx", "mint")
_ORDER = (
    "base_model", "language", "library_name", "license", "license_name", "license_link", "pipeline_tag", "tags",
    "base_model_relation",
)  # fmt: skip
_MOST_FORMATS = 4  # named for a role


def card_text(
    plan: Plan, source: SourceCard, closeness: "Closeness | None", task: str, uniform: "Closeness | None" = None
) -> str:
    """The card of the model that `plan` made from `source`; `task` is its pipeline tag on the hub.

    `uniform` is the closeness of uniform 4-bit.
    """
    name = f"{source.name}, {plan.bits_per_weight:.2f} bits per weight"
    sections = (
        f"---\n{_metadata(source, task)}\n---\n\n# {name}",
        _origin(plan, source),
        f"## Quality\n\n{_quality(plan, closeness)}{_beside(plan, uniform)}",
        f"## Use\n\n{_use(plan)}",
        f"## Formats\n\n{_sizes(plan)}\n\n{_roles(plan.choices)}",
        f"## How it was made\n\n{_making(plan, source)}",
    )
    return "\n\n".join(sections) + "\n"


def _metadata(source: SourceCard, task: str) -> str:
    """The metadata as huggingface_hub's `ModelCardData` writes it, which is slow to import."""
    import yaml

    tags = list(dict.fromkeys((*source.tags, *_TAGS)))
    fields: dict[str, Any] = {**source.metadata, "library_name": "mlx", "pipeline_tag": task, "tags": tags}
    for name in ("language", "base_model"):  # one is written as a text
        if len(fields.get(name, ())) == 1:
            (fields[name],) = fields[name]
    ordered = {name: fields[name] for name in _ORDER if name in fields}
    return str(yaml.dump(ordered, allow_unicode=True, sort_keys=False)).strip()


def _origin(plan: Plan, source: SourceCard) -> str:
    base = source.base
    original = f"[{base}](https://huggingface.co/{base})" if base else source.name
    text = f"{original}, quantized by MINT for MLX: every matrix has its own format."
    towers = " and ".join(plan.dropped_towers)
    return text + (f"\n\nText only: the {towers} tower of the original model is not included." if towers else "")


def _quality(plan: Plan, closeness: "Closeness | None") -> str:
    if closeness is None:
        guess = plan.predicted_kl
        expected = ""
        if guess and not is_vague(guess):
            expected = f" From the errors of its weights: {predicted_text(guess)}."
        return f"Not measured.{expected} `mint evaluate MODEL --reference ORIGINAL` compares it with the original."
    kl, top1 = closeness.kl, closeness.top1
    return (
        f"KL divergence from the original, in nats per token: {_interval(kl)}, "
        f"{interval_in_words(kl)}. The likeliest token is the same {top1.value:.1%} of the time "
        f"({top1.low:.1%} to {top1.high:.1%}). "
        f"Measured on {closeness.tokens} tokens {closeness.text}, which took no part in the quantization."
    )


def _beside(plan: Plan, uniform: "Closeness | None") -> str:
    """Uniform 4-bit on the same tokens; empty where it was not measured."""
    if uniform is None:
        return ""
    size = format_size(converted(plan).planned_bytes)
    return f" Uniform 4-bit as `mlx_lm.convert -q` writes it ({size}) has {_interval(uniform.kl)} on the same tokens."


def _interval(kl: "Estimate") -> str:
    return f"{kl_text(kl.value)} (95 % interval {kl_text(kl.low)} to {kl_text(kl.high)})"


def first_command(plan: Plan, model: str) -> str:
    """A command that runs the written model, for its user."""
    return f"mlx_lm.chat --model {model}" if plan.loader == TEXT else f"mlx_vlm.generate --model {model} --prompt Hello"


def next_command(plan: Plan, model: str) -> str:
    """The command that shows the written model at work here: a CPU is too slow for a chat."""
    if plan.loader == TEXT and device_kind() == CPU:
        return f"mlx_lm.generate --model {model} --prompt Hello --max-tokens 16"
    return first_command(plan, model)


def _use(plan: Plan) -> str:
    package = plan.loader.replace("_", "-")
    swift = "" if plan.loader != TEXT else (
        "- Swift: `LLMModelFactory.shared.loadContainer` of mlx-swift-lm, with the folder or the id.\n"
    )  # fmt: skip
    return (
        f"`{MODEL}` is this folder, or its id on the hub.\n\n"
        f"```bash\npip install {package}\n{first_command(plan, MODEL)}\n"
        f"{plan.loader}.server --model {MODEL}  # an OpenAI API on port 8080\n"
        f"```\n\n{swift}"
        "- LM Studio: download the id in the app, or move the folder to `~/.lmstudio/models/OWNER/NAME`."
    )


def _sizes(plan: Plan) -> str:
    return (
        f"{format_size(plan.planned_bytes)} of weight files ({plan.planned_bytes:,} bytes) for "
        f"{plan.weights:,} weights; the budget was {format_size(plan.budget_bytes)}."
    )


def _roles(choices: Sequence[Choice]) -> str:
    """The table of roles, the one with most weights first."""
    roles: dict[str, list[Choice]] = defaultdict(list)
    for choice in choices:
        roles[choice.role].append(choice)
    rows = sorted(roles.items(), key=lambda item: -sum(choice.weights for choice in item[1]))
    lines = [f"| {role} | {len(members)} | {_bits(members):.2f} | {_formats(members)} |" for role, members in rows]
    return "\n".join(["| role | modules | bits per weight | formats (bits/group) |", "|---|---|---|---|", *lines])


def _bits(choices: Iterable[Choice]) -> float:
    sizes = [(choice.format.nbytes(choice.shape, choice.dtype), choice.weights) for choice in choices]
    return 8 * sum(nbytes for nbytes, _ in sizes) / max(sum(weights for _, weights in sizes), 1)


def _formats(choices: Iterable[Choice]) -> str:
    counts = Counter(str(choice.format) for choice in choices).most_common()
    more = f", {len(counts) - _MOST_FORMATS} more" if len(counts) > _MOST_FORMATS else ""
    return ", ".join(f"{name} ({count})" for name, count in counts[:_MOST_FORMATS]) + more


def _making(plan: Plan, source: SourceCard) -> str:
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"With {used}. `mint-plan.json` holds the format of every module and its reason.\n\n"
        f"```bash\n{quantize_command(plan, source)}\n"
        f"mint assemble mint-plan.json --model ORIGINAL --output OUT  # exactly these formats\n```"
    )


def quantize_command(plan: Plan, source: SourceCard) -> str:
    """The command whose plan this is; a preference for speed is not in a plan, nor is a choice by hand."""
    default, rules = Recipe(), plan.rules
    words = [
        "mint",
        "quantize",
        source.base or source.name,
        "--budget",
        _budget(plan.budget_bytes),
        *option_of(plan.rounding).split(),
    ]
    words += ["--dtype", plan.dtype] if plan.dtype else []
    words += ["--text-only"] if plan.dropped_towers else []
    probes_unasked = Recipe(rounding=plan.rounding, objective=plan.objective.name).probes_unasked
    if bool(plan.evidence.probed) != probes_unasked:
        words += ["--probe"] if plan.evidence.probed else ["--ignore-probe"]
    values = {"objective": plan.objective.name, "veto_db": rules.veto_db, "min_bits": rules.min_bits}
    values |= {"max_bits": rules.max_bits}
    for name, value in values.items():
        if value != getattr(default, name):
            words += [f"--{name.removesuffix('_db').replace('_', '-')}", f"{value}"]
    words += ["--formats", ",".join(map(str, rules.formats))] if rules.formats else []
    for pattern, format in rules.locks:
        words += ["--set", f"{pattern}={format}"]
    for pattern in rules.ignored_floors:
        words += ["--ignore-floors", pattern]
    return shlex.join(words)


def _budget(nbytes: int) -> str:
    """A budget as people write it, where that is exact."""
    short = format_size(nbytes).replace(" ", "")
    return short if parse_size(short) == nbytes else f"{nbytes}B"


def recipe_record(plan: Plan, closeness: "Closeness | None") -> dict[str, Any]:
    """The plain values of `quant-recipe.json`: mlx-kld reports them beside its figures."""
    measured = {"kl": closeness.kl.value, "top1": closeness.top1.value} if closeness else {}
    return {
        "tool": "mint",
        "tool_version": __version__,
        "loader": plan.loader,
        "rounding": plan.rounding,
        "objective": plan.objective.name,
        "bits_per_weight": round(plan.bits_per_weight, 4),
        "weight_bytes": plan.planned_bytes,
        "budget_bytes": plan.budget_bytes,
        "plan": plan.digest,
        **measured,
    }
