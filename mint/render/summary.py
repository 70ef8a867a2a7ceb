"""The end of a command in a few lines that a person can judge: name, size, bits, closeness, warning, next command."""

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint.core.sizes import format_seconds, format_size
from mint.exports.card import next_command
from mint.formats.format import KEEP
from mint.formats.rounding import ROUNDINGS
from mint.plan.plan import Plan, converted
from mint.quality.estimates import Estimate
from mint.quality.evaluation import OWN_TEXT, Evaluation, Refused
from mint.quality.verdict import (
    beside_text,
    interval_in_words,
    is_ruined,
    is_vague,
    kl_text,
    measured_text,
    predicted_in_words,
    predicted_text,
    ruined_text,
    uniform_text,
)
from mint.run.device_kind import CPU, device_kind

if TYPE_CHECKING:
    from mint.forecast.forecast import Forecast

_MAX_FORMATS = 3  # named in a summary
_SLOW = "on a CPU mlx runs packed weights several times slower than 16-bit ones; it is made for Apple's GPUs"


@dataclass(frozen=True, slots=True)
class Line:
    """A label and its text."""

    label: str
    text: str
    is_warning: bool = False


def model_summary(
    plan: Plan,
    output: Path,
    measured: Mapping[str, Any] | None = None,
    uniform: Mapping[str, Any] | None = None,
    *,
    is_verified: bool = True,
    analysis: Path | None = None,
    original: str = "MODEL",
) -> list[Line]:
    """The lines for a model that was written to `output`.

    `measured` and `uniform` are those of its manifest, `analysis` is the file that tells what more bytes bring, and
    `original` stands for the source in commands.
    """
    folder, source = shlex.quote(str(output)), shlex.quote(original)
    packs = any(choice.format != KEEP for choice in plan.choices)
    command = next_command(plan, folder) if is_verified else f"mint verify {folder}"
    evaluate = f"mint evaluate {folder} --reference {source}"
    convert = f"; to compare: mlx_lm.convert --hf-path {source} -q --mlx-path 4bit, then mint evaluate 4bit "
    return [
        Line("model", f"{output} ({'verified' if is_verified else 'not verified yet'})"),
        *_judgement(plan, measured, unknown=f"not measured; needed: {evaluate}", beside=f"; to measure: {evaluate}"),
        *_beside(plan, measured, uniform, f"{convert}--reference {source}"),
        *_warning(plan, measured, analysis),
        Line("next", command),
        *([Line("speed", _SLOW)] if is_verified and packs and device_kind() == CPU else []),
    ]


def quality_lines(plan: Plan, measured: Mapping[str, Any] | None, uniform: Mapping[str, Any] | None) -> list[Line]:
    """The lines on size, bits and closeness alone, with uniform 4-bit beside; the last two as in `model_summary`."""
    return [
        *_judgement(plan, measured, unknown="not measured"),
        *_beside(plan, measured, uniform),
        *_warning(plan, measured, None),
    ]


def plan_summary(plan: Plan, path: Path | None, analysis: Path | None = None) -> list[Line]:
    """The lines for a plan, and for its file if it was written; `analysis` as in `model_summary`."""
    file = str(path) if path else "not written; --output FILE keeps it"
    command = f"mint assemble {shlex.quote(str(path))} --model MODEL --output OUT" if path else ""
    rounding = ROUNDINGS[plan.rounding]
    remedy = "the written model is measured" if rounding.needs_model else "mint probe MODEL makes a prediction possible"
    return [
        Line("plan", file),
        *_judgement(plan, None, unknown=f"not known before the model is written; {remedy}"),
        *_beside(plan),
        *_warning(plan, None, analysis),
        *([Line("next", command)] if path else []),
    ]


def forecast_summary(forecast: "Forecast") -> list[Line]:
    """The lines for a forecast."""
    steps = [f"{step.name} {format_seconds(step.seconds)}" for step in forecast.steps]
    memory = Line(
        "memory",
        f"up to {format_size(forecast.peak_bytes)} of {format_size(forecast.machine_bytes)}",
        is_warning=forecast.peak_bytes > forecast.machine_bytes,
    )
    return [
        Line("time", f"about {format_seconds(forecast.seconds)}: {', '.join(steps)}{forecast.verified}"),
        memory,
        Line("disk", format_size(forecast.disk_bytes)),
        *([Line("download", forecast.download)] if forecast.download else []),
    ]


def evaluation_summary(evaluation: Evaluation | Refused) -> list[Line]:
    """The lines for a model that was compared with its original, or could not be."""
    if isinstance(evaluation, Refused):
        return [Line("model", evaluation.output), Line("ERROR", evaluation.error.typed, is_warning=True)]
    figures = evaluation.estimates
    kl, perplexity = figures["kl_mean"], figures["perplexity"].value
    original = figures["reference_perplexity"].value
    lines = [
        Line("model", evaluation.output),
        Line("closeness", measured_text(kl, figures["top1_agreement"])),
        _noise(evaluation),
        Line("text", f"perplexity {perplexity:.4g}, the original's {original:.4g}; {_text_of(evaluation)}"),
    ]
    if accuracy := figures.get("task_accuracy"):
        share = f"{accuracy.value:.1%} of the answers are right ({accuracy.low:.1%} to {accuracy.high:.1%})"
        lines.append(Line("tasks", share))
    if is_ruined(kl.value):
        lines.append(Line("WARNING", "expect nonsense from this model", is_warning=True))
    return lines


def comparison(
    names: Sequence[str], evaluations: Sequence[Evaluation | Refused]
) -> tuple[list[dict[str, Any]], list[Line]]:
    """A row for each of several models that were compared with one original, the closest first, and lines for all.

    `names` are those that the user gave. Models that could not be compared come last, each with a line.
    """
    models = list(zip(names, evaluations, strict=True))
    compared = [(name, result) for name, result in models if isinstance(result, Evaluation)]
    compared.sort(key=lambda model: model[1].estimates["kl_mean"].value)
    refused = [(name, result) for name, result in models if isinstance(result, Refused)]
    lines = []
    if compared:
        _, first = compared[0]
        original = first.estimates["reference_perplexity"].value
        lines = [_noise(first), Line("text", f"{_text_of(first)}; the original's perplexity is {original:.4g}")]
    for name, result in compared:
        if is_ruined(result.estimates["kl_mean"].value):
            lines.append(Line("WARNING", f"expect nonsense from {name}", is_warning=True))
    for name, fault in refused:
        text = fault.error.typed
        lines.append(Line("ERROR", text if text.startswith(name) else f"{name}: {text}", is_warning=True))
    return [_compared_row(*model) for model in compared] + [_refused_row(*model) for model in refused], lines


def _compared_row(name: str, evaluation: Evaluation) -> dict[str, Any]:
    figures = evaluation.estimates
    kl, accuracy = figures["kl_mean"], figures.get("task_accuracy")
    return {
        "model": name,
        "size": _size(name, evaluation.output),
        "kl": f"{kl_text(kl.value)} ({kl_text(kl.low)} to {kl_text(kl.high)})",
        "same_first_word": f"{figures['top1_agreement'].value:.0%}",
        "perplexity": f"{figures['perplexity'].value:.4g}",
        **({"right_answers": f"{accuracy.value:.1%}"} if accuracy else {}),
        "in_words": interval_in_words(kl),
    }


def _refused_row(name: str, refused: Refused) -> dict[str, Any]:
    return {"model": name, "size": _size(name, refused.output), "in_words": "not compared"}


def _size(name: str, folder: str) -> str:
    """The size of the weights of a model that the user gave by `name`: a GGUF file, or what was found in `folder`."""
    files = [Path(name)] if Path(name).is_file() else Path(folder).glob("*.safetensors")
    return format_size(sum(file.stat().st_size for file in files))


def _noise(evaluation: Evaluation) -> Line:
    """The line of the KL below which there is no loss."""
    floor = kl_text(evaluation.estimates["noise_floor"].value)
    return Line("noise", f"KL {floor} from 16-bit arithmetic alone; a smaller KL means no loss")


def _text_of(evaluation: Evaluation) -> str:
    """The tokens of the comparison, in words."""
    origin = evaluation.text if evaluation.text == OWN_TEXT else f"of {evaluation.text}"
    return f"{evaluation.tokens:,} tokens {origin}"


def _judgement(plan: Plan, measured: Mapping[str, Any] | None, *, unknown: str, beside: str = "") -> list[Line]:
    """Size, bits and closeness. `unknown` says how to learn one that is neither measured nor predicted.

    `beside` does so for a prediction that no word fits.
    """
    lines = [
        Line("size", f"{format_size(plan.planned_bytes)} of {format_size(plan.budget_bytes)}"),
        Line("bits", f"{plan.bits_per_weight:.2f} per weight: {_formats(plan)}"),
    ]
    estimate = plan.predicted_kl
    if measured:
        lines.append(Line("closeness", measured_text(Estimate(**measured["kl"]), Estimate(**measured["top1"]))))
    elif estimate is None:
        lines.append(Line("loss", f"{plan.loss:.4g} of the objective {plan.objective.name}, which predicts no KL"))
    elif is_vague(estimate):
        lines.append(Line("closeness", unknown))
    else:
        lines.append(Line("closeness", f"{predicted_text(estimate)}{'' if predicted_in_words(estimate) else beside}"))
    return lines


def _beside(
    plan: Plan,
    measured: Mapping[str, Any] | None = None,
    uniform: Mapping[str, Any] | None = None,
    convert: str = "",
) -> list[Line]:
    """The line of uniform 4-bit: measured on the same text, predicted well, or just its size and how to `convert`."""
    plain = converted(plan)
    size = f"mlx_lm.convert would write {format_size(plain.planned_bytes)}"
    if uniform:
        kl = Estimate(**uniform["kl"])
        ratio = beside_text(Estimate(**measured["kl"]), kl).removesuffix(" than 4-bit") if measured else ""
        words = f"; this model is {ratio}, {_more_bytes(plan, plain)}" if ratio else ""
        return [Line("4-bit", f"{size}: {uniform_text(uniform)}{words}")]
    kl_of_plain = plain.predicted_kl
    if kl_of_plain is None:
        return []
    if is_vague(kl_of_plain):
        return [Line("4-bit", f"{size}{convert}")]
    return [Line("4-bit", f"{size} with {predicted_text(kl_of_plain).rpartition(': ')[2]}")]


def _more_bytes(plan: Plan, plain: Plan) -> str:
    """The bytes of a plan beside those of another, in words."""
    percent = round(100 * (plan.planned_bytes / plain.planned_bytes - 1))
    return f"in {abs(percent)}% {'more' if percent > 0 else 'fewer'} bytes" if percent else "in as many bytes"


def _warning(plan: Plan, measured: Mapping[str, Any] | None, analysis: Path | None) -> list[Line]:
    """The warning of a model whose text is mostly nonsense."""
    estimate = plan.predicted_kl
    kl = float(measured["kl"]["value"]) if measured else estimate.value if estimate else 0.0
    if not is_ruined(kl):
        return []
    curve = f"; mint curve {shlex.quote(str(analysis))} shows how many" if analysis else ""
    return [Line("WARNING", ruined_text(is_measured=bool(measured)) + curve, is_warning=True)]


def _formats(plan: Plan) -> str:
    """The formats of most weights, with their shares; one whose share rounds to 0 % is not named."""
    weights: dict[str, int] = defaultdict(int)
    for choice in plan.choices:
        weights["unquantized" if choice.format == KEEP else str(choice.format)] += choice.weights
    total, names = sum(weights.values()), sorted(weights, key=lambda name: -weights[name])
    named = [name for name in names[:_MAX_FORMATS] if round(100 * weights[name] / total)]
    more = [f"{len(names) - len(named)} more"] if len(names) > len(named) else []
    return ", ".join([f"{weights[name] / total:.0%} {name}" for name in named] + more)
