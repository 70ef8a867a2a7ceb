"""The end of a command in a few lines that a person can judge: name, size, bits, closeness, warning, next command."""

import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint.core.sizes import format_seconds, format_size
from mint.exports.card import first_command
from mint.formats.format import KEEP
from mint.plan.plan import Plan, converted
from mint.quality.estimates import Estimate
from mint.quality.evaluation import OWN_TEXT, Evaluation, Refused
from mint.quality.verdict import is_ruined, kl_in_words, kl_text, predicted_text

if TYPE_CHECKING:
    from mint.forecast.forecast import Forecast

_MAX_FORMATS = 3  # named in a summary


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
    *,
    is_verified: bool = True,
    analysis: Path | None = None,
) -> list[Line]:
    """The lines for a model that was written to `output`.

    `measured` is the closeness of its manifest, `analysis` the file that tells what more bytes bring.
    """
    folder = shlex.quote(str(output))
    command = first_command(plan, folder) if is_verified else f"mint verify {folder}"
    return [
        Line("model", f"{output} ({'verified' if is_verified else 'not verified yet'})"),
        *_judgement(plan, measured, analysis),
        Line("next", command),
    ]


def plan_summary(plan: Plan, path: Path | None, analysis: Path | None = None) -> list[Line]:
    """The lines for a plan, and for its file if it was written; `analysis` as in `model_summary`."""
    file = str(path) if path else "not written; --output FILE keeps it"
    command = f"mint assemble {shlex.quote(str(path))} --model MODEL --output OUT" if path else ""
    return [Line("plan", file), *_judgement(plan, None, analysis), *([Line("next", command)] if path else [])]


def forecast_summary(forecast: "Forecast") -> list[Line]:
    """The lines for a forecast."""
    steps = [f"{step.name} {format_seconds(step.seconds)}" for step in forecast.steps]
    memory = Line(
        "memory",
        f"up to {format_size(forecast.peak_bytes)} of {format_size(forecast.machine_bytes)}",
        is_warning=forecast.peak_bytes > forecast.machine_bytes,
    )
    return [
        Line("time", f"about {format_seconds(forecast.seconds)}: {', '.join(steps)}"),
        memory,
        Line("disk", format_size(forecast.disk_bytes)),
        *([Line("download", forecast.download)] if forecast.download else []),
    ]


def evaluation_summary(evaluation: Evaluation | Refused) -> list[Line]:
    """The lines for a model that was compared with its original, or could not be."""
    if isinstance(evaluation, Refused):
        return [Line("model", evaluation.output), Line("ERROR", evaluation.error.typed, is_warning=True)]
    figures = evaluation.estimates
    kl, floor = figures["kl_mean"], figures["noise_floor"].value
    perplexity, original = figures["perplexity"].value, figures["reference_perplexity"].value
    lines = [
        Line("model", evaluation.output),
        Line("closeness", _closeness_text(kl, figures["top1_agreement"])),
        Line("noise", f"KL {kl_text(floor)} from 16-bit arithmetic alone"),
        Line("text", f"perplexity {perplexity:.4g}, the original's {original:.4g}; {_text_of(evaluation)}"),
    ]
    if accuracy := figures.get("task_accuracy"):
        share = f"{accuracy.value:.1%} of the answers are right ({accuracy.low:.1%} to {accuracy.high:.1%})"
        lines.append(Line("tasks", share))
    if is_ruined(kl.value):
        lines.append(Line("WARNING", "expect nonsense from this model", is_warning=True))
    return lines


def _text_of(evaluation: Evaluation) -> str:
    """The tokens of the comparison, in words."""
    origin = evaluation.text if evaluation.text == OWN_TEXT else f"of {evaluation.text}"
    return f"{evaluation.tokens:,} tokens {origin}"


def _judgement(plan: Plan, measured: Mapping[str, Any] | None, analysis: Path | None) -> list[Line]:
    lines = [
        Line("size", f"{format_size(plan.planned_bytes)} of {format_size(plan.budget_bytes)}"),
        Line("bits", f"{plan.bits_per_weight:.2f} per weight: {_formats(plan)}"),
    ]
    estimate = plan.predicted_kl
    kl = float(measured["kl"]["value"]) if measured else estimate.value if estimate else None
    if kl is None:
        lines.append(Line("loss", f"{plan.loss:.4g} of the objective {plan.objective.name}, which predicts no KL"))
    else:
        text = _measured_text(measured) if measured else predicted_text(estimate) if estimate else ""
        lines.append(Line("closeness", text))
        lines.append(Line("4-bit", _converted_text(converted(plan))))
    if kl is not None and is_ruined(kl):
        verb = "ruins" if measured else "may ruin"
        curve = f"; mint curve {shlex.quote(str(analysis))} shows how many" if analysis else ""
        text = f"this size {verb} the model: expect nonsense. Give it more bytes{curve}"
        lines.append(Line("WARNING", text, is_warning=True))
    return lines


def _converted_text(plain: Plan) -> str:
    assert plain.predicted_kl
    size = format_size(plain.planned_bytes)
    kl = plain.predicted_kl
    return f"mlx_lm.convert would write {size} with {predicted_text(kl).rpartition(': ')[2]}"


def _measured_text(measured: Mapping[str, Any]) -> str:
    kl, top1 = (Estimate(**measured[name]) for name in ("kl", "top1"))
    return _closeness_text(kl, top1)


def _closeness_text(kl: Estimate, top1: Estimate) -> str:
    interval = f"{kl_text(kl.low)} to {kl_text(kl.high)}"
    words = kl_in_words(kl.value)
    return f"{words}: KL {kl_text(kl.value)} ({interval}) measured, same first word {top1.value:.0%}"


def _formats(plan: Plan) -> str:
    """The formats of most weights, with their shares; one whose share rounds to 0 % is not named."""
    weights: dict[str, int] = defaultdict(int)
    for choice in plan.choices:
        weights["unquantized" if choice.format == KEEP else str(choice.format)] += choice.weights
    total, names = sum(weights.values()), sorted(weights, key=lambda name: -weights[name])
    named = [name for name in names[:_MAX_FORMATS] if round(100 * weights[name] / total)]
    more = [f"{len(names) - len(named)} more"] if len(names) > len(named) else []
    return ", ".join([f"{weights[name] / total:.0%} {name}" for name in named] + more)
